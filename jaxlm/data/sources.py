"""Opens text sources by a spec such as 'embedded', 'notes/', 'a.jsonl,b.txt' or 'tfds:lm1b:train'.

  for text in documents('embedded'): ...        # may be repeated; each loop starts from the beginning

Every error of a source is a DataError that names the file and the line.
"""

from collections.abc import Iterable
import dataclasses
import hashlib
from pathlib import Path

from jaxlm import errors
from jaxlm.data import files
from jaxlm.data.source import Source as Source
from jaxlm.data.source import fingerprint as fingerprint
from jaxlm.data.source import labelled as labelled


def documents(
  spec: str,
  *,
  field: str = 'text',
  data_dir: str | Path | None = None,
  download: bool = False,
  document: int = files.DOCUMENT,
) -> Source:
  """Returns the documents of a spec.

  Args:
    spec: 'embedded' (text that ships with Python), a file (.txt .md .rst .jsonl .json .parquet, the first five also
      .gz .bz2 .xz .zst), a folder (its files, sorted), a pattern with *, 'tfds:NAME[:SPLIT]', or several of these separated by
      commas.
    field: name of the field with the text in JSON, Parquet and TFDS examples; meta.text is the field text in the field meta.
    data_dir: folder of prepared TFDS data sets (None: TFDS's default).
    download: whether TFDS may download and prepare a missing data set.
    document: a text file is split into documents of about this many characters; 0: the whole file is one document.

  Raises:
    DataError: something that the spec names does not exist or is of an unknown kind.
  """
  names = [spec] if files.exists(spec) else [s.strip() for s in spec.split(',')]
  if not all(names):
    raise errors.DataError(f'The source {spec!r} names nothing{" between two commas" if len(names) > 1 else ""}.')
  parts = []
  for name in names:
    if name == 'embedded':
      from jaxlm.data import embedded

      parts.append(Source(name, embedded.read, embedded.facts))
    elif name.startswith('tfds:'):
      from jaxlm.data import tfds_source

      parts.append(tfds_source.source(name, field, data_dir, download))
    else:
      parts += [files.source(path, field, document) for path in files.find(name)]
  if len(parts) == 1:
    return dataclasses.replace(parts[0], name=spec, parts=tuple(parts))
  read = lambda: (text for part in parts for text in part.read())
  return Source(spec, read, lambda: [part.facts() for part in parts], tuple(parts))


# ---- held-out documents ----


def split(source: Iterable[str], valid_fraction: float) -> tuple[Source, Source]:
  """Returns (train, valid). The hash of a document's text decides its part, so order and other documents have no influence.

  Raises:
    DataError: a part is empty; raised when it is read.
    ValueError: valid_fraction is not in (0, 1).
  """
  if not 0 < valid_fraction < 1:
    raise ValueError(f'{valid_fraction=} must lie between 0 and 1.')

  def held_out(text: str) -> bool:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'big') < valid_fraction * 2**64

  name = getattr(source, 'name', 'documents')

  def part(label: str, wanted: bool) -> Source:
    def read():
      total = kept = 0
      for text in source:
        total += 1
        if held_out(text) == wanted:
          kept += 1
          yield text
      if not kept:
        more = 'larger' if wanted else 'smaller'
        raise errors.DataError(
          f'None of the {total} documents of {name!r} fell into the {label} part at {valid_fraction=}: '
          f'choose a {more} fraction, or name files for each part.'
        )

    return Source(f'{name} ({label})', read, lambda: [fingerprint(source), label, valid_fraction])

  return part('train', False), part('valid', True)
