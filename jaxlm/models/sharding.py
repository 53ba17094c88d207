"""Sharding of parameters over a mesh of devices.

A mesh has axes among `data`, `fsdp` and `tensor`; the table in `jaxlm.models.parameters` says which axis splits which dimension.
A dimension is not split if the size of its axis does not divide it. XLA's partitioner inserts the communication.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
import numpy as np

from jaxlm.models.parameters import axes_of

AXES = ('data', 'fsdp', 'tensor')


def make_mesh(*, data: int = 1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """Returns a mesh with the axes data, fsdp, tensor. Raises ValueError if there are fewer devices than it needs."""
  devices = list(jax.devices() if devices is None else devices)
  need = data * fsdp * tensor
  if need > len(devices) or need < 1:
    raise ValueError(f'A mesh of {data=} x {fsdp=} x {tensor=} needs {need} devices; there are {len(devices)}.')
  # Not jax.make_mesh: its axes are explicit in newer versions, automatic in older ones.
  return Mesh(np.array(devices[:need]).reshape(data, fsdp, tensor), AXES)


def mesh_of(arrays: Sequence[Any]) -> Mesh | None:
  """Returns the mesh over which some of the arrays are sharded; None if they are on one device, or on another kind of mesh."""
  meshes = (x.sharding.mesh for x in arrays if isinstance(getattr(x, 'sharding', None), NamedSharding))
  ours = lambda mesh: set(mesh.axis_names) <= set(AXES) and set(mesh.axis_types) == {AxisType.Auto}
  return next((mesh for mesh in meshes if mesh.size > 1 and ours(mesh)), None)


def spec(path: Sequence[str], shape: Sequence[int], mesh: Mesh) -> PartitionSpec:
  """Returns the PartitionSpec of the parameter at `path` (names from the root). A path that is not in the table is replicated."""
  axes = axes_of(path, len(shape)) or (None,) * len(shape)
  fits = lambda axis, size: axis is not None and mesh.shape.get(axis, 1) > 1 and size % mesh.shape[axis] == 0
  return PartitionSpec(*(axis if fits(axis, size) else None for axis, size in zip(axes, shape, strict=True)))


def sharding(path: Sequence[str], shape: Sequence[int], mesh: Mesh) -> NamedSharding:
  return NamedSharding(mesh, spec(path, shape, mesh))


def tree_shardings(tree: Any, mesh: Mesh) -> Any:
  """Returns shardings for a tree whose paths end in parameter names, such as parameters or optimizer states."""

  def leaf_sharding(path, leaf):
    names = [str(getattr(k, 'key', getattr(k, 'name', ''))) for k in path]
    return sharding(names, leaf.shape, mesh)

  return jax.tree_util.tree_map_with_path(leaf_sharding, tree)
