"""Labelled descriptions of Debian's packages; apt is replaced by files made here."""

import json

import pytest

from jaxlm.data import debian, debian_labels, fetch, labelled
from jaxlm.errors import DataError

TRANSLATION = """Package: libone-dev
Description-md5: 1
Description-en: headers
 Headers of libone-dev, and libone-devel.
 .
 More about libone-dev.

Package: two
Description-md5: 2
Description-en: tool
 A tool that works.

Package: three
Description-md5: 3
Description-en: the same
 A tool that works.
"""
PACKAGES = """Package: libone-dev
Source: one (1.2)
Section: contrib/libdevel
Tag: devel::{lang:c,library}, role::devel-lib,
 uitoolkit::gtk

Package: two
Section: utils

Package: three
Section: utils

Package: unknown
Section: utils
"""


@pytest.fixture
def apt(monkeypatch, tmp_path):
  monkeypatch.setenv('JAXLM_CACHE', str(tmp_path / 'cache'))

  def run(work, *_):
    (work / 'lists').mkdir(exist_ok=True)
    (work / 'lists' / 'main_i18n_Translation-en').write_text(TRANSLATION)
    (work / 'lists' / 'main_binary-amd64_Packages').write_text(PACKAGES)

  monkeypatch.setattr(debian, 'run_apt', run)


def test_packages_have_descriptions_without_their_names_and_all_their_tags(apt):
  path = fetch.fetch(debian_labels.NAME)
  one, two = [json.loads(line) for line in path.read_text().splitlines()]
  assert one == {
    'text': 'Headers of , and libone-devel.\n\nMore about .', 'section': 'libdevel', 'group': 'one',
    'tags': ['devel::lang:c', 'devel::library', 'role::devel-lib', 'uitoolkit::gtk'],
  }  # fmt: skip
  assert two == {'text': 'A tool that works.', 'section': 'utils', 'tags': [], 'group': 'two'}


def test_rare_labels_are_left_out_and_a_source_is_in_one_split(apt, monkeypatch):
  path = fetch.fetch(debian_labels.NAME)
  packages = [
    {'text': f'text {i}', 'section': 'libs' if i % 5 else 'rare', 'group': f'source {i // 2}', 'tags': ['a::b', f'c::{i}'] if i % 2 else ['c::x']}
    for i in range(500)
  ]  # fmt: skip
  path.write_text('\n'.join(map(json.dumps, packages)))
  parts = labelled.open_parts('debian-sections')
  rows = [[row for row in part] for part in parts]
  assert sum(map(len, rows)) == 400 and {row.labels for part in rows for row in part} == {(('libs',),)}
  groups = [{int(row.text.split()[1]) // 2 for row in part} for part in rows]
  assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2] and all(groups)
  tags = [row.labels for part in labelled.open_parts('debtags') for row in part]
  assert set(tags) == {(('a::b',),), (('c::x',),)}


def test_what_is_not_fetched_is_named(tmp_path, monkeypatch):
  monkeypatch.setenv('JAXLM_CACHE', str(tmp_path))
  with pytest.raises(DataError, match='have not been fetched yet: python -m jaxlm.data.fetch debian-packages'):
    labelled.open_parts('debtags')
