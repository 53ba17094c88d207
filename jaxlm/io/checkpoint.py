"""Saves and loads checkpoints of training runs with Orbax.

RUN/checkpoints/STEP holds up to four items, each of which can be read alone: `params`, `ema` (if the run keeps an average),
`state` (step and optimizer) and `notes` (JSON). Orbax writes into a temporary folder and renames it, so a folder whose name is
a step number is complete, and a killed save leaves earlier checkpoints unchanged.
"""

from collections.abc import Callable, Collection, Sequence
import dataclasses
import json
import logging
from pathlib import Path
import re
from typing import Any

from etils import epath
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from jaxlm.errors import CheckpointError
from jaxlm.io import digest as digest_of_arrays
from jaxlm.models import registry, sharding

preservation = ocp.checkpoint_managers

NOTES = 'notes'
AVERAGE = 'average'
"""Folder of a run with the average of its last checkpoints, stored as a checkpoint of the last step."""
_DIGEST = re.compile('(bool|u?int(8|16|32)|float(16|32)|bfloat16):[0-9a-f]{8}')

# Orbax warns about item folders without a parent checkpoint's metadata, which are normal here.
_NOISE = re.compile('Metadata file does not exist|Failed to get item metadata')
logging.getLogger('absl').addFilter(lambda record: not _NOISE.search(str(record.msg)))


def steps(directory: str | Path) -> list[int]:
  """Returns the steps of the complete checkpoints in a `checkpoints` folder, oldest first."""
  folder = Path(directory)
  if not folder.is_dir():
    return []
  return sorted(int(p.name) for p in folder.iterdir() if re.fullmatch('0|[1-9][0-9]*', p.name) and p.is_dir())


@dataclasses.dataclass
class _KeepAlso(preservation.PreservationPolicy):
  """Keeps the checkpoints whose steps a function selects from all saved steps."""

  choose: Callable[[Sequence[int]], Collection[int]]

  def should_preserve(self, checkpoints, *, context):
    there = [info.step for info in checkpoints]
    chosen = set(self.choose(there))
    return [step in chosen for step in there]


class Checkpointer:
  """Saves in the background. Keeps the newest `keep` checkpoints, and those that `keep_also` selects from all steps.

  Every process of a run must call every method, because each writes its own shards.
  """

  def __init__(
    self, directory: str | Path, *, keep: int = 2, keep_also: Callable[[Sequence[int]], Collection[int]] = lambda _: ()
  ):
    self.directory = Path(directory).absolute()
    policies = [preservation.LatestN(n=keep), _KeepAlso(keep_also)]
    options = ocp.CheckpointManagerOptions(
      preservation_policy=preservation.AnyPreservationPolicy(policies),
      # Delete temporary folders that killed saves left.
      cleanup_tmp_directories=True,
      enable_async_checkpointing=True,
    )
    self._manager = ocp.CheckpointManager(epath.Path(self.directory), options=options)

  def latest(self) -> int | None:
    """Step of the newest complete checkpoint."""
    return self._manager.latest_step()

  def save(self, step: int, items: dict[str, Any], notes: dict[str, Any]) -> None:
    """Copies `items` (trees by name, None left out) off the devices and writes them in the background.

    Raises:
      CheckpointError: this save, or the one before it, could not be written (disk full, not writable, ...).
    """
    args = {name: ocp.args.StandardSave(tree) for name, tree in items.items() if tree is not None}
    with _writing(self.directory / str(step)):
      self._manager.wait_until_finished()
      self._manager.save(step, args=ocp.args.Composite(**args, **{NOTES: ocp.args.JsonSave(notes)}), force=True)

  def wait(self) -> None:
    """Waits until everything is written. Raises CheckpointError if writing failed."""
    with _writing(self.directory):
      self._manager.wait_until_finished()
      self._manager.check_for_errors()

  def restore(self, step: int, abstract: dict[str, Any]) -> dict[str, Any]:
    """Returns the items in `abstract` (trees of jax.ShapeDtypeStruct with shardings, None left out)."""
    return read(self.directory / str(step), {k: v for k, v in abstract.items() if v is not None})

  def close(self) -> None:
    self._manager.close()


class _writing:
  """Turns any error while writing into a CheckpointError that names the folder."""

  def __init__(self, folder: Path):
    self.folder = folder

  def __enter__(self):
    return self

  def __exit__(self, kind, error, trace):
    if isinstance(error, Exception):
      kept = steps(self.folder if self.folder.is_dir() and not self.folder.name.isdecimal() else self.folder.parent)
      last = f'the newest complete checkpoint is step {kept[-1]}' if kept else 'there is no earlier checkpoint'
      raise CheckpointError(f'Could not write {self.folder}: {error}. Is the disk full? {last}.') from error
    return False


