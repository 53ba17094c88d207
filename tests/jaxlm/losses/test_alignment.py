"""Alignment losses agree with NumPy, vanish for equal distributions, and stay finite where nothing is legal."""

import functools

import jax
import numpy as np
import pytest

from jaxlm import losses

B, T, V = 3, 4, 9
RNG = np.random.default_rng(0)
Q, P = (RNG.normal(0, 2, (B, T, V)).astype(np.float32) for _ in range(2))
LEGAL = RNG.random((1, T, V)) < 0.7
LEGAL[:, :, :3] = True
MASK = (RNG.random((B, T)) < 0.7).astype(np.float32)
TOKENS = RNG.integers(0, V, (B, T))


def softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def reference(name, q, p, legal, mask, top_k, tau):
  """Returns the masked sum of a loss, position by position."""
  total = 0.0
  for b in range(B):
    for t in range(T):
      ok = np.flatnonzero(np.broadcast_to(legal, q.shape)[b, t])
      qq, pp = q[b, t].astype(np.float64), p[b, t].astype(np.float64)
      if name == 'word_kd':
        a, c = softmax(pp), softmax(qq)
        value = (a * np.log(a / c)).sum()
      elif name == 'tvd_kd':
        value = np.abs(softmax(pp) - softmax(qq)).sum() / 2
      elif name == 'seq_kd':
        value = -np.log(softmax(qq)[TOKENS[b, t]])
      elif name == 'r':
        value = np.abs(softmax(pp[ok] / tau) - softmax(qq[ok] / tau)).sum() / 2
      else:
        probs_q, probs_p = softmax(qq[ok]), softmax(pp[ok])
        best = np.argsort(-probs_q, kind='stable')[:top_k]
        if name == 's':
          a, c = softmax(probs_q[best] / tau), softmax(probs_p[best] / tau)
          last = c[-1] if len(ok) >= top_k else 0.0
          a_log = np.log(np.maximum(a, 1e-300))
          value = (a * (a_log - np.log(np.maximum(c, 1e-300)))).sum() - last * (a * a_log).sum()
        elif name == 's_free':
          a, c = probs_q[best], probs_p[best]
          last = c[-1] if len(ok) >= top_k else 0.0
          value = (a * np.log(a / c)).sum() - last * (a * np.log(a)).sum()
        else:
          a, c = softmax(qq[ok][best]), softmax(pp[ok][best])
          top = np.argsort(-probs_p, kind='stable')[:top_k]
          value = (a * np.log(a / c)).sum() - np.log(probs_q[top].sum())
      total += mask[b, t] * value
  return total


def all_losses(q, p, legal, mask, k, tau):
  return {
    'word_kd': losses.word_kd(q, p, mask),
    'tvd_kd': losses.tvd_kd(q, p, mask),
    'seq_kd': losses.seq_kd(q, TOKENS, mask),
    's': losses.atspeed_s(q, p, legal, mask, top_k=k, tau=tau),
    's_free': losses.atspeed_s(q, p, legal, mask, top_k=k, constrained=False),
    'clean': losses.atspeed_s_clean(q, p, legal, mask, top_k=k),
    'r': losses.atspeed_r(q, p, legal, mask, tau=tau),
  }


@functools.partial(jax.jit, static_argnames=('k', 'tau'))
def values_and_gradients(q, p, legal, mask, *, k=4, tau=0.5):
  found = all_losses(q, p, legal, mask, k, tau)
  total = lambda q, p: sum(x for x, _ in all_losses(q, p, legal, mask, k, tau).values())
  return found, jax.grad(total, argnums=(0, 1))(q, p)


@pytest.mark.parametrize('k, tau', [(4, 0.5), (3, 0.02)])
def test_each_loss_is_that_of_numpy(k, tau):
  found, (to_q, to_p) = values_and_gradients(Q, P, LEGAL, MASK, k=k, tau=tau)
  for name, (total, weight) in found.items():
    np.testing.assert_allclose(total, reference(name, Q, P, LEGAL, MASK, k, tau), rtol=2e-6, err_msg=name)
    assert weight == MASK.sum()
  assert np.isfinite(to_q).all() and np.abs(to_q).max() > 0
  np.testing.assert_array_equal(to_p, 0)


def test_equal_distributions_are_aligned_and_a_constant_changes_nothing():
  found, _ = values_and_gradients(Q, Q, LEGAL, MASK)
  for name in ('word_kd', 'tvd_kd', 'r'):
    assert abs(found[name][0]) < 1e-5, name
  # What is left of S is its entropy term, and of its variant the draft's mass outside of the best tokens.
  shifted, _ = values_and_gradients(Q + 7, Q, LEGAL, MASK)
  for name in ('s', 's_free', 'clean'):
    np.testing.assert_allclose(found[name][0], reference(name, Q, Q, LEGAL, MASK, 4, 0.5), rtol=1e-4)
    np.testing.assert_allclose(shifted[name][0], found[name][0], rtol=1e-4)


def test_positions_without_legal_tokens_and_without_weight_have_no_part():
  legal, mask = LEGAL.copy(), MASK.copy()
  legal[:, 1], mask[:, 1] = False, 0
  found, (to_q, _) = values_and_gradients(Q, P, legal, mask)
  assert np.isfinite(to_q).all() and all(np.isfinite(x) for x, _ in found.values())
  np.testing.assert_array_equal(to_q[:, 1], 0)
  r, weight = found['r']
  assert 0 <= r / weight <= 1
  none, _ = values_and_gradients(Q, P, np.zeros_like(legal), np.zeros_like(mask))
  assert all(total == 0 and weight == 0 for total, weight in none.values())


def test_the_kind_of_verification_chooses_the_loss():
  @jax.jit
  def both(q, p):
    one = [losses.topk_alignment(q, p, LEGAL, MASK, kind) for kind in ('strict', 'strict-clean', 'relaxed')]
    pair = q, p, LEGAL, MASK
    return one, [losses.atspeed_s(*pair), losses.atspeed_s_clean(*pair), losses.atspeed_r(*pair)]

  one, other = both(Q, P)
  np.testing.assert_array_equal(one, other)
  assert len({float(total) for total, _ in one}) == 3
  with pytest.raises(ValueError, match="Unknown kind of alignment 'loose'"):
    losses.topk_alignment(Q, P, LEGAL, MASK, 'loose')
  with pytest.raises(ValueError, match='tau=0 must be above 0'):
    losses.atspeed_r(Q, P, LEGAL, MASK, tau=0)
  with pytest.raises(ValueError, match='top_k=0 must be at least 1'):
    losses.atspeed_s(Q, P, LEGAL, MASK, top_k=0)
