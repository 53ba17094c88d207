"""Lowering for a TPU or GPU on a machine that has neither: the compilers' front ends, and for a TPU with libtpu the back end too."""

import contextlib
import os
import re

import jax
import pytest

CALLS = {'tpu': 'custom_call @tpu_custom_call', 'cuda': 'custom_call @__gpu$xla.gpu.triton'}


def device(platform):
  """Since jax 0.8 Mosaic, and since 0.12 Triton, ask which device it is."""
  kind, family = {'tpu': ('TPU v5 lite', 'tpu'), 'cuda': ('NVIDIA H100', 'gpu')}[platform]
  try:
    described = jax.sharding.AbstractDevice(device_kind=kind, num_cores=1, platform=family)
  except TypeError:  # jax 0.7
    return contextlib.nullcontext()
  mesh = jax.sharding.AbstractMesh((1,), ('x',), abstract_device=described)
  return jax.sharding.use_abstract_mesh(mesh)


def lowered(f, platform, *arrays) -> str:
  # A place for the arrays: since jax 0.12 functions with a partitioning of their own lower for devices, not for a described mesh alone.
  place = jax.sharding.SingleDeviceSharding(jax.devices('cpu')[0])
  arrays = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for x in arrays]
  with device(platform):
    return jax.jit(f).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()


def tpu_chips():
  """Returns four chips of a TPU v5e, which need not be there; skips the test where the compiler is not installed."""
  libtpu = pytest.importorskip('libtpu', reason='the TPU compiler is not installed: pip install jaxlm[tpu]')
  from jax.experimental import topologies

  for name, value in {'TPU_SKIP_MDS_QUERY': '1', 'TPU_LIBRARY_PATH': libtpu.get_library_path()}.items():
    os.environ.setdefault(name, value)
  return topologies.get_topology_desc(platform='tpu', topology_name='v5e:2x2').devices


def compiled_for_tpu(f, *arrays, donate=()):
  """Returns f compiled for a TPU v5e: for its first chip, or for those of the arrays' shardings."""
  one = jax.sharding.SingleDeviceSharding(tpu_chips()[0])
  place = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or one)
  arrays = jax.tree.map(place, arrays)
  meshes = [x.sharding.mesh for x in jax.tree.leaves(arrays) if isinstance(x.sharding, jax.NamedSharding)]
  described = jax.sharding.use_abstract_mesh(meshes[0].abstract_mesh) if meshes else device('tpu')
  with described, no_stored_programs():
    return jax.jit(f, donate_argnums=donate).trace(*arrays).lower(lowering_platforms=('tpu',)).compile()


@contextlib.contextmanager
def no_stored_programs():
  """A program for a chip that is not there cannot be loaded from the compilation cache."""
  before = jax.config.jax_enable_compilation_cache
  jax.config.update('jax_enable_compilation_cache', False)
  try:
    yield
  finally:
    jax.config.update('jax_enable_compilation_cache', before)


def copied_shapes(program) -> list[tuple[int, ...]]:
  """Returns the shapes of the arrays that a compiled program copies."""
  found = re.findall(r'= \w+\[([\d,]+)\]\S* copy\(', program.as_text())
  return [tuple(map(int, shape.split(','))) for shape in found]
