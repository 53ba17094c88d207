"""The function that recommends: it checks and batches histories, runs the programs of each round, and names the items."""

from collections.abc import Callable, Collection, Sequence
import functools

import jax
import jax.numpy as jnp
import numpy as np

from decoders import prompts as prompt_lib
from decoders.atspeed import drafting, rounds
from decoders.atspeed.config import AtSpeedConfig, Order, Select, Verify
from decoders.atspeed.output import Recommendations
from decoders.beam import constrained
from decoders.beam.reader import ModelReader
from decoders.programs import Clock
from jaxlm.data.catalogue import Catalogue
from jaxlm.data.item_trie import ItemTrie, item_numbers
from jaxlm.errors import NotFiniteError, check_seed, shown
from jaxlm.language_model import LanguageModel

BATCH_SIZE = 32
"""Histories that are read together, unless the user says otherwise."""


def recommend(
  lm: LanguageModel,
  draft: LanguageModel | None,
  trie: ItemTrie,
  histories: Sequence[Sequence[int]],
  k: int = 10,
  *,
  beam: int = 40,
  gamma: int = 3,
  verify: Verify = 'strict',
  order: Order = 'score',
  select: Select = 'uniform',
  exclude: Sequence[Collection[int]] | None = None,
  seed: int = 0,
  numbers: Sequence[int] | None = None,
  batch_size: int | None = None,
  progress: Callable[[int], object] | None = None,
) -> Recommendations:
  """Returns the k best items after each history, by beam search over the identifiers of a trie.

  With a draft, the search is speculative (AtSpeed, https://arxiv.org/abs/2410.05165): the draft searches some steps ahead with more
  beams, and the target verifies all of them in one call. With verify='strict' the items are those of the search without a draft, up
  to rounding. A result does not depend on the other histories. `jaxlm.data.item_trie.ItemTrie.allowed` restricts the search to some
  items.

  Args:
    lm: the target, a decoder-only model.
    draft: a faster model with the same vocabulary; None: constrained beam search with the target alone, and for a `verify` other than
      'strict' stochastic beam search, whose beams are drawn without replacement.
    trie: the identifiers of the items, in ids of the model's vocabulary. For a model with a catalogue, most of them must be its own;
      without one, only their range can be checked.
    histories: token ids, for example the identifiers of a user's items in order of time. They may differ in length.
    k: number of identifiers. If the trie has fewer, the rest is left out.
    beam: number of prefixes that the draft keeps at each step (N), at least k.
    gamma: largest number of steps that the draft runs ahead.
    verify: 'strict', 'relaxed' or 'relaxed_exact'; see `AtSpeedConfig`.
    order: 'score' or 'nested'; see `AtSpeedConfig`.
    select: 'uniform' or 'score', for verify='relaxed' with a draft; see `AtSpeedConfig`.
    exclude: items that must not be recommended after each history, such as those it holds; None: none. Numbers that are not in the
      trie have no effect.
    seed: for the relaxed rules; the same seed gives a history the same items at any batch size.
    numbers: for the relaxed rules: the number of each history, from which, with the seed, its random numbers come; None: 0, 1, 2, ... Pass
      the places in the whole list if the histories are a part of it; otherwise all parts draw with the same random numbers.
    batch_size: histories read together; None: 32.
    progress: called with the number of histories of each batch when it is done.

  Raises:
    DataError: the model and the draft have catalogues with other identifiers, or the trie was made for other ones.
    ValueError: a history is empty, longer than a model reads or has ids outside the vocabulary; the trie has tokens outside the
      vocabulary; the draft has another vocabulary; `exclude` or `numbers` has another length; a number is out of range; or a model
      is no decoder-only model that reads forward.
    NotFiniteError: logits are not finite.
  """
  config = AtSpeedConfig(k, max(beam, k) if draft is None else beam, gamma, verify, order, select)
  check_seed('seed', seed)
  if batch_size is not None and batch_size < 1:
    raise ValueError(f'{batch_size=} must be at least 1.')
  ids = _checked(lm, draft, trie, histories)
  exclude = None if exclude is None else _checked_exclude(exclude, len(ids))
  numbers = _checked_numbers(numbers, len(ids))
  size = min(batch_size or BATCH_SIZE, 1 << (len(ids) - 1).bit_length())
  # Padding must stay within the positions of both models: states beyond a table of learned positions are no numbers.
  room = min(model.config.max_length for model in (lm, draft) if model is not None) - trie.depth
  by_length = sorted(range(len(ids)), key=lambda i: len(ids[i]))
  clock = Clock()
  leaves, scores = np.zeros((len(ids), k), np.int32), np.zeros((len(ids), k), np.float32)
  calls, accepted, drafted = (np.zeros(len(ids), np.int32) for _ in range(3))
  for first in range(0, len(ids), size):
    rows = np.array(by_length[first : first + size])
    n = len(rows)
    filled = np.append(rows, np.repeat(rows[-1:], size - n))  # Rows that only fill the batch repeat the last history.
    padded = prompt_lib.pad([ids[i] for i in filled], room)
    closed = None if exclude is None else jnp.asarray(trie.closed([exclude[i] for i in filled]))
    keys = _keys(jax.random.key(seed), jnp.asarray(numbers[filled])) if config.drawn else None
    arrays = jnp.asarray(padded.tokens), jnp.asarray(padded.lengths)
    if draft is None or trie.depth == 1:
      found = clock.run(
        'target', constrained.search, lm.params, *arrays, trie, closed, keys,
        reader=ModelReader(lm.config), width=k,
      )  # fmt: skip
      beams, finite, counts = (found.leaves, found.scores), found.finite, (trie.depth, 0, 0)
    else:
      state, steps = _speculative(clock, lm, draft, trie, *arrays, closed, keys, config)
      beams, finite = (state.beams.nodes, state.beams.scores), state.finite
      counts = np.asarray(state.calls)[:n], np.asarray(state.accepted)[:n], steps[:n]
    _check_finite(lm, rows, np.asarray(finite)[:n])
    leaves[rows], scores[rows] = (np.asarray(x)[:n] for x in beams)
    calls[rows], accepted[rows], drafted[rows] = counts
    if progress is not None:
      progress(n)
  if config.drawn:
    order_BK = np.argsort(-scores, axis=1, kind='stable')
    leaves, scores = (np.take_along_axis(x, order_BK, axis=1) for x in (leaves, scores))
  items, item_scores = _named(trie, leaves, scores, exclude)
  target, drafting_ = clock.seconds['target'], clock.seconds.get('draft', 0.0)
  stats = {
    'histories': len(ids), 'target_calls': calls.tolist(), 'accept_steps': accepted.tolist(), 'draft_steps': drafted.tolist(),
    'target_seconds': target, 'draft_seconds': drafting_, 'compile_seconds': clock.compile_seconds,
    'seconds_per_history': (target + drafting_) / len(ids),
  }  # fmt: skip
  return Recommendations(items, item_scores, trie.tokens(leaves), scores, stats)


