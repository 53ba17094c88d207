"""Opens texts with labels by a spec such as 'docstrings', 'r8', 'reviews.csv' or 'tfds:ag_news_subset'.

  parts = open_parts('r8')                       # training, held-out and test texts
  for text, labels, where in parts.train: ...    # may be repeated; each loop starts from the beginning

labels has one entry for each label column: a tuple of label names, or None if the text has no label in this column.
"""

from collections.abc import Callable, Iterator
import dataclasses
from typing import Any, NamedTuple

from jaxlm import errors
from jaxlm.data import debian_labels, docstrings, fetch, labelled_files, pair_splits, tfds_source
from jaxlm.data.labelled_files import Record

Labels = tuple[tuple[str, ...] | None, ...]


class Row(NamedTuple):
  """A text, its labels in each column, and words that say where it stands."""

  text: str
  labels: Labels
  where: str


@dataclasses.dataclass(frozen=True)
class Fields:
  """Which columns of a record are the text and the labels.

  Attributes:
    text: columns whose texts are joined by spaces; (): the column 'text', or all columns of text in a file without header or in TFDS.
    labels: label columns; (): the column 'label', 'labels', 'category' or 'class'.
    multilabel: label columns whose texts may have several labels, given as a list or separated by `separator`.
    separator: what separates the labels of such a column in a table.
    header: whether the first line of a table names its columns; otherwise they are named '0', '1', ... and the label is column '0'.
  """

  text: tuple[str, ...] = ()
  labels: tuple[str, ...] = ()
  multilabel: tuple[str, ...] = ()
  separator: str = '|'
  header: bool = True


@dataclasses.dataclass(frozen=True)
class LabelledTexts:
  """Texts with labels that can be read several times.

  Attributes:
    name: what the user calls them.
    columns: names of the label columns.
    read: returns a new iterator over the rows.
  """

  name: str
  columns: tuple[str, ...]
  multilabel: tuple[bool, ...]
  read: Callable[[], Iterator[Row]]

  def __iter__(self) -> Iterator[Row]:
    return self.read()


class Parts(NamedTuple):
  train: LabelledTexts
  valid: LabelledTexts
  test: LabelledTexts | None


def _tab(name: str, split: str) -> Iterator[Record]:
  folder = fetch.verified(name)
  if folder is None:
    raise errors.DataError(f'{name!r} has not been fetched yet: python -m jaxlm.data.fetch {name}')
  (path,) = folder.glob(f'*-{split}.tab')
  return labelled_files.records(path)


_TAB = Fields(text=('Text',), labels=('Category',))
# Name -> (reader of a split, splits, columns).
NAMED: dict[str, tuple[Callable[[str], Iterator[Record]], tuple[str, ...], Fields]] = {
  'docstrings': (docstrings.records, pair_splits.SPLITS, Fields(text=('text',), labels=('package',))),
  **{
    name: ((lambda split, name=name: _tab(name, split)), ('train', 'test'), _TAB) for name in ('newsgroups', 'r8', 'r52')
  },
  'debian-sections': (debian_labels.sections, pair_splits.SPLITS, Fields(text=('text',), labels=('section',))),
  'debtags': (
    debian_labels.tags, pair_splits.SPLITS, Fields(text=('text',), labels=('tags',), multilabel=('tags',))
  ),
}  # fmt: skip
"""Sources that have a name and splits of their own."""
LABELS = ('label', 'labels', 'category', 'class')
"""Names of label columns that are found without being asked for."""


def open_parts(
  source: str,
  *,
  valid: str = '',
  test: str = '',
  fields: Fields = Fields(),
  valid_fraction: float = 0.1,
  download: bool = False,
) -> Parts:
  """Returns the training, the held-out and the test texts.

  Without `valid`, and without a held-out split of the source itself, a part of the training texts is held out: which ones depends on
  the letters of each text alone, so texts that are nearly the same stay together. The test texts are never held out for selection.

  Args:
    source: 'docstrings', a fetched name ('newsgroups', 'r8', 'r52', 'debian-sections', 'debtags'), 'tfds:NAME[:SPLIT]', or files (.csv
      .tsv .tab .jsonl .parquet) separated by commas.
    valid, test: held-out and test texts, given in the same way, or NAME:SPLIT; '': those of the source, if it has them.
    fields: which columns are text and labels.
    valid_fraction: share of the training texts that is held out if nothing else says which.
    download: whether TFDS may download and prepare a missing data set.

  Raises:
    DataError: something does not exist, or its columns are not those that `fields` names.
  """
  splits, open_split = _opener(source, fields, download)
  whole = open_split(splits[0])
  named = lambda spec: _part(_opener(spec, fields, download))
  test_part = named(test) if test else open_split('test') if 'test' in splits[1:] else None
  if valid:
    return Parts(whole, named(valid), test_part)
  held_out = next((split for split in ('valid', 'validation') if split in splits[1:]), None)
  if held_out is not None:
    return Parts(whole, open_split(held_out), test_part)
  kept = lambda wanted: lambda: (row for row in whole if _is_held_out(row.text, valid_fraction) == wanted)
  part = lambda wanted: dataclasses.replace(whole, read=kept(wanted))
  return Parts(part(False), part(True), test_part)


def _is_held_out(text: str, fraction: float) -> bool:
  return pair_splits.share(pair_splits.near_key(text)) < fraction


def _part(opened: tuple[tuple[str, ...], Callable[[str], LabelledTexts]]) -> LabelledTexts:
  splits, open_split = opened
  return open_split(splits[0])


