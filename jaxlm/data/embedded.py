"""Text that comes with every Python: topics of the language reference, and docstrings of the standard library.

It is a few megabytes of English prose and examples, without a download. Docstrings are read from the source files with
`ast`; no module is imported. The content depends only on the Python version.
"""

import ast
from collections.abc import Iterator
import functools
from pathlib import Path
import platform
import sysconfig

from jaxlm import errors

# The list is fixed, for all Pythons from 3.11 on: the content of the folder depends on what a system has installed.
MODULES = """
abc argparse ast asyncio base64 bdb bisect bz2 calendar cmd code codecs codeop collections concurrent configparser
contextlib contextvars copy copyreg csv ctypes curses dataclasses datetime dbm decimal difflib dis doctest email
encodings enum filecmp fileinput fnmatch fractions ftplib functools genericpath getopt getpass gettext glob graphlib
gzip hashlib heapq hmac html http imaplib importlib inspect io ipaddress json keyword linecache locale logging lzma
mailbox mimetypes modulefinder multiprocessing netrc ntpath numbers opcode operator optparse os pathlib pdb pickle
pickletools pkgutil platform plistlib poplib posixpath pprint profile pstats py_compile pyclbr pydoc queue quopri
random re reprlib rlcompleter runpy sched secrets selectors shelve shlex shutil signal site smtplib socket
socketserver sqlite3 ssl stat statistics string stringprep struct subprocess symtable sysconfig tabnanny tarfile
tempfile textwrap threading timeit tkinter token tokenize trace traceback tracemalloc turtle types typing unittest
urllib uuid venv warnings wave weakref webbrowser wsgiref xml xmlrpc zipapp zipfile zipimport
_collections_abc _pydatetime _pydecimal _pyio _strptime _weakrefset
""".split()


def facts() -> list[str]:
  return ['embedded', '1', platform.python_version()]


def read() -> Iterator[str]:
  """Yields the documents. Parsing takes two seconds and is done once per process."""
  yield from _documents()


@functools.cache
def _documents() -> tuple[str, ...]:
  return tuple(_read())


def _read() -> Iterator[str]:
  """Yields one document per topic, and one per source file with its docstrings in order, without duplicates."""
  import pydoc_data.topics

  seen: set[str] = set()
  found = False
  for _, text in sorted(pydoc_data.topics.topics.items()):
    if text not in seen:
      seen.add(text)
      found = True
      yield text.strip()
  library = Path(sysconfig.get_path('stdlib'))
  for path in (path for name in MODULES for path in module_files(library, name)):
    parts = []
    for text in docstrings(path):
      if text not in seen:
        seen.add(text)
        parts.append(text)
    if parts:
      found = True
      yield '\n\n'.join(parts)
  if not found:
    raise errors.DataError(f'This Python carries no text ({library} has no sources): name a text file instead.')


def module_files(library: Path, name: str) -> list[Path]:
  """Returns the source files of a module or package of the standard library, sorted, without tests; [] if it is not there."""
  if (folder := library / name).is_dir():
    inside = (p.relative_to(folder).parts for p in folder.rglob('*.py'))
    return [folder.joinpath(*parts) for parts in sorted(inside) if not any('test' in x for x in parts)]
  file = library / f'{name}.py'
  return [file] if file.is_file() else []


def docstrings(path: Path) -> Iterator[str]:
  """Yields the docstrings of a source file in their order."""
  try:
    tree = ast.parse(path.read_bytes())
  except (SyntaxError, ValueError):  # a template rather than a module
    return
  nodes = [
    n for n in ast.walk(tree) if isinstance(n, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
  ]
  for node in sorted(nodes, key=lambda n: getattr(n, 'lineno', 0)):
    if text := (ast.get_docstring(node) or '').strip():
      yield text
