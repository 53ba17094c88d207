"""`Context`: texts that have been read, with their compressed cache, to answer questions and to continue turn by turn.

context = compress(lm, [document], lazy=LazyConfig(stage='prefill'), room=512)
out = context.ask(lm, ['First question?', 'Second question?'])   # does not change the context
out, context = context.reply(lm, ['And then?'])                  # a turn: the new context includes question and answer
context.save('document.cache'); context = Context.load('document.cache', lm)
"""

from collections.abc import Sequence
import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from decoders import prompts as prompt_lib
from decoders.directions import resolve
from decoders.fingerprint import fingerprint
from decoders.output import Output
from decoders.plain import drafting
from decoders.plain import generate as generate_plain
from decoders.prefill import read
from decoders.programs import Clock
from decoders.simlayerkv import context_notes
from decoders.simlayerkv.config import LazyConfig
from decoders.simlayerkv.memory import LazyMemory
from decoders.state import DecodeState
from decoders.strategies import Plan, WholeMemory
from jaxlm.caches import described, files
from jaxlm.config import ModelConfig
from jaxlm.errors import CheckpointError
from jaxlm.language_model import LanguageModel
from jaxlm.lengths import bucket


@dataclasses.dataclass(frozen=True)
class Context:
  """Rows of tokens that have been read, with their cache."""

  cache: Any
  ids: list[list[int]]
  """Token ids of each row, in reading order. The last `pending` of them are not in the cache yet."""
  pending: int
  """Number of tokens at the end of each row that are not in the cache yet: 1 after an answer, otherwise 0."""
  room: int
  """Number of tokens per row that can still be read or generated."""
  model: dict[str, Any]
  """Fingerprint of the model that made the cache; see `decoders.fingerprint`."""
  stats: dict[str, Any]
  """Statistics of the compression: lazy_layers, lazy_ratios, kv_bytes_full, compression, prefill_seconds, compile_seconds."""

  @property
  def nbytes(self) -> int:
    return self.cache.nbytes

  def __repr__(self) -> str:
    lengths = [len(ids) for ids in self.ids]
    return (
      f'Context({len(lengths)} rows of {min(lengths)} to {max(lengths)} tokens, room for {self.room} more; '
      f'{self.nbytes / 1e6:.3g} MB, {self.stats.get("compression", 1.0):.1f} times smaller than the full cache)'
    )

  def ask(self, lm: LanguageModel, questions: Sequence[Any], *, max_new_tokens: int = 64, **options) -> Output:
    """Answers questions. The context does not change.

    Args:
      questions: strings or token ids, one for each row. A context of one row takes any number of questions, and answers each
        of them separately.
      max_new_tokens, options: as for `decoders.generate`.

    Raises:
      ValueError: the number of questions is not the number of rows, there is no room for them, or the cache was made by
        another model.
    """
    if len(self.ids) > 1 or len(questions) == 1:
      return self._answered(lm, questions, max_new_tokens, options)[0]
    outs = [self._answered(lm, [question], max_new_tokens, options)[0] for question in questions]
    stats = {k: v for k, v in outs[0].stats.items() if k not in SUMMED}
    stats |= {k: sum(out.stats[k] for out in outs) for k in SUMMED if k in outs[0].stats}
    if 'rounds' in stats:
      stats |= drafting(*(stats[name] for name in ('rounds', 'drafted', 'accepted', 'verified')))
    later = stats['new_tokens'] - len(outs)
    stats['tokens_per_second'] = later / stats['decode_seconds'] if stats['decode_seconds'] else 0.0
    text = None if outs[0].text is None else [t for out in outs for t in out.text]
    return Output(*(np.concatenate([getattr(o, x) for o in outs]) for x in ('tokens', 'lengths')), text, stats)

  def reply(
    self, lm: LanguageModel, turns: Sequence[Any], *, max_new_tokens: int = 64, **options
  ) -> tuple[Output, 'Context']:
    """Returns the answers to one turn per row, and a context that includes turns and answers. Raises as `ask`."""
    return self._answered(lm, turns, max_new_tokens, options)

  def extend(self, lm: LanguageModel, texts: Sequence[Any]) -> 'Context':
    """Returns the context with more text read. Raises as `ask`."""
    new = self._new(lm, texts)
    _, cache = self._read(Clock(), lm, new)
    ids = [[*row, *more] for row, more in zip(self.ids, self._given(lm, texts))]
    return dataclasses.replace(self, cache=cache, ids=ids, pending=0, room=self.room - max(map(len, new)))

  def save(self, folder: str | Path) -> None:
    """Writes the context to a new folder. Raises FileExistsError if the folder exists."""
    notes = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != 'cache'}
    files.save(folder, self.cache, notes)

  @classmethod
  def load(cls, folder: str | Path, lm: LanguageModel) -> 'Context':
    """Returns a saved context. Raises CheckpointError if it is damaged or was made with another model."""

    def check(cache: Any, notes: Any) -> None:
      context_notes.check_names(notes)
      try:
        cls(cache=cache, **notes)._check_model(lm)
      except ValueError as e:
        raise CheckpointError(f'{folder}: {e}') from e
      context_notes.check(notes, lm.config)
      described.check(cache, lm.config, len(notes['ids']))
      context_notes.check_room(cache, notes)

    cache, notes = files.load(folder, check)
    return cls(cache=cache, **notes)

  def _check_model(self, lm: LanguageModel) -> None:
    for name, value in fingerprint(lm).items():
      # A field that did not exist when the context was saved had its default.
      if value != (mine := self.model.get(name, getattr(ModelConfig, name, None))):
        raise ValueError(f'This cache belongs to a model with {name}={mine!r}; this one has {value!r}.')

  def _given(self, lm: LanguageModel, texts: Sequence[Any]) -> list[list[int]]:
    if len(texts) != len(self.ids):
      raise ValueError(f'{len(texts)} texts for {len(self.ids)} rows: pass one text for each row.')
    encode = lambda t: lm.tokenizer.encode(t, bos=False) if isinstance(t, str) and lm.tokenizer is not None else t
    return prompt_lib.encode(lm, [encode(t) for t in texts])

  def _new(self, lm: LanguageModel, texts: Sequence[Any]) -> list[list[int]]:
    """Returns the ids that each row still has to read: its pending ids, then those of its text."""
    self._check_model(lm)
    pending = [row[len(row) - self.pending :] for row in self.ids]
    return [[*old, *more] for old, more in zip(pending, self._given(lm, texts))]

  def _read(self, clock: Clock, lm: LanguageModel, new: list[list[int]], total: int = 0, slots: int = 0):
    """Returns (logits [B, V] after the new tokens, the cache that includes them). Raises ValueError if there is no room."""
    longest = max(map(len, new))
    if longest + slots > self.room:
      raise ValueError(
        f'{longest + slots} tokens are more than the room for {self.room} that this context has left: '
        'compress it with more `room`.'
      )
    # Padding is written into the slots after the text, so it needs room too.
    width = min(bucket(longest), self.room)
    tokens, lengths = np.zeros((len(new), width), np.int32), np.array([len(row) for row in new], np.int32)
    for row, ids in zip(tokens, new):
      row[: len(ids)] = ids
    starts = np.array([len(row) - self.pending for row in self.ids], np.int32)
    cache = self.cache.with_valid(jnp.asarray(np.arange(width)[None] < lengths[:, None]))
    args = jnp.asarray(tokens), jnp.asarray(starts), jnp.asarray(lengths), jnp.asarray(starts + lengths + total)
    logits_BV, cache = clock.run('prefill', _read, lm.params, *args, cache, config=lm.config)
    return logits_BV, cache.with_valid(None)

  def _answered(self, lm: LanguageModel, questions, max_new_tokens: int, options) -> tuple[Output, 'Context']:
    if options.get('batch_size') is not None or options.get('num_samples', 1) != 1:
      raise ValueError(
        'A context answers all rows at once, with one answer each: leave batch_size and num_samples out.'
      )
    _check_forward(lm, options.get('direction'))
    new = self._new(lm, questions)
    memory = _ContextMemory(self, new, max_new_tokens)
    prompts = [[*row, *more] for row, more in zip(self.ids, self._given(lm, questions))]
    out = generate_plain(lm, prompts, max_new_tokens=max_new_tokens, memory=memory, **options)
    ids = [[*prompt, *answer] for prompt, answer in zip(prompts, out.rows())]
    read = max(len(row) - len(old) for row, old in zip(ids, self.ids))
    cache = memory.cache
    if memory.overran:  # Not every cache can remove tokens, so the old cache reads the kept tokens again.
      _, cache = self._read(Clock(), lm, [[*given, *answer[:-1]] for given, answer in zip(new, out.rows())])
    return out, dataclasses.replace(self, cache=cache, ids=ids, pending=1, room=self.room - read)


