"""A tree of tokens read beside a cache, against the forward pass of each path."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoders.beam.reader import ModelReader
from jaxlm.config import SinkConfig
from jaxlm.language_model import forward
from tests.models import TINY, slow, tiny_model

LENGTHS, PARENTS = np.array([7, 4], np.int32), np.array([-1, -1, 0, 0, 1, 3, 4, 3], np.int32)
CONFIGS = {
  'rope': TINY.replace(num_layers=1),
  'alibi': TINY.replace(position='alibi'),
  'learned': TINY.replace(position='learned'),
  'window': TINY.replace(windows=(5, 0)),
  'sink': TINY.replace(sink=SinkConfig(kind='token')),
}


def sees(parents) -> np.ndarray:
  seen = np.eye(len(parents), dtype=bool)
  for node, parent in enumerate(parents):
    if parent >= 0:
      seen[node] |= seen[parent]
  return seen


@functools.partial(jax.jit, static_argnames='reader')
def read(params, history, tokens, depth, seen, *, reader):
  """Returns logits of the prompt's end and of the tree, in one call and in two."""
  B, T = tokens.shape
  positions, total = LENGTHS[:, None] + depth, LENGTHS + 4
  last, states, _ = reader.prompt_and_tree(params, history, LENGTHS, total, tokens, positions, seen)
  last_alone, cache = reader.prompt(params, history, LENGTHS, total)
  branch = reader.branch(cache, T).replace(seen=seen)
  alone, _ = reader.read(params, tokens, positions, total, branch)
  join = lambda last, states: reader.logits(params, jnp.concatenate([last[:, None], states], axis=1))
  return join(last, states), join(last_alone, alone)


@pytest.mark.parametrize('name', ['rope', *slow('alibi', 'learned', 'window', 'sink')])
def test_each_token_of_a_tree_is_read_behind_its_own_path(name):
  rng, lm = np.random.default_rng(0), tiny_model(CONFIGS[name])
  history, tokens = (rng.integers(0, 50, (2, n)).astype(np.int32) for n in (8, len(PARENTS)))
  seen = sees(PARENTS)
  depth = seen.sum(axis=1) - 1
  both = lambda x: np.broadcast_to(x, (2, *x.shape))
  one, two = map(np.asarray, read(lm.params, history, tokens, both(depth), both(seen), reader=ModelReader(lm.config)))
  np.testing.assert_allclose(one, two, atol=1e-5)

  paths = np.zeros((2, len(PARENTS), 12), np.int32)
  for b, n in enumerate(LENGTHS):
    for node in range(len(PARENTS)):
      path = [*history[b, :n], *tokens[b, seen[node]]]
      paths[b, node, : len(path)] = path
  whole = np.asarray(forward(lm, paths.reshape(-1, 12))).reshape(2, len(PARENTS), 12, -1)
  for b, n in enumerate(LENGTHS):
    np.testing.assert_allclose(one[b, 0], whole[b, 0, n - 1], atol=1e-5)
    for node in range(len(PARENTS)):
      np.testing.assert_allclose(one[b, 1 + node], whole[b, node, n + depth[node]], atol=1e-5)

  # The order of tokens that lie side by side has no meaning.
  order = np.array([1, 0, 4, 3, 2, 6, 7, 5])
  moved = read(
    lm.params,
    history,
    tokens[:, order],
    both(depth[order]),
    both(seen[np.ix_(order, order)]),
    reader=ModelReader(lm.config),
  )[0]
  np.testing.assert_allclose(np.asarray(moved)[:, 1:], one[:, 1 + order], atol=1e-5)
  # A token that sees another path has other logits, so the comparison above finds a wrong mask.
  wrong = seen.copy()
  wrong[5] = seen[6]
  other = read(lm.params, history, tokens, both(depth), both(wrong), reader=ModelReader(lm.config))[0]
  assert np.abs(np.asarray(other)[:, 6] - one[:, 6]).max() > 1e-2
