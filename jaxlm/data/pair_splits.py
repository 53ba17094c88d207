"""Which sentence pairs are held out, so that nothing held out is nearly the same as something trained on.

Two texts count as nearly the same when they differ in case, digits, spaces or punctuation only: `near_key` is equal for both.
"""

from collections.abc import Iterable, Iterator
import hashlib
import re

SPLITS = ('train', 'valid', 'test')
_OTHER = re.compile(r'[\W_]+')
_DIGITS = re.compile(r'\d+')


def near_key(text: str) -> str:
  """Returns the letters of a text in small, each number as 0; of a text without any letter or digit, the text."""
  return _DIGITS.sub('0', _OTHER.sub('', text)).casefold() or text


def share(text: str) -> float:
  """Returns a number in [0, 1) that depends on the text alone and is spread evenly."""
  digest = hashlib.blake2b(text.encode(), digest_size=6).digest()
  return int.from_bytes(digest, 'big') / 2**48


def split_of(text: str, held_out: float) -> str:
  """Returns 'valid' or 'test' for a fraction `held_out` of all texts each, and 'train' for the rest."""
  place = share(text)
  return 'valid' if place < held_out else 'test' if place < 2 * held_out else 'train'


def apart(
  groups: Iterable[tuple[str, list[tuple[str, str]]]], held_out: float
) -> tuple[dict[str, list[tuple[str, str]]], dict[str, int]]:
  """Returns (pairs of each split, counts of the pairs that were left out).

  Whole groups are held out: the files of a book, the packages of one source. Left out are pairs whose two sides are the same,
  pairs that are nearly the same as an earlier one of their split, and pairs of which one side is nearly the same as a side of a
  pair in another split. The latter leave the larger split, so the held-out ones keep theirs.

  Args:
    groups: (name of a group, its pairs), in any order.
    held_out: fraction of the groups in `valid`, and in `test`.
  """
  found: dict[str, list[tuple[str, str]]] = {name: [] for name in SPLITS}
  counts = {'untranslated': 0, 'repeated': 0, 'near a held-out pair': 0}
  by_split: dict[str, list[list[tuple[str, str]]]] = {name: [] for name in SPLITS}
  for name, pairs in sorted(groups):
    by_split[split_of(name, held_out)].append(pairs)
  taken: tuple[set[str], set[str]] = (set(), set())
  for split in ('test', 'valid', 'train'):
    seen: set[tuple[str, str]] = set()
    for pair in _each(by_split[split]):
      keys = near_key(pair[0]), near_key(pair[1])
      if keys[0] == keys[1]:
        counts['untranslated'] += 1
      elif keys in seen:
        counts['repeated'] += 1
      elif keys[0] in taken[0] or keys[1] in taken[1]:
        counts['near a held-out pair'] += 1
      else:
        seen.add(keys)
        found[split].append(pair)
    for side in (0, 1):
      taken[side].update(keys[side] for keys in seen)
  return found, counts


def _each(groups: list[list[tuple[str, str]]]) -> Iterator[tuple[str, str]]:
  return (pair for pairs in groups for pair in pairs)
