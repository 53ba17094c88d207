"""What studies made before, in the cache folder: nothing is trained or measured twice."""

from collections.abc import Callable
import dataclasses
import hashlib
import json
import os
from pathlib import Path
import time
from typing import Any

from jaxlm.config import HOW
from jaxlm.data.corpus import cache_folder

VERSION = 1
"""Raise it when training changes in a way that settings do not show: then nothing that was kept before is used."""


def kept_path(kind: str, facts: Any, suffix: str) -> Path:
  """Returns where the cache folder has what was made of these facts, JSON values."""
  name = hashlib.sha256(json.dumps([VERSION, facts]).encode()).hexdigest()[:16]
  return cache_folder() / 'trained' / f'{kind}-{name}{suffix}'


def kept(kind: str, facts: Any, make: Callable[[], Any] | None) -> Any:
  """Returns what `make` made of these facts, JSON values, from the cache folder; if it is not there, makes it first.

  Without `make`, what is not there is None.
  """
  path = kept_path(kind, facts, '.json')
  if not path.exists():
    if make is None:
      return None
    start = time.perf_counter()
    made = make()
    seconds = round(time.perf_counter() - start, 1)
    write_whole(path, json.dumps({'facts': facts, 'seconds': seconds, 'made': made}).encode())
  return json.loads(path.read_text())['made']


def facts_of(setting: Any) -> dict[str, Any]:
  """Returns a setting that has a ModelConfig `model`, as JSON values. How the model is computed is left out: it makes no other model."""
  facts = dataclasses.asdict(setting)
  for name in HOW:
    del facts['model'][name]
  return facts


def write_whole(path: Path, data: bytes) -> None:
  """Writes a file of the cache folder; a run that is stopped leaves no half of it."""
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_suffix(f'.{os.getpid()}.part')
  part.write_bytes(data)
  part.replace(path)
