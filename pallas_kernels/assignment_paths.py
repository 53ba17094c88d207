"""The shortest augmenting path algorithm for one assignment problem (https://doi.org/10.1007/BF02278710).

Prices v of the columns, and a matching that is optimal for its own rows: each matched row i has its column where C_ij - v_j is
least. Row after row is added. Dijkstra's algorithm finds the shortest path of alternating free and matched edges from the new row
to a free column, where an edge has the length C_ij - v_j - (C_ik - v_k) >= 0 and k is the column of row i. Then the matching flips
along the path, and the prices of the columns nearer than its end, at the distance mu, fall by mu - dist_j, which keeps them valid.

All arrays of a problem are vectors [1, T] and scalars, which XLA and the Pallas kernel both know. Rows and columns have the numbers
0 .. T - 1, and T is none. `match` has loops within loops, for one problem at a time. `match_in_lockstep` has one loop, whose trips
are a step of either kind: mapped over a batch, it has as many trips as the longest problem, where nested loops would have the sum
over rows of the longest search.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Vectors(NamedTuple):
  """How a platform reads the costs of a problem and its vectors [1, T]."""

  row: Callable  # row(i) -> costs [1, T] of row i; inf: forbidden, or padding
  pick: Callable  # pick(x, j) -> x[0, j]; anything if j = T
  least: Callable  # least(x) -> the smallest entry of float or int32 x


class Matching(NamedTuple):
  """Rows and columns that have each other; padding has the same number, and what is free has T."""

  row_of: jax.Array  # [1, T] int32, of each column
  column_of: jax.Array  # [1, T] int32, of each row


class Path(NamedTuple):
  """The search for a path from a new row. i and j are where it is: row i was reached through column j."""

  dist: jax.Array  # [1, T], the distance of each closed column from the new row; inf: still open
  reach: jax.Array  # [1, T], the shortest distance found of each open column; -inf: closed
  before: jax.Array  # [1, T], the column before each column on that path; T: the new row
  j: jax.Array  # the column that was closed last; T at the start, and at the end if no free column can be reached
  i: jax.Array  # the row of column j; T at the end
  mu: jax.Array  # the distance of column j


def columns_of(v):
  return jax.lax.broadcasted_iota(jnp.int32, v.shape, v.ndim - 1)


def allowed(cost, n):
  """Returns the costs of rows, with inf for columns that are padding and for what is not finite."""
  return jnp.where((columns_of(cost) < n) & (jnp.abs(cost) < jnp.inf), cost, jnp.inf)


def finite(x):
  return jnp.where(x < jnp.inf, x, 0.0)


def prices(o: Vectors, v, n):
  """Returns prices to start from, v_j = min_i (C_ij - min_k C_ik); `v` gives their shape and dtype.

  If a token is at several places of a target, its columns have equal costs and no row is the best for all of them, so that the
  cheapest entries of rows make better prices than those of columns.
  """

  def lower(i, v):
    costs = o.row(i)
    return jnp.minimum(v, costs - finite(o.least(costs)))

  return finite(jax.lax.fori_loop(jnp.zeros_like(n), n, lower, jnp.full_like(v, jnp.inf)))


def start(v, s) -> Path:
  """Returns the search from row s."""
  T, infinite = v.shape[1], jnp.full_like(v, jnp.inf)
  return Path(infinite, infinite, jnp.full_like(v, T, jnp.int32), jnp.full_like(s, T), s, v[0, 0])


def scan(o: Vectors, v, row_of, path: Path) -> Path:
  """Shortens the paths through row i, then closes the nearest column; among equals, a free one."""
  T = v.shape[1]
  reduced = o.row(path.i) - v
  longer = jnp.where(path.j == T, 0.0, path.mu - o.pick(reduced, path.j))
  through_i = reduced + longer
  shorter = through_i < path.reach
  reach = jnp.where(shorter, through_i, path.reach)
  before = jnp.where(shorter, path.j, path.before)
  mu = o.least(jnp.where(reach == -jnp.inf, jnp.inf, reach))
  # Free columns are numbered 0 .. T - 1 and matched ones T .. 2 T - 1.
  columns = columns_of(v)
  number = jnp.where(row_of == T, columns, columns + T)
  choice = o.least(jnp.where((reach == mu) & (mu < jnp.inf), number, 2 * T))
  j = jnp.where(choice < T, choice, choice - T)
  i = jnp.where((choice >= T) & (choice < 2 * T), o.pick(row_of, j), T)
  closes = columns == j
  return Path(jnp.where(closes, mu, path.dist), jnp.where(closes, -jnp.inf, reach), before, j, i, mu)


def lowered(v, path: Path):
  """Returns the prices after a search."""
  return jnp.where((path.j < v.shape[1]) & (path.dist < path.mu), v + (path.dist - path.mu), v)


def flip(o: Vectors, m: Matching, before, s, j) -> tuple[jax.Array, Matching]:
  """Gives column j to the row of the column before it on the path. Returns that column, and the matching."""
  k = o.pick(before, j)
  row = jnp.where(k == before.shape[1], s, o.pick(m.row_of, k))
  return k, pair(m, row, j)


def pair(m: Matching, row, column) -> Matching:
  numbers = columns_of(m.row_of)
  row_of = jnp.where(numbers == column, row, m.row_of)
  return Matching(row_of, jnp.where(numbers == row, column, m.column_of))


def nothing_matched(v, n) -> Matching:
  numbers = columns_of(v)
  free = jnp.where(numbers < n, v.shape[1], numbers)
  return Matching(free, free)


def match(o: Vectors, v, n):
  """Returns the column of each of the n rows, [1, T] int32. `v` are prices to start from: any are valid."""
  T = v.shape[1]

  def add_row(s, carry):
    v, m = carry
    path = jax.lax.while_loop(lambda p: p.i < T, lambda p: scan(o, v, m.row_of, p), start(v, s))
    flips = lambda c: flip(o, c[1], path.before, s, c[0])
    _, m = jax.lax.while_loop(lambda c: c[0] < T, flips, (path.j, m))
    return lowered(v, path), m

  return matched_fully(o, jax.lax.fori_loop(jnp.zeros_like(n), n, add_row, (v, nothing_matched(v, n)))[1])


def match_in_lockstep(o: Vectors, v, n):
  """Returns what `match` returns."""
  T = v.shape[1]
  either = lambda test, a, b: jax.tree.map(lambda x, y: jnp.where(test, x, y), a, b)

  def step(carry):
    s, v, m, path = carry
    at_end = path.i == T  # Then this step flips one edge of the path, or there is none.
    scanned = scan(o, v, m.row_of, path)
    k, flipped = flip(o, m, path.before, s, path.j)
    k = jnp.where(path.j < T, k, T)
    m = either(at_end & (path.j < T), flipped, m)
    v = jnp.where(at_end | (scanned.i < T), v, lowered(v, scanned))
    done = at_end & (k == T)
    s = s + done.astype(s.dtype)
    return s, v, m, either(done, start(v, s), either(at_end, path._replace(j=k), scanned))

  first = jnp.zeros_like(n)
  carry = (first, v, nothing_matched(v, n), start(v, first))
  return matched_fully(o, jax.lax.while_loop(lambda c: c[0] < n, step, carry)[2])


def matched_fully(o: Vectors, m: Matching):
  """Returns the column of each row, after rows that could reach no free column have got what is left, in order."""
  T = m.row_of.shape[1]
  free = lambda x: o.least(jnp.where(x == T, columns_of(x), T))
  again = lambda m: pair(m, free(m.column_of), free(m.row_of))
  return jax.lax.while_loop(lambda m: free(m.row_of) < T, again, m).column_of
