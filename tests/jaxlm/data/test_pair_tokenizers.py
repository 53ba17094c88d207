"""Tokenizers of pairs: joint or separate, saved as one or two, with BOS, EOS and padding."""

import pytest

from jaxlm import errors
from jaxlm.data import pair_tokenizers, tokenizers

PAIRS = [
  (f'a house with {word} rooms', f'ein Haus mit {word} Zimmern') for word in ('two', 'three', 'many', 'some') * 9
]


@pytest.mark.parametrize('kind, size', [('bpe', 330), ('unigram', 276), ('words', 20), ('bytes', 259)])
@pytest.mark.parametrize('joint', [True, False])
def test_a_saved_tokenizer_is_the_same(tmp_path, kind, size, joint):
  made = pair_tokenizers.train(PAIRS, kind=kind, vocab_size=size, joint=joint, directory=tmp_path)
  read = pair_tokenizers.load(tmp_path)
  assert made.joint == read.joint == joint
  again = pair_tokenizers.train(PAIRS, kind=kind, vocab_size=size, joint=joint)
  for side in ('source', 'target'):
    one, other, third = (getattr(found, side) for found in (made, read, again))
    assert one.fingerprint == other.fingerprint == third.fingerprint
    assert len({one.bos_id, one.eos_id, one.pad_id}) == 3 and one.stop_ids == (one.eos_id,)
    for text in PAIRS[1]:
      assert one.encode(text) == other.encode(text)
      assert joint is False and kind == 'words' or other.decode(other.encode(text)) == text
  assert made.encode_source('a house') == made.source.encode('a house')
  if joint:
    assert tokenizers.from_directory(tmp_path).fingerprint == made.source.fingerprint  # Where jaxlm.load looks.


def test_separate_tokenizers_know_their_own_language():
  made = pair_tokenizers.train(PAIRS, kind='words', vocab_size=99, joint=False)
  source, target = PAIRS[0]
  assert made.source.decode(made.source.encode(source)) == source and made.source.encode('Haus') == [0]
  assert made.target.decode(made.target.encode(target)) == target and made.target.encode('house') == [0]


def test_words_are_by_frequency_and_special_tokens_are_no_words():
  made = pair_tokenizers.word_tokenizer(['b b a', 'c a b <s>'], 6)
  assert made.encode('b a c <s>') == [1, 2, 0, 0] and made.vocab_size == 6
  assert (made.bos_id, made.eos_id, made.pad_id) == (3, 4, 5) and made.decode([3, 1, 0, 2, 4]) == 'b <unk> a'
  with pytest.raises(ValueError, match='vocab_size=4 leaves no id'):
    pair_tokenizers.word_tokenizer(['a'], 4)


@pytest.mark.parametrize('kind, size', [('bpe', 330), ('unigram', 276)])
def test_characters_that_training_lacked_are_kept(kind, size):
  made = pair_tokenizers.train(PAIRS, kind=kind, vocab_size=size)
  text = 'Ångström 日本 🙂'
  assert made.source.decode(made.source.encode(text)) == text


def test_what_is_wrong_is_named(tmp_path):
  with pytest.raises(ValueError, match="Unknown kind of tokenizer 'bp'. Did you mean 'bpe'"):
    pair_tokenizers.train(PAIRS, kind='bp')
  with pytest.raises(errors.DataError, match='holds no tokenizer: expected one, or tokenizer_source'):
    pair_tokenizers.load(tmp_path)
  pair_tokenizers.train(PAIRS, kind='bytes', joint=True, directory=tmp_path / 'tokenizer_source')
  with pytest.raises(errors.DataError, match='tokenizer_target holds no tokenizer'):
    pair_tokenizers.load(tmp_path)
  bare = tokenizers.ByteTokenizer()
  bare.pad_id = None
  with pytest.raises(ValueError, match='tokenizer of the target has no pad_id'):
    pair_tokenizers.PairTokenizers(tokenizers.ByteTokenizer(), bare)
