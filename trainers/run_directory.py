"""Run directories: creates, checks and locks them. A directory is used again only if it has the config.json of a run."""

from collections.abc import Callable, Collection, Iterator
import dataclasses
import fcntl
import json
from pathlib import Path
import platform
import shutil
import subprocess
from typing import Any, TextIO

import jax

import jaxlm
from jaxlm import config as configs
from jaxlm.errors import CheckpointError
from jaxlm.io import checkpoint
from jaxlm.io.atomic import write_atomically

MAY_CHANGE = ('remat', *configs.HOW, 'dropout', 'class_tile', 'target.name')
"""Fields of a model that a resumed run may change: how the model is computed or trained, and where a draft's target lies."""
HIDDEN = ('.lock', '.config.json.tmp')
"""Files that a process killed at the start may leave without a config.json."""


def versions() -> dict[str, Any]:
  """Returns versions, devices and commit: everything but the config that the numbers of a run may depend on."""
  import flax
  import optax
  import orbax.checkpoint

  devices = jax.devices()
  return {
    'jaxlm': jaxlm.__version__,
    'jax': jax.__version__,
    'flax': flax.__version__,
    'optax': optax.__version__,
    'orbax': orbax.checkpoint.__version__,
    'python': platform.python_version(),
    'devices': f'{len(devices)} x {devices[0].device_kind}',
    'processes': jax.process_count(),
    'git_commit': _git_commit(),
  }


def _git_commit() -> str | None:
  try:
    root = Path(jaxlm.__file__).resolve().parents[1]
    command = ['git', '-C', str(root), 'rev-parse', '--show-toplevel', 'HEAD']
    top, commit = subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.split()
  except (OSError, ValueError, subprocess.TimeoutExpired):
    return None
  return commit if Path(top) == root else None  # An installed jaxlm may lie inside somebody else's repository.


def flatten(tree: Any, prefix: str = '') -> dict[str, Any]:
  """Returns a nested dictionary as a flat one: {'a': {'b': 1}} -> {'a.b': 1}."""
  if not isinstance(tree, dict):
    return {prefix: tree}
  return {k: v for name, x in tree.items() for k, v in flatten(x, f'{prefix}.{name}' if prefix else name).items()}


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
  """Returns (field, old value, new value) for each field in which two configs differ."""
  old, new = flatten(old), flatten(new)
  return [(k, old.get(k), new.get(k)) for k in sorted(old | new) if old.get(k) != new.get(k)]


def with_new_fields(old: dict[str, Any], config: Any) -> dict[str, Any]:
  """Returns the config `old` of a run. Fields of `config` that did not exist when the run began get their defaults."""
  new = {}
  for field in dataclasses.fields(config):
    value = getattr(config, field.name)
    if field.name in old and dataclasses.is_dataclass(value) and isinstance(old[field.name], dict):
      new[field.name] = with_new_fields(old[field.name], value)
    elif field.name not in old and field.default is not dataclasses.MISSING:
      default = field.default
      new[field.name] = (
        configs.to_dict(default) if dataclasses.is_dataclass(default) else json.loads(json.dumps(default))
      )
  return old | new


def check_start(path: str | Path, start: str | None) -> None:
  """Raises CheckpointError if the directory has a run that began with another --start."""
  if not (Path(path) / 'config.json').exists():
    return
  before = checkpoint.run_config(path).get('start')
  if before != start:
    said = lambda x: f'with --start {x}' if x is not None else 'with new parameters'
    raise CheckpointError(
      f'{path} was begun {said(before)}; it cannot be resumed {said(start)}. Pass --run.directory with another path.'
    )


