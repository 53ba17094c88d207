"""The paper's search, as the authors' code has it."""

import numpy as np
import pytest

from decoders.swift.config import SwiftConfig
from decoders.swift.paper_search import PaperSearch
from decoders.swift.search import Search
from decoders.swift.sets import uniform

PAPER = SwiftConfig(fidelity='paper')


def test_the_fidelity_chooses_the_search():
  assert isinstance(Search(PAPER, 8), PaperSearch) and not isinstance(Search(SwiftConfig(), 8), PaperSearch)


def test_paper_keeps_the_highest_score_of_any_window():
  scores = [0.0, 0.3, 0.2, 0.3, 0.6, 0.5, 0.5, 0.5, 0.9]
  search = Search(PAPER.replace(max_tolerance_iter=2), 8)
  best, best_score, tolerance = uniform(8), 0.0, 0
  for i, score in enumerate(scores, 1):
    (candidate,) = search.propose()
    search.observe([candidate], [score])
    if score > best_score:
      best, best_score, tolerance = candidate, score, 0
    else:
      tolerance += 1
    assert (search.best, search.best_score, search.tolerance, search.iterations) == (best, best_score, tolerance, i)
    assert search.history[-1].best == best
    if tolerance > 2:
      break
  assert i == 8 and search.stopped == 'tolerance' and not search.active
  with pytest.raises(RuntimeError, match='tolerance'):
    search.propose()


def test_paper_registers_the_real_vector_of_every_bayes_interval_th_set():
  search = Search(PAPER.replace(bayes_interval=4), 8)
  for i in range(1, 13):
    (candidate,) = search.propose()
    search.observe([candidate], [i / 100])
    vector, score = search._registered[-1]
    assert score == i / 100
    if i % 4:
      np.testing.assert_array_equal(vector, candidate.vector(8))
    else:
      assert len(np.unique(vector)) == 12
      assert set(np.argsort(-vector)[: len(candidate)]) == set(np.flatnonzero(candidate.vector(8)))


def test_paper_stops_above_the_score_and_after_the_iterations():
  search = Search(PAPER, 8)
  for score in (0.95, 0.96):
    assert search.active
    search.observe(search.propose(), [score])
  assert search.stopped == 'max_score'
  search = Search(PAPER.replace(max_opt_iter=3), 8)
  while search.active:
    search.observe(search.propose(), [0.5])
  assert search.stopped == 'max_iter' and search.iterations == 4
