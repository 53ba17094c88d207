"""Extracts text from packages of a Debian distribution to JSON Lines. apt downloads them and checks signatures.

linux-doc            pages of the kernel's documentation
debian-descriptions  the description of each package, a few paragraphs of prose

Both change with the version of the distribution. The field "source" of each line names the package (linux-doc: and its version).
"""

from collections.abc import Iterator
import dataclasses
import gzip
import json
from pathlib import Path
import re
import shutil
import subprocess
import tarfile

from jaxlm import errors


@dataclasses.dataclass(frozen=True)
class DebianText:
  """Documents that apt can download; see `jaxlm.data.fetch.Dataset`.

  Attributes:
    package: pattern of a package's name; the newest match is used. None: the descriptions of all packages.
    download: approximate download size in megabytes.
    size: approximate size of the text in bytes.
    file: name of the JSON Lines file.
  """

  description: str
  package: str | None
  licence: str
  download: float
  size: float
  file: str

  @property
  def files(self) -> dict[str, None]:
    return {self.file: None}

  def bring(self, folder: Path) -> None:
    """Writes the documents into a folder.

    Raises:
      DataError: apt is not installed, or it could not download the documents.
    """
    documents = descriptions(folder) if self.package is None else pages(_newest(folder, self.package))
    number = 0
    with open(folder / self.file, 'w', encoding='utf-8') as file:
      for source, text in documents:
        file.write(json.dumps({'text': text, 'source': source}, ensure_ascii=False) + '\n')
        number += 1
    if not number:
      raise errors.DataError(f'apt brought no text for {self.file}: is this system not a Debian one?')


DATASETS = {
  'linux-doc': DebianText(
    "the Linux kernel's documentation, some 3600 pages in reStructuredText, from a Debian system's apt",
    r'linux-doc-(\d[\d.]*)',
    'GPL-2.0 and others, said in each page',
    37.3,
    29.4e6,
    'linux-doc.jsonl',
  ),
  'debian-descriptions': DebianText(
    "descriptions of Debian's packages, some 61000 short texts, from a Debian system's apt",
    None,
    'none stated for the whole: use it, do not pass it on',
    6.6,
    25.3e6,
    'debian-descriptions.jsonl',
  ),
}


def pages(deb: Path) -> Iterator[tuple[str, str]]:
  """Yields (source, text) of each reStructuredText page in a package, without duplicates."""
  seen = set()
  try:
    for name, raw in package_files(deb, ('.rst', '.rst.gz')):
      text = (gzip.decompress(raw) if name.endswith('.gz') else raw).decode('utf-8', errors='replace').strip()
      if text and text not in seen:
        seen.add(text)
        yield f'{deb.stem}: {name.removeprefix("./usr/share/doc/")}', text
  except (gzip.BadGzipFile, EOFError) as e:
    raise errors.DataError(f'{deb.name} cannot be unpacked: {e}') from e


def package_files(deb: Path, endings: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
  """Yields (path, content) of the files in a package whose names end so. Raises DataError naming a package that is damaged."""
  try:
    with (
      subprocess.Popen(['dpkg-deb', '--fsys-tarfile', str(deb)], stdout=subprocess.PIPE) as unpacking,
      tarfile.open(fileobj=unpacking.stdout, mode='r|') as archive,
    ):
      for member in archive:
        if member.isfile() and member.name.endswith(endings):
          yield member.name, archive.extractfile(member).read()
  except tarfile.TarError as e:
    raise errors.DataError(f'{deb.name} cannot be unpacked: {e}') from e


def descriptions(work: Path) -> Iterator[tuple[str, str]]:
  """Yields (package, English description) of each package with a long description, without duplicates."""
  run_apt(work, 'apt-get', '-o', 'Acquire::Languages=en', '-o', 'Acquire::GzipIndexes=false', 'update')
  seen = set()
  for index in sorted((work / 'lists').glob('*_Translation-en')):
    for stanza in re.split(r'\n\n+', index.read_text(encoding='utf-8')):
      found = re.search(r'^Package: (\S+)$.*?^Description-en: [^\n]*\n((?: [^\n]*\n?)+)', stanza, re.M | re.S)
      if found is None:
        continue
      text = described(found[2])
      if text and text not in seen:
        seen.add(text)
        yield found[1], text


def described(lines: str) -> str:
  """Returns a description with one line per paragraph; lists keep their lines. In the input, ' .' separates paragraphs, and
  lists are indented further."""
  paragraphs = re.split(r'^ \.$', lines, flags=re.M)
  return '\n\n'.join(p for p in (re.sub(r'\n (?=\S)', ' ', part.strip('\n'))[1:].strip() for part in paragraphs) if p)


def _newest(work: Path, pattern: str) -> Path:
  """Downloads the matching package with the highest version in its name, and returns its path."""
  run_apt(work, 'apt-get', 'update')
  names = [m for m in map(re.compile(pattern).fullmatch, run_apt(work, 'apt-cache', 'pkgnames').split()) if m]
  if not names:
    raise errors.DataError(f'apt knows no package {pattern}: is this system not a Debian one?')
  newest = max(names, key=lambda m: tuple(map(int, m[1].split('.'))))[0]
  run_apt(work, 'apt-get', 'download', newest)
  return next(work.glob('*.deb'))


def run_apt(work: Path, program: str, *arguments: str) -> str:
  """Runs apt with its own package lists, so that it needs no root rights and leaves the system's lists unchanged.

  Returns the output of apt.
  """
  if shutil.which(program) is None or shutil.which('dpkg-deb') is None:
    raise errors.DataError(f'This needs {program} and dpkg-deb, which Debian and its like have.')
  for folder in ('lists/partial', 'cache/archives/partial'):
    (work / folder).mkdir(parents=True, exist_ok=True)
  own = ['-o', f'Dir::State::lists={work}/lists', '-o', f'Dir::Cache={work}/cache', '-o', 'APT::Sandbox::User=root']
  done = subprocess.run([program, *own, *arguments], capture_output=True, text=True, cwd=work)
  if done.returncode:
    words = (done.stderr or done.stdout).strip().splitlines()[-5:]
    raise errors.DataError('\n  '.join([f'apt failed: {program} {" ".join(arguments)}', *words]))
  return done.stdout
