"""Some of the items, in another order."""

import numpy as np

from jaxlm.data.items import Items


def test_items_are_taken_with_all_that_is_known_of_them():
  items = Items(('a', 'b', 'c'), ('A', 'B', 'C'), ('x', 'y', 'z'), np.arange(6.0).reshape(3, 2))
  found = items.taken([2, 0])
  assert (found.ids, found.titles, found.texts) == (('c', 'a'), ('C', 'A'), ('z', 'x')) and len(found) == 2
  assert found.vectors.tolist() == [[4, 5], [0, 1]] and Items(('a',), ('A',), ('x',)).taken([0]).vectors is None