def read(folder: str | Path, abstract: dict[str, Any]) -> dict[str, Any]:
  """Returns items of one checkpoint folder; arrays are read directly into the shardings of the abstract trees.

  If the notes hold digests of an item, its arrays are checked against them, because Orbax stores no checksums.

  Raises:
    CheckpointError: an item is missing, files cannot be read, numbers differ from those that were saved, or a parameter has
      another shape (the message names both shapes).
  """
  out, folder = {}, Path(folder).absolute()
  saved = read_notes(folder).get('digests', {})
  with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
    for name, tree in abstract.items():
      path = folder / name
      if not path.is_dir():
        raise CheckpointError(f'{path} does not exist: {folder} is damaged, or not a checkpoint of this kind.')
      try:
        found = _shapes(reader.metadata(epath.Path(path)))
        if not found:  # Orbax only warns about a missing or broken manifest.
          raise ValueError('its manifest or metadata cannot be read')
        check_fits(found, tree, path)
        known = saved.get(name, {})
        stored = _with_saved_dtypes(tree, known)
        out[name] = reader.restore(epath.Path(path), args=ocp.args.StandardRestore(stored))
      except CheckpointError:
        raise
      except Exception as e:  # Orbax and TensorStore raise many types of errors for damaged files.
        first = str(e).strip().split('\n')[0][:300]
        raise CheckpointError(f'{path} is damaged or was not written by Orbax: {first}') from e
      if known:
        _check_digests(out[name], known, path)
        out[name] = _cast(out.pop(name), tree)
  return out


def _with_saved_dtypes(tree: Any, known: dict[str, str]) -> Any:
  """Returns an abstract tree with the dtypes that were saved, if they are known; the digests belong to these dtypes."""

  def leaf(path, x):
    digest = known.get(digest_of_arrays.name_of(path))
    dtype = x.dtype if digest is None else digest_of_arrays.saved_dtype(digest)
    return jax.ShapeDtypeStruct(x.shape, dtype, sharding=x.sharding)

  return jax.tree_util.tree_map_with_path(leaf, tree)


def _check_digests(tree: Any, known: dict[str, str], path: Path) -> None:
  for name, digest in digest_of_arrays.digests(tree).items():
    if known.get(name) != digest:
      raise CheckpointError(
        f'{path} is damaged: {name!r} has the digest {digest}, and it was saved with {known.get(name)}. Restore the '
        'folder from a copy, or use an earlier checkpoint.'
      )


def _cast(tree: Any, wanted: Any) -> Any:
  """Returns a tree with the dtypes of `wanted`; each array is freed as soon as its copy exists."""
  leaves, structure = jax.tree.flatten(tree)
  del tree
  for i, x in enumerate(jax.tree.leaves(wanted)):
    leaves[i] = leaves[i] if leaves[i].dtype == x.dtype else leaves[i].astype(x.dtype)
  return jax.tree.unflatten(structure, leaves)


def read_notes(folder: str | Path) -> dict[str, Any]:
  """Returns the JSON notes of a checkpoint folder. Raises CheckpointError if they do not have the form that a run writes."""
  path = Path(folder) / NOTES / 'metadata'
  try:
    notes = json.loads(path.read_text(encoding='utf-8'))
  except (OSError, ValueError, RecursionError) as e:
    raise CheckpointError(f'{path} cannot be read: {e}') from e
  if not isinstance(notes, dict):
    raise CheckpointError(f'{path} holds {type(notes).__name__}, not the notes of a checkpoint.')
  digests = notes.get('digests', {})
  items = digests.values() if isinstance(digests, dict) else [None]
  if not all(
    isinstance(item, dict) and all(isinstance(x, str) and _DIGEST.fullmatch(x) for x in item.values()) for item in items
  ):
    raise CheckpointError(f'{path}: its "digests" are not those of a checkpoint.')
  return notes


def names(path: Path) -> list[str]:
  """Returns the names of the arrays of one item, [] if it cannot be read."""
  try:
    with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as reader:
      return list(_shapes(reader.metadata(epath.Path(Path(path).absolute()))))
  except Exception:  # `read` reports what is wrong with it.
    return []


def _shapes(metadata: Any) -> dict[str, tuple[int, ...]]:
  tree = getattr(metadata, 'item_metadata', metadata)
  tree = getattr(tree, 'tree', tree)
  leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda x: hasattr(x, 'shape'))
  return {digest_of_arrays.name_of(path): tuple(leaf.shape) for path, leaf in leaves if hasattr(leaf, 'shape')}


def check_fits(found: dict[str, tuple[int, ...]], tree: Any, where: str | Path) -> None:
  """Raises CheckpointError that names the first parameter that differs and both shapes. `found`: path -> shape."""
  wanted = {digest_of_arrays.name_of(p): tuple(x.shape) for p, x in jax.tree_util.tree_leaves_with_path(tree)}
  for name, shape in wanted.items():
    if name not in found:
      raise CheckpointError(f'{where} has no {name!r}, which the config wants with shape {shape}.')
    if found[name] != shape:
      raise CheckpointError(f'{where}: {name!r} has shape {found[name]}, the config wants {shape}.')
  for name, shape in found.items():
    if name not in wanted:
      raise CheckpointError(f'{where} has {name!r} of shape {shape}, which the config does not know.')


