"""Beam search against exhaustive search and against a slow beam search, over a model that is a table."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from decoders.beam.config import BeamConfig
from decoders.beam.search import search
from tests.decoders.beam.reference import (
  EOS,
  PAD,
  History,
  TableStep,
  beam_search,
  exhaustive,
  random_table,
  table_log_p,
)

ALL = 3 * 3**3 + 3**4  # Candidates of the fourth token, as many as any step has.


@functools.partial(jax.jit, static_argnames=('beams', 'room', 'order'))
def run(table, limits, penalty, least, *, beams, room, order):
  B = len(limits)
  empty, zeros = History(jnp.zeros((B * beams.width, order), jnp.int32)), jnp.zeros(B, jnp.int32)
  return search(
    TableStep(order), table, empty, zeros + 1, zeros, limits, penalty, beams=beams, max_new_tokens=room, min_new_tokens=least
  )  # fmt: skip


def found(table, limits, penalty=1.0, least=0, **settings):
  """Returns [(score, ids), ...] for each source, and the result itself."""
  beams = BeamConfig(eos_ids=(EOS,), forbidden=(PAD,), **settings)
  out = run(table, jnp.asarray(limits), penalty, least, beams=beams, room=table.shape[1], order=table.ndim - 3)
  rows = [
    [(float(s), tuple(ids[:n].tolist())) for s, n, ids in zip(*row) if s > -np.inf]
    for row in zip(np.asarray(out.scores), np.asarray(out.lengths), np.asarray(out.tokens))
  ]
  return rows, out


def check(actual, expected):
  assert [ids for _, ids in actual] == [ids for _, ids in expected]
  np.testing.assert_allclose([s for s, _ in actual], [s for s, _ in expected], rtol=1e-5)


@pytest.mark.parametrize('penalty', [0.0, 0.6, 1.0, 2.0, -0.5])
def test_a_beam_of_everything_finds_what_exhaustive_search_finds(penalty):
  table = random_table(3, 2, 4)
  rows, _ = found(table, [4, 3], penalty, width=ALL)
  for source, limit in enumerate((4, 3)):
    expected = exhaustive(table_log_p(table, source), limit, penalty)
    check(rows[source], expected)  # Every hypothesis that there is.


@pytest.mark.parametrize('width', [1, 2, 3])
@pytest.mark.parametrize('early', ['never', False, True])
def test_equals_a_slow_beam_search(width, early):
  table, limits = random_table(2, 6, 12, seed=width), [12, 12, 7, 12, 1, 9]
  steps = set()
  for penalty in (0.0, 1.0, -1.0):
    for least in (0, 5):
      limits_ = [max(limit, least + 1) for limit in limits]
      rows, out = found(table, limits_, penalty, least, width=width, early_stopping=early)
      steps.add(int(out.steps))
      for source, limit in enumerate(limits_):
        check(rows[source], beam_search(table_log_p(table, source), limit, width, penalty, early, least))
  assert len(steps) > 1 or early == 'never'  # Some searches end before the greatest length.


def test_ways_of_early_stopping_differ():
  table = random_table(2, 8, 12, seed=7, scale=3.0)
  table[..., EOS] += 1.0
  out = {early: found(table, [12] * 8, 1.0, width=3, early_stopping=early)[1] for early in ('never', False, True)}
  assert out[True].steps < out[False].steps < out['never'].steps
  worst = {early: np.asarray(o.scores)[:, -1] for early, o in out.items()}
  assert (worst['never'] >= worst[False]).all() and (worst[False] >= worst[True]).all()
  assert (worst['never'] > worst[False]).any() and (worst[False] > worst[True]).any()


def test_a_source_alone_gives_what_it_gives_in_a_batch():
  table = random_table(2, 4, 8, seed=3)
  rows, _ = found(table, [8, 5, 6, 8], width=3)
  for source, limit in enumerate([8, 5, 6, 8]):
    check(found(table[source : source + 1], [limit], width=3)[0][0], rows[source])


def test_ends_do_not_starve_the_beam():
  """EOS is the likeliest everywhere, and W hypotheses still run."""
  table = random_table(2, 1, 6)
  table[..., EOS] += 20.0
  rows, out = found(table, [6], 0.0, width=3, early_stopping=False)
  check(rows[0], beam_search(table_log_p(table, 0), 6, 3, 0.0, False))
  assert len(rows[0]) == 3 and rows[0][0][1] == (EOS,)


def test_equal_scores_go_to_the_lowest_beam_and_id():
  rows, _ = found(np.zeros((1, 3, 5, 5), np.float32), [3], 0.0, width=2, early_stopping=True)
  # Ids 1 and 2 come first, 2 ends; then those of the first beam.
  assert [ids for _, ids in rows[0]] == [(2,), (1, 2)]


def test_what_is_impossible_is_not_returned():
  table = np.full((1, 3, 5, 5), -np.inf, np.float32)
  table[:, 0, :, 3], table[:, 1, 3, 3], table[:, 2, 3, EOS] = 0, 0, 0  # After what is impossible there are no logits.
  rows, out = found(table, [3], width=3)
  assert rows == [[(0.0, (3, 3, EOS))]] and bool(out.finite.all())
  assert np.asarray(out.scores)[0].tolist() == [0.0, -np.inf, -np.inf]


@pytest.mark.parametrize('ids, value', [(slice(None), np.nan), (3, np.nan), (3, np.inf)])
def test_logits_that_are_no_numbers_are_told(ids, value):
  table = random_table(2, 3, 4)
  table[1, 2, ..., ids] = value
  _, out = found(table, [4, 4, 4], width=2)
  assert out.finite.tolist() == [True, False, True]
  assert found(table, [4, 2, 4], width=2)[1].finite.all()  # Its third token is not asked for.


def test_without_an_id_that_ends_all_have_the_greatest_length():
  table = random_table(2, 2, 4)
  beams = BeamConfig(3, (), (PAD,))
  out = run(table, jnp.array([4, 2]), 1.0, 0, beams=beams, room=4, order=2)
  assert out.lengths.tolist() == [[4] * 3, [2] * 3]


def test_recombination_finds_the_exhaustive_best_with_fewer_beams():
  """Check 7 of the Markov decoder. There are 9 pairs of last ids, so that 9 beams hold all that recombination leaves."""
  sources = 16
  table = random_table(2, sources, 6, seed=1, scale=0.4)
  table[..., EOS] -= 1.0
  best = [exhaustive(table_log_p(table, source), 6, 1.0)[0][0] for source in range(sources)]

  def hits(width, order):
    rows, out = found(table, [6] * sources, 1.0, width=width, markov_order=order)
    assert (np.asarray(out.recombined) > 0).any() == (order > 0)
    values = [row[0][0] for row in rows]
    assert all(value <= top + 1e-4 for value, top in zip(values, best))
    return sum(value >= top - 1e-4 for value, top in zip(values, best))

  assert hits(9, 2) == sources
  assert hits(4, 0) < hits(4, 2)


def test_recombined_hypotheses_have_different_futures():
  """Only the best of several hypotheses with the same last ids is continued, so those that reach the greatest length end in
  different ids."""
  table = random_table(2, 3, 6, seed=5)
  table[..., EOS] = -np.inf
  plain, _ = found(table, [6] * 3, width=6)
  rows, out = found(table, [6] * 3, width=6, markov_order=2)
  # The last step ends all hypotheses, so the ids before it tell.
  assert max(len(row) - len({ids[3:5] for _, ids in row}) for row in plain) > 0
  assert (np.asarray(out.recombined) > 0).all()
  for source, row in enumerate(rows):
    expected = viterbi(table_log_p(table, source), 6)
    np.testing.assert_allclose(row[0][0] * 6, expected, rtol=1e-5)


def test_of_equal_futures_the_lowest_beam_goes_on_and_those_that_end_stay():
  table = np.zeros((1, 3, 5, 5), np.float32)
  table[..., EOS] = -np.inf
  rows, _ = found(table, [3], width=2, markov_order=1)
  assert [ids for _, ids in rows[0]] == [(1, 1, 1), (1, 1, 3)]
  table[:, 0, :, [1, 3]], table[:, 1, :, EOS] = 9.0, 9.0
  rows, _ = found(table, [3], width=2, markov_order=1)
  assert [ids for _, ids in rows[0]] == [(1, EOS), (3, EOS)]


def viterbi(log_p, length: int) -> float:
  """Returns the best sum of a model of order 2 without EOS."""
  best = {(): (0.0, ())}
  for _ in range(length):
    further = {}
    for total, ids in best.values():
      for v in (1, 3, 4):
        new = (total + log_p(ids)[v], (*ids, v))
        further[new[1][-2:]] = max(further.get(new[1][-2:], (-np.inf, ())), new)
    best = further
  return max(total for total, _ in best.values())


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'width': 0}, 'self.width=0 must be at least 1'),
    ({'width': 2, 'markov_order': -1}, 'self.markov_order=-1'),
    ({'width': 2, 'early_stopping': 'soon'}, "early_stopping='soon' must be 'never', False or True"),
  ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
  with pytest.raises(ValueError, match=message):
    BeamConfig(eos_ids=(EOS,), **settings)
