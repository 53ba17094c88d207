"""Attention sinks of a model: Sink_k by proxy and raw scores, row mass, and norm ratios.

Read three numbers together. Proxy scores (https://arxiv.org/abs/2410.10781 uses them for operations without normalisation)
ignore how much a head attends in total; raw scores do not; and row mass, this total, shows which of the two to trust.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.analysis.sink import scores as sink_scores
from jaxlm.analysis.sink.probe import Probe, check_tokens
from jaxlm.config import ModelConfig
from jaxlm.language_model import LanguageModel
from jaxlm.models import functions

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int

EPS = 0.3
PRINTED = 10
"""Number of positions that `sink_sums` returns; the paper reports the same ones."""


@dataclasses.dataclass(frozen=True)
class SinkReport:
  """Means over sequences; float32 numpy arrays. S is T, or T + 1 with a slot or a sink token at index 0.

  Attributes:
    slot: whether index 0 is a slot or a sink token rather than the first token.
    eps: the thresholds, E of them.
    sink_proxy: [E, S] Sink_k of the proxy scores, a fraction; equals sink_raw if rows sum to 1.
    sink_raw: [E, S] Sink_k of the weights themselves.
    alpha: [L, N, S] mean weight of each key over the queries that see it, per layer and head.
    alpha_proxy: [L, N, S] the same for the proxy scores; in [0, 1].
    row_mass: [L, N] mean over queries of the sum of their weights, slot included.
    hidden_norm_ratio: [L + 1] |h_1| / mean over t > 1 of |h_t|, before each layer and after the last (before the final
      norm). If the model has a sink token, h_1 belongs to it.
    key_norm_ratio: [L] the same for keys, averaged over kv heads; a slot's key is not counted.
    value_norm_ratio: [L] the same for values.
  """

  slot: bool
  eps: tuple[float, ...]
  sink_proxy: np.ndarray
  sink_raw: np.ndarray
  alpha: np.ndarray
  alpha_proxy: np.ndarray
  row_mass: np.ndarray
  hidden_norm_ratio: np.ndarray
  key_norm_ratio: np.ndarray
  value_norm_ratio: np.ndarray

  @property
  def first(self) -> int:
    """Index of the first token."""
    return int(self.slot)

  @property
  def positions(self) -> list[str]:
    """Label of each index: 1, 2, ... for tokens, * for the slot."""
    labels = [str(k + 1) for k in range(self.alpha.shape[-1] - self.first)]
    return ['*', *labels] if self.slot else labels

  def __repr__(self) -> str:
    L, N, S = self.alpha.shape
    score = f'Sink_1 {self.sink_proxy[0, self.first]:.1%} (raw {self.sink_raw[0, self.first]:.1%}) at eps {self.eps[0]}'
    slot = f', slot {self.sink_proxy[0, 0]:.1%}' if self.slot else ''
    return f'SinkReport({score}{slot}, row mass {self.row_mass.mean():.2f}; {L} layers x {N} heads, {S} positions)'


def has_slot(config: ModelConfig) -> bool:
  """Returns whether the model's attention maps have a slot or a sink token before the first token."""
  return config.sink.kind in ('token', 'kv', 'k', 'logit')


