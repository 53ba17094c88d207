"""A catalogue turns items into tokens and back, says which identifiers it has, and refuses what it does not know."""

import json

import numpy as np
import pytest

from jaxlm.data import catalogue
from jaxlm.data.catalogue import BOS, Catalogue, SeveralItemsError
from jaxlm.data.item_trie import ItemTrie
from jaxlm.errors import CheckpointError, DataError

CODES = np.array([[0, 1], [2, 1], [0, 0], [2, 1]])


def made(names=None, titles=('Heat', 'Alien', 'Up', 'Up'), **more):
  names = catalogue.code_names(CODES) if names is None else names
  return Catalogue.from_names([f'i{n}' for n in range(4)], titles, names, [5, 1, 2, 9], **more)


def test_tokens_have_names_and_levels_have_tokens_of_their_own():
  found = made()
  assert found.pieces == ('<pad>', '<bos>', '<a_0>', '<a_2>', '<b_0>', '<b_1>')
  assert found.tokens.tolist() == [[2, 5], [3, 5], [2, 4], [3, 5]]
  assert found.level_mask.tolist() == [[False, False, True, True, False, False], [False] * 4 + [True, True]]
  words = made([('Star', 'Wars'), ('Toy', 'Story'), ('Wars', 'Story'), ('Toy', '<end>')])
  assert words.tokens[0, 1] == words.tokens[2, 0]  # A word is one token wherever it stands.


def test_prompts_hold_the_last_items_after_bos():
  found = made(history=2)
  assert found.prompt([]) == [BOS] and found.prompt([1]) == [BOS, 3, 5]
  assert found.prompt([0, 1, 2]) == [BOS, 3, 5, 2, 4] and len(found.prompt([0, 1, 2])) == found.longest_prompt
  with pytest.raises(DataError, match='There is no item 4: the catalogue has the items 0 .. 3'):
    found.prompt([4])


def test_items_that_share_an_identifier_are_in_one_leaf_with_popular_ones_first():
  found = made()
  trie = found.trie()
  leaves = [n for n in range(trie.num_nodes) if trie.items([n])[0]]
  assert sorted(trie.items(leaves)) == [[0], [2], [3, 1]]
  assert found.report.sharing == 2 and found.report.surplus == 1


def test_items_are_found_by_id_and_by_title():
  found = made()
  assert found.find(['i2', ' heat', 'ALIEN']) == [2, 0, 1]
  with pytest.raises(SeveralItemsError, match="2 items have the title 'Up'. Give one of their ids instead: i2, i3"):
    found.find(['Up'])
  with pytest.raises(DataError, match="Unknown item 'Allien'. Did you mean 'Alien'"):
    found.find(['Allien'])


def test_a_saved_catalogue_is_the_same_and_a_changed_one_is_refused(tmp_path):
  found = made(history=3, notes={'method': 'kmeans'})
  found.save(tmp_path / 'c')
  back = catalogue.load(tmp_path / 'c')
  assert back.digest == found.digest and back.notes == found.notes and back.history == 3
  np.testing.assert_array_equal(back.tokens, found.tokens)
  np.testing.assert_array_equal(back.popularity, found.popularity)
  back.check_same(found, 'one', 'other')
  for other in (made(history=4), made(catalogue.code_names(CODES[::-1]))):
    with pytest.raises(DataError, match='--target a and --ids b have other identifiers'):
      found.check_same(other, '--target a', '--ids b')
  np.save(tmp_path / 'c' / catalogue.TOKENS, found.tokens[::-1])
  with pytest.raises(CheckpointError, match='the identifiers are not those that were saved'):
    catalogue.load(tmp_path / 'c')
  fields = json.loads((tmp_path / 'c' / catalogue.FILE).read_text())
  (tmp_path / 'c' / catalogue.FILE).write_text(json.dumps({k: v for k, v in fields.items() if k != 'pieces'}))
  with pytest.raises(CheckpointError, match='holds no catalogue that can be read'):
    catalogue.load(tmp_path / 'c')


def test_identifiers_that_do_not_fit_are_refused():
  with pytest.raises(DataError, match="The item 'i1' has no identifier"):
    made([('a',), (), ('b',), ('c',)])
  with pytest.raises(DataError, match="identifier of 'i2' has 2 tokens, and that of 'i0' has 1"):
    made([('a',), ('d',), ('b', 'x'), ('c',)])
  with pytest.raises(DataError, match="token '<bos>', which is a special token"):
    made([('a',), ('<bos>',), ('b',), ('c',)])
  with pytest.raises(DataError, match='0 items have identifiers'):
    Catalogue((), (), np.zeros((0, 2), np.int32), ('<pad>', '<bos>'), np.zeros(0))


def test_a_trie_of_other_identifiers_is_refused():
  found = made()
  found.check_trie(found.trie().allowed([0]))
  found.check_trie(ItemTrie.from_ids([[2, 5], [3, 5], [3, 4]]))  # One item came later.
  for ids in ([[2, 3], [3, 2], [2, 5]], [[2], [3]]):
    with pytest.raises(
      DataError, match=r'Of \d identifiers of ItemTrie\(.*\), the model knows [01]: the trie was made for other'
    ):
      found.check_trie(ItemTrie.from_ids(ids))
