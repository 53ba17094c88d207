"""Held-out pairs: whole groups, and nothing in two splits that is nearly the same."""

from jaxlm.data import pair_splits
from jaxlm.data.pair_splits import near_key


def test_near_copies_have_one_key():
  assert near_key('Version 1.2: The File(s)') == near_key('version 3.14 the files!') != near_key('the file')
  assert near_key('...') == '...' and near_key('Straße') == near_key('STRASSE')


def test_parts_have_the_size_asked_for():
  found = [pair_splits.split_of(f'text {i}', 0.1) for i in range(2000)]
  assert 150 < found.count('valid') < 250 and 150 < found.count('test') < 250
  assert found == [pair_splits.split_of(f'text {i}', 0.1) for i in range(2000)]


def test_no_text_is_near_one_of_another_split():
  name = lambda g: chr(97 + g % 26) + chr(97 + g // 26)
  own = lambda g: [(f'words of {name(g)} and {i}', f'Wörter {name(g)} {i}') for i in 'xyz']
  common = [
    ('UNIX', 'unix!'),
    ('The same everywhere', 'Überall gleich'),
    ('the same, everywhere.', 'überall gleich'),
  ]
  groups = {
    f'book {g}': [*own(g), *common, ('Half the same', f'Halb {name(g)}'), (f'Half {name(g)}', 'Halb gleich')]
    for g in range(100)
  }
  found, counts = pair_splits.apart(groups.items(), 0.1)
  assert all(found.values())
  home = {pair[0]: book for book in groups for pair in own(int(book.split()[1]))}
  for side in (0, 1):
    keys = [{near_key(pair[side]) for pair in pairs} for pairs in found.values()]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
  books = [{home[pair[0]] for pair in pairs if pair[0] in home} for pairs in found.values()]
  assert not books[0] & books[1] and not books[0] & books[2] and set.union(*books) == set(groups)
  assert counts['untranslated'] == 100 and counts['near a held-out pair'] > 0
  assert sum(map(len, found.values())) + sum(counts.values()) == sum(map(len, groups.values()))
  assert (found, counts) == pair_splits.apart(reversed(groups.items()), 0.1)