@functools.partial(jax.jit, static_argnames=('reader', 'steps', 'config'))
def _first_draft(params, tokens, lengths, trie, closed, keys, *, reader, steps, config):
  return drafting.after_prompt(
    reader, params, tokens, lengths, trie, closed, _folded(keys, 0, 0), steps=steps, config=config
  )


@functools.partial(jax.jit, static_argnames=('reader', 'config'))
def _first_round(params, tokens, lengths, drafted, trie, closed, keys, *, reader, config):
  return rounds.first(reader, params, tokens, lengths, drafted, trie, closed, _folded(keys, 0, 1), config=config)


@functools.partial(jax.jit, static_argnames=('reader', 'steps', 'config'))
def _later_draft(params, cache, lengths, beams, depth, trie, closed, keys, number, *, reader, steps, config):
  keys = _folded(keys, number, 0)
  return drafting.after_beams(
    reader, params, cache, lengths, beams, depth, trie, closed, keys, steps=steps, config=config
  )


@functools.partial(jax.jit, static_argnames=('reader', 'config'))
def _later_round(params, state, drafted, trie, closed, keys, number, *, reader, config):
  return rounds.later(reader, params, state, drafted, trie, closed, _folded(keys, number, 1), config=config)


_keys = jax.jit(jax.vmap(jax.random.fold_in, (None, 0)))


def _folded(keys, number, part: int):
  """Returns the keys of a round, for the draft (part 0) or for the verification (part 1); None if there are none."""
  if keys is None:
    return None
  fold = jax.vmap(jax.random.fold_in, (0, None))
  return fold(fold(keys, number), part)


def _speculative(clock: Clock, lm, draft, trie: ItemTrie, tokens, lengths, closed, keys, config: AtSpeedConfig):
  """Runs rounds until all searches of a batch have ended. Returns (the last state, steps of the draft for each history)."""
  target, drafter = ModelReader(lm.config), ModelReader(draft.config)
  steps = min(config.gamma, trie.depth - 1)
  drafted, draft_cache = clock.run(
    'draft', _first_draft, draft.params, tokens, lengths, trie, closed, keys, reader=drafter, steps=steps, config=config
  )
  state = clock.run(
    'target', _first_round, lm.params, tokens, lengths, drafted, trie, closed, keys, reader=target, config=config
  )
  taken_B, number = np.full(len(tokens), steps), 0
  # Rounds are shorter near the end: a step behind the last one needs no draft, and a call on fewer tokens takes less time.
  while (left_B := trie.depth - np.asarray(state.depth)).any():
    number += 1
    steps, drafted = min(config.gamma, int(left_B.max()) - 1), None
    if steps:
      drafted = clock.run(
        'draft', _later_draft, draft.params, draft_cache, lengths, state.beams, state.depth, trie, closed, keys,
        jnp.int32(number), reader=drafter, steps=steps, config=config,
      )  # fmt: skip
      taken_B += np.clip(left_B - 1, 0, steps)
    state = clock.run(
      'target',
      _later_round,
      lm.params,
      state,
      drafted,
      trie,
      closed,
      keys,
      jnp.int32(number),
      reader=target,
      config=config,
    )
  return state, taken_B


