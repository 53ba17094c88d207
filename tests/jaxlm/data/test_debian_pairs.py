"""Pairs out of Debian's packages; apt is replaced by files made here."""

import json
import shutil
import subprocess

import pytest

from jaxlm import errors
from jaxlm.data import debian, debian_pairs, fetch, pair_splits, pairs


def page(texts: dict[str, str]) -> str:
  body = '\n'.join(f'<p id="{id}" class="paragraph" dir="auto">{text}</p>' for id, text in texts.items())
  return f'<html><body><h1 id="hd_1" dir="auto">{texts["t"]}</h1>\n{body}<p>no id</p></body></html>'


def test_paragraphs_are_plain_text_by_id():
  text = 'See <a href="x">the\n  menu</a> &amp; choose <emph>File</emph>&nbsp;.'
  found = debian_pairs.paragraphs(
    page({'t': 'A title', 'a': text, 'b': ' <br> ', 'c': 'Open the NavigatorNavigator now'})
  )
  assert found == {'hd_1': 'A title', 't': 'A title', 'a': 'See the menu & choose File .'}


def stanza(number: int, package: str, language: str, sentences: list[list[str]]) -> str:
  lines = '\n .\n'.join(f' {" ".join(paragraph)}' for paragraph in sentences)
  return f'Package: {package}\nDescription-md5: {number}\nDescription-{language}: short\n{lines}\n'


@pytest.fixture
def apt(monkeypatch, tmp_path):
  """A cache folder, and an apt with indices of package descriptions and with LibreOffice's help; returns its arguments."""
  monkeypatch.setenv('JAXLM_CACHE', str(tmp_path / 'cache'))
  asked = []
  letters = [f'{chr(97 + i % 26)}{chr(97 + i // 26)}' for i in range(200)]

  def run(work, program, *arguments):
    asked.append((program, *arguments))
    (work / 'lists').mkdir(exist_ok=True)
    index = lambda name, stanzas: (work / 'lists' / f'main_{name}').write_text('\n'.join(stanzas))
    # Each source package has two binary packages, with the same text but for a sentence.
    english = lambda i, n: [
      [f'This package does {letters[i]} well.', f'It has part {"ab"[n]} of {letters[i]}.'],
      ['Too short.'],
    ]
    index('Packages', [f'Package: {w}{n}\nSource: {w}-source (1.2)\n' for w in letters for n in (1, 2)])
    both = [(2 * i + n, f'{w}{n + 1}', i, w) for i, w in enumerate(letters) for n in (0, 1)]
    index('i18n_Translation-en', [stanza(number, name, 'en', english(i, number % 2)) for number, name, i, _ in both])
    for language in debian_pairs.DDTP_LANGUAGES:
      other = lambda w, n: [[f'{w} ist {w}.', f'Teil {"ab"[n]} hat {w}.'], [f'Kurz {w}.']]
      index(
        f'i18n_Translation-{language}',
        [stanza(number, name, language, other(w, number % 2)) for number, name, _, w in both],
      )
    if 'download' in arguments:
      for language, name in {'en-US': 'en-us', 'de': 'de', 'fr': 'fr'}.items():
        root = tmp_path / 'help' / name
        text = root / 'usr/share/libreoffice/help' / language / 'text'
        text.mkdir(parents=True)
        for w in letters:
          here = {'t': f'title {w} {name}', 'a': 'LibreOffice', 'b': f'text {w} in {name}'}
          (text / f'{w}.html').write_text(page(here))
        (root / 'DEBIAN').mkdir()
        control = (
          f'Package: libreoffice-help-{name}\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: x\n'
        )
        (root / 'DEBIAN' / 'control').write_text(control)
        made = work / f'libreoffice-help-{name}_1_all.deb'
        subprocess.run(['dpkg-deb', '-Znone', '--build', root, made], check=True, capture_output=True)
    return ''

  monkeypatch.setattr(debian, 'run_apt', run)
  return asked


def read(name, split):
  path = fetch.locate('ddtp') or fetch.locate('libreoffice')
  return [json.loads(line) for line in (path / f'{name}.{split}.jsonl').read_text().splitlines()]


