"""`generate`: reads prompts, decodes them, and returns tokens, texts and statistics.

Plain autoregressive decoding is one compiled prefill and one compiled loop that adds one token per call of the model. Other
decoders pass other strategies (`decoders.strategies`).
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from decoders import directions, endings
from decoders import prompts as prompt_lib
from decoders.options import Sampling
from decoders.output import Output
from decoders.programs import Clock
from decoders.state import DecodeState, fan_out, row_keys, start
from decoders.strategies import PlainLoop, Plan, WholeMemory
from decoders.watch import Watch
from jaxlm.data.catalogue import Catalogue
from jaxlm.errors import NotFiniteError, check_seed
from jaxlm.language_model import LanguageModel
from jaxlm.lengths import bucket

STREAM_EVERY = 4
"""Number of tokens between two polls of the output by the host, when it streams or looks for stop strings."""


def generate(
  lm: LanguageModel,
  prompts: Sequence[str] | Sequence[Sequence[int]],
  *,
  max_new_tokens: int = 64,
  sampling: Sampling = Sampling(),
  seed: int = 0,
  num_samples: int = 1,
  eos_id: int | str | Sequence[int | str] | None = 'tokenizer',
  stop: str | Sequence[str] = (),
  stream: Callable[[int, list[int]], None] | None = None,
  batch_size: int | None = None,
  prefill_chunk: int | None = None,
  capacity: int | None = None,
  memory: WholeMemory | None = None,
  loop: PlainLoop | None = None,
  direction: directions.Direction | None = None,
) -> Output:
  """Continues each prompt; in reverse, generates what comes before it.

  Args:
    prompts: strings when the model has a tokenizer, or lists of token ids; they may differ in length.
    max_new_tokens: largest number of tokens to generate for each row.
    sampling: how tokens are chosen; greedy by default.
    seed: the same seed gives a row the same tokens at any batch size.
    num_samples: number of continuations for each prompt; they share one prefill and are neighbouring rows.
    eos_id: tokens that end a row: an id, a token's text, or a list of these; by default the tokenizer's, None for none.
    stop: one string or several that end a row. The text ends before the first one; in reverse it begins after the last one. A
      string may contain special tokens, such as '<|im_end|>', which `text` leaves out.
    stream: called as stream(row, new_ids) while rows grow; ids come in the order of generation.
    batch_size: number of prompts decoded together (None: all).
    prefill_chunk: number of a prompt's tokens read at once (None: all); it bounds the memory that long prompts need.
    capacity: number of cache slots, rounded up, and raised if a text needs more (None: as many as prompt and output need). Calls
      whose texts fit into the same capacity share one compiled program, which helps with requests of many lengths.
    memory: strategy that reads the prompts and compresses their cache; by default the whole cache is kept.
    loop: strategy that extends the rows; by default one token per step.
    direction: 'forward', or 'reverse', where each prompt is the end of a text and the model generates towards its beginning;
      None is the model's own direction (forward for a model of both). In reverse, `text` is the text before the prompt, in
      reading order, and `tokens` are in the order of generation. BOS and the direction signal that the model was trained with
      are put in front of each prompt. Prompts given as ids that are read forward without a signal are not changed. Without a
      tokenizer no BOS is known, and none is put in front.

  Raises:
    ValueError: for a recommender, an empty prompt, ids outside the vocabulary, prompts that with max_new_tokens exceed the model's
      context, an empty stop string, an eos_id that is no token, a seed beyond 32 bits, or a direction that the model was not
      trained for.
    NotFiniteError: for logits that are not finite.
  """
  if isinstance(lm.tokenizer, Catalogue):
    raise ValueError(
      'This model is a recommender: its tokens are identifiers of items, not text. Use decoders.atspeed.recommend, or python -m '
      'decoders.recommend.'
    )
  direction = directions.resolve(lm.config, direction)
  if num_samples < 1 or (batch_size is not None and batch_size < 1):
    raise ValueError(f'{num_samples=} and {batch_size=} must be at least 1.')
  check_seed('seed', seed)
  stop = endings.stop_strings(stop)
  if stop and lm.tokenizer is None:
    raise ValueError(f'{stop=} needs a model with a tokenizer.')
  if prefill_chunk is not None and prefill_chunk < 1:
    raise ValueError(f'{prefill_chunk=} must be at least 1.')
  if capacity is not None and capacity < 1:
    raise ValueError(f'{capacity=} must be at least 1.')
  ids = prompt_lib.encode(lm, prompts, direction)
  prompt_lib.check_room(max(map(len, ids)), max_new_tokens, lm.config.max_length)
  prompt_lib.check_prefix(min(map(len, ids)), lm.config.prefix)
  eos, pad_id = endings.ending(lm, eos_id)
  values = jax.tree.map(jnp.asarray, sampling.active)
  clock, calls, kv_bytes, memory = Clock(), [], 0, memory or WholeMemory()
  loop, plain = loop or PlainLoop(), PlainLoop()
  loop.clear()
  loop.check(lm, max(map(len, ids)) + max_new_tokens, values)
  tokens, lengths = [], []
  batch_size = batch_size or len(ids)
  for first in range(0, len(ids), batch_size):
    padded = prompt_lib.pad(ids[first : first + batch_size], lm.config.max_length)
    first_row = first * num_samples
    keys_R = row_keys(seed, first_row, len(padded.lengths) * num_samples)
    watch = Watch(
      lambda prompt, new, skip_special: directions.generated_text(lm, prompt, new, direction, skip_special),
      [ids[first + row // num_samples] for row in range(len(keys_R))],
      stop,
      stream and (lambda row, new, base=first_row: stream(base + row, new)),
    )
    total_B = jnp.asarray(padded.lengths + max_new_tokens)
    plan = Plan(chunk=prefill_chunk, slack=loop.slack)
    longest = int(padded.lengths.max()) + memory.growth(max_new_tokens, plan)
    if capacity is not None and bucket(capacity) >= longest:
      slots = bucket(capacity)  # Prompts are padded to bucket sizes too.
    else:  # Slack is rounded up separately, since the bucket of the sum may be much larger, and each step reads all slots.
      slots = bucket(longest - loop.slack) + bucket(loop.slack)
    plan = dataclasses.replace(plan, slots=min(slots, lm.config.max_length + loop.slack))
    tokens_BT, lengths_B, eos_E = jnp.asarray(padded.tokens), jnp.asarray(padded.lengths), jnp.asarray(eos, jnp.int32)
    logits_BV, cache = memory.read(clock, lm, padded, total_B, plan)
    rows = (logits_BV, tokens_BT, lengths_B, total_B, cache)
    if num_samples > 1:
      rows = clock.run('prefill', fan_out, rows, samples=num_samples)
    *rows, cache = rows
    state = clock.run(
      'prefill', start, *rows, keys_R, jnp.int32(pad_id), eos_E, values, max_new_tokens=max_new_tokens
    ).replace(cache=cache)

    def advance(state, steps, rows_R, loop=plain, eos_E=eos_E, watch=watch, first_row=first_row):
      state, taken = loop.advance(clock, lm, state, steps, eos_E, values)
      calls.append(int(taken))
      check_finite(lm, state, first_row + rows_R)
      return watch.poll(state, rows_R)

    calls.append(1)  # the prefill
    check_finite(lm, state, first_row + np.arange(len(keys_R)))
    state = watch.poll(state, np.arange(len(keys_R)))
    parts = memory.compress(state, advance, lm.config, plan)
    del state, cache, rows
    kv_bytes = max(kv_bytes, sum(state.cache.nbytes for _, state in parts))
    batch_tokens, batch_lengths = np.zeros((len(keys_R), max_new_tokens), np.int32), np.zeros(len(keys_R), np.int32)
    while parts:
      rows_R, state = parts.pop()
      state = loop.begin(clock, lm, [watch.prompts[row] for row in rows_R], state, plan)
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
  later = int(lengths.sum()) - len(lengths)  # the prefill chooses the first token of each row
  stats = {
    'prompt_tokens': sum(map(len, ids)), 'new_tokens': int(lengths.sum()), 'target_calls': sum(calls),
    'prefill_seconds': clock.seconds['prefill'], 'decode_seconds': decode_seconds, 'compile_seconds': clock.compile_seconds,
    'tokens_per_second': later / decode_seconds if decode_seconds else 0.0, 'kv_bytes': kv_bytes,
    **memory.stats(), **loop.stats(),
  }  # fmt: skip
  text = None
  if lm.tokenizer is not None:
    grown = zip(np.repeat(np.arange(len(ids)), num_samples), tokens, lengths)
    added = lambda prompt: lambda new, skip_special: directions.generated_text(lm, prompt, new, direction, skip_special)
    text = [endings.before_stop(added(ids[i]), row[:n].tolist(), stop, direction) for i, row, n in grown]
  return Output(tokens, lengths, text, stats)


def check_finite(lm: LanguageModel, state: DecodeState, rows_R: np.ndarray) -> None:
  """Raises NotFiniteError if the logits of a row are not finite. `rows_R`: the rows' numbers in the output."""
  finite_R = np.asarray(state.finite)
  if finite_R.all():
    return
  row, dtype = int(np.argmin(finite_R)), lm.config.dtype
  fix = (
    "numbers above 65504 overflow in float16, so load the model with dtype='bfloat16' or 'float32'"
    if dtype == 'float16'
    else 'check that its weights are finite and were read in the right format'
  )
  raise NotFiniteError(
    f'Row {rows_R[row]}: the logits after position {int(state.position[row])} are not finite. The model computes in {dtype}: '
    f'{fix}.'
  )


def drafting(rounds: int, drafted: int, accepted: int, verified: int) -> dict[str, Any]:
  """Returns the statistics of speculative decoding, with the mean tokens per round and the acceptance rate:

  tokens_per_round M = (accepted + rounds) / rounds,   acceptance alpha = accepted / drafted
  """
  counts = {'rounds': rounds, 'drafted': drafted, 'accepted': accepted, 'verified': verified}
  per_round = (accepted + rounds) / rounds if rounds else 0.0
  return counts | {'tokens_per_round': per_round, 'acceptance': accepted / drafted if drafted else 0.0}
