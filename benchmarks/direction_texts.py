"""Real text of several kinds, as documents of about a page: text that ships with Python, and fetched text.

docs    documentation of the standard library (`jaxlm.data.embedded`), a few paragraphs each
code    functions and classes of the standard library
news    20 Newsgroups, lower-cased and without punctuation as its package has it
linux   documentation of the Linux kernel, a few paragraphs each
debian  descriptions of Debian's packages

The last three are used only if they are in the cache: python -m jaxlm.data.fetch newsgroups linux-doc debian-descriptions.
"""

import ast
from collections.abc import Iterator
import csv
import io
from pathlib import Path
import sysconfig
import textwrap

import numpy as np

from jaxlm.data import embedded, fetch, sources

SHORT, LONG = 500, 2000  # Characters of a document.


def domains(extra: dict[str, str], characters: int, seed: int = 0) -> dict[str, list[str]]:
  """Returns the documents of each domain in random order, up to a number of characters per domain.

  Args:
    extra: more domains, name -> source spec.
  """
  found = {'docs': docs(), 'code': code()}
  if (place := fetch.locate('newsgroups')) is not None:
    found['news'] = newsgroups(Path(place))
  for name, fetched in {'linux': 'linux-doc', 'debian': 'debian-descriptions'}.items():
    if (place := fetch.locate(fetched)) is not None:
      extra = {name: str(place)} | extra
  found |= {name: (d for text in sources.documents(spec) for d in pages(text)) for name, spec in extra.items()}
  chosen, rng = {}, np.random.default_rng(seed)
  for name, texts in found.items():
    documents = list(dict.fromkeys(texts))
    rng.shuffle(documents)
    sizes = np.cumsum([len(text) for text in documents])
    chosen[name] = documents[: int(np.searchsorted(sizes, characters)) + 1]
  return chosen


def pages(text: str) -> Iterator[str]:
  """Yields pages of a text, each of as many paragraphs as fit; pages of fewer than SHORT characters are left out."""
  page = ''
  for paragraph in text.split('\n\n'):
    if page and len(page) + len(paragraph) > LONG:
      if len(page) >= SHORT:
        yield page
      page = ''
    page = f'{page}\n\n{paragraph}' if page else paragraph
  if SHORT <= len(page) <= LONG:
    yield page


def docs() -> Iterator[str]:
  for text in embedded.read():
    yield from pages(text)


def code() -> Iterator[str]:
  library = Path(sysconfig.get_path('stdlib'))
  for name in embedded.MODULES:
    path = library / f'{name}.py' if (library / f'{name}.py').is_file() else library / name / '__init__.py'
    if not path.is_file():
      continue
    text = path.read_text(encoding='utf-8')
    lines = text.splitlines()
    for node in ast.parse(text).body:
      parts = node.body if isinstance(node, ast.ClassDef) else [node]
      for part in parts:
        if isinstance(part, ast.FunctionDef | ast.ClassDef):
          source = textwrap.dedent('\n'.join(lines[part.lineno - 1 : part.end_lineno]))
          if SHORT <= len(source) <= LONG:
            yield source


def newsgroups(place: Path) -> Iterator[str]:
  """Reads rows (class, text) below three rows of header."""
  files = [place] if place.is_file() else sorted(place.rglob('20newsgroups-train.tab'))
  for path in files:
    csv.field_size_limit(10**9)
    rows = csv.reader(io.StringIO(path.read_text(encoding='utf-8')), delimiter='\t')
    for row in list(rows)[3:]:
      if len(row) == 2 and row[0] and len(row[1]) >= SHORT:
        yield row[1][:LONG]