def test_descriptions_are_aligned_by_sentence_and_split_by_source_package(apt, capsys):
  assert fetch.main(['ddtp']) == 0
  assert ('Acquire::Languages=en,da,it,fr,de') in apt[0]
  splits = {split: read('en-de', split) for split in pair_splits.SPLITS}
  found = {pair['en']: pair['de'] for split in splits.values() for pair in split}
  assert found['This package does ca well.'] == 'ca ist ca.' and not any('short' in text.lower() for text in found)
  words = [{pair['de'].strip('.').split()[-1] for pair in split} for split in splits.values()]
  assert sum(map(len, words)) == 200 and not words[0] & words[1] and not words[0] & words[2]
  counts = json.loads((fetch.locate('ddtp') / 'counts.json').read_text())
  assert [counts['en-de'][split] for split in splits] == list(map(len, splits.values()))
  assert counts['en-de']['left out']['repeated'] > 0
  assert f'en-de: {counts["en-de"]["train"]} train' in capsys.readouterr().err
  assert list(pairs.read('ddtp:de-en:test')) == [(pair['de'], pair['en']) for pair in splits['test']]


@pytest.mark.skipif(shutil.which('dpkg-deb') is None, reason='no dpkg-deb on this system')
def test_help_is_aligned_by_file_and_id_and_split_by_file(apt):
  folder = fetch.fetch('libreoffice')
  assert fetch.fetch('libreoffice') == folder and len(apt) == 2
  splits = {split: read('en-fr', split) for split in pair_splits.SPLITS}
  files = [{pair['en'].split()[1] for pair in split} for split in splits.values()]
  assert set.union(*files) == {pair['en'].split()[1] for split in splits.values() for pair in split}
  assert not files[0] & files[1] and not files[0] & files[2] and not files[1] & files[2]
  assert all(pair['fr'] == pair['en'].replace('en-us', 'fr') for split in splits.values() for pair in split)
  counts = json.loads((folder / 'counts.json').read_text())['en-fr']
  assert counts['left out']['untranslated'] == 200 and sum(map(len, files)) == 200


def test_nothing_is_left_where_apt_brings_nothing(apt, monkeypatch, tmp_path):
  monkeypatch.setattr(debian_pairs, 'FEWEST_WORDS', 99)
  with pytest.raises(errors.DataError, match='no pairs of en-da for train'):
    fetch.fetch('ddtp')
  assert fetch.locate('ddtp') is None and not [p for p in (tmp_path / 'cache').rglob('*') if p.is_file()]


def test_sentences_are_paired_only_where_there_are_equally_many():
  english = (
    'One is here now. Two is "there" now.\n\n  * an item of a list\n  * the other item of it\n\nThis one is alone.'
  )
  other = 'Eins ist hier. Zwei ist "dort".\n\n  * ein Ding\n  * noch eins\n\nDas ist. Nicht allein.'
  assert list(debian_pairs.sentence_pairs(english, other)) == [
    ('One is here now.', 'Eins ist hier.'),
    ('Two is "there" now.', 'Zwei ist "dort".'),
    ('an item of a list', 'ein Ding'),
    ('the other item of it', 'noch eins'),
  ]
  assert list(debian_pairs.sentence_pairs(english + '\n\nMore is here now.', other)) == []


@pytest.mark.real
@pytest.mark.parametrize('name, languages', [('libreoffice', 'en-de'), ('ddtp', 'en-da')])
def test_fetched_pairs_are_many_and_apart(name, languages):
  if fetch.locate(name) is None:
    pytest.skip(f'Not fetched: python -m jaxlm.data.fetch {name}')
  parts = [list(pairs.read(f'{name}:{languages}:{split}')) for split in pair_splits.SPLITS]
  assert len(parts[0]) > 20000 and min(map(len, parts)) > 500
  for side in (0, 1):
    keys = [{pair_splits.near_key(pair[side]) for pair in part} for part in parts]
    assert not keys[0] & keys[1] and not keys[0] & keys[2] and not keys[1] & keys[2]
  assert all(source != target for part in parts for source, target in part)