def _opener(spec: str, fields: Fields, download: bool) -> tuple[tuple[str, ...], Callable[[str], LabelledTexts]]:
  """Returns (splits of a source, the one that the spec itself means first; a function that opens one)."""
  name, _, split = spec.partition(':')
  if name in NAMED:
    read, splits, known = NAMED[name]
    known = _with(known, fields)
    if split and split not in splits:
      raise errors.unknown(f'split of {name}', split, splits, errors.DataError)
    splits = (split,) if split else splits
    return splits, lambda split: _texts(f'{name}:{split}', lambda: read(split), known)
  if name == 'tfds':
    return _tfds(spec, fields, download)
  paths = labelled_files.find(spec)
  read_files = lambda: (record for path in paths for record in labelled_files.records(path, header=fields.header))
  return ('train',), lambda split: _texts(spec, read_files, fields)


def _with(known: Fields, given: Fields) -> Fields:
  """Returns a named source's columns, and those that the user gives instead."""
  changes = {name: value for name, value in dataclasses.asdict(given).items() if value != getattr(Fields(), name)}
  return dataclasses.replace(known, **changes)


def _tfds(spec: str, fields: Fields, download: bool):
  name, split = tfds_source.parse(spec)
  builder = tfds_source.builder(name, download=download)
  if not fields.text:
    features = builder.info.features
    texts = [field for field in features if type(features[field]).__name__ == 'Text']
    fields = dataclasses.replace(fields, text=('text',) if 'text' in texts else tuple(sorted(texts, reverse=True)))
  splits = (split,) if split else ('train', *(s for s in builder.info.splits if s != 'train'))
  read = lambda split: lambda: labelled_files.tfds_records(builder, name, split)
  return splits, lambda split: _texts(f'tfds:{name}:{split}', read(split), fields)


def _texts(name: str, read: Callable[[], Iterator[Record]], fields: Fields) -> LabelledTexts:
  """Returns texts whose columns are known: the first record says which there are."""
  first = next(read(), None)
  if first is None:
    raise errors.DataError(f'{name!r} holds no text.')
  fields = _resolved(fields, list(map(str, first[0])), first[1])
  several = tuple(column in fields.multilabel for column in fields.labels)
  return LabelledTexts(name, fields.labels, several, lambda: (_row(record, fields) for record in read()))


def _resolved(fields: Fields, there: list[str], where: str) -> Fields:
  """Returns the fields with the names of all columns. Raises DataError if one is not there, or has two uses."""
  labels = fields.labels or tuple(name for name in there if name.lower() in LABELS)[:1]
  labels = labels or (('0',) if not fields.header and '0' in there else ())
  if not labels:
    raise errors.DataError(
      f'{where}: which column is the label is not known. There are {", ".join(there)}: name one with --data.labels.'
    )
  text = fields.text or tuple(name for name in there if name.lower() == 'text')[:1]
  if not text and not fields.header:
    text = tuple(name for name in there if name not in labels)
  if not text:
    raise errors.DataError(
      f'{where}: which column is the text is not known. There are {", ".join(there)}: name one or several with --data.text.'
    )
  for kind, names in (('text', text), ('labels', labels)):
    for name in names:
      if name not in there:
        raise errors.unknown(f'column of --data.{kind}, in {where},', name, there, errors.DataError)
      if [*text, *labels].count(name) > 1:
        raise errors.DataError(
          f'The column {name!r} is named twice among text ({", ".join(text)}) and labels ({", ".join(labels)}): each column has one use.'
        )
  for name in fields.multilabel:
    if name not in labels:
      raise errors.unknown('label column of --data.multilabel', name, labels, errors.DataError)
  return dataclasses.replace(fields, text=text, labels=labels)


def _row(record: Record, fields: Fields) -> Row:
  example, where = record
  text = ' '.join(filter(None, (_text(example, name, where) for name in fields.text)))
  return Row(text, tuple(_labels(example, name, fields, where) for name in fields.labels), where)


def _value(example: dict[str, Any], name: str, where: str) -> Any:
  if name not in example:
    raise errors.DataError(f'{where}: {errors.unknown("column", name, map(str, example))}')
  return example[name]


def _text(example: dict[str, Any], name: str, where: str) -> str:
  value = _value(example, name, where)
  if value is not None and not isinstance(value, str):
    raise errors.DataError(f'{where}: the column {name!r} is {type(value).__name__}, not text.')
  return (value or '').strip()


def _labels(example: dict[str, Any], name: str, fields: Fields, where: str) -> tuple[str, ...] | None:
  value = _value(example, name, where)
  if name in fields.multilabel:
    if value is None:
      return None
    several = value.split(fields.separator) if isinstance(value, str) else value
    if not isinstance(several, list | tuple):
      raise errors.DataError(f'{where}: the labels in {name!r} are {errors.shown(value)}; expected a list or a text.')
    return tuple(dict.fromkeys(label for item in several if (label := _label(item, name, where))))
  if isinstance(value, list | tuple | dict):
    raise errors.DataError(
      f'{where}: the label in {name!r} is {errors.shown(value)}; expected one label. For texts with several labels pass '
      f'--data.multilabel {name}.'
    )
  label = _label(value, name, where)
  return (label,) if label else None


def _label(value: Any, name: str, where: str) -> str:
  if value is not None and not isinstance(value, str | int | float):
    raise errors.DataError(f'{where}: a label in {name!r} is {type(value).__name__}; expected a text or a number.')
  return '' if value is None else str(value).strip()
