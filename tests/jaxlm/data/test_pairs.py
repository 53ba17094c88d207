"""Sentence pairs: what a spec names is read, twice alike; what is wrong is named with its file and line."""

import gzip
import json

import numpy as np
import pytest

from jaxlm import errors
from jaxlm.data import corpus, fetch, pairs, sources

PAIRS = [('a house', 'ein Haus'), ('two houses', 'zwei Häuser'), ('so be it', 'so sei es')]


def read(*args, **options) -> list[tuple[str, str]]:
  return list(pairs.read(*args, **options))


def lines(side: int) -> str:
  return ''.join(pair[side] + '\n' for pair in PAIRS)


def json_lines(examples) -> str:
  return ''.join(json.dumps(example) + '\n' for example in examples)


def test_tab_separated_files(tmp_path):
  text = ''.join(f'{a}\t{b}\r\n' for a, b in PAIRS)
  (tmp_path / 'a.tsv').write_text('\ufeff' + text, newline='')
  (tmp_path / 'b.tsv.gz').write_bytes(gzip.compress(text.encode()))
  found = pairs.read(str(tmp_path / 'a.tsv'))
  assert list(found) == PAIRS and list(found) == PAIRS
  assert read(str(tmp_path / 'b.tsv.gz')) == PAIRS
  assert read(f'{tmp_path}/a.tsv, {tmp_path}/b.tsv.gz') == PAIRS * 2


def test_aligned_files_are_ordered_by_language(tmp_path):
  (tmp_path / 'train.en').write_text(lines(0))
  (tmp_path / 'train.de.gz').write_bytes(gzip.compress(lines(1).encode()))
  (tmp_path / 'train.de').write_text(lines(1))
  turned = [(b, a) for a, b in PAIRS]
  assert read(f'{tmp_path}/train.{{en,de}}') == PAIRS
  assert read(f'{tmp_path}/train.{{de,en}}') == PAIRS
  assert read(f'{tmp_path}/train.en,{tmp_path}/train.de.gz') == PAIRS
  assert read(f'{tmp_path}/train.en,{tmp_path}/train.de', 'de', 'en') == turned
  (tmp_path / 'one.txt').write_text(lines(1))
  (tmp_path / 'other.txt').write_text(lines(0))
  assert read(f'{tmp_path}/one.txt,{tmp_path}/other.txt') == turned
  with pytest.raises(errors.DataError, match='are en and de by their names; asked for are en and fr'):
    pairs.read(f'{tmp_path}/train.{{en,de}}', 'en', 'fr')


@pytest.mark.parametrize(
  'make',
  [
    lambda a, b: {'source': a, 'target': b},
    lambda a, b: {'de': b, 'en': a, 'id': 3},
    lambda a, b: {'translation': {'en': a, 'de': b, 'fr': ''}},
  ],
)
def test_json_and_parquet_in_each_form(tmp_path, make):
  import pyarrow as pa
  import pyarrow.parquet as pq

  examples = [make(*pair) for pair in PAIRS]
  (tmp_path / 'a.jsonl').write_text(json_lines(examples))
  (tmp_path / 'a.json').write_text(json.dumps(examples))
  pq.write_table(pa.Table.from_pylist(examples), tmp_path / 'a.parquet')
  for name in ('a.jsonl', 'a.json', 'a.parquet'):
    assert read(str(tmp_path / name)) == PAIRS
    if 'source' not in examples[0]:
      assert read(str(tmp_path / name), 'de', 'en') == [(b, a) for a, b in PAIRS]
      with pytest.raises(errors.DataError, match="Unknown language 'it'"):
        read(str(tmp_path / name), 'en', 'it')


def test_empty_sides_are_dropped_and_counted(tmp_path):
  (tmp_path / 'a.tsv').write_text('a\tb\n\n \tb\nc\t\n  d\te \n')
  found = pairs.read(str(tmp_path / 'a.tsv'))
  assert list(found) == [('a', 'b'), ('d', 'e')]
  assert found.counts == found.known_counts == pairs.Counts(kept=2, empty=3)
  again = pairs.read(str(tmp_path / 'a.tsv'))
  assert next(iter(again)) and again.known_counts is None and again.counts == found.counts
  (tmp_path / 'b.tsv').write_text('\n')
  with pytest.raises(errors.DataError, match='b.tsv.* holds no sentence pair'):
    read(str(tmp_path / 'b.tsv'))


@pytest.mark.parametrize('longer', ['en', 'de'])
def test_unaligned_files_name_both_numbers_of_lines(tmp_path, longer):
  (tmp_path / 'a.en').write_text(lines(0) + 'more\n' * 4 * (longer == 'en'))
  (tmp_path / 'a.de').write_text(lines(1) + 'mehr\n' * 4 * (longer == 'de'))
  counts = (7, 3) if longer == 'en' else (3, 7)
  with pytest.raises(errors.DataError, match=f'a.en has {counts[0]} lines and .*a.de has {counts[1]}:'):
    read(f'{tmp_path}/a.{{en,de}}')