def open_run(path: str | Path, config: Any, trainer: str) -> tuple[TextIO, list[tuple[str, Any, Any]]]:
  """Creates a run directory with its config, or checks that an existing run can be resumed with `config`.

  The config.json of an existing run does not change before `write_config`, in case the run cannot be resumed.

  Returns (the lock, to be closed at the end of the run; the settings that changed since the run began).

  Raises:
    CheckpointError: `path` is a file, has files but no run, has a run of another model or trainer, or another process is
      writing to it.
  """
  path = Path(path)
  new = configs.to_dict(config)
  if path.exists() and not path.is_dir():
    raise CheckpointError(f'{path} is a file; choose another --run.directory.')
  changed, is_new = [], not (path / 'config.json').exists()
  if not is_new:
    old = with_new_fields(checkpoint.run_config(path), config)
    if old.get('trainer') != trainer:
      raise CheckpointError(f'{path} is a run of {old.get("trainer")!r}, not of {trainer!r}: another --run.directory?')
    for field, before, now in changes(old['model'], new['model']):
      if any(f'{field}.'.startswith(f'{name}.') for name in MAY_CHANGE):
        continue
      raise CheckpointError(
        f'{path} was begun with model.{field} = {before!r}; it cannot be resumed with {now!r}. To start anew, pass '
        f'--run.directory with another path, or move {path} away.'
      )
    skip = ('run.directory', 'trainer', 'versions')
    changed = [c for c in changes(old, {**new, 'trainer': trainer}) if not c[0].startswith(skip)]
  elif path.is_dir() and (others := sorted(p.name for p in path.iterdir() if p.name not in HIDDEN)):
    first = others[0]
    raise CheckpointError(
      f'{path} holds {first!r} but no config.json: not a run directory, and nothing is overwritten.'
    )
  try:
    path.mkdir(parents=True, exist_ok=True)
    held = lock(path)
  except OSError as e:
    raise CheckpointError(f'The run directory {path} cannot be written: {e}') from e
  if is_new:
    write_config(path, config, trainer)
  return held, changed


def write_config(path: str | Path, config: Any, trainer: str, kept: Collection[str] = ()) -> None:
  """Writes config.json. The fields `kept`, such as 'data.tokenizer', keep the values of an existing config.json.

  Raises:
    CheckpointError: it cannot be written.
  """
  path, new = Path(path), configs.to_dict(config)
  old = checkpoint.run_config(path) if (path / 'config.json').exists() else {}
  for field in kept:
    section, name = field.split('.')
    if name in old.get(section, {}):
      new[section][name] = old[section][name]
  try:
    text = json.dumps({'trainer': trainer, **new, 'versions': versions()}, indent=2)
    write_atomically(path / 'config.json', text)
  except OSError as e:
    raise CheckpointError(f'The run directory {path} cannot be written: {e}') from e


def news(
  changed: Collection[tuple[str, Any, Any]], kept: Collection[str], step: int, rate_before: float | None, rate: float
) -> Iterator[str]:
  """Yields messages for a user who resumes a run at `step` with other settings.

  Args:
    changed: the changed settings, from `open_run`.
    kept: fields whose new value is ignored.
    rate_before, rate: learning rate of the next step with the settings of the checkpoint (None: not known) and with the new ones.
  """
  text = lambda fields: ', '.join(f'{k} {a!r} -> {b!r}' for k, a, b in fields)
  if ignored := [c for c in changed if c[0] in kept]:
    yield f'Ignored, because the run goes on with what it has of its own: {text(ignored)}'
  if others := [c for c in changed if c[0] not in kept]:
    yield f'Changed since this run began: {text(others)}'
  if rate_before is not None and abs(rate - rate_before) > 0.01 * max(abs(rate), abs(rate_before)):
    yield f'The learning rate jumps at step {step}: {rate_before:.4g} -> {rate:.4g}'


def lock(path: str | Path) -> TextIO:
  """Returns an open, locked file that keeps other processes out of a run. The lock ends with this process at the latest.

  Raises:
    CheckpointError: another process is writing the run.
  """
  file = open(Path(path) / '.lock', 'a')
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    file.close()
    raise CheckpointError(
      f'Another process is training in {path}. Stop it, or choose another --run.directory.'
    ) from None
  except OSError:  # A file system without locks.
    pass
  return file


def save_once(path: str | Path, save: Callable[[Path], None]) -> None:
  """Calls save(folder) and moves the folder to `path`, unless there is one. A process that is killed leaves no partial folder."""
  path = Path(path)
  if path.is_dir():
    return
  scratch = path.with_name(f'.{path.name}.tmp')
  shutil.rmtree(scratch, ignore_errors=True)
  save(scratch)
  scratch.rename(path)
