"""Words of texts and their ids, for classifiers that learn word vectors of their own.

  words   runs of letters and digits of any script, and single punctuation marks, in small letters
  kim     the tokenizer of region embeddings and of EXAM's code: ASCII letters and digits, clitics ('s, n't, ...) and , ! ? ( ) . apart

Id 0 is padding and 1 an unknown word. The others are the words of at least `min_texts` texts, those of most texts first.
"""

from collections import Counter
from collections.abc import Callable, Iterable
import dataclasses
import functools
import re
from typing import Literal

from jaxlm import errors
from jaxlm.exam_config import UNKNOWN_ID

Kind = Literal['words', 'kim']
SPECIAL = ('<pad>', '<unk>')
_WORD = re.compile(r'\w+|[^\w\s]')
_NOT_KIM = re.compile(r"[^a-z0-9(),!?.'`]")
_CLITIC = re.compile(r"('s|'ve|n't|'re|'d|'ll)")
_MARK = re.compile(r'([(),!?.])')


def _kim(text: str) -> list[str]:
  text = _CLITIC.sub(r' \1', _NOT_KIM.sub(' ', text.lower()))
  return _MARK.sub(r' \1 ', text).split()


SPLITTERS: dict[str, Callable[[str], list[str]]] = {'words': lambda text: _WORD.findall(text.lower()), 'kim': _kim}


@dataclasses.dataclass(frozen=True)
class WordVocabulary:
  """Words with their ids.

  Attributes:
    kind: how texts are split into words.
    words: the word of each id; the first two are no words, but padding and unknown word.
  """

  kind: Kind
  words: tuple[str, ...]

  @property
  def vocab_size(self) -> int:
    return len(self.words)

  @functools.cached_property
  def ids(self) -> dict[str, int]:
    """Id of each word."""
    return {word: i for i, word in enumerate(self.words)}

  def pieces(self, text: str) -> list[str]:
    """Returns the words of a text, known and unknown."""
    return SPLITTERS[self.kind](text)

  def encode(self, text: str) -> list[int]:
    """Returns an id for each word of a text."""
    ids = self.ids
    return [ids.get(word, UNKNOWN_ID) for word in self.pieces(text)]


def build(texts: Iterable[str], kind: Kind = 'words', *, min_texts: int = 2, most: int | None = None) -> WordVocabulary:
  """Returns the vocabulary of texts.

  Args:
    texts: training texts.
    kind: how texts are split into words.
    min_texts: smallest number of texts in which a word must occur. Each text counts once.
    most: largest number of words, the most frequent ones; None: no limit.

  Raises:
    DataError: no word occurs in so many texts, or `most` leaves none.
  """
  counts: Counter[str] = Counter()
  number = 0
  for text in texts:
    number += 1
    counts.update(set(SPLITTERS[kind](text)))
  kept = sorted((word for word, n in counts.items() if n >= min_texts), key=lambda word: (-counts[word], word))[:most]
  if not kept:
    raise errors.DataError(
      f'The vocabulary is empty: the {number} training texts have {len(counts)} different words, and none is in at least '
      f'{min_texts} texts. Choose a smaller --data.min-texts, or give more texts.'
    )
  return WordVocabulary(kind, (*SPECIAL, *kept))
