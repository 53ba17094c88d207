"""Losses that align a draft's next-token distribution q with its target's, p, as sums over positions.

  word_kd          sum_v p_v (log p_v - log q_v)
  tvd_kd           1/2 sum_v |p_v - q_v|
  seq_kd           -log q_y, y a token of the target's own beams
  atspeed_s        KL(q~ || p~) + p~_(K) H(q~)         q~, p~: softmax of the probabilities of I over tau; I: the K largest of q
  atspeed_s_clean  KL(q~ || p~) - log sum_{v in top-K(p)} q_v     q~, p~: softmax of the logits of I
  atspeed_r        1/2 sum_v |q'_v - p'_v|             q', p': softmax of the logits over tau

The last three are those of AtSpeed (https://arxiv.org/abs/2410.05165): S for drafts that strict verification checks, R for relaxed
verification. They are computed over the tokens that are legal at a position, and positions are those of the target's beams. We follow the
authors' code in `atspeed_s`, where p~_(K) is the target's probability of the token that the draft ranks K-th; `atspeed_s_clean` is ours.

No gradient flows into the target's logits. Letters: V vocabulary, K tokens of I.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import jax
import jax.numpy as jnp

from jaxlm.errors import unknown
from jaxlm.losses.cross_entropy import cross_entropy
from jaxlm.losses.divergence import DIVERGENCES

if TYPE_CHECKING:
  from jaxtyping import Array, Bool, Float, Int, Num

  Sums = tuple[Float[Array, ''], Float[Array, '']]

Kind = Literal['strict', 'strict-clean', 'relaxed']
FLOOR = -1e9
"""Logit of a token that is not legal. A finite number, so that no gradient is NaN where no token is legal."""


def word_kd(logits: Float[Array, '... V'], target_logits: Float[Array, '... V'], mask: Num[Array, '...']) -> Sums:
  """Returns (sum of the masked KL divergences from the target to the draft in nats, sum of the mask)."""
  return _masked(DIVERGENCES['kl'](*_pair(logits, target_logits)), mask)


def tvd_kd(logits: Float[Array, '... V'], target_logits: Float[Array, '... V'], mask: Num[Array, '...']) -> Sums:
  """Returns (sum of the masked total variation distances, sum of the mask)."""
  return _masked(DIVERGENCES['tv'](*_pair(logits, target_logits)), mask)


def seq_kd(logits: Float[Array, '... V'], tokens: Int[Array, '...'], mask: Num[Array, '...']) -> Sums:
  """Returns (sum of the masked negative log-likelihoods of `tokens`, those of the target's beams, sum of the mask)."""
  return cross_entropy(logits, tokens, mask)


def atspeed_s(
  logits: Float[Array, '... V'],
  target_logits: Float[Array, '... V'],
  legal: Bool[Array, '... V'],
  mask: Num[Array, '...'],
  *,
  top_k: int = 20,
  tau: float = 0.1,
  constrained: bool = True,
) -> Sums:
  """Returns (sum of the masked strict alignment losses, sum of the mask).

  Args:
    logits: of the draft.
    target_logits: of the target.
    legal: tokens that may come next; its axes are those of the logits, or 1.
    mask: weight of each position.
    top_k: number K of tokens of I, or V if that is less.
    tau: divides the probabilities before their softmax; small values make them nearly one-hot. The authors' script has 0.001, with which
      the gradients of our small drafts are some hundred times those of the cross-entropy, and drafts end worse than without alignment.
    constrained: whether that softmax is taken; otherwise q~ and p~ are the probabilities of I as they are.

  Raises:
    ValueError: top_k or tau is not positive.
  """
  _check(top_k, tau)
  q, p = (jax.nn.log_softmax(x) for x in _legal(logits, target_logits, legal))
  log_q_K, at_K = jax.lax.top_k(q, min(top_k, q.shape[-1]))
  log_p_K = jnp.take_along_axis(p, at_K, axis=-1)
  if constrained:
    # Where fewer than K tokens are legal, the authors' code gives the others a share of e^0. Here they have none.
    legal_K = jnp.take_along_axis(jnp.broadcast_to(legal, q.shape), at_K, axis=-1)
    again = lambda log: jax.nn.log_softmax(jnp.where(legal_K, jnp.exp(log) / tau, FLOOR))
    log_q_K, log_p_K = again(log_q_K), again(log_p_K)
  q_K = jnp.exp(log_q_K)
  kl = jnp.sum(q_K * (log_q_K - log_p_K), axis=-1)
  entropy = -jnp.sum(q_K * log_q_K, axis=-1)
  return _masked(kl + jnp.exp(log_p_K[..., -1]) * entropy, mask)


def atspeed_s_clean(
  logits: Float[Array, '... V'],
  target_logits: Float[Array, '... V'],
  legal: Bool[Array, '... V'],
  mask: Num[Array, '...'],
  *,
  top_k: int = 20,
) -> Sums:
  """Returns (sum of the masked losses of our variant, sum of the mask); arguments as for `atspeed_s`."""
  _check(top_k)
  q, p = _legal(logits, target_logits, legal)
  k = min(top_k, q.shape[-1])
  q_K, at_K = jax.lax.top_k(q, k)
  log_q_K = jax.nn.log_softmax(q_K)
  log_p_K = jax.nn.log_softmax(jnp.take_along_axis(p, at_K, axis=-1))
  kl = jnp.sum(jnp.exp(log_q_K) * (log_q_K - log_p_K), axis=-1)
  best_K = jnp.take_along_axis(jax.nn.log_softmax(q), jax.lax.top_k(p, k)[1], axis=-1)
  return _masked(kl - jax.nn.logsumexp(best_K, axis=-1), mask)


def atspeed_r(
  logits: Float[Array, '... V'],
  target_logits: Float[Array, '... V'],
  legal: Bool[Array, '... V'],
  mask: Num[Array, '...'],
  *,
  tau: float = 1.0,
) -> Sums:
  """Returns (sum of the masked total variation distances over legal tokens, each within [0, 1], sum of the mask).

  `tau`: temperature of both distributions. Small values make them one-hot, and their gradient vanishes.

  Raises:
    ValueError: tau is not positive.
  """
  _check(1, tau)
  q, p = _legal(logits, target_logits, legal)
  return _masked(DIVERGENCES['tv'](q / tau, p / tau), mask)


def topk_alignment(
  logits: Float[Array, '... V'],
  target_logits: Float[Array, '... V'],
  legal: Bool[Array, '... V'],
  mask: Num[Array, '...'],
  kind: Kind = 'strict',
  *,
  top_k: int = 20,
  tau: float | None = None,
) -> Sums:
  """Returns the loss that aligns a draft for a kind of verification: AtSpeed-S for 'strict', AtSpeed-R for 'relaxed'.

  Args:
    logits, target_logits, legal, mask: see `atspeed_s`.
    kind: 'strict', 'strict-clean' (our variant) or 'relaxed'.
    top_k: for strict, the number of tokens of I.
    tau: None: 0.1 for 'strict' and 1 for 'relaxed'; 'strict-clean' has none.

  Raises:
    ValueError: an unknown kind, or top_k or tau is not positive.
  """
  pair = logits, target_logits, legal, mask
  if kind == 'strict':
    return atspeed_s(*pair, top_k=top_k, tau=0.1 if tau is None else tau)
  if kind == 'strict-clean':
    return atspeed_s_clean(*pair, top_k=top_k)
  if kind == 'relaxed':
    return atspeed_r(*pair, tau=1.0 if tau is None else tau)
  raise unknown('kind of alignment', kind, ('strict', 'strict-clean', 'relaxed'))


def _check(top_k: int, tau: float = 1.0) -> None:
  if top_k < 1:
    raise ValueError(f'{top_k=} must be at least 1.')
  if not tau > 0:
    raise ValueError(f'{tau=} must be above 0: logits or probabilities are divided by it.')


def _pair(logits, target_logits):
  return logits.astype(jnp.float32), jax.lax.stop_gradient(target_logits.astype(jnp.float32))


def _legal(logits, target_logits, legal):
  return tuple(jnp.where(legal, x, FLOOR) for x in _pair(logits, target_logits))


def _masked(values, mask) -> Sums:
  mask = mask.astype(jnp.float32)
  return jnp.sum(values * mask), jnp.sum(mask)
