"""Logs become histories: one interaction per pair, k-cores, splits without the future, and files."""

import numpy as np
import pytest

from jaxlm.data import interactions
from jaxlm.data.interactions import TEST, TRAIN, VALID, Histories, Interactions
from jaxlm.errors import DataError


def log(*rows):
  return Interactions.from_rows(*zip(*rows))


def named(found, user, *parts):
  """Returns the items of a user by name. `found`: (histories, log)."""
  histories, log = found
  return [log.item_ids[i] for i in histories.of(histories.user_ids.index(user), *parts)]


def test_a_later_interaction_with_the_same_item_replaces_the_earlier_one():
  found = interactions.unique(log(('u', 'a', 1), ('u', 'b', 2), ('u', 'a', 3), ('v', 'a', 0)))
  by_user = [(found.user_ids[u], found.item_ids[i], t) for u, i, t in zip(found.users, found.items, found.times)]
  assert by_user == [('u', 'b', 2), ('u', 'a', 3), ('v', 'a', 0)]


def test_the_k_core_is_the_largest_part_that_has_enough():
  # Item c has two users; without user w, who has one interaction, it has one, and then user x has too few.
  rows = [('u', 'a', 1), ('u', 'b', 2), ('v', 'a', 3), ('v', 'b', 4), ('x', 'c', 5), ('x', 'a', 6), ('w', 'c', 7)]
  found = interactions.k_core(log(*rows), user=2, item=2)
  assert found.user_ids == ('u', 'v') and set(found.item_ids) == {'a', 'b'} and len(found) == 4
  rng = np.random.default_rng(0)
  many = log(*[(f'u{rng.integers(12)}', f'i{rng.geometric(0.25)}', t) for t in range(150)])
  core = interactions.k_core(many, user=7, item=7)
  assert len(core) < 150 and min(np.bincount(core.users)) >= 7 and min(np.bincount(core.items)) >= 7
  with pytest.raises(DataError, match='No interaction is left when each user needs 50'):
    interactions.k_core(many, user=50)


def test_a_split_by_time_learns_nothing_of_the_future():
  rng = np.random.default_rng(1)
  rows = [(f'u{rng.integers(20)}', f'i{rng.integers(30)}', t) for t in rng.random(400)]
  whole = log(*rows)
  histories = interactions.split(whole, 'time')
  one = interactions.unique(whole)
  time = {(whole.user_ids[u], whole.item_ids[i]): t for u, i, t in zip(one.users, one.items, one.times)}
  moments = {part: [] for part in (TRAIN, VALID, TEST)}
  for u, name in enumerate(histories.user_ids):
    assert len(histories.of(u, TRAIN)) >= 2
    for part, found in moments.items():
      found += [time[name, whole.item_ids[i]] for i in histories.of(u, part)]
  assert max(moments[TRAIN]) < min(moments[VALID]) <= max(moments[VALID]) < min(moments[TEST])
  assert 0.75 < len(moments[TRAIN]) / len(one) <= 0.8
  assert histories.popularity.sum() == len(moments[TRAIN]) and histories.num_items == len(whole.item_ids)


def test_examples_are_those_of_the_recipe():
  rows = [('u', item, t) for t, item in enumerate('abcdef')] + [('v', 'a', 0), ('v', 'b', 1), ('w', 'a', 5)]
  whole = log(*rows)
  found = interactions.split(whole, 'time', shares=(0.5, 0.75)), whole
  # Times 0 0 1 1 2 3 4 5 5: the cuts are 2 and 4. User w has no training interaction.
  assert found[0].user_ids == ('u', 'v')
  assert [named(found, 'u', part) for part in range(3)] == [['a', 'b'], ['c', 'd'], ['e', 'f']]
  histories, (truth,) = found[0].examples(VALID)
  assert [whole.item_ids[i] for i in truth] == ['c'] and len(histories[0]) == 2
  histories, (truth,) = found[0].examples(TEST)
  assert [whole.item_ids[i] for i in truth] == ['e', 'f'] and len(histories[0]) == 4
  one = interactions.split(whole, 'leave-one-out'), whole
  assert one[0].user_ids == ('u',) and [named(one, 'u', part) for part in range(3)] == [list('abcd'), ['e'], ['f']]
  with pytest.raises(DataError, match='Unknown split'):
    interactions.split(whole, 'random')
  with pytest.raises(DataError, match='No user has 9 training interactions'):
    interactions.split(whole, least=9)


def test_items_are_numbered_without_their_order_of_first_use():
  names = [f'i{n:03d}' for n in range(200)]
  first = Interactions.from_rows(['u'] * 200, names, range(200))
  assert sorted(first.item_ids) == names and list(first.item_ids) != names
  assert abs(np.corrcoef(first.items, first.times)[0, 1]) < 0.3
  assert first.item_ids == Interactions.from_rows(['u'] * 200, names[::-1], range(200)).item_ids
  with pytest.raises(DataError, match='There are no interactions'):
    Interactions.from_rows([], [], [])


def test_histories_are_read_back_as_they_were_saved(tmp_path):
  histories = interactions.split(log(*[('u', item, t) for t, item in enumerate('abcdefghij')]))
  histories.save(tmp_path / 'h.npz')
  back = Histories.load(tmp_path / 'h.npz')
  assert back.digest == histories.digest and back.user_ids == ('u',)
  (tmp_path / 'h.npz').write_bytes((tmp_path / 'h.npz').read_bytes()[:100])
  with pytest.raises(DataError, match='h.npz is not a file of histories'):
    Histories.load(tmp_path / 'h.npz')