@pytest.mark.parametrize(
  'name, content, message',
  [
    ('a.tsv', b'a\tb\nc\n', r'a.tsv, line 2: expected two columns.*found 1'),
    ('a.tsv', b'a\tb\tc\n', r'a.tsv, line 1: expected two columns.*found 3'),
    ('a.tsv', 'a\tb\nc\té\n'.encode('latin1'), r'a.tsv, line 2: byte 0xe9 at column 3 is not UTF-8'),
    ('a.tsv.gz', b'no', 'a.tsv.gz cannot be read'),
    ('a.jsonl', b'{"source": "a"}\n', "a.jsonl, line 1: Unknown language 'en'"),
    ('a.jsonl', b'{"en": "a", "translation": {"de": "b"}}\n', 'not side by side'),
    ('a.jsonl', b'[1]', 'element 0: expected an object with a pair, found int'),
    ('a.jsonl', b'{"en": "a", "de": 3}\n', "line 1: the field 'de' is int"),
    ('a.parquet', b'PAR1', 'a.parquet is not a readable Parquet file'),
    ('a.txt', b'', r'a.txt.* holds no sentence pairs by its name. Known: .tsv'),
  ],
)
def test_what_is_wrong_is_named(tmp_path, name, content, message):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(errors.DataError, match=message):
    read(str(tmp_path / name))


@pytest.mark.parametrize(
  'spec, message',
  [
    ('gramar', "Did you mean 'grammar'"),
    ('nowhere/a.{en,de}', 'no file .*a.en.* as one of two aligned files'),
    ('a.en,a.de', 'no file .*a.en'),
    ('grammar,', 'between two commas'),
    ('libreoffice:en-it', "Unknown language pair 'en-it'. .*Known: en-de, en-fr"),
    ('libreoffice:en-de:dev', 'is not of the form libreoffice'),
    ('libreoffice:en-de,libreoffice:en-fr', 'python -m jaxlm.data.fetch libreoffice'),
    ('tfds:', 'is not of the form tfds:NAME'),
  ],
)
def test_a_spec_that_names_nothing(tmp_path, monkeypatch, spec, message):
  monkeypatch.setenv('JAXLM_CACHE', str(tmp_path))
  with pytest.raises(errors.DataError, match=message):
    pairs.read(spec)


def test_two_languages_are_needed():
  with pytest.raises(errors.DataError, match='are the same language'):
    pairs.read('grammar', 'en', 'en')


def fetched(folder, name, files):
  """Puts files where a fetch would have put them."""
  places = fetch.DATASETS[name].files
  (folder / 'fetched' / name).mkdir(parents=True)
  for file in places:
    (folder / 'fetched' / name / file).write_text(files.get(file, ''))


def test_fetched_pairs_have_their_own_splits(tmp_path, monkeypatch):
  monkeypatch.setenv('JAXLM_CACHE', str(tmp_path))
  example = lambda text: json_lines([{'en': text, 'fr': f'{text} fr'}])
  splits = {f'en-fr.{split}.jsonl': example(split) for split in ('train', 'valid', 'test')}
  fetched(tmp_path, 'libreoffice', splits)
  assert read('libreoffice:en-fr') == [('train', 'train fr')]
  assert read('libreoffice', 'en', 'fr') == [('train', 'train fr')]
  assert read('libreoffice:fr-en:test') == [('test fr', 'test')]
  train, valid = pairs.train_and_valid('libreoffice:en-fr')
  assert (list(train), list(valid)) == ([('train', 'train fr')], [('valid', 'valid fr')])
  with pytest.raises(errors.DataError, match='joins pairs of different languages: en-de, en-fr'):
    pairs.read('libreoffice:en-fr,libreoffice:en-de')


# ---- held-out pairs ----


def test_the_split_keeps_near_copies_together(tmp_path):
  texts = [(f'sentence {a}{b}{c} of many', a + b + c) for a in 'abcdefgh' for b in 'abcdefgh' for c in 'abcdef']
  near = [(a.upper() + '!', b) for a, b in texts]
  (tmp_path / 'a.tsv').write_text(''.join(f'{a}\t{b}\n' for a, b in [*texts, *near]))
  train, valid = pairs.train_and_valid(str(tmp_path / 'a.tsv'), valid_fraction=0.2)
  parts = [{a.casefold().rstrip('!') for a, _ in part} for part in (train, valid)]
  assert not parts[0] & parts[1] and len(list(train)) + len(list(valid)) == 2 * len(texts)
  assert 0.1 < len(list(valid)) / (2 * len(texts)) < 0.3
  with pytest.raises(errors.DataError, match='none of these is: name other pairs to hold out, or a larger part'):
    list(pairs.split(train, 0.2)[1])
  with pytest.raises(ValueError, match='valid_fraction=0'):
    pairs.split(train, 0)
  given = pairs.train_and_valid(str(tmp_path / 'a.tsv'), valid='grammar:test')
  assert list(given[0]) == [*texts, *near] and len(list(given[1])) == 500


