"""CaPE's table: the exact widths of the paper, and trees that are no larger than their programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoders.glide import PAPER_BINS, GlideDecoding, cape
from decoders.speculative.draft_loop import draft
from decoders.speculative.trees import NOWHERE
from tests.decoders.speculative.test_draft_loop import state_of

EDGES = {0.0: 8, 0.299: 8, 0.3: 6, 0.599: 6, 0.6: 4, 0.799: 4, 0.8: 2, 0.999: 2, 1.0: 2}


def test_widths_are_the_papers():
  policy = cape.policy(GlideDecoding())
  assert policy.width(jnp.asarray(list(EDGES), jnp.float32)).tolist() == list(EDGES.values())


def test_any_table_is_the_one_of_its_formula():
  bins = (11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1)
  policy = cape.policy(GlideDecoding(bins=bins))
  sure = np.linspace(0, 1, 1001, dtype=np.float32)
  expected = np.asarray(bins)[np.floor(np.float32(10) * sure).astype(int)]
  # Just at an edge, the product may round either way.
  inside = np.abs(sure * 10 - np.round(sure * 10)) > 1e-5
  np.testing.assert_array_equal(np.asarray(policy.width(jnp.asarray(sure)))[inside], expected[inside])
  assert policy.width(jnp.ones(1)).tolist() == [1]


@pytest.mark.parametrize(
  'glide, most', [(GlideDecoding(), 28), (GlideDecoding(bins=(1,)), 0), (GlideDecoding(max_draft=3, bins=(4,)), 9)]
)
def test_no_tree_is_larger_than_the_largest_program(glide, most):
  sizes = cape.sizes(cape.policy(glide))
  assert sizes[-1] == (glide.max_draft, most) and list(sizes) == sorted(set(sizes))
  assert 1 + sum(sizes[-1]) <= 33


def test_chains_that_a_threshold_ends_are_verified_by_smaller_programs():
  sizes = lambda **options: cape.sizes(cape.policy(GlideDecoding(threshold=0.4, **options)))
  assert sizes(bins=(1,)) == ((1, 0), (2, 0), (4, 0))
  assert sizes(bins=(1,), max_draft=2) == ((1, 0), (2, 0))
  # The last token of a chain may be improbable, and then has seven candidates beside it; those before it have at most five.
  assert sizes() == ((1, 7), (2, 12), (4, 11), (4, 22))


def logits_of(probabilities, V=20):
  """Returns logits whose likeliest token has each of these probabilities."""
  p = np.full((len(probabilities), V), 0.0)
  for row, largest in zip(p, probabilities):
    row[:] = (1 - largest) / (V - 1)
    row[3] = largest
  return jnp.log(jnp.asarray(p, jnp.float32))


@pytest.mark.parametrize('rule', ['match', 'residual'])
def test_each_depth_of_a_tree_has_the_width_of_its_confidence(rule):
  """When tokens are drawn too, the width follows the likeliest token, which does not depend on the draw."""
  confident = [0.2, 0.5, 0.7, 0.9]
  policy, state = cape.policy(GlideDecoding()), state_of([0], [1])
  step = lambda tokens, positions, depth: (logits_of(confident)[depth][None], depth + 1)
  values = {'temperature': jnp.float32(1.0)} if rule == 'residual' else {}
  tree, _ = jax.jit(lambda: draft(step, jnp.int32(0), state, values, rule, policy, 20))()
  assert tree.length.tolist() == [4]
  count = lambda depth: int((tree.parents == depth).sum())
  assert [1 + count(depth) for depth in range(4)] == [8, 6, 4, 2]
  assert int((tree.parents != NOWHERE).sum()) == 7 + 5 + 3 + 1
  if rule == 'match':
    assert (tree.chain == 3).all()


def test_the_papers_table_is_that_of_the_code():
  assert [PAPER_BINS[int(10 * p)] for p in (0.1, 0.35, 0.65, 0.85, 1.0)] == [8, 6, 4, 2, 2]
