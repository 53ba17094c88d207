"""Reads TensorFlow Datasets (TFDS) without TensorFlow, by random access, from data sets prepared as ArrayRecord.

TFDS finds newer builders by their folder. An older builder is found only after its module is imported; BUILDERS names the
module. A data set prepared as TFRecord, TFDS's default, cannot be read without TensorFlow.
"""

from collections.abc import Iterator
import importlib
import json
from pathlib import Path
import re
from typing import Any

from jaxlm import errors
from jaxlm.data.source import Source, text_of

BUILDERS = {
  'c4': 'text.c4',
  'cnn_dailymail': 'summarization.cnn_dailymail',
  'flores': 'translate.flores',
  'glue': 'text.glue',
  'gsm8k': 'text.gsm8k',
  'movielens': 'structured.movielens',
  'wiki40b': 'text.wiki40b',
  'wikipedia': 'text.wikipedia',
  'wmt14_translate': 'translate.wmt14',
  'wmt16_translate': 'translate.wmt16',
  'wmt17_translate': 'translate.wmt17',
  'yelp_polarity_reviews': 'text.yelp_polarity',
}
"""Older builders: name -> module of tensorflow_datasets that registers it."""
# Builders that TFDS finds by name; listed only to suggest the nearest name for a mistyped one.
_NEWER = """ag_news_subset amazon_us_reviews asset imdb_reviews lm1b multi_news natural_questions opus para_crawl pg19
story_cloze ted_hrlr_translate ted_multi_translate tiny_shakespeare""".split()


def builder(name: str, data_dir: str | Path | None = None, *, download: bool = False) -> Any:
  """Returns a prepared TFDS builder that can be read without TensorFlow.

  Args:
    name: 'NAME', 'NAME/CONFIG' or 'NAME/CONFIG:VERSION'.
    download: whether to download a missing data set and prepare it as ArrayRecord.

  Raises:
    DataError: the name is unknown, the data set is not prepared, or it was prepared as TFRecord; the message tells the fix.
  """
  import tensorflow_datasets as tfds

  data_dir = None if data_dir is None else str(Path(data_dir).expanduser())
  base = re.split('[/:]', name)[0]
  if base in BUILDERS:
    importlib.import_module(f'tensorflow_datasets.{BUILDERS[base]}')
  try:
    found = tfds.builder(name, data_dir=data_dir)
  except tfds.core.registered.DatasetNotFoundError as e:
    prepared = [p.name for p in Path(data_dir).iterdir() if p.is_dir()] if data_dir and Path(data_dir).is_dir() else []
    raise errors.unknown('TFDS dataset', base, {*BUILDERS, *_NEWER, *prepared}, errors.DataError) from e
  except (ValueError, AssertionError) as e:  # an unknown config or version
    raise errors.DataError(f'TFDS cannot open {name!r}: {e}') from e
  place = '' if data_dir is None else f'data_dir={json.dumps(data_dir)}, '
  made = f'tfds.builder({json.dumps(name)}, {place}file_format="array_record").download_and_prepare()'
  remedy = f"python -c 'import tensorflow_datasets as tfds; {made}'"
  if not found.is_prepared():
    if not download:
      raise errors.DataError(
        f'TFDS dataset {name!r} is not prepared in {found.data_dir}. Where there is network, run\n'
        f'  {remedy}\nor name a text file instead.'
      )
    found = tfds.builder(name, data_dir=data_dir, file_format='array_record')
    found.download_and_prepare()
  kind = getattr(found.info.file_format, 'value', found.info.file_format)
  if kind != 'array_record':
    raise errors.DataError(
      f'TFDS dataset {name!r} in {found.data_dir} is stored as {kind}, which only TensorFlow reads. '
      f'Remove that folder and prepare it again:\n  {remedy}'
    )
  return found


def examples(found: Any, split: str) -> Iterator[dict[str, Any]]:
  """Yields the examples of a split ('train', 'train[:10%]') as dicts of NumPy values."""
  if (base := re.split(r'[\[+]', split)[0].strip()) not in found.info.splits:
    raise errors.unknown(f'split of {found.info.name}', base, found.info.splits, errors.DataError)
  data = found.as_data_source(split=split)
  for start in range(0, len(data), 256):  # Reading several at once is four times as fast as one by one.
    yield from data.__getitems__(list(range(start, min(start + 256, len(data)))))


def parse(spec: str) -> tuple[str, str | None]:
  """Returns (name, split or None) of 'tfds:NAME[:SPLIT]'. Raises DataError for another form."""
  match = re.fullmatch(r'tfds:(?P<name>[\w/.\-]+(?::\d+\.\d+\.\d+)?)(?::(?P<split>[A-Za-z_].*))?', spec)
  if match is None:
    raise errors.DataError(f'{spec!r} is not of the form tfds:NAME[:SPLIT], such as tfds:lm1b:train[:10%].')
  return match['name'], match['split']


def texts(found: Any, name: str, split: str, fields: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
  """Yields the texts of some fields of each example. Raises DataError naming an unknown field, or the example at fault."""
  for field in fields:
    if field not in found.info.features:
      raise errors.unknown(f'field of TFDS dataset {name}', field, found.info.features, errors.DataError)
  for i, example in enumerate(examples(found, split)):
    where = f'TFDS dataset {name!r}, example {i}'
    yield tuple(_text(example[field], field, where) for field in fields)


def _text(value: Any, field: str, where: str) -> str:
  if isinstance(value, bytes):
    try:
      value = value.decode()
    except UnicodeDecodeError as e:
      raise errors.DataError(f'{where}: the field {field!r} is not UTF-8.') from e
  return text_of({field: value}, field, where)


def facts(found: Any, split: str, *fields: str) -> list[Any]:
  """Returns what the texts of some fields depend on."""
  return ['tfds', found.info.full_name, str(found.data_dir), split, *fields, found.info.splits.total_num_examples]


def source(spec: str, field: str, data_dir: str | Path | None, download: bool) -> Source:
  """Returns the documents of 'tfds:NAME[:SPLIT]'."""
  name, split = parse(spec)
  split = split or 'train'
  open_builder = lambda: builder(name, data_dir, download=download)
  read = lambda: (text for (text,) in texts(open_builder(), name, split, (field,)))
  return Source(spec, read, lambda: facts(open_builder(), split, field))
