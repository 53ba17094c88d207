"""Catalogue: the items that a generative recommender knows, their identifiers in tokens of its vocabulary, and the way back.

  catalogue.prompt([3, 17])       # BOS and the identifiers of a history's last items: the model continues with the next identifier
  catalogue.trie()                # all identifiers, for decoders.atspeed.recommend
  catalogue.find(['Ice Age'])     # numbers of items by id or title

The vocabulary consists of the codes and two special tokens: `<pad>` 0 and `<bos>` 1. A run of trainers.recommend keeps its catalogue as
its tokenizer. Letters: I items, L tokens of an identifier, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import difflib
import functools
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxlm import errors
from jaxlm.data import item_trie, semantic_ids
from jaxlm.data.item_trie import ItemTrie, TrieCapacity
from jaxlm.models.registry import LANGUAGE_MODEL

if TYPE_CHECKING:
  from jaxtyping import Bool, Int

PAD, BOS = 0, 1
SPECIAL = ('<pad>', '<bos>')
FILE, TOKENS = 'catalogue.json', 'tokens.npy'


class SeveralItemsError(errors.DataError):
  """Several items have a title, so that it names none of them."""


@dataclasses.dataclass(frozen=True)
class Catalogue:
  """Items and their identifiers.

  Attributes:
    item_ids: what the log calls them.
    titles: what people call them.
    tokens: [I, L] int32, the identifiers in ids of the vocabulary.
    pieces: [V], the names of the vocabulary's tokens.
    popularity: [I] numbers of training interactions; of items that share an identifier, popular ones come first.
    history: largest number of items of a prompt.
    notes: JSON about how the identifiers were made.
  """

  item_ids: tuple[str, ...]
  titles: tuple[str, ...]
  tokens: np.ndarray
  pieces: tuple[str, ...]
  popularity: np.ndarray
  history: int = 20
  notes: dict[str, Any] = dataclasses.field(default_factory=dict)

  bos_id, eos_id, pad_id, adds_bos = BOS, None, PAD, True

  def __post_init__(self):
    n = len(self.item_ids)
    if not n or self.tokens.ndim != 2 or len(self.tokens) != n:
      raise errors.DataError(f'{n} items have identifiers of shape {self.tokens.shape}; expected [items, tokens].')
    if len(self.titles) != n or len(self.popularity) != n:
      raise errors.DataError(f'{n} items have {len(self.titles)} titles and {len(self.popularity)} popularities.')
    if self.tokens.min() < len(SPECIAL) or self.tokens.max() >= len(self.pieces):
      raise errors.DataError(
        f'Tokens of identifiers must be within {len(SPECIAL)} .. {len(self.pieces) - 1}; found {self.tokens.min()} .. {self.tokens.max()}.'
      )
    if self.history < 1:
      raise errors.DataError(f'{self.history=} must be at least 1 item.')

  @classmethod
  def from_names(
    cls,
    item_ids: Sequence[str],
    titles: Sequence[str],
    names: Sequence[Sequence[str]],
    popularity: Sequence[float],
    **more: Any,
  ) -> Catalogue:
    """Returns a catalogue whose identifiers are given by the names of their tokens, such as ('<a_3>', '<b_0>'). `more`: fields.

    Raises:
      DataError: an item has no identifier, identifiers have different lengths, or a name is that of a special token.
    """
    lengths = [len(name) for name in names]
    for item, n in zip(item_ids, lengths):
      if not n:
        raise errors.DataError(f'The item {item!r} has no identifier.')
      if n != lengths[0]:
        raise errors.DataError(
          f'The identifier of {item!r} has {n} tokens, and that of {item_ids[0]!r} has {lengths[0]}: all need the same length.'
        )
    number = {name: i for i, name in enumerate(SPECIAL)}
    for l in range(lengths[0] if lengths else 0):
      for name in sorted({one[l] for one in names}, key=lambda name: (len(name), name)):
        if name in SPECIAL:
          raise errors.DataError(f'An identifier has the token {name!r}, which is a special token: rename it.')
        number.setdefault(name, len(number))
    tokens = np.array([[number[name] for name in one] for one in names], np.int32)
    return cls(tuple(item_ids), tuple(titles), tokens, tuple(number), np.asarray(popularity), **more)

  def __len__(self) -> int:
    return len(self.item_ids)

  def __repr__(self) -> str:
    return f'Catalogue({len(self)} items, identifiers of {self.depth} tokens, vocabulary {self.vocab_size})'

  @property
  def depth(self) -> int:
    return self.tokens.shape[1]

  @property
  def vocab_size(self) -> int:
    return len(self.pieces)

  @property
  def longest_prompt(self) -> int:
    return 1 + self.history * self.depth

  @functools.cached_property
  def level_mask(self) -> Bool[np.ndarray, 'L V']:
    """Which tokens are codes of each level."""
    mask = np.zeros((self.depth, self.vocab_size), bool)
    for l in range(self.depth):
      mask[l, self.tokens[:, l]] = True
    return mask

  @functools.cached_property
  def digest(self) -> str:
    """Digest of the items' ids and identifiers: models of catalogues with other digests have other vocabularies."""
    text = json.dumps([self.item_ids, self.pieces, self.history])
    return hashlib.sha256(text.encode() + np.ascontiguousarray(self.tokens, np.int32).tobytes()).hexdigest()[:16]

  @property
  def report(self) -> semantic_ids.IdReport:
    return semantic_ids.report(self.tokens)

  def trie(self, capacity: TrieCapacity | None = None) -> ItemTrie:
    """Returns the trie of all identifiers."""
    return item_trie.ItemTrie.from_ids(self.tokens, self.popularity, capacity)

  def prompt(self, items: Sequence[int]) -> list[int]:
    """Returns the token ids of a history's last items after BOS, those of `history` items at most. An empty history is BOS alone."""
    items = np.asarray(items, np.int64)[-self.history :]
    self._check(items)
    return [BOS, *self.tokens[items].reshape(-1).tolist()]

  def _check(self, items: np.ndarray) -> None:
    bad = items[(items < 0) | (items >= len(self))]
    if len(bad):
      raise errors.DataError(f'There is no item {bad[0]}: the catalogue has the items 0 .. {len(self) - 1}.')

  @functools.cached_property
  def _by_id(self) -> dict[str, int]:
    return {name: i for i, name in enumerate(self.item_ids)}

  @functools.cached_property
  def _by_title(self) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for i, title in enumerate(self.titles):
      found.setdefault(title.casefold(), []).append(i)
    return found

  def find(self, names: Sequence[str]) -> list[int]:
    """Returns the numbers of items, each given by its id, or by its title in upper or lower case.

    Raises:
      DataError: no item has a name; the message suggests the nearest.
      SeveralItemsError: several items have a name; the message lists their ids.
    """
    return [self._find(str(name).strip()) for name in names]

  def _find(self, name: str) -> int:
    if name in self._by_id:
      return self._by_id[name]
    there = self._by_title.get(name.casefold(), [])
    if len(there) == 1:
      return there[0]
    if there:
      ids = ', '.join(self.item_ids[i] for i in there[:5])
      raise SeveralItemsError(f'{len(there)} items have the title {name!r}. Give one of their ids instead: {ids}.')
    near = difflib.get_close_matches(name, [*self.item_ids, *self.titles], n=1, cutoff=0.5)
    hint = f' Did you mean {near[0]!r}?' if near else ''
    raise errors.DataError(f'Unknown item {errors.shown(name)}.{hint} The catalogue has {len(self):,} items.')

  def check_same(self, other: Catalogue, ours: str, theirs: str) -> None:
    """Raises DataError if two models, named `ours` and `theirs`, do not have the same items and identifiers."""
    if self.digest != other.digest:
      raise errors.DataError(
        f'{ours} and {theirs} have other identifiers: {self}, digest {self.digest}, and {other}, digest {other.digest}. Both need the '
        'same run of stage ids.'
      )

  def check_trie(self, trie: ItemTrie) -> None:
    """Raises DataError if this catalogue has fewer than half of a trie's identifiers, of which 256 at most are checked.

    A trie of items that came later alone is refused too: add them to the catalogue's own.
    """
    known = sum(ids in self._identifiers for ids in trie.some_identifiers)
    if 2 * known < len(trie.some_identifiers):
      raise errors.DataError(
        f'Of {len(trie.some_identifiers)} identifiers of {trie}, the model knows {known}: the trie was made for other identifiers than '
        f"{self}. Make it with the model's own catalogue: lm.tokenizer.trie()."
      )

  @functools.cached_property
  def _identifiers(self) -> frozenset[tuple[int, ...]]:
    return frozenset(map(tuple, self.tokens.tolist()))

  def save(self, folder: str | Path) -> None:
    """Writes the catalogue's files into a folder, which is created."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / TOKENS, np.asarray(self.tokens, np.int32), allow_pickle=False)
    fields = {
      'item_ids': self.item_ids, 'titles': self.titles, 'pieces': self.pieces, 'popularity': np.asarray(self.popularity).tolist(),
      'history': self.history, 'notes': self.notes, 'digest': self.digest,
    }  # fmt: skip
    (folder / FILE).write_text(json.dumps(fields, ensure_ascii=False), encoding='utf-8')


def load(folder: str | Path) -> Catalogue:
  """Returns the catalogue of a folder that `Catalogue.save` wrote.

  Raises:
    CheckpointError: it cannot be read, or its identifiers are not those that were saved.
  """
  folder = Path(folder)
  try:
    fields = json.loads((folder / FILE).read_text(encoding='utf-8'))
    tokens = np.load(folder / TOKENS, allow_pickle=False)
    names = (tuple(fields[name]) for name in ('item_ids', 'titles'))
    found = Catalogue(
      *names, tokens, tuple(fields['pieces']), np.asarray(fields['popularity']), fields['history'], fields['notes']
    )
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise errors.CheckpointError(f'{folder} holds no catalogue that can be read: {e}') from e
  if found.digest != fields.get('digest'):
    raise errors.CheckpointError(f'{folder}: the identifiers are not those that were saved; copy the run again.')
  return found


RUNS = dataclasses.replace(LANGUAGE_MODEL, what='a recommender', load_tokenizer=load)


def code_names(codes: Int[np.ndarray, 'I L'], first: int = 0) -> list[tuple[str, ...]]:
  """Returns the names of codes, `<a_0>` for code 0 of the first level, `<b_7>` for code 7 of the second one, ...

  `first`: the level of the first column.
  """
  level = lambda l: chr(ord('a') + l) if l < 26 else f'level{l}_'
  return [tuple(f'<{level(first + l)}_{code}>' for l, code in enumerate(row)) for row in np.asarray(codes).tolist()]
