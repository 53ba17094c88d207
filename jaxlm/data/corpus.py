"""Token corpus on disk: text is tokenised once into memory-mapped files, which later runs open without delay.

A cache folder holds `tokens.bin` (uint16 if the vocabulary fits, else uint32), `offsets.bin` (int64 [documents + 1]:
document i is tokens[offsets[i] : offsets[i + 1]]) and `meta.json`. Its name ends in a digest of everything that the tokens
depend on. It is built under another name and renamed when it is complete, so an unfinished build is never read.
"""

from collections.abc import Iterable, Iterator
import dataclasses
import functools
import hashlib
import itertools
import json
import os
from pathlib import Path
import re
import shutil
import socket
from typing import Any
import warnings

import numpy as np

from jaxlm import errors
from jaxlm.data import sources

FORMAT = 1


def cache_folder() -> Path:
  """Returns $JAXLM_CACHE, else $XDG_CACHE_HOME/jaxlm, else ~/.cache/jaxlm (made when something is written)."""
  if folder := os.environ.get('JAXLM_CACHE'):
    return Path(folder).expanduser()
  base = os.environ.get('XDG_CACHE_HOME')
  return (Path(base) if base else Path.home() / '.cache') / 'jaxlm'


@dataclasses.dataclass(frozen=True)
class TokenCorpus:
  """Documents as one row of token ids."""

  tokens: np.ndarray  # [tokens], uint16 or uint32
  offsets: np.ndarray  # [documents + 1], int64
  meta: dict[str, Any] = dataclasses.field(default_factory=dict)

  def __len__(self) -> int:
    """Number of tokens."""
    return len(self.tokens)

  @property
  def num_documents(self) -> int:
    return len(self.offsets) - 1

  def document(self, index: int) -> np.ndarray:
    """Returns the int32 ids of one document, with the BOS and EOS it was stored with."""
    return np.asarray(self.tokens[self.offsets[index] : self.offsets[index + 1]], np.int32)

  @functools.cached_property
  def digest(self) -> str:
    """Digest of all tokens and document offsets. New caches store it in meta.json; for older ones it is computed."""
    if (known := self.meta.get('digest')) is not None:
      return known
    digests = [hashlib.blake2b(digest_size=16) for _ in range(2)]
    for digest, array, kind in zip(digests, (self.tokens, self.offsets), ('<u4', '<i8')):
      for start in range(0, len(array), 1 << 20):
        digest.update(np.asarray(array[start : start + (1 << 20)], kind).tobytes())
    return _joined(*digests)

  @classmethod
  def from_documents(cls, documents: Iterable[Iterable[int]]) -> 'TokenCorpus':
    """Returns a corpus in memory; empty documents are left out."""
    arrays = [a for a in (np.asarray(list(d), np.uint32) for d in documents) if len(a)]
    offsets = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
    return cls(np.concatenate([np.zeros(0, np.uint32), *arrays]), offsets)

  @classmethod
  def open(cls, folder: str | Path) -> 'TokenCorpus':
    """Returns a corpus that `tokenize` built. Raises DataError naming the file that is missing or cut short."""
    folder = Path(folder)
    try:
      meta = json.loads((folder / 'meta.json').read_text(encoding='utf-8'))
      dtype = np.dtype(meta['dtype'])
      shapes = {'tokens.bin': (dtype, meta['tokens']), 'offsets.bin': (np.dtype(np.int64), meta['documents'] + 1)}
    except (OSError, ValueError, KeyError, TypeError) as e:
      raise errors.DataError(f'{folder / "meta.json"} is not the description of a token cache: {e!r}.') from e
    arrays = []
    for name, (kind, size) in shapes.items():
      found = (folder / name).stat().st_size if (folder / name).is_file() else 0
      if found != size * kind.itemsize:
        raise errors.DataError(
          f'{folder / name} holds {found} bytes where meta.json says {size * kind.itemsize}: '
          'delete the folder, and it is built again.'
        )
      arrays.append(np.memmap(folder / name, kind, mode='r', shape=(size,)))
    return cls(*arrays, meta)


def _joined(tokens: Any, offsets: Any) -> str:
  return hashlib.blake2b(tokens.digest() + offsets.digest(), digest_size=16).hexdigest()


def tokenizer_fingerprint(tokenizer: Any) -> str:
  """Returns a digest that is equal for two tokenizers only if they encode texts equally."""
  if fingerprint := getattr(tokenizer, 'fingerprint', None):
    return str(fingerprint)
  raise ValueError(f'{type(tokenizer).__name__} has no `fingerprint`: give `key=` to say which tokenizer this is.')


