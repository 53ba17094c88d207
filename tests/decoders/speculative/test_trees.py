"""Acceptance by residuals: the law of the tokens is the target's, and slips that are easily made are found out."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from decoders.speculative import trees
from tests.models import slow

V, DEPTH, BESIDE, ROUNDS = 6, 2, 2, 200_000


def tables(seed, sharpness):
  """Returns the odds of a token after none, one, two and three others."""
  rng = np.random.default_rng(seed)
  odds = [np.exp(sharpness * rng.normal(size=(V,) * (n + 1))) for n in range(4)]
  return [jnp.asarray(x / x.sum(-1, keepdims=True), np.float32) for x in odds]


TARGET, DRAFT = tables(0, 1.0), tables(1, 1.2)  # Far from each other on purpose.


@functools.partial(jax.jit, static_argnames=('begun', 'slip', 'beside'))
def round_of(keys, target, draft, first_B, begun, slip=None, beside=BESIDE):
  """Returns what a round accepts after one token if `begun`, else after none."""
  B = len(keys)

  def odds(tables, *before):
    before = (first_B, *before)
    if begun:
      return tables[len(before)][before]
    return tables[len(before) - 1][before[1:]] if before[1:] else jnp.broadcast_to(tables[0], (B, V))

  chain, top, q = [], [], []
  for d in range(DEPTH):
    q.append(odds(draft, *chain))
    noise = jax.vmap(lambda key, d=d: jax.random.gumbel(jax.random.fold_in(key, d + 100), (V,)))(keys)
    noise = 0.0 if slip == 'children are not drawn' else noise
    top.append(jax.lax.top_k(jnp.log(q[-1]) + noise, 1 + beside)[1])
    chain.append(top[-1][:, 0])
  stack = lambda x: jnp.stack(x, axis=1)
  sure = jnp.take_along_axis(q[0], chain[0][:, None], axis=1)[:, 0]
  length = jnp.where(sure < 0.3, 1, DEPTH)  # Drafting stops after an unlikely token, and keeps it.
  if slip == 'an unlikely token is dropped':
    length = jnp.where(sure < 0.3, 0, DEPTH)
  tokens, width = stack(chain), jnp.full((B, DEPTH), beside)
  tree = trees.with_leaves(tokens, length, stack(top)[:, :, 1:], width, DEPTH * beside, stack(q))
  if slip == 'padding is token 0':
    there = jnp.arange(DEPTH)[None] < length[:, None]
    tree = tree.replace(
      chain=jnp.where(there, tokens, 0),
      length=jnp.full(B, DEPTH),
      odds=jnp.where(there[..., None], tree.odds, tree.odds[:, :1]),
    )
    chain = [tree.chain[:, d] for d in range(DEPTH)]
  p = [odds(target), odds(target, chain[0]), odds(target, *chain)]
  leaf_rows = jnp.minimum(tree.parents, DEPTH - 1)
  for m in range(DEPTH * beside):
    leaf = tree.leaves[:, m]
    p.append(jnp.where(leaf_rows[:, m, None] == 0, odds(target, leaf), odds(target, chain[0], leaf)))
  p = stack(p)
  if slip == 'the last token is not warped':
    p = p.at[:, DEPTH:].set(jax.nn.softmax(2.0 * jnp.log(p[:, DEPTH:])))
  return trees.residual(tree, p, keys, 1 + beside)


def pairs(slip=None):
  """Returns how often each pair of first tokens came."""
  key = jax.random.key(0)
  keys = [jax.random.split(jax.random.fold_in(key, i), ROUNDS) for i in range(2)]
  nothing = jnp.zeros(ROUNDS, jnp.int32)
  one = round_of(keys[0], TARGET, DRAFT, nothing, False, slip)
  two = round_of(keys[1], TARGET, DRAFT, one.tokens[:, 0], True, slip)
  second = jnp.where(one.count > 0, one.tokens[:, 1], two.tokens[:, 0])
  return np.bincount(np.asarray(one.tokens[:, 0] * V + second), minlength=V * V)


def p_value(counts):
  expected = np.asarray(TARGET[0][:, None] * TARGET[1], np.float64).reshape(-1)
  return stats.chisquare(counts, counts.sum() * expected / expected.sum()).pvalue


def test_the_law_is_the_targets():
  assert p_value(pairs()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize(
  'slip', ['padding is token 0', *slow('the last token is not warped', 'an unlikely token is dropped')]
)
def test_slips_are_found_out(slip):
  assert p_value(pairs(slip)) < 1e-9


@pytest.mark.slow
def test_likeliest_tokens_are_no_drawn_children():
  assert p_value(pairs('children are not drawn')) < 1e-9


def test_a_single_child_is_accepted_as_often_as_theory_says():
  keys = jax.random.split(jax.random.key(3), ROUNDS)
  accepted = round_of(keys, TARGET, DRAFT, jnp.zeros(ROUNDS, jnp.int32), False, beside=0)
  expected = float(jnp.minimum(TARGET[0], DRAFT[0]).sum())
  error = (expected * (1 - expected) / ROUNDS) ** 0.5
  assert abs(float((accepted.count > 0).mean()) - expected) < 4 * error


def test_siblings_are_accepted_more_often_than_one_child():
  keys = jax.random.split(jax.random.key(3), ROUNDS)
  mean = lambda beside: float(
    round_of(keys, TARGET, DRAFT, jnp.zeros(ROUNDS, jnp.int32), False, beside=beside).count.mean()
  )
  assert mean(2) > mean(0) + 0.1


def test_a_target_that_agrees_accepts_everything():
  keys = jax.random.split(jax.random.key(4), 1000)
  accepted = round_of(keys, TARGET, TARGET, jnp.zeros(1000, jnp.int32), False)
  assert (accepted.count >= 1).all() and (accepted.path[:, 1] == 1).all()


def test_matching_follows_the_target_into_a_leaf():
  chain, beside = jnp.asarray([[5, 6, 7]]), jnp.asarray([[[1, 2], [3, 4], [8, 9]]])
  tree = trees.with_leaves(chain, jnp.asarray([3]), beside, jnp.asarray([[2, 1, 2]]), 6)
  assert tree.leaves[0, :5].tolist() == [1, 2, 3, 8, 9] and tree.parents[0, :5].tolist() == [0, 0, 1, 2, 2]
  nodes = {'chain': [5, 6, 7], 'leaf of 1': 6}  # node 6 is the third leaf
  targets = jnp.asarray([[5, 3, 0, 0, 0, 0, 17, 0, 0, 0]])
  accepted = trees.match(tree, targets)
  assert accepted.path.tolist() == [[0, 1, nodes['leaf of 1'], 3]] and accepted.count.tolist() == [2]
  assert accepted.tokens[0, :3].tolist() == [5, 3, 17]
  # A leaf that was not drawn, behind the width, is none.
  assert trees.match(tree, targets.at[0, 1].set(4)).count.tolist() == [1]