def test_generated_pairs_have_their_own_splits():
  train, valid = pairs.train_and_valid('grammar:rotation')
  assert train.counts.kept == 20000 and valid.name == 'grammar:rotation:valid'
  assert not {a for a, _ in train} & {a for a, _ in valid}


def test_a_fingerprint_changes_with_the_content_and_the_side(tmp_path):
  (tmp_path / 'a.en').write_text(lines(0))
  (tmp_path / 'a.de').write_text(lines(1))
  make = lambda *args: [sources.fingerprint(pairs.read(f'{tmp_path}/a.{{en,de}}', *args).side(i)) for i in (0, 1)]
  before = make()
  assert make() == before and len({*before, *make('de', 'en')}) == 4
  (tmp_path / 'a.de').write_text(lines(1) * 2)
  assert not set(make()) & set(before)


def test_both_sides_are_cached_as_tokens(tmp_path):
  from jaxlm.data import pair_tokenizers
  from jaxlm.data.pair_corpus import tokenize_pairs

  (tmp_path / 'a.tsv').write_text('\n'.join(f'{a}\t{b}' for a, b in PAIRS) + '\n\t\n')
  made = pair_tokenizers.train([], kind='bytes')
  found = [
    tokenize_pairs(pairs.read(str(tmp_path / 'a.tsv')), made, cache_dir=tmp_path / 'cache', progress=False)
    for _ in range(2)
  ]
  memory = tokenize_pairs(PAIRS, made)
  for one in found:
    for side in ('source', 'target'):
      np.testing.assert_array_equal(getattr(one, side).tokens, getattr(memory, side).tokens)
      np.testing.assert_array_equal(getattr(one, side).offsets, getattr(memory, side).offsets)
  assert len(list((tmp_path / 'cache').iterdir())) == 2
  np.testing.assert_array_equal(memory.lengths, [[len(t.encode()) + 1 for t in pair] for pair in PAIRS])
  assert isinstance(found[0].source, corpus.TokenCorpus)


# ---- TFDS ----


def test_tfds_translations(tmp_path):
  tfds = pytest.importorskip('tensorflow_datasets', reason='tensorflow-datasets is not installed')
  pytest.importorskip('array_record', reason='array_record is not installed (it exists for Linux only)')

  class TinyTranslate(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version('1.0.0')

    def _info(self):
      return tfds.core.DatasetInfo(builder=self, features=tfds.features.Translation(languages=('de', 'en')))

    def _split_generators(self, dl_manager):
      return {'train': self._generate_examples(20), 'validation': self._generate_examples(2)}

    def _generate_examples(self, n):
      for i in range(n):
        yield i, {'de': f'Häuser {i}', 'en': f'houses {i}'}

  TinyTranslate(data_dir=str(tmp_path), file_format='array_record').download_and_prepare()
  found = pairs.read('tfds:tiny_translate', data_dir=tmp_path)
  assert sorted(found) == sorted((f'houses {i}', f'Häuser {i}') for i in range(20))
  assert sorted(read('tfds:tiny_translate:validation', 'de', 'en', data_dir=tmp_path)) == [
    ('Häuser 0', 'houses 0'),
    ('Häuser 1', 'houses 1'),
  ]
  with pytest.raises(errors.DataError, match="Unknown language of TFDS dataset tiny_translate 'fr'.*Known: de, en"):
    read('tfds:tiny_translate', 'en', 'fr', data_dir=tmp_path)
  assert sources.fingerprint(found.side(0)) != sources.fingerprint(found.side(1))


@pytest.mark.parametrize('name', ['wmt14_translate/de-en', 'wmt16_translate/ro-en', 'ted_hrlr_translate/ru_to_en'])
def test_known_translations_say_how_to_prepare_them(tmp_path, name):
  pytest.importorskip('tensorflow_datasets', reason='tensorflow-datasets is not installed')
  with pytest.raises(errors.DataError, match='(?s)is not prepared in .*download_and_prepare'):
    read(f'tfds:{name}', data_dir=tmp_path)


# ---- the command ----


def test_the_command_shows_counts_lengths_and_pairs(tmp_path, capsys):
  (tmp_path / 'a.tsv').write_text('\n'.join(f'{a}\t{b}' for a, b in [*PAIRS, ('', 'x'), ('long ' * 99, 'lang')]))
  assert pairs.main([str(tmp_path / 'a.tsv'), '--show', '2', '--max-length', '20']) == 0
  out = capsys.readouterr().out
  assert 'en-de, 4 pairs, 1 with an empty side' in out and '3 sentence pairs' in out
  assert '1 pairs are longer than these and left out' in out and 'zwei Häuser' in out and 'so sei es' not in out
  with pytest.raises(SystemExit, match="error: .*Did you mean 'grammar'"):
    pairs.main(['gramar'])