def tokenize(
  source: Iterable[str],
  tokenizer: Any,
  cache_dir: str | Path | None = None,
  *,
  bos: bool = False,
  eos: bool = True,
  key: str | None = None,
  rebuild: bool = False,
  progress: bool = True,
) -> TokenCorpus:
  """Returns the tokens of a source, from the cache if they are there. Neither text nor tokens need to fit into memory.

  Args:
    source: `sources.documents(...)`, a part of `sources.split(...)`, or any iterable of texts if `key` is given.
    cache_dir: folder of caches (None: `cache_folder() / 'tokens'`).
    bos, eos: whether each document begins with BOS and ends with EOS.
    key: a name for the content of an iterable that is not from `sources`; the cache is found by it.

  Raises:
    DataError: the source is empty or cannot be read, or the cache cannot be written.
  """
  facts = {
    'format': FORMAT,
    'source': key if key is not None else sources.fingerprint(source),
    'tokenizer': tokenizer_fingerprint(tokenizer),
    'bos': tokenizer.bos_id if bos else None,
    'eos': tokenizer.eos_id if eos else None,
  }
  tokenizer.encode('', bos=bos, eos=eos)  # raises ValueError if the tokenizer lacks BOS or EOS
  digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
  name = re.sub(r'[^\w.-]+', '_', str(getattr(source, 'name', key or 'corpus'))).strip('_.')[-60:]
  folder = Path(cache_dir) if cache_dir is not None else cache_folder() / 'tokens'
  final = folder / f'{name or "corpus"}-{digest}'
  if final.exists() and not rebuild:
    try:
      return TokenCorpus.open(final)
    except errors.DataError as e:
      warnings.warn(f'Building a token cache again: {e}', stacklevel=2)
  _remove_abandoned(folder, final.name)
  # The name contains host and process, so that only folders of processes that have ended are deleted.
  building = folder / f'.{final.name}.{socket.gethostname()}.{os.getpid()}'
  try:
    building.mkdir(parents=True)
    meta = _write(source, tokenizer, building, facts, progress, name)
    (building / 'meta.json').write_text(json.dumps(meta, indent=2) + '\n', encoding='utf-8')
    if final.exists():
      shutil.rmtree(final)
    try:
      building.rename(final)
    except OSError:  # another process finished the same corpus first
      if not final.exists():
        raise
  except OSError as e:
    raise errors.DataError(
      f'The token cache {folder} cannot be written: {e}. The environment variable JAXLM_CACHE names another folder for it.'
    ) from e
  finally:
    shutil.rmtree(building, ignore_errors=True)
  return TokenCorpus.open(final)


def corpora(
  spec: str,
  tokenizer: Any,
  *,
  valid_fraction: float = 0.05,
  cache_dir: str | Path | None = None,
  bos: bool = False,
  eos: bool = True,
  progress: bool = True,
  **options: Any,
) -> tuple[TokenCorpus, TokenCorpus]:
  """Returns (train, valid) corpora of a spec; `options` are those of `sources.documents`."""
  parts = sources.split(sources.documents(spec, **options), valid_fraction)
  train, valid = (tokenize(part, tokenizer, cache_dir, bos=bos, eos=eos, progress=progress) for part in parts)
  return train, valid


def _write(source, tokenizer, folder: Path, facts: dict, progress: bool, name: str) -> dict[str, Any]:
  import tqdm

  dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
  first = [facts['bos']] if facts['bos'] is not None else []
  last = [facts['eos']] if facts['eos'] is not None else []
  documents = tokens = characters = 0
  with (
    open(folder / 'tokens.bin', 'wb') as tokens_file,
    open(folder / 'offsets.bin', 'wb') as offsets_file,
    tqdm.tqdm(desc=f'tokenizing {name}', unit=' tokens', unit_scale=True, disable=None if progress else True) as bar,
  ):
    offsets_file.write(np.int64(0).tobytes())
    digests = [hashlib.blake2b(digest_size=16) for _ in range(2)]
    digests[1].update(np.zeros(1, '<i8').tobytes())
    for texts in _by_size(source):
      ids = [[*first, *row, *last] for row in _encode(tokenizer, texts)]
      ids = [row for row in ids if row]
      lengths = np.array([len(row) for row in ids], np.int64)
      flat = np.fromiter(itertools.chain.from_iterable(ids), dtype, int(lengths.sum()))
      offsets = tokens + np.cumsum(lengths)
      for digest, array, kind in zip(digests, (flat, offsets), ('<u4', '<i8')):
        digest.update(array.astype(kind).tobytes())
      offsets_file.write(offsets.tobytes())
      tokens_file.write(flat.tobytes())
      documents += len(ids)
      tokens += int(lengths.sum())
      characters += sum(map(len, texts))
      bar.update(int(lengths.sum()))
      bar.set_postfix(documents=documents, refresh=False)
  if not tokens:
    raise errors.DataError(f'{getattr(source, "name", "The source")} holds no text.')
  return {
    'dtype': dtype.name,
    'tokens': tokens,
    'documents': documents,
    'characters': characters,
    'vocab_size': tokenizer.vocab_size,
    'digest': _joined(*digests),
    **facts,
  }


def _by_size(texts: Iterable[str], characters: int = 1 << 20) -> Iterator[list[str]]:
  """Yields lists of texts of about a megabyte: enough to encode in parallel, and little memory."""
  some, size = [], 0
  for text in texts:
    some.append(text)
    size += len(text)
    if size >= characters:
      yield some
      some, size = [], 0
  if some:
    yield some


def _encode(tokenizer, texts: list[str]) -> list[list[int]]:
  if hasattr(tokenizer, 'encode_batch'):
    return tokenizer.encode_batch(texts)
  return [tokenizer.encode(text) for text in texts]


def _remove_abandoned(folder: Path, name: str) -> None:
  for path in folder.glob(f'.{name}.{socket.gethostname()}.*'):
    pid = path.name.rsplit('.', 1)[1]
    if not pid.isdigit():
      continue
    try:
      alive = int(pid) != os.getpid() and (os.kill(int(pid), 0) is None)
    except ProcessLookupError:
      alive = False
    except PermissionError:
      alive = True
    if not alive:
      shutil.rmtree(path, ignore_errors=True)