def sinks(
  lm: LanguageModel,
  tokens: Int[np.ndarray, 'B T'],
  *,
  eps: float | Sequence[float] = (EPS,),
  chunk: int = 512,
  batch_size: int = 16,
) -> SinkReport:
  """Returns a SinkReport for sequences of equal length (the paper: 100 sequences of 64 tokens without BOS).

  Args:
    tokens: token ids, T >= 16; no padding.
    eps: thresholds.
    chunk: most queries whose maps are in memory at the same time: a few float32 arrays [batch_size, N, chunk, S].
    batch_size: largest number of sequences computed at the same time.

  Raises:
    ValueError: fewer than 16 tokens, no threshold, ids beyond the vocabulary, more tokens than learned positions, a size below 1.
  """
  tokens = check_tokens(tokens, lm.config)
  sink_scores.check_length(tokens.shape[1])
  for name, value in (('chunk', chunk), ('batch_size', batch_size)):
    if value < 1:
      raise ValueError(f'{name}={value} must be at least 1.')
  eps = tuple(float(e) for e in np.atleast_1d(eps))
  if not eps:
    raise ValueError('No threshold is given in eps; the paper takes 0.3.')
  total = len(tokens)
  rows = -(-total // -(-total // batch_size))  # Batches have nearly equal sizes, so that the last needs little padding.
  sums = None
  for start in range(0, total, rows):
    batch = tokens[start : start + rows]
    weight_B = np.arange(rows) < len(batch)
    batch = np.pad(batch, ((0, rows - len(batch)), (0, 0)), mode='edge')
    part = jax.device_get(_jitted(lm.params, batch, weight_B, config=lm.config, eps=eps, chunk=chunk))
    part = {name: np.asarray(x, np.float64) for name, x in part.items()}
    sums = part if sums is None else {name: sums[name] + x for name, x in part.items()}
  means = {name: (x / total).astype(np.float32) for name, x in sums.items()}
  return SinkReport(slot=has_slot(lm.config), eps=eps, **means)


def report_sums(
  config: ModelConfig, params: Any, tokens: Int[Array, 'B T'], row_weight: Float[Array, ' B'], eps, chunk: int
) -> dict[str, Array]:
  """Returns the arrays of a SinkReport, each as a weighted sum over rows; can be traced by JAX."""
  config.check_causal('The sink metric')
  states, probe = functions.states(params, config.replace(remat='none'), tokens, cache=Probe(chunk=chunk))
  notes = jax.tree.map(lambda *layers: jnp.stack(layers), *probe.layers)  # [L, B, ...]
  weight_B = row_weight.astype(jnp.float32)

  def over_rows(x, axis):
    weight = weight_B.reshape(tuple(-1 if i == axis else 1 for i in range(x.ndim)))
    return (x * weight).sum(axis=axis)

  def sink(alpha_LBNS):
    over_EBS = jnp.stack([(alpha_LBNS > e).mean(axis=(0, 2), dtype=jnp.float32) for e in eps])
    return over_rows(over_EBS, 1)

  return {
    'sink_proxy': sink(notes.alpha_proxy),
    'sink_raw': sink(notes.alpha),
    'hidden_norm_ratio': over_rows(jnp.stack([sink_scores.first_to_rest(x) for x in states]), 1),
    **{name: over_rows(x, 1) for name, x in vars(notes).items()},
  }


@functools.partial(jax.jit, static_argnames=('config', 'eps', 'chunk'))
def _jitted(params, tokens, row_weight, *, config, eps, chunk):
  return report_sums(config, params, tokens, row_weight, eps, chunk)


def sink_sums(
  config: ModelConfig, params: Any, tokens: Int[Array, 'B T'], row_weight: Float[Array, ' B'], chunk: int = 512
) -> dict[str, Float[Array, '']]:
  """Returns scalars for an evaluation step, each a weighted sum over rows; divide them by the sum of the weights.

  The scalars are sink_1 .. sink_10 (proxy, eps 0.3), sink_raw_1, row_mass, hidden_ratio_layer_0 .. _L (before each layer and
  after the last), and sink_slot for a model with a slot or sink token. sink_1 always belongs to the first token of the text.
  The function can be traced by JAX.

  Raises:
    ValueError: fewer than 16 tokens, or a model that is not causal.
  """
  sink_scores.check_length(tokens.shape[1])
  sums, first = report_sums(config, params, tokens, row_weight, (EPS,), chunk), int(has_slot(config))
  proxy_S, raw_S = sums['sink_proxy'][0], sums['sink_raw'][0]
  scalars = {f'sink_{k}': proxy_S[first + k - 1] for k in range(1, PRINTED + 1)}
  scalars |= {'sink_raw_1': raw_S[first], 'row_mass': sums['row_mass'].mean()}
  scalars |= {f'hidden_ratio_layer_{i}': x for i, x in enumerate(sums['hidden_norm_ratio'])}
  return scalars | ({'sink_slot': proxy_S[0]} if first else {})
