"""Plain autoregressive decoding: one compiled prefill, one compiled loop, one token per target call.

Rows of a batch are padded on the right and advance at their own positions, so a row's tokens are those it gets alone;
noise is keyed by (seed, row, position), so they do not depend on the batch size either.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from decoders import directions
from decoders import prompts as prompt_lib
from decoders.options import Sampling
from decoders.output import Output
from decoders.programs import Clock
from decoders.sampling import choose
from decoders.watch import Watch
from jaxlm.caches import FullCache
from jaxlm.config import ModelConfig
from jaxlm.language_model import LanguageModel
from jaxlm.lengths import bucket
from jaxlm.models.transformer import Transformer

# Tokens between two looks of the host at the output, when it has something to look for.
STREAM_EVERY = 4


@struct.dataclass
class DecodeState:
  """R rows of a batch on their way. The last token of a row is chosen but not yet in the cache."""

  tokens: jax.Array  # [R, M] int32, generated so far, padding elsewhere
  last: jax.Array  # [R] int32, the newest token
  position: jax.Array  # [R] int32, its position
  lengths: jax.Array  # [R] int32, tokens generated
  done: jax.Array  # [R] bool
  keys: jax.Array  # [R] random keys, one per row
  seen: jax.Array | None  # [R, V] bool, tokens of prompt and output, for the repetition penalty
  total: jax.Array  # [R] int32, the length each row may reach
  cache: Any


@functools.partial(jax.jit, static_argnames=('config', 'capacity', 'wrap'))
def prefill(params, tokens_BT, lengths_B, total_B, *, config: ModelConfig, capacity: int, wrap=None):
  """Reads the prompts. Returns (float32 logits [B, V] after each row's last token, cache)."""
  cache = FullCache.create(config, tokens_BT.shape[0], capacity)
  cache = cache if wrap is None else wrap(cache, lengths_B)
  return read(params, tokens_BT, jnp.zeros_like(lengths_B), lengths_B, total_B, cache, config=config)


def read(params, tokens_BT, start_B, lengths_B, total_B, cache, *, config: ModelConfig):
  """Reads more tokens, `lengths` of each row from position `start` on.

  Returns (float32 logits [B, V] after each row's last one, cache).
  """
  model, rows = Transformer(config), jnp.arange(len(tokens_BT))
  positions_BT = start_B[:, None] + jnp.arange(tokens_BT.shape[1])[None]
  hidden_BTD, cache = model.apply(
    {'params': params}, tokens_BT, positions_BT, cache, total_B, method=Transformer.hidden
  )
  last_BD = hidden_BTD[rows, jnp.clip(lengths_B - 1, 0, tokens_BT.shape[1] - 1)]
  return model.apply({'params': params}, last_BD, method=Transformer.logits), cache


read_on = jax.jit(read, static_argnames='config', donate_argnames='cache')


def prefill_in_chunks(clock: Clock, lm: LanguageModel, padded, total_B, capacity: int, chunk: int, wrap=None):
  """Reads the prompts so many tokens at a time, which bounds what a layer computes at once; returns as `prefill`."""
  if lm.config.prefix > chunk:
    raise ValueError(f'{chunk=} cuts a prefix of {lm.config.prefix} tokens, which are read at once.')
  lengths, T = padded.lengths, padded.tokens.shape[1]
  ends = range(chunk, T + chunk, chunk)
  logits_BV, cache = clock.run(
    'prefill', prefill, lm.params, jnp.asarray(padded.tokens[:, :chunk]), jnp.asarray(lengths), total_B,
    config=lm.config, capacity=capacity, wrap=wrap,
  )  # fmt: skip
  for end in ends[1:]:
    start = end - chunk
    if start >= lengths.max():
      break
    more_BV, cache = clock.run(
      'prefill', read_on, lm.params, jnp.asarray(padded.tokens[:, start:end]), jnp.full(len(lengths), start, jnp.int32),
      jnp.asarray(lengths - start), total_B, cache, config=lm.config,
    )  # fmt: skip
    logits_BV = jnp.where(jnp.asarray(lengths > start)[:, None], more_BV, logits_BV)
  return logits_BV, cache


@functools.partial(jax.jit, static_argnames='samples')
def fan_out(tree, *, samples: int):
  """Makes `samples` rows of each row, side by side."""
  return jax.tree.map(lambda x: jnp.repeat(x, samples, axis=0), tree)


@functools.partial(jax.jit, static_argnames='max_new_tokens')
def start(logits_RV, tokens_RT, lengths_R, total_R, keys_R, pad_id, eos_E, values, *, max_new_tokens) -> DecodeState:
  """Chooses the first token of each row. The cache is put in by the caller, so that it is not copied here."""
  R, V = logits_RV.shape
  seen = None
  if 'repetition_penalty' in values:
    real_RT = jnp.arange(tokens_RT.shape[1])[None] < lengths_R[:, None]
    seen = jnp.zeros((R, V), bool).at[jnp.arange(R)[:, None], tokens_RT].max(real_RT)
  state = DecodeState(
    tokens=jnp.full((R, max_new_tokens), pad_id, jnp.int32), last=tokens_RT[:, 0], position=lengths_R - 1,
    lengths=jnp.zeros(R, jnp.int32), done=jnp.zeros(R, bool), keys=keys_R, seen=seen, total=total_R, cache=None,
  )  # fmt: skip
  return emit(state, logits_RV, eos_E, values)


def emit(state: DecodeState, logits_RV, eos_E, values) -> DecodeState:
  """Chooses the token after `state.position` of each unfinished row."""
  rows = jnp.arange(logits_RV.shape[0])
  position = state.position + 1
  noise_keys = jax.vmap(jax.random.fold_in)(state.keys, position)
  chosen = choose(logits_RV, noise_keys, state.seen, values)
  next_R = jnp.where(state.done, state.last, chosen)
  # Finished rows write past the end, which drops the write.
  slot = jnp.where(state.done, state.tokens.shape[1], state.lengths)
  lengths = state.lengths + ~state.done
  return state.replace(
    tokens=state.tokens.at[rows, slot].set(next_R, mode='drop'),
    last=next_R,
    position=jnp.where(state.done, state.position, position),
    lengths=lengths,
    done=state.done | jnp.isin(next_R, eos_E) | (lengths >= state.tokens.shape[1]),
    seen=None if state.seen is None else state.seen.at[rows, next_R].set(True),
  )


@functools.partial(jax.jit, static_argnames=('config',), donate_argnums=(1,))
def decode(params, state: DecodeState, steps, eos_E, values, *, config: ModelConfig) -> tuple[DecodeState, Any]:
  """Takes at most `steps` steps, fewer when every row is done. Returns (state, steps taken)."""
  model = Transformer(config)

  def unfinished(carry):
    state, taken = carry
    return (taken < steps) & ~jnp.all(state.done)

  def body(carry):
    state, taken = carry
    hidden_R1D, cache = model.apply(
      {'params': params},
      state.last[:, None],
      state.position[:, None],
      state.cache,
      state.total,
      method=Transformer.hidden,
    )
    logits_RV = model.apply({'params': params}, hidden_R1D[:, 0], method=Transformer.logits)
    return emit(state.replace(cache=cache), logits_RV, eos_E, values), taken + 1

  return jax.lax.while_loop(unfinished, body, (state, jnp.int32(0)))


class WholeMemory:
  """How prompts are read and what becomes of their cache: all is kept. Other decoders pass another one of these."""

  wrap: Callable[[FullCache, jax.Array], Any] | None = None
  """Static function of (empty cache, [B] lengths) that makes the cache which reads the prompts."""
  chunk: int | None = None
  """Prompts are read so many tokens at a time; None: at once."""
  room: int | None = None
  """Tokens that the cache must be able to grow by; None: those to be generated."""
  slack = 0
  """Slots that the loop needs beyond these."""

  def growth(self, max_new_tokens: int) -> int:
    """Returns the tokens that the cache is made to grow by."""
    return max(self.room or 0, max_new_tokens) + self.slack

  def read(self, clock: Clock, lm: LanguageModel, padded: prompt_lib.PaddedPrompts, total_B, capacity: int):
    """Returns (float32 logits [B, V] after each row's last token, cache)."""
    if self.chunk is not None and self.chunk < padded.tokens.shape[1]:
      return prefill_in_chunks(clock, lm, padded, total_B, capacity, self.chunk, self.wrap)
    args = lm.params, jnp.asarray(padded.tokens), jnp.asarray(padded.lengths), total_B
    return clock.run('prefill', prefill, *args, config=lm.config, capacity=capacity, wrap=self.wrap)

  def compress(
    self, state: DecodeState, advance: Callable, config: ModelConfig
  ) -> list[tuple[np.ndarray, DecodeState]]:
    """Returns (rows, their state) of each part of the batch that is decoded together, between them every row.

    `advance(state, steps, rows)` takes steps. The state is given away: its arrays may be deleted.
    """
    return [(np.arange(len(state.lengths)), state)]

  def finished(self, rows_R: np.ndarray, state: DecodeState) -> None:
    """Is told of each part that is done. All tokens but the last one of each row are in its cache."""

  def stats(self) -> dict[str, Any]:
    return {}


class PlainLoop:
  """How rows that have been read go on: a token a step. Other decoders pass another one of these."""

  slack = 0
  """Slots that a row needs beyond its last token."""
  slots = 0
  """Slots that a row has."""
  chunk: int | None = None
  """Prompts are read so many tokens at a time; None: at once."""

  def check(self, lm: LanguageModel, longest: int, values: dict) -> None:
    """Raises ValueError if rows of so many tokens cannot be decoded so, with such options of sampling."""

  def clear(self) -> None:
    """Forgets what `stats` would tell: a call of `generate` begins."""

  def begin(self, clock: Clock, lm: LanguageModel, prompts: Sequence[Sequence[int]], state: DecodeState) -> Any:
    """Returns the state that `advance` takes, of rows with these prompts."""
    return state

  def advance(self, clock: Clock, lm: LanguageModel, state: Any, steps: int, eos_E, values) -> tuple[Any, jax.Array]:
    """Returns (the state after at most so many calls of the model, calls made)."""
    return clock.run('decode', decode, lm.params, state, jnp.int32(steps), eos_E, values, config=lm.config)

  def finished(self, rows_R: np.ndarray, state: Any) -> None:
    """Is told of each part of a batch that is done."""

  def stats(self) -> dict[str, Any]:
    return {}


def generate(
  lm: LanguageModel,
  prompts: Sequence[str] | Sequence[Sequence[int]],
  *,
  max_new_tokens: int = 64,
  sampling: Sampling = Sampling(),
  seed: int = 0,
  num_samples: int = 1,
  eos_id: int | Sequence[int] | None | str = 'tokenizer',
  stop: Sequence[str] = (),
  stream: Callable[[int, list[int]], None] | None = None,
  batch_size: int | None = None,
  prefill_chunk: int | None = None,
  capacity: int | None = None,
  memory: WholeMemory | None = None,
  loop: PlainLoop | None = None,
  direction: directions.Way | None = None,
) -> Output:
  """Continues each prompt; in reverse, generates what comes before it.

  Args:
    prompts: strings when the model has a tokenizer, or lists of token ids; they may differ in length.
    max_new_tokens: most tokens to generate for each row.
    sampling: how tokens are chosen; greedy by default.
    seed: the same seed gives a row the same tokens at any batch size.
    num_samples: continuations of each prompt; they share one prefill and are rows side by side.
    eos_id: token id(s) that end a row; by default the tokenizer's, None for none.
    stop: strings that end a row; the text ends before them, in reverse it begins behind them.
    stream: called as stream(row, new_ids) while rows grow; ids come in the order of generation.
    batch_size: prompts decoded together (None: all).
    prefill_chunk: tokens of a prompt read at once (None: all); bounds the memory that long prompts need.
    capacity: slots of the cache, rounded up, more where a text needs more (None: as many as prompt and output need). Calls
      whose texts all fit into the same capacity share one compiled program: for streams of requests of many lengths.
    memory: how prompts are read and what becomes of their cache; all is kept by default.
    loop: how rows go on; a token a step by default.
    direction: 'forward', or 'reverse', where each prompt is the end of a text and the model goes on towards its beginning; None
      is the model's own, which is forward for a model of both. In reverse `text` is in reading order: what stands before the
      prompt; `tokens` are in the order of generation. The BOS and the signal that the model was trained with are put in front;
      given as ids, and read forward without a signal, prompts stay as they are. Without a tokenizer no BOS is known.

  Raises:
    ValueError: for an empty prompt, ids outside the vocabulary, prompts that with max_new_tokens exceed the model's
      context, or a direction that the model was not trained for.
  """
  direction = directions.resolve(lm.config, direction)
  if num_samples < 1 or (batch_size is not None and batch_size < 1):
    raise ValueError(f'{num_samples=} and {batch_size=} must be at least 1.')
  if stop and lm.tokenizer is None:
    raise ValueError(f'{stop=} needs a model with a tokenizer.')
  if prefill_chunk is not None and prefill_chunk < 1:
    raise ValueError(f'{prefill_chunk=} must be at least 1.')
  if capacity is not None and capacity < 1:
    raise ValueError(f'{capacity=} must be at least 1.')
  ids = prompt_lib.encode(lm, prompts, direction)
  prompt_lib.check_room(max(map(len, ids)), max_new_tokens, lm.config.max_length)
  prompt_lib.check_prefix(min(map(len, ids)), lm.config.prefix)
  eos, pad_id = ending(lm, eos_id)
  values = jax.tree.map(jnp.asarray, sampling.active)
  clock, calls, kv_bytes, memory = Clock(), [], 0, memory or WholeMemory()
  loop, plain = loop or PlainLoop(), PlainLoop()
  memory.chunk, memory.slack, loop.chunk = prefill_chunk, loop.slack, prefill_chunk
  loop.clear()
  loop.check(lm, max(map(len, ids)) + max_new_tokens, values)
  tokens, lengths = [], []
  batch_size = batch_size or len(ids)
  for first in range(0, len(ids), batch_size):
    padded = prompt_lib.pad(ids[first : first + batch_size], lm.config.max_length)
    first_row = first * num_samples
    keys_R = row_keys(seed, first_row, len(padded.lengths) * num_samples)
    watch = Watch(
      functools.partial(directions.generated_text, lm, direction=direction),
      [ids[first + row // num_samples] for row in range(len(keys_R))],
      stop,
      stream and (lambda row, new, base=first_row: stream(base + row, new)),
    )
    total_B = jnp.asarray(padded.lengths + max_new_tokens)
    longest = int(padded.lengths.max()) + memory.growth(max_new_tokens)
    if capacity is not None and bucket(capacity) >= longest:
      slots = bucket(capacity)  # Prompts are padded to such sizes.
    else:  # Slack comes on top of what plain decoding has: the next size may be much larger, and each step reads all slots.
      slots = bucket(longest - loop.slack) + bucket(loop.slack)
    loop.slots = slots = min(slots, lm.config.max_length + loop.slack)
    tokens_BT, lengths_B, eos_E = jnp.asarray(padded.tokens), jnp.asarray(padded.lengths), jnp.asarray(eos, jnp.int32)
    logits_BV, cache = memory.read(clock, lm, padded, total_B, slots)
    rows = (logits_BV, tokens_BT, lengths_B, total_B, cache)
    if num_samples > 1:
      rows = clock.run('prefill', fan_out, rows, samples=num_samples)
    *rows, cache = rows
    state = clock.run(
      'prefill', start, *rows, keys_R, jnp.int32(pad_id), eos_E, values, max_new_tokens=max_new_tokens
    ).replace(cache=cache)

    def advance(state, steps, rows_R, loop=plain, eos_E=eos_E, watch=watch):
      state, taken = loop.advance(clock, lm, state, steps, eos_E, values)
      calls.append(int(taken))
      return watch.poll(state, rows_R)

    calls.append(1)  # the prefill
    state = watch.poll(state, np.arange(len(keys_R)))
    parts = memory.compress(state, advance, lm.config)
    del state, cache, rows
    kv_bytes = max(kv_bytes, sum(state.cache.nbytes for _, state in parts))
    batch_tokens, batch_lengths = np.zeros((len(keys_R), max_new_tokens), np.int32), np.zeros(len(keys_R), np.int32)
    while parts:
      rows_R, state = parts.pop()
      state = loop.begin(clock, lm, [watch.prompts[row] for row in rows_R], state)
      while not bool(jnp.all(state.done)):
        state = advance(state, STREAM_EVERY if watch.watching else max_new_tokens, rows_R, loop)
      batch_tokens[rows_R], batch_lengths[rows_R] = state.tokens, state.lengths
      memory.finished(rows_R, state)
      loop.finished(rows_R, state)
    tokens.append(batch_tokens)
    lengths.append(batch_lengths)
  tokens, lengths = np.concatenate(tokens), np.concatenate(lengths)
  tokens = np.where(np.arange(max_new_tokens)[None] < lengths[:, None], tokens, pad_id).astype(np.int32)
  decode_seconds = clock.seconds.get('decode', 0.0)
  later = int(lengths.sum()) - len(lengths)  # the first token of each row is the prefill's
  stats = {
    'prompt_tokens': sum(map(len, ids)), 'new_tokens': int(lengths.sum()), 'target_calls': sum(calls),
    'prefill_seconds': clock.seconds['prefill'], 'decode_seconds': decode_seconds, 'compile_seconds': clock.compile_seconds,
    'tokens_per_second': later / decode_seconds if decode_seconds else 0.0, 'kv_bytes': kv_bytes,
    **memory.stats(), **loop.stats(),
  }  # fmt: skip
  text = None
  if lm.tokenizer is not None:
    grown = zip(np.repeat(np.arange(len(ids)), num_samples), tokens, lengths)
    text = [
      directions.cut(directions.generated_text(lm, ids[i], row[:n], direction), stop, direction) for i, row, n in grown
    ]
  return Output(tokens, lengths, text, stats)


def drafting(rounds: int, drafted: int, accepted: int, verified: int) -> dict[str, Any]:
  """Returns what is told of speculative decoding: M = (accepted + rounds) / rounds, alpha = accepted / drafted."""
  counts = {'rounds': rounds, 'drafted': drafted, 'accepted': accepted, 'verified': verified}
  per_round = (accepted + rounds) / rounds if rounds else 0.0
  return counts | {'tokens_per_round': per_round, 'acceptance': accepted / drafted if drafted else 0.0}


def ending(lm: LanguageModel, eos_id) -> tuple[list[int], int]:
  """Returns (ids that end a row, the padding id)."""
  tokenizer = lm.tokenizer
  if isinstance(eos_id, str):
    eos = list(tokenizer.stop_ids) if tokenizer is not None else []
  else:
    eos = [] if eos_id is None else [int(e) for e in np.atleast_1d(eos_id)]
  pad_id = next((p for p in (getattr(tokenizer, 'pad_id', None), *eos) if p is not None), 0)
  return eos or [-1], pad_id


def row_keys(seed: int, first_row: int, rows: int) -> jax.Array:
  return folded(jax.random.key(seed), first_row, rows=rows)


@functools.partial(jax.jit, static_argnames='rows')
def folded(key, first_row, *, rows: int) -> jax.Array:
  return jax.vmap(functools.partial(jax.random.fold_in, key))(first_row + jnp.arange(rows))
