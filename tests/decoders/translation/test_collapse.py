"""Rows lose repetitions, blanks and ids that are no text, as Python loops over lists remove them."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from decoders.translation import collapse

FILL, BLANK = 9, 3


def rows_of(found) -> list[list[int]]:
  tokens, lengths = np.asarray(found[0]), np.asarray(found[1])
  assert all((row[n:] == FILL).all() for row, n in zip(tokens, lengths))
  return [row[:n].tolist() for row, n in zip(tokens, lengths)]


@pytest.fixture(scope='module')
def rows():
  rng = np.random.default_rng(0)
  tokens, lengths = rng.integers(1, 4, (300, 8)), rng.integers(0, 9, 300)
  return tokens, lengths, [row[:n].tolist() for row, n in zip(tokens, lengths)]


def test_runs_become_one_token_and_a_second_time_changes_nothing(rows):
  tokens, lengths, lists = rows
  once = collapse.deduplicate(jnp.asarray(tokens), jnp.asarray(lengths), FILL)
  assert rows_of(once) == [[token for token, _ in itertools.groupby(row)] for row in lists]
  assert rows_of(collapse.deduplicate(*once, FILL)) == rows_of(once)
  repeated = collapse.repeats(jnp.asarray(tokens), jnp.asarray(lengths)).sum(axis=1)
  assert repeated.tolist() == [sum(a == b for a, b in zip(row, row[1:])) for row in lists]


def test_ctc_collapses_runs_before_blanks(rows):
  tokens, lengths, lists = rows
  found = rows_of(collapse.collapse_ctc(jnp.asarray(tokens), jnp.asarray(lengths), BLANK, FILL))

  def by_hand(row):
    out, last = [], None
    for token in row:
      if token not in (last, BLANK):
        out.append(token)
      last = token
    return out

  assert found == [by_hand(row) for row in lists]
  assert any(a == b for row in found for a, b in zip(row, row[1:]))  # A blank keeps two equal tokens apart.


def test_ids_are_dropped_wherever_they_stand(rows):
  tokens, lengths, lists = rows
  found = rows_of(collapse.without(jnp.asarray(tokens), jnp.asarray(lengths), (1, 3), FILL))
  assert found == [[token for token in row if token == 2] for row in lists]