def run_config(directory: str | Path) -> dict[str, Any]:
  """Returns the config.json of a run directory. Raises CheckpointError if it is not one."""
  path = Path(directory) / 'config.json'
  try:
    found = json.loads(path.read_text(encoding='utf-8'))
  except FileNotFoundError:
    raise CheckpointError(f'{directory} is not a run directory: it has no config.json.') from None
  except (OSError, ValueError, RecursionError) as e:
    raise CheckpointError(f'{path} cannot be read: {e}') from e
  if not isinstance(found, dict) or 'model' not in found:
    raise CheckpointError(f'{path} is not the config of a run: it has no "model".')
  for name, value in found.items():
    if name in ('model', 'data', 'optimizer', 'run', 'eval', 'mesh') and not isinstance(value, dict):
      raise CheckpointError(f'{path} is not the config of a run: its {name!r} is {value!r}, not an object.')
  return found


def run_kind(directory: str | Path) -> registry.RunKind:
  """Returns how a run is read, by the trainer in its config.json. Raises CheckpointError if that is not a name."""
  trainer = run_config(directory).get('trainer', 'pretrain')
  if not isinstance(trainer, str):
    raise CheckpointError(
      f'{Path(directory) / "config.json"}: its "trainer" is {trainer!r}, not the name of a trainer.'
    )
  return registry.run_kind(trainer)


def _read_config(path: Path, fields: dict[str, Any], kind: registry.RunKind) -> Any:
  try:
    return kind.read_config(fields['model'])
  except (TypeError, ValueError) as e:
    trainer, hint = fields.get('trainer', 'pretrain'), ''
    if trainer not in registry.known():
      hint = (
        f' This is a run of {trainer!r}, which is none of {", ".join(registry.known())}, so it was read as one of '
        f'{kind.what}. A trainer of your own makes its runs known with jaxlm.models.registry.register.'
      )
    raise CheckpointError(f'{path / "config.json"}: {e}{hint}') from e


def _other_steps(path: Path, others: list[int]) -> str:
  if not others:
    return 'There is no other checkpoint.'
  return (
    f'There are checkpoints of the steps {others} as well: from Python, jaxlm.io.checkpoint.load_run({str(path)!r}, step={others[-1]}); or '
    'start the training command again, which goes on from the newest good one.'
  )


def load_run(
  path: str | Path,
  dtype: str | None = None,
  mesh: jax.sharding.Mesh | None = None,
  *,
  step: int | None = None,
  load_tokenizer: Callable | None = None,
) -> tuple[Any, Any, Any]:
  """Returns (config, parameters, tokenizer or None) of a run directory. The optimizer state is not read.

  If the run keeps a moving average of its parameters (run.ema_decay), or has averaged its last checkpoints
  (run.average_last), the average is returned.

  Args:
    path: run directory of a trainer that is registered in `jaxlm.models.registry`.
    dtype: dtype of parameters and computation; None: float32 on a CPU, bfloat16 on accelerators.
    mesh: devices over which parameters are sharded as they are read (see `models.sharding`); None: the default device.
    step: step of the checkpoint; None: the newest complete one, or the average of the last checkpoints if there is one.
    load_tokenizer: function that reads the run's tokenizer folder; None: `data.tokenizers.from_directory`.

  Raises:
    CheckpointError: the path is not a run directory, it has no complete checkpoint, or the checkpoint is damaged or does
      not fit the config.
  """
  path = Path(path)
  fields, kind = run_config(path), run_kind(path)
  config = _read_config(path, fields, kind)
  found = steps(path / 'checkpoints')
  if not found:
    raise CheckpointError(f'{path} holds no complete checkpoint: the run was stopped before its first save.')
  if step is not None and step not in found:
    raise CheckpointError(f'{path} has no checkpoint of step {step}; there are {found}.')
  folder = path / 'checkpoints' / str(found[-1] if step is None else step)
  if step is None and (average := path / AVERAGE / str(found[-1])).is_dir():
    folder = average
  dtype = dtype or ('float32' if jax.default_backend() == 'cpu' else 'bfloat16')
  # A model that was trained with kernels is also opened where there are none.
  how = {'implementation': 'default'} if hasattr(config, 'implementation') else {}
  config = config.replace(dtype=dtype, **how)

  def placed(names, leaf):
    keys = [k.key for k in names]
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    where = device if mesh is None else sharding.sharding(keys, leaf.shape, mesh)
    return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(dtype), sharding=where)

  abstract = jax.tree_util.tree_map_with_path(placed, kind.abstract_params(config))
  try:
    # If the notes list an average that is missing, reading it raises an error instead of loading the parameters.
    item = 'ema' if (folder / 'ema').is_dir() or 'ema' in read_notes(folder).get('digests', {}) else 'params'
    params = read(folder, {item: abstract})[item]
  except CheckpointError as e:
    others = [n for n in found if str(n) != folder.name]
    raise CheckpointError(f'{e} {_other_steps(path, others)}') from e
  tokenizer = None
  if (path / 'tokenizer').is_dir():
    if load_tokenizer is None:
      from jaxlm.data.tokenizers import from_directory

      load_tokenizer = kind.load_tokenizer or from_directory
    tokenizer = load_tokenizer(path / 'tokenizer')
  return config, params, tokenizer