def _checked(lm, draft, trie: ItemTrie, histories) -> list[list[int]]:
  """Returns the histories as lists of ids. Raises ValueError for models, tries and histories that do not fit."""
  models = [('The model', lm)] if draft is None else [('The model', lm), ('The draft', draft)]
  for name, model in models:
    if not isinstance(model, LanguageModel):
      raise ValueError(f'{name} must be a decoder-only model (LanguageModel), not a {type(model).__name__}.')
  if not isinstance(trie, ItemTrie):
    raise ValueError(f'`trie` must be an ItemTrie, not a {type(trie).__name__}: make one with ItemTrie.from_ids.')
  if trie.largest_token >= lm.config.vocab_size:
    raise ValueError(
      f'The trie has token {trie.largest_token}, and the vocabulary of the model has ids 0 to {lm.config.vocab_size - 1}: it was '
      'made for another model.'
    )
  if isinstance(lm.tokenizer, Catalogue):
    lm.tokenizer.check_trie(trie)
  if draft is not None and draft.config.vocab_size != lm.config.vocab_size:
    raise ValueError(
      f'The draft has {draft.config.vocab_size} tokens and the model {lm.config.vocab_size}: they must share a vocabulary.'
    )
  if draft is not None and isinstance(lm.tokenizer, Catalogue) and isinstance(draft.tokenizer, Catalogue):
    draft.tokenizer.check_same(lm.tokenizer, 'The draft', 'the model')
  if isinstance(histories, str) or (len(histories) and isinstance(histories[0], int | np.integer)):
    raise ValueError('`histories` is a list of histories: wrap a single one in a list.')
  for i, history in enumerate(histories):
    text = isinstance(history, str) and isinstance(lm.tokenizer, Catalogue)
    if text or (isinstance(history, list | tuple) and any(isinstance(token, str) for token in history)):
      raise ValueError(
        f'History {i} is {shown(history)}; expected token ids, which lm.tokenizer.prompt(lm.tokenizer.find([...])) makes of titles or ids '
        'of items.'
      )
  ids = prompt_lib.encode(lm, histories, 'forward')
  longest = max(range(len(ids)), key=lambda i: len(ids[i]))
  for name, model in models:
    model.config.check_causal('Reading a history to recommend what follows')
    n, room = len(ids[longest]), model.config.max_length - trie.depth
    if n > room:
      raise ValueError(
        f'History {longest} has {n} tokens and an identifier {trie.depth}, together {n + trie.depth}; {name.lower()} reads '
        f'{model.config.max_length}: keep at most the last {room} tokens.'
      )
    prompt_lib.check_prefix(min(map(len, ids)), model.config.prefix)
  return ids


def _checked_exclude(exclude: Sequence[Collection[int]], count: int) -> list[list[int]]:
  """Returns the excluded items of `count` histories. Raises ValueError for another length, or what are no item numbers."""
  if len(exclude) != count:
    raise ValueError(f'`exclude` has {len(exclude)} lists of items; expected one for each of {count} histories.')
  found = []
  for i, items in enumerate(exclude):
    try:
      found.append(item_numbers(items).tolist())
    except ValueError as e:
      raise ValueError(f'`exclude` of history {i}: {e}') from e
  return found


def _checked_numbers(numbers: Sequence[int] | None, count: int) -> np.ndarray:
  """Returns the numbers of `count` histories, uint32. Raises ValueError for another length, or what are no numbers below 2**32."""
  found = np.arange(count) if numbers is None else np.asarray(numbers)
  if found.shape != (count,):
    raise ValueError(f'`numbers` has shape {found.shape}; expected one number for each of {count} histories.')
  if not np.issubdtype(found.dtype, np.integer) or found.min() < 0 or found.max() >= 2**32:
    raise ValueError(f'`numbers` must be whole numbers from 0 to 2**32 - 1, not {shown(found.tolist())}.')
  return found.astype(np.uint32)


def _check_finite(lm: LanguageModel, rows: np.ndarray, finite: np.ndarray) -> None:
  if not finite.all():
    raise NotFiniteError(
      f'History {rows[int(np.argmin(finite))]}: the logits after it are not finite. The model computes in {lm.config.dtype}: check '
      'that its weights are finite and were read in the right format, or load it in float32.'
    )


def _named(
  trie: ItemTrie, leaves: np.ndarray, scores: np.ndarray, exclude
) -> tuple[list[list[int]], list[list[float]]]:
  """Returns (the items of each history, their scores)."""
  items, item_scores = [], []
  for row, (nodes, row_scores) in enumerate(zip(leaves, scores.tolist())):
    unwanted = set() if exclude is None else set(exclude[row])
    found = [(i, s) for of_leaf, s in zip(trie.items(nodes), row_scores) for i in of_leaf if i not in unwanted]
    items.append([i for i, _ in found])
    item_scores.append([s for _, s in found])
  return items, item_scores
