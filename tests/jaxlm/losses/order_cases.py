"""Small sentences, and the order-agnostic losses by trying all permutations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

B, T, D, V = 5, 6, 4, 11
LENGTHS = np.array([6, 5, 0, 1, 3])
MASK = (np.arange(T) < LENGTHS[:, None]).astype(np.float32)


def inputs(seed=0):
  """Returns hidden states, an output matrix, logits and targets; a token may occur twice in a sentence."""
  rng = np.random.default_rng(seed)
  hidden, matrix = (rng.normal(size=shape).astype(np.float32) for shape in ((B, T, D), (D, V)))
  return hidden, 2 * matrix, hidden @ (2 * matrix), rng.integers(0, V, (B, T), np.int32)


def with_nan(logits, *index):
  logits = logits.copy()
  logits[index] = np.nan
  return logits


def costs(logits, targets):
  """Returns -log p_i(y_j) of one sentence, float64."""
  z = np.asarray(logits, np.float64)
  return np.log(np.exp(z).sum(axis=1, keepdims=True)) - z[:, np.asarray(targets)]


def sentences(logits, targets):
  for z, y, n in zip(logits, targets, LENGTHS):
    yield costs(z, y)[:n, :n]


def in_order(cost):
  return np.diagonal(cost).sum()


def runs_are_long(order, n: int) -> bool:
  """Whether all maximal runs of neighbours that stay neighbours have n tokens, or fewer in place at an edge of the sentence."""
  N, start = len(order), 0
  for i in range(1, N + 1):
    if i < N and order[i] == order[i - 1] + 1:
      continue
    in_place_at_edge = order[start] == start and (start == 0 or i == N)
    if i - start < n and not in_place_at_edge:
      return False
    start = i
  return True


def best_order(cost, n: int = 1):
  """Returns the least cost of all permutations that keep n-grams together."""
  N = len(cost)
  orders = (o for o in itertools.permutations(range(N)) if runs_are_long(o, n))
  return min(sum(cost[i, j] for i, j in enumerate(o)) for o in orders)


def best_blocks(cost, n: int):
  N, best = len(cost), in_order(cost)
  for r in range(n):
    q = max(N - r, 0) // n
    for o in itertools.permutations(range(q)):
      order = np.arange(N)
      for a, b in enumerate(o):
        order[r + n * a : r + n * a + n] = np.arange(r + n * b, r + n * b + n)
      best = min(best, cost[np.arange(N), order].sum())
  return best


def cross_entropy_at(logits, targets, columns, keep):
  """The loss whose gradient an order-agnostic loss must have, if `columns` and `keep` are its matching and its truncation."""
  permuted = jnp.take_along_axis(targets, columns, axis=1)
  nll = -jnp.take_along_axis(jax.nn.log_softmax(logits), permuted[..., None], axis=2)[..., 0]
  return jnp.sum(nll * keep)
