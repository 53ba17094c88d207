"""A streamed text is what `decode` makes of all ids at once, for decoders with their steps in any order, and any ids."""

import itertools
import random

import pytest
import tokenizers as lib
from tokenizers import AddedToken, decoders, models

from jaxlm.data import tokenizers as T
from tests.tokenizers_made import byte_level_bpe, llama_json

BYTES = [f'<0x{i:02X}>' for i in range(256)]
ENDS = ['▁', 'H', 'i', '▁H', '▁Hi', ' ', '  ', 'é', '##a', '.', "n't", ' do', ' not', 'Ġ', '</w>', 'a</w>b</w>', '▁▁', 'ab', 'b', 'a', '\ufffd']  # fmt: skip
PIECES = ['<unk>', '<s>', '</s>', *BYTES, *ENDS]
# Bytes of €, 😀 and é, and two that begin or end nothing.
HOT = [3 + byte for byte in (*'€😀éA'.encode(), 0xFF, 0xE3)] + [
  *range(len(PIECES) - len(ENDS), len(PIECES) + 1),
  0,
  1,
  2,
]


def tokenizer(decoder) -> T.HuggingFaceTokenizer:
  vocabulary = {piece: id for id, piece in enumerate(PIECES)}
  tok = lib.Tokenizer(models.BPE(vocabulary, [('▁', 'H'), ('▁H', 'i')], unk_token='<unk>', byte_fallback=True))
  if decoder is not None:
    tok.decoder = decoder
  tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in ('<unk>', '<s>', '</s>')])
  tok.add_tokens(['  both halves '])
  return T.HuggingFaceTokenizer(tok.to_str(), {'bos_token': '<s>'})


def sequence(*steps):
  return decoders.Sequence(list(steps))


def orders():
  d = decoders
  usual = {'replace': d.Replace('▁', ' '), 'bytes': d.ByteFallback(), 'fuse': d.Fuse(), 'strip': d.Strip(' ', 1, 0)}
  for names in [*itertools.permutations(usual), *itertools.permutations(usual, 3)]:
    yield ' '.join(names), sequence(*map(usual.get, names))
  yield 'bytes metaspace', sequence(d.ByteFallback(), d.Metaspace())
  yield 'metaspace bytes fuse', sequence(d.Metaspace(), d.ByteFallback(), d.Fuse())
  yield 'byte level', d.ByteLevel()
  yield 'byte level fuse', sequence(d.ByteLevel(), d.Fuse())
  yield 'fuse byte level', sequence(d.Fuse(), d.ByteLevel())
  yield 'byte level replace', sequence(d.ByteLevel(), d.Replace('ab', 'xyz'))
  yield 'two replacements', sequence(d.ByteFallback(), d.Fuse(), d.Replace('aba', 'QQQ'), d.Replace('Qb', 'ZZ'))
  yield 'regular expression', sequence(d.ByteFallback(), d.Fuse(), d.Replace(lib.Regex('a+b'), 'Q'))
  yield 'word pieces', d.WordPiece()
  yield 'fuse word pieces', sequence(d.Fuse(), d.WordPiece())
  yield 'suffixes', d.BPEDecoder()
  yield 'ctc', d.CTC('a', 'b', True)
  yield 'metaspace', d.Metaspace()
  yield 'two spaces', sequence(d.ByteFallback(), d.Fuse(), d.Strip(' ', 2, 0))
  yield 'nested', sequence(sequence(d.Replace('▁', ' '), d.ByteFallback()), d.Fuse(), d.Strip(' ', 1, 0))
  yield 'none', None


def check(t, ids_of, trials: int = 250) -> float:
  """Checks random ids in random parts. Returns the share of the text that comes before the end."""
  rng, early, total = random.Random(0), 0, 0
  for _ in range(trials):
    ids, skip, at, parts = ids_of(rng), rng.random() < 0.7, 0, []
    stream = T.TextStream(t, skip_special=skip)
    while at < len(ids):
      size = rng.choice([1, 1, 1, 2, 4])
      parts.append(stream.push(ids[at : at + size]))
      at += size
    streamed = ''.join(parts)
    early, total = early + len(streamed), total + len(streamed + (rest := stream.flush()))
    assert streamed + rest == t.decode(ids, skip_special=skip), (ids, parts)
  return early / total


@pytest.mark.parametrize('name, decoder', orders(), ids=[name for name, _ in orders()])
def test_what_is_streamed_adds_up_for_any_ids(name, decoder):
  t = tokenizer(decoder)
  some = lambda rng: [rng.choice(HOT) if rng.random() < 0.9 else rng.randrange(t.vocab_size) for _ in range(rng.randrange(1, 14))]  # fmt: skip
  early = check(t, some)
  assert early > (0.2 if name == 'two replacements' else 0.6) or name in ('regular expression', 'fuse byte level')


@pytest.mark.parametrize('make', [T.ByteTokenizer, byte_level_bpe, llama_json, lambda: T.train_sentencepiece(['the quick brown fox'] * 30, 285, dummy_prefix=True)])  # fmt: skip
def test_what_is_streamed_adds_up_for_the_kinds_that_join_bytes(make):
  t = make()
  assert check(t, lambda rng: [rng.randrange(t.vocab_size + 2) for _ in range(rng.randrange(1, 14))]) > 0.9


@pytest.mark.parametrize('name', ['bytes metaspace', 'bytes fuse replace', 'metaspace bytes fuse', 'byte level fuse'])
def test_characters_in_pieces_are_streamed_whole(name):
  byte_level = 'byte level' in name
  t = byte_level_bpe() if byte_level else tokenizer(dict(orders())[name])
  if byte_level:
    tok = lib.Tokenizer.from_str(t._json)
    tok.decoder = dict(orders())[name]
    t = T.HuggingFaceTokenizer(tok.to_str())
  for text in ('Hi😀Hi', '日本', 'é', '👩‍👩‍👧Hi'):
    ids = t.encode(text)
    stream = T.TextStream(t)
    parts = [stream.push([i]) for i in ids]
    assert ''.join(parts) + stream.flush() == t.decode(ids) == text and not any('\ufffd' in part for part in parts)


def test_a_step_that_fails_is_told_and_not_a_panic():
  t = tokenizer(sequence(decoders.Fuse(), decoders.Strip(' ', 0, 2)))
  with pytest.raises(ValueError, match='has a rule that fails on this text'):
    t.decode([1])
