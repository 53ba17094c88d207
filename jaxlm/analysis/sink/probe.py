"""Measures attention from inside a model: a probe takes the place of the cache, so it receives q, k and v of each layer.

A `Probe` attends as `caches.Sequence` does. For each layer it keeps only the column sums of the attention maps, which the sink
metric needs. The maps in memory are never larger than [B, N, chunk, S] of one layer; accelerators have kernels that keep no maps.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.analysis.sink import scores as sink_scores
from jaxlm.attention import mass
from jaxlm.attention.attend import attend, attention_weights
from jaxlm.attention.positions import rotation_of
from jaxlm.attention.rule import AttentionRule
from jaxlm.caches.full import Sequence
from jaxlm.caches.rows import heads_first
from jaxlm.language_model import LanguageModel
from jaxlm.models import functions

if TYPE_CHECKING:
  from jaxtyping import Int


@struct.dataclass
class LayerNotes:
  """Measurements of one layer, float32. S is T, or T + 1 with a slot at index 0."""

  alpha: jax.Array  # [B, N, S]: see `mean_attention`
  alpha_proxy: jax.Array  # [B, N, S]: alpha of the proxy scores
  row_mass: jax.Array  # [B, N]: mean over queries of the sum of their weights, slot included
  key_norm_ratio: jax.Array  # [B]: |k_1| / mean of the other tokens' |k_t|, averaged over kv heads; without the slot
  value_norm_ratio: jax.Array  # [B]: the same for values


@struct.dataclass
class Probe:
  """A cache without memory that measures attention. `transformer(tokens, cache=Probe())[1].layers` are the LayerNotes."""

  layers: tuple[LayerNotes, ...] = ()
  chunk: int = struct.field(pytree_node=False, default=512)  # most queries whose maps are in memory at the same time

  @property
  def fresh(self) -> bool:
    return True

  def attend(self, layer: int, q, k, v, positions, rule: AttentionRule):
    if rule.causal and mass.is_default(rule, q.shape[1]):
      # The output equals that of a plain forward pass in both cases.
      out, _ = Sequence().attend(layer, q, k, v, positions, rule)
      sums = in_kernels(q, k, rule)
    else:
      out, sums = in_chunks(q, k, v, rule, self.chunk)
    T = q.shape[1]
    count_11S = sink_scores.seeing_queries(T, sums[0].shape[-1])[None, None]
    notes = LayerNotes(
      alpha=sums[0] / count_11S,
      alpha_proxy=sums[1] / count_11S,
      row_mass=sums[2] / T,
      key_norm_ratio=sink_scores.first_to_rest(heads_first(k)).mean(axis=1),
      value_norm_ratio=sink_scores.first_to_rest(heads_first(v)).mean(axis=1),
    )
    return out, self.replace(layers=(*self.layers, notes))


def in_kernels(q, k, rule: AttentionRule, **options):
  """Returns sums of weights: over queries for each key, of weights and of proxy scores [B, N, S]; over both, [B, N]."""
  received = mass.received(q, k, rule, **options)
  return received.columns, received.proxy, received.rows.sum(axis=-1)


def in_chunks(q, k, v, rule: AttentionRule, chunk: int):
  """Returns the attention output and the sums of `in_kernels`, for every rule."""
  k_BKTH, v_BKTH = heads_first(k), heads_first(v)
  B, T, N, H = q.shape
  key_index_1T = jnp.arange(T)[None]

  def piece(q_BCNH, rows_C):
    args = q_BCNH, k_BKTH, rows_C[None], key_index_1T, rule
    # XLA computes the weights, which both calls need, only once.
    out_BCNH = attend(*args[:2], v_BKTH, *args[2:])
    weights, slot = attention_weights(*args)
    if slot is not None:
      weights = jnp.concatenate([slot[..., None], weights], axis=-1)
    weights_BNCS = weights.reshape(B, N, -1, weights.shape[-1])
    mass_BNC = jnp.where((rows_C < T)[None, None], weights_BNCS.sum(axis=-1), 0)
    columns = [sink_scores.column_sums(w, rows_C, T) for w in (weights_BNCS, sink_scores.proxy(weights_BNCS))]
    return out_BCNH, (*columns, mass_BNC.sum(axis=-1))

  if T <= chunk:
    return piece(q, jnp.arange(T))
  if jax.default_backend() == 'cpu':  # Maps that its cache holds: twice as fast with 4096 tokens.
    chunk = min(chunk, max(64, 2**20 // (B * N * T)))
  chunks = -(-T // chunk)
  q_BRNH = jnp.pad(q, ((0, 0), (0, chunks * chunk - T), (0, 0), (0, 0)))
  q_RBCNH = jnp.moveaxis(q_BRNH.reshape(B, chunks, chunk, N, H), 1, 0)
  rows_RC = jnp.arange(chunks * chunk).reshape(chunks, chunk)

  def add(sums, x):
    out_BCNH, more = piece(*x)
    return jax.tree.map(jnp.add, sums, more), out_BCNH

  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(piece, q_RBCNH[0], rows_RC[0])[1])
  sums, out_RBCNH = jax.lax.scan(add, zeros, (q_RBCNH, rows_RC))
  return jnp.moveaxis(out_RBCNH, 0, 1).reshape(B, chunks * chunk, N, -1)[:, :T], sums


def qk_angles(lm: LanguageModel, tokens: Int[np.ndarray, ' T'], layer: int, head: int) -> tuple[np.ndarray, ...]:
  """Returns q_t . k_j, cos(q_t, k_j) and |q_t| |k_j|, each [T, T] float32 with NaN where j > t.

  q and k belong to one head, after the position encoding (and after the feature map of kernel attention), unscaled; a sink
  token is row and column 0. If a sink column is large in the first two arrays and small in the third, the sink comes from
  the directions of q and k, not from their norms (https://arxiv.org/abs/2410.10781).

  Raises:
    ValueError: the layer or head does not exist, or `tokens` is not one sequence of ids of the vocabulary.
  """
  c = lm.config
  tokens = np.asarray(tokens)
  tokens = check_tokens(tokens[None] if tokens.ndim == 1 else tokens, c)
  if len(tokens) != 1:
    raise ValueError(f'Angles are of one sequence, got {len(tokens)}.')
  for name, value, count in (('layer', layer, c.num_layers), ('head', head, c.num_heads)):
    if not 0 <= value < count:
      raise ValueError(f'{name}={value} is not one of the {count} there are, 0 .. {count - 1}.')
  q_BTNH, k_BTKH = _queries_and_keys(lm.params, tokens, config=c, layer=layer)
  q_TH = np.asarray(q_BTNH[0, :, head], np.float32)
  k_TH = np.asarray(k_BTKH[0, :, head // (c.num_heads // c.num_kv_heads)], np.float32)
  dot_TT = q_TH @ k_TH.T
  norm_TT = np.linalg.norm(q_TH, axis=-1)[:, None] * np.linalg.norm(k_TH, axis=-1)
  future_TT = np.triu(np.ones_like(dot_TT, bool), 1)
  return tuple(np.where(future_TT, np.nan, x) for x in (dot_TT, dot_TT / norm_TT, norm_TT))


@functools.partial(jax.jit, static_argnames=('config', 'layer'))
def _queries_and_keys(params, tokens, *, config, layer):
  """Returns q [B, T, N, H] and k [B, T, K, H] of a layer, as attention receives them."""
  states, layer_params = functions.states(params, config, tokens)[0], params[f'layer_{layer}']
  *_, (rotations, _) = functions.embedded(params, config, tokens)
  rotation = rotation_of(config, rotations, layer)
  read_BTD = functions.attention_input(layer_params, config, layer, states[layer])
  k_BTKH, _ = functions.project_keys_values(layer_params, config, layer, read_BTD, rotation)
  return functions.project_queries(layer_params, config, layer, read_BTD, rotation), k_BTKH


def check_tokens(tokens: Any, config) -> np.ndarray:
  """Returns tokens as an int32 array [B, T].

  Raises:
    ValueError: another shape or dtype, an id beyond the vocabulary, or a model that is not causal.
  """
  config.check_causal('What attention does to earlier tokens')
  tokens = np.asarray(tokens)
  if tokens.ndim != 2 or not tokens.size or tokens.dtype.kind not in 'iu':
    raise ValueError(f'Tokens are integers [sequences, length], got {tokens.dtype} of the shape {tokens.shape}.')
  if not 0 <= (low := tokens.min()) <= (high := tokens.max()) < config.vocab_size:
    bad = low if low < 0 else high
    raise ValueError(f"The token id {bad} is not in the model's vocabulary of {config.vocab_size}.")
  if config.position == 'learned' and tokens.shape[1] > config.max_length:
    raise ValueError(f'{tokens.shape[1]} tokens are more than the {config.max_length} learned positions of the model.')
  return tokens.astype(np.int32)