SUMMED = (
  'prompt_tokens',
  'new_tokens',
  'target_calls',
  'prefill_seconds',
  'decode_seconds',
  'compile_seconds',
  'rounds',
  'drafted',
  'accepted',
  'verified',
)
_read = functools.partial(jax.jit, static_argnames='config')(read)  # No donation: the context still needs its cache.


class _ContextMemory(WholeMemory):
  """Reads new tokens on top of a context."""

  def __init__(self, context: Context, new: list[list[int]], max_new_tokens: int):
    self.context, self.new, self.max_new_tokens, self.cache = context, new, max_new_tokens, None
    self.overran = False  # Whether the cache of a row has tokens after a stop string.

  def read(self, clock, lm, padded, total_B, plan: Plan):
    self.lengths = padded.lengths
    return self.context._read(clock, lm, self.new, self.max_new_tokens, self.growth(self.max_new_tokens, plan))

  def finished(self, rows_R, state: DecodeState) -> None:
    self.cache = state.cache
    self.overran = bool((np.asarray(state.position) + 1 > self.lengths + np.asarray(state.lengths)).any())

  def stats(self):
    return {name: self.context.stats[name] for name in ('lazy_layers', 'compression')}


def compress(
  lm: LanguageModel,
  texts: Sequence[str] | Sequence[Sequence[int]],
  *,
  lazy: LazyConfig = LazyConfig(stage='prefill'),
  room: int = 512,
  prefill_chunk: int | None = None,
) -> Context:
  """Reads texts, cuts their caches, and returns them as a context.

  Args:
    texts: strings or token ids; they may differ in length.
    lazy: which layers are lazy and which tokens they keep; it needs stage='prefill'.
    room: number of tokens per row that can be read or generated afterwards.
    prefill_chunk: as for `decoders.generate`.

  Raises:
    ValueError: as `decoders.simlayerkv.generate`; a stage other than 'prefill'; a model that reads in reverse or with a signal.
  """
  _check_forward(lm)
  if lazy.stage != 'prefill':
    raise ValueError(f"stage={lazy.stage!r} needs a generated token, and a context has none: use stage='prefill'.")
  memory = _Compressing(lazy, lm.config)
  ids = prompt_lib.encode(lm, texts)
  # Generating one token reads the texts. The token is dropped.
  memory.room = room = min(room, lm.config.max_length - max(map(len, ids)))
  out = generate_plain(lm, ids, max_new_tokens=1, eos_id=None, prefill_chunk=prefill_chunk, memory=memory)
  stats = memory.stats() | {name: out.stats[name] for name in ('prefill_seconds', 'compile_seconds')}
  return Context(memory.cache, ids, 0, room, fingerprint(lm), stats)


def _check_forward(lm: LanguageModel, direction: str | None = None) -> None:
  """Raises ValueError if texts grow at their beginning (reverse), or if each turn would start with a direction signal."""
  if resolve(lm.config, direction) == 'reverse' or lm.config.direction_signal != 'none':
    raise ValueError(
      'A context grows at its end: it needs a model that reads forward without a signal, not one with '
      f'direction={lm.config.direction!r}, direction_signal={lm.config.direction_signal!r}, {direction=}.'
    )


class _Compressing(LazyMemory):
  """A LazyMemory that keeps the cut cache."""

  def finished(self, rows_R, state: DecodeState) -> None:
    if len(rows_R) < len(self.lazy_layers):
      raise ValueError(
        "Rows with different lazy layers cannot share a static layout: use layout='pooled' or batch='all'."
      )
    self.cache = state.cache
