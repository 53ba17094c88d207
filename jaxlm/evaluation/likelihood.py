"""Log-likelihoods of continuations after contexts, for example for multiple-choice questions.

  log p(continuation | context) = sum_t log p(x_t | x_<t) over the continuation's tokens;   greedy: each is the likeliest

Pairs that differ only in their last token, such as one-letter answers to a question, share one row. Rows are sorted by length,
padded on the right to one of few lengths, and computed in batches of one size, so that few programs are compiled.
Letters: C scored positions before the last one, K last tokens of a row.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.config import ModelConfig
from jaxlm.data import directions
from jaxlm.language_model import LanguageModel
from jaxlm.lengths import bucket
from jaxlm.losses import slice_logits
from jaxlm.models import functions
from jaxlm.models.transformer import cap

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Float, Int

Pair = tuple[Sequence[int], Sequence[int]]
"""(context, continuation), ids."""


class Likelihood(NamedTuple):
  """The log p of a continuation, in nats, and whether greedy decoding would yield it."""

  log_p: float
  greedy: bool


def lead(lm: LanguageModel) -> list[int]:
  """Returns the first ids of a text: BOS if the tokenizer adds it, or BOS and direction signal for a model of both directions.

  Raises:
    ValueError: the model has no tokenizer, or was trained on reverse text only.
  """
  c, tokenizer = lm.config, lm.tokenizer
  if tokenizer is None:
    raise ValueError('The model has no tokenizer, so it cannot read text.')
  if c.direction == 'reverse':
    raise ValueError("This model was trained with direction='reverse': it cannot say how likely a continuation is.")
  if c.direction == 'both':
    return directions.head('forward', c.direction_signal, directions.bos_of(tokenizer), c.vocab_size)
  return [tokenizer.bos_id] if tokenizer.adds_bos else []


def first(lm: LanguageModel) -> list[int]:
  """Returns the ids before a text, so that its first token can be scored: `lead`, or if it is empty BOS, or EOS."""
  if found := lead(lm):
    return found
  bos = directions.bos_of(lm.tokenizer)
  if bos is None:
    raise ValueError('Scoring a text without a context needs a BOS or an EOS; the tokenizer has neither.')
  return [bos]


def encode(lm: LanguageModel, text: str, *, special: bool = False) -> list[int]:
  """Returns the ids of a text, those of `lead` included. With `special`, strings such as '<|im_start|>' become one id."""
  begin, ids = lead(lm), lm.tokenizer.encode(text, special=special)
  written_out = bool(begin) and ids[:1] == begin[:1]
  return [*begin, *ids[written_out:]]


def encode_pair(lm: LanguageModel, context: str, continuation: str, *, special: bool = False) -> Pair:
  """Returns the ids of a context and of its continuation, split in the same way as in lm-evaluation-harness.

  White space at the end of the context is moved to the continuation. Both are encoded as one text; the continuation is the
  ids after the number of ids of the context alone. An empty context becomes BOS, or EOS.

  Raises:
    ValueError: no ids are left for the continuation.
  """
  stripped = context.rstrip()
  continuation = context[len(stripped) :] + continuation
  if stripped:
    before = encode(lm, stripped, special=special)
    after = encode(lm, stripped + continuation, special=special)[len(before) :]
  else:
    before, after = first(lm), lm.tokenizer.encode(continuation, special=special)
    if after[:1] == before[:1]:  # The text itself begins with BOS.
      after = after[1:]
  if not after:
    raise ValueError(f'The continuation {continuation!r} has no token of its own after {stripped[-40:]!r}.')
  return before, after


def likelihoods(
  lm: LanguageModel,
  pairs: Sequence[Pair],
  *,
  batch_size: int = 16,
  max_length: int | None = None,
  devices: Sequence[jax.Device] | None = None,
  progress: Callable[[int], None] = lambda pairs: None,
) -> list[Likelihood]:
  """Returns log p of each continuation after its context, in the order of the pairs.

  Args:
    pairs: ids of contexts and continuations; a context that is too long for the model loses its beginning.
    batch_size: rows computed at the same time, rounded up to a multiple of the number of devices.
    max_length: largest number of tokens of a row (None: the model's context).
    devices: devices that share the rows (None: all local ones).
    progress: called after each batch with its number of pairs.

  Raises:
    ValueError: an empty context or continuation, a continuation longer than a row, ids beyond the vocabulary, a
      context shorter than a prefix LM's prefix, a model that is not causal, or numbers that are not finite.
  """
  c = lm.config
  c.check_causal('A likelihood token by token')
  length = c.max_length if max_length is None else max_length
  if not 1 <= length <= c.max_length or batch_size < 1:
    raise ValueError(f'{max_length=} must be within 1 .. {c.max_length}, the context of the model, {batch_size=} at least 1.')  # fmt: skip
  rows: dict[tuple, list[tuple[int, int]]] = {}  # (input ids, number of scored tokens) -> [(pair, its last token), ...]
  for i, pair in enumerate(pairs):
    ids, scored = _row(i, pair, c, length)
    rows.setdefault((tuple(ids[:-1]), scored), []).append((i, ids[-1]))
  devices = jax.local_devices() if devices is None else devices
  mesh = jax.sharding.Mesh(np.array(devices), ('data',))
  params = jax.device_put(lm.params, jax.NamedSharding(mesh, jax.P()))
  placed = functools.partial(jax.device_put, device=jax.NamedSharding(mesh, jax.P('data')))
  B = -(-batch_size // len(devices)) * len(devices)
  # The longest rows come first, so that a run that exceeds memory fails at once.
  order = sorted(rows.items(), key=lambda row: -len(row[0][0]))
  out: list[Any] = [None] * len(pairs)

  def read(some, found):
    log_p_BK, greedy_BK = map(np.asarray, found)
    if not np.isfinite(log_p_BK[: len(some)]).all():
      raise ValueError('Likelihoods are not finite: activations of the model overflow, or its parameters are not numbers.')  # fmt: skip
    for (_, members), log_p_K, greedy_K in zip(some, log_p_BK.tolist(), greedy_BK.tolist()):
      for (i, _), log_p, greedy in zip(members, log_p_K, greedy_K):
        out[i] = Likelihood(log_p, greedy)
    progress(sum(len(members) for _, members in some))

  waiting = None
  for start in range(0, len(order), B):
    some = order[start : start + B]
    found = _batch(params, *placed(_padded(some, B, length)), config=c)
    if waiting is not None:  # The device computes the next batch while the host reads this one.
      read(*waiting)
    waiting = some, found
  if waiting is not None:
    read(*waiting)
  return out


def _row(number: int, pair: Pair, config: ModelConfig, length: int) -> tuple[list[int], int]:
  """Returns (ids, number of scored ids at the end). All ids but the last are inputs."""
  context, continuation = map(list, pair)
  ids, scored = (context + continuation)[-(length + 1) :], len(continuation)
  if not context or not continuation:
    raise ValueError(f'Pair {number} has an empty {"continuation" if context else "context"}.')
  if scored > length:
    raise ValueError(f'The continuation of pair {number} has {scored} tokens; a row has {length}.')
  if bad := [i for i in ids if not 0 <= i < config.vocab_size]:
    raise ValueError(f'Pair {number} has token id {bad[0]}; the vocabulary has ids 0 to {config.vocab_size - 1}.')
  if config.prefix > len(ids) - scored:
    raise ValueError(f'A prefix LM (prefix={config.prefix}) sees what pair {number}, with {len(ids) - scored} ids before what is scored, asks for.')  # fmt: skip
  return ids, scored


def _padded(rows: list, B: int, length: int) -> tuple[np.ndarray, ...]:
  """Returns tokens [B, T], lengths [B]; positions, targets and mask [B, C] of the scored tokens before the last one; and the
  last tokens [B, K]."""
  power = lambda n: 1 << max(n - 1, 0).bit_length()
  T = min(bucket(max(len(ids) for (ids, _), _ in rows)), length)
  C = min(power(max(scored for (_, scored), _ in rows) - 1), T)
  K = power(max(len(members) for _, members in rows))
  tokens_BT, lengths_B, last_BK = np.zeros((B, T), np.int32), np.ones(B, np.int32), np.zeros((B, K), np.int32)
  (at_BC, targets_BC), mask_BC = np.zeros((2, B, C), np.int32), np.zeros((B, C), bool)
  for i, ((ids, scored), members) in enumerate(rows):
    n, before = len(ids), scored - 1
    tokens_BT[i, :n], lengths_B[i] = ids, n
    at_BC[i, :before], targets_BC[i, :before] = np.arange(n - scored, n - 1), ids[n - before :]
    mask_BC[i, :before] = True
    last_BK[i, : len(members)] = [last for _, last in members]
  return tokens_BT, lengths_B, at_BC, targets_BC, mask_BC, last_BK


@functools.partial(jax.jit, static_argnames='config')
def _batch(
  params: Any,
  tokens_BT: Int[Array, 'B T'],
  lengths_B: Int[Array, ' B'],
  at_BC: Int[Array, 'B C'],
  targets_BC: Int[Array, 'B C'],
  mask_BC: Bool[Array, 'B C'],
  last_BK: Int[Array, 'B K'],
  *,
  config: ModelConfig,
) -> tuple[Float[Array, 'B K'], Bool[Array, 'B K']]:
  hidden_BTD, _ = functions.hidden(params, config, tokens_BT, length=lengths_B)
  matrix_DV = functions.output_matrix(params, config).astype(hidden_BTD.dtype)

  def scored(h_BcD, targets_BcK):
    logits_BcV = cap(jnp.matmul(h_BcD, matrix_DV, preferred_element_type=jnp.float32), config.logit_softcap)
    target_BcK = jnp.take_along_axis(logits_BcV, targets_BcK, axis=-1)
    log_p_BcK = target_BcK - jax.nn.logsumexp(logits_BcV, axis=-1, keepdims=True)
    return log_p_BcK, jnp.argmax(logits_BcV, axis=-1, keepdims=True) == targets_BcK

  # The logits of all positions may be larger than the model, so they are computed in slices. The slices are along C, so that
  # rows stay on their devices.
  (B, C), V = at_BC.shape, matrix_DV.shape[1]
  steps = min(C, -(-B * C * V // slice_logits()))
  width = -(-C // steps)

  def sliced(x):
    x = jnp.pad(x, [(0, 0), (0, steps * width - C), (0, 0)])
    return x.reshape(B, steps, width, -1).swapaxes(0, 1)

  at = lambda places_BC: jnp.take_along_axis(hidden_BTD, places_BC[..., None], axis=1)
  xs = sliced(at(at_BC)), sliced(targets_BC[..., None])
  found = jax.lax.map(lambda x: scored(*x), xs)
  log_p_BC, greedy_BC = (x.swapaxes(0, 1).reshape(B, -1)[:, :C] for x in found)
  log_p_B1 = jnp.sum(log_p_BC, axis=1, where=mask_BC, keepdims=True)
  greedy_B1 = jnp.all(greedy_BC | ~mask_BC, axis=1, keepdims=True)
  last_log_p_B1K, last_greedy_B1K = scored(at(lengths_B[:, None] - 1), last_BK[:, None])
  return log_p_B1 + last_log_p_B1K[:, 0], greedy_B1 & last_greedy_B1K[:, 0]
