"""Tokenizers of sentence pairs: one for both languages, or one for each.

A source is its tokens with EOS at the end; a target begins with BOS as the decoder's input and ends with EOS as what it has to
predict. So both tokenizers have BOS, EOS and padding.
"""

import collections
from collections.abc import Iterable
import dataclasses
import json
from pathlib import Path

from jaxlm import errors
from jaxlm.data import tokenizers

KINDS = ('bpe', 'unigram', 'words', 'bytes')
FOLDERS = ('tokenizer_source', 'tokenizer_target')
"""Where the tokenizers lie in a run directory if there are two; a joint one lies in the directory itself."""


@dataclasses.dataclass(frozen=True)
class PairTokenizers:
  """The tokenizers of the source and of the target; the same object twice where one serves both.

  Raises:
    ValueError: one of them lacks BOS, EOS or padding.
  """

  source: tokenizers.Tokenizer
  target: tokenizers.Tokenizer

  def __post_init__(self):
    for side in ('source', 'target'):
      tokenizer = getattr(self, side)
      lacking = [name for name in ('bos_id', 'eos_id', 'pad_id') if getattr(tokenizer, name) is None]
      if lacking:
        raise ValueError(
          f'The tokenizer of the {side} has no {", ".join(lacking)}: sentence pairs need BOS, EOS and padding. '
          'Name them in its tokenizer_config.json (bos_token, eos_token, pad_token), or train one.'
        )

  @property
  def joint(self) -> bool:
    """Whether both sides have one vocabulary, and a model may have one embedding for both."""
    return self.source is self.target

  def encode_source(self, text: str) -> list[int]:
    """Returns the ids of a source, without EOS."""
    return self.source.encode(text)

  def decode_target(self, ids: Iterable[int]) -> str:
    """Returns the text of target ids."""
    return self.target.decode(list(map(int, ids)))

  def save(self, directory: str | Path) -> None:
    """Writes files from which `load` makes equal tokenizers."""
    if self.joint:
      self.source.save(directory)
    else:
      for tokenizer, folder in zip((self.source, self.target), FOLDERS):
        tokenizer.save(Path(directory) / folder)


def load(directory: str | Path) -> PairTokenizers:
  """Returns the tokenizers that `PairTokenizers.save` wrote.

  Raises:
    DataError: there are none.
  """
  folders = [Path(directory) / name for name in FOLDERS]
  if any(folder.is_dir() for folder in folders):
    found = [tokenizers.from_directory(folder) for folder in folders]
    for folder, tokenizer in zip(folders, found):
      if tokenizer is None:
        raise errors.DataError(f'{folder} holds no tokenizer, but the one of the other language is there. Copy both.')
    return PairTokenizers(*found)
  tokenizer = tokenizers.from_directory(directory)
  if tokenizer is None:
    raise errors.DataError(f'{directory} holds no tokenizer: expected one, or {FOLDERS[0]} and {FOLDERS[1]}.')
  return PairTokenizers(tokenizer, tokenizer)


def train(
  pairs: Iterable[tuple[str, str]],
  *,
  kind: str = 'bpe',
  vocab_size: int = 8000,
  joint: bool = True,
  directory: str | Path | None = None,
) -> PairTokenizers:
  """Returns tokenizers made from the training pairs. Equal pairs give equal tokenizers.

  Args:
    pairs: read once for a joint tokenizer, otherwise twice.
    kind: 'bpe' or 'unigram': SentencePiece, in which a character that the training pairs lack becomes its bytes, so no text is
      lost. 'words': each word that a space or the end bounds is a token, an unknown one is <unk>; for generated data, where a
      token has to be a word. 'bytes': UTF-8 bytes, nothing to train.
    vocab_size: ids of each tokenizer; ignored by 'bytes', the most by 'words'.
    joint: one tokenizer for both languages.
    directory: where to save them, if anywhere.

  Raises:
    ValueError: unknown kind, or a vocabulary that the texts cannot fill; the message names both numbers.
  """
  if kind not in KINDS:
    raise errors.unknown('kind of tokenizer', kind, KINDS)
  if joint:
    both = _train_one((text for pair in pairs for text in pair), kind, vocab_size)
    made = PairTokenizers(both, both)
  else:
    made = PairTokenizers(*(_train_one((pair[side] for pair in pairs), kind, vocab_size) for side in (0, 1)))
  if directory is not None:
    made.save(directory)
  return made


def _train_one(texts: Iterable[str], kind: str, vocab_size: int) -> tokenizers.Tokenizer:
  if kind == 'bytes':
    return tokenizers.ByteTokenizer()
  if kind == 'words':
    return word_tokenizer(texts, vocab_size)
  # The space before a text makes a sentence's first word the same piece as the word elsewhere.
  return tokenizers.train_sentencepiece(texts, vocab_size, kind=kind, dummy_prefix=True)


def word_tokenizer(texts: Iterable[str], vocab_size: int) -> tokenizers.HuggingFaceTokenizer:
  """Returns a tokenizer whose tokens are the most frequent words of the texts. Ids: unk 0, words, and last BOS, EOS and padding.

  Raises:
    ValueError: vocab_size leaves no room for a word.
  """
  unknown, marks = '<unk>', ['<s>', '</s>', '<pad>']
  room = vocab_size - 1 - len(marks)
  if room < 1:
    raise ValueError(f'{vocab_size=} leaves no id for a word: {1 + len(marks)} are special. Choose a larger one.')
  counted = collections.Counter(word for text in texts for word in text.split())
  for mark in (unknown, *marks):
    counted.pop(mark, None)
  words = sorted(counted, key=lambda word: (-counted[word], word))[:room]
  vocabulary = {word: i for i, word in enumerate([unknown, *words])}
  plain = {'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False}
  # Not in the model's vocabulary, or '<s>' in a text would become BOS.
  added = [{'id': len(vocabulary) + i, 'content': mark, 'special': True} | plain for i, mark in enumerate(marks)]
  absent = ('truncation', 'padding', 'normalizer', 'post_processor', 'decoder')
  spec = dict.fromkeys(absent) | {
    'version': '1.0',
    'added_tokens': added,
    'pre_tokenizer': {'type': 'WhitespaceSplit'},
    'model': {'type': 'WordLevel', 'vocab': vocabulary, 'unk_token': unknown},
  }
  settings = {'bos_token': '<s>', 'eos_token': '</s>', 'pad_token': '<pad>', 'add_bos_token': False}
  return tokenizers.HuggingFaceTokenizer(json.dumps(spec), settings)
