"""A classification task on every machine: which package of Python's standard library does this docstring come from?

The classes are the packages with at least 80 docstrings of five words or more. Docstrings that are nearly the same as an earlier one
are left out, so that none is in two splits. The content depends on the Python version only.
"""

from collections.abc import Iterator
import functools
from pathlib import Path
import sysconfig

from jaxlm import errors
from jaxlm.data import embedded, pair_splits

LEAST_TEXTS, LEAST_WORDS = 80, 5
HELD_OUT = 0.1
"""Share of the docstrings in the held-out split, and in the test split."""


def records(split: str) -> Iterator[tuple[dict[str, str], str]]:
  """Yields ({'text': docstring, 'package': its package}, where it stands) of a split: 'train', 'valid' or 'test'."""
  for package, text in _all():
    if pair_splits.split_of(pair_splits.near_key(text), HELD_OUT) == split:
      yield {'text': text, 'package': package}, f'docstrings of {package}'


@functools.cache
def _all() -> tuple[tuple[str, str], ...]:
  """Reads all docstrings, which takes two seconds, once per process."""
  library = Path(sysconfig.get_path('stdlib'))
  seen: set[str] = set()
  found: list[tuple[str, str]] = []
  for package in embedded.MODULES:
    texts = []
    for path in embedded.module_files(library, package):
      for text in embedded.docstrings(path):
        key = pair_splits.near_key(text)
        if len(text.split()) >= LEAST_WORDS and key not in seen:
          seen.add(key)
          texts.append((package, text))
    if len(texts) >= LEAST_TEXTS:
      found += texts
  if not found:
    raise errors.DataError(f'This Python carries no docstrings ({library} has no sources): name other texts.')
  return tuple(found)
