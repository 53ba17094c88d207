"""The loop that all drafters share which are models: how far it drafts, what it asks the model, and what it proposes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoders.speculative.draft_loop import DraftPolicy, adapted_threshold, draft
from decoders.speculative.rounds import SpeculativeState
from decoders.speculative.trees import NOWHERE

V, MOST = 7, 9  # tokens of the vocabulary, and of the output


def state_of(last, generated, done=None):
  """Returns rows whose prompts have 5, 6, ... tokens, after so many generated ones."""
  R, generated = len(last), np.asarray(generated)
  prompts, zeros = 5 + np.arange(R), jnp.zeros(R, jnp.int32)
  return SpeculativeState(
    tokens=jnp.zeros((R, MOST), jnp.int32), last=jnp.asarray(last), position=jnp.asarray(prompts + generated - 1),
    lengths=jnp.asarray(generated), done=jnp.zeros(R, bool) if done is None else jnp.asarray(done),
    keys=jax.random.split(jax.random.key(0), R), seen=None, total=jnp.asarray(prompts + MOST), cache=None, text=None,
    finite=jnp.ones(R, bool), memory=None, rounds=zeros, drafted=zeros, accepted=zeros, verified=zeros,
  )  # fmt: skip


def successor(tokens_R1, positions_R1, read):
  """A model that finds token + 1 likeliest and token + 2 next, the surer the smaller the token; `read` notes what it is given."""
  token_R = tokens_R1[:, 0]
  places = jnp.arange(V)[None]
  logits_RV = jnp.where(places == (token_R[:, None] + 1) % V, 6.0 - token_R[:, None], 0.0)
  logits_RV += jnp.where(places == (token_R[:, None] + 2) % V, 0.5, 0.0)
  calls, positions = read
  return logits_RV, (calls + 1, positions.at[:, calls].set(positions_R1[:, 0]))


def probability(token):
  logits = np.zeros(V)
  logits[(token + 1) % V] = 6.0 - token
  logits[(token + 2) % V] += 0.5
  return float(np.exp(logits).max() / np.exp(logits).sum())


def drafted(state, policy, values=None, rule='match', **options):
  read = jnp.int32(0), jnp.zeros((len(state.last), policy.max_draft), jnp.int32)
  return draft(successor, read, state, values or {}, rule, policy, V, **options)


def test_a_chain_ends_at_the_first_unsure_token_and_keeps_it():
  threshold = (probability(2) + probability(3)) / 2  # What follows 3 is unsure.
  tree, (calls, positions) = drafted(state_of([0, 2, 5], [1, 1, 1]), DraftPolicy(6, threshold))
  assert tree.length.tolist() == [4, 2, 1]
  assert tree.chain[0, :4].tolist() == [1, 2, 3, 4] and tree.chain[1, :2].tolist() == [3, 4]
  assert calls == 4 and positions[0, :4].tolist() == [5, 6, 7, 8]
  assert tree.leaves.shape == (3, 0) and tree.odds is None


def test_rows_draft_no_further_than_they_have_room():
  state = state_of([0, 0, 0, 0], [1, MOST - 3, MOST - 1, 1], done=[False, False, False, True])
  tree, (calls, positions) = drafted(state, DraftPolicy(4, 0.0), idle=jnp.asarray([False] * 4))
  assert tree.length.tolist() == [4, 2, 0, 0] and calls == 4
  assert (positions < state.total[:, None]).all()
  tree, _ = drafted(state, DraftPolicy(4, 0.0), idle=jnp.asarray([True, False, False, False]))
  assert tree.length.tolist() == [0, 2, 0, 0]


def test_each_row_may_have_a_threshold_of_its_own():
  tree, _ = drafted(state_of([0, 0], [1, 1]), DraftPolicy(3, 0.0), threshold=jnp.asarray([0.0, 1.0]))
  assert tree.length.tolist() == [3, 1]


@pytest.mark.parametrize('rule', ['match', 'residual'])
def test_a_last_token_that_was_read_before_is_not_read_again(rule):
  state, policy = state_of([0, 3], [1, 2]), DraftPolicy(4, 0.0, widths=(3,))
  values = {'temperature': jnp.float32(0.8)}
  tree, (calls, _) = drafted(state, policy, values, rule)
  first_logits, _ = successor(
    state.last[:, None], state.position[:, None], (jnp.int32(0), jnp.zeros((2, 4), jnp.int32))
  )
  again, (fewer, _) = drafted(state, policy, values, rule, first_logits=first_logits)
  jax.tree.map(np.testing.assert_array_equal, tree, again)
  assert (calls, fewer) == (4, 3)


def test_unsure_tokens_have_more_candidates_beside_them():
  bounds = (probability(1) - 1e-3, probability(3) - 1e-3)
  policy = DraftPolicy(4, 0.0, width_bounds=bounds, widths=(1, 2, 3))
  tree, _ = drafted(state_of([1], [1]), policy)
  assert tree.chain.tolist() == [[2, 3, 4, 5]]
  there = tree.parents[0] != NOWHERE
  # No candidate beside 2; 4 beside 3, 5 beside 4; 6 and, of equal others, the first one beside 5.
  assert tree.parents[0][there].tolist() == [1, 2, 3, 3] and tree.leaves[0][there].tolist() == [4, 5, 6, 0]


def test_what_a_filter_drops_is_no_candidate():
  values = {'temperature': jnp.float32(1.0), 'top_k': jnp.int32(2)}
  tree, _ = drafted(state_of([0], [1]), DraftPolicy(2, 0.0, widths=(5,)), values)
  assert tree.parents[0][tree.parents[0] != NOWHERE].tolist() == [0, 1]


def test_drawn_tokens_come_with_their_distribution():
  values = {'temperature': jnp.float32(0.7)}
  tree, _ = drafted(state_of([0], [1]), DraftPolicy(2, 0.0), values, 'residual')
  logits, _ = successor(jnp.asarray([[0]]), jnp.asarray([[0]]), (jnp.int32(0), jnp.zeros((1, 2), jnp.int32)))
  np.testing.assert_allclose(tree.odds[0, 0], jax.nn.softmax(logits[0] / 0.7), rtol=1e-6)


def test_trees_are_no_larger_than_they_may_get():
  policy = DraftPolicy(25, 0.8, width_bounds=(0.95, 0.8, 0.5), widths=(3, 5, 8, 10))
  assert policy.sizes((1, 25)) == ((1, 9), (25, 24 * 4 + 9)) and policy.most_beside == 9
  # An adapted threshold may fall, so that every token may be an unsure one.
  adapted = DraftPolicy(25, 0.8, True, (0.95, 0.8, 0.5), (3, 5, 8, 10))
  assert adapted.sizes((25,)) == ((25, 25 * 9),)
  assert DraftPolicy(5, 0.4).sizes((1, 5)) == ((1, 0), (5, 0))


def test_a_threshold_aims_at_nine_of_ten_accepted_tokens():
  given = jnp.full(5, 0.8), jnp.ones(5)
  threshold, acceptance = adapted_threshold(
    *given, drafted=jnp.asarray([2, 2, 4, 0, 3]), accepted=jnp.asarray([0, 2, 0, 0, 3]), max_draft=4
  )
  np.testing.assert_allclose(acceptance, [0.5, 1.0, 0.5, 1.0, 1.0])
  # Up, down; and as it was after the longest draft, and after none.
  np.testing.assert_allclose(threshold, [0.801, 0.799, 0.8, 0.8, 0.799], atol=1e-6)
