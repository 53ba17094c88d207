"""Lowering for a TPU or GPU on a machine that has neither: the compilers' front ends, not their back ends."""

import contextlib

import jax

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
  place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  arrays = [jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place) for x in arrays]
  with device(platform):
    return jax.jit(f).trace(*arrays).lower(lowering_platforms=(platform,)).as_text()
