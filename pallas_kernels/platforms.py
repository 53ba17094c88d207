"""Which devices have a kernel of an operation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
import re

import jax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

AMPERE = (8, 0)
"""Lowest compute capability of an NVIDIA GPU for which Pallas Triton and JAX's cuDNN attention are compiled (A100: 8.0, T4: 7.5)."""


def require(platforms: Sequence[str], *arrays, implementation: str = 'pallas') -> None:
  """Raises ValueError if an array is on a device without a kernel.

  Within `jit` the platform is not known. All that is checked there is whether the GPUs of this process are too old.

  Args:
    platforms: those with a kernel, of 'tpu' and 'gpu'.
    arrays: the arguments of a call with this `implementation`.
  """
  if any(isinstance(x, jax.core.Tracer) for x in arrays):
    devices = jax.devices() if 'gpu' in platforms else []
  else:
    devices = [device for x in arrays if isinstance(x, jax.Array) for device in x.devices()]
    devices = devices or [_default_device()]  # NumPy's arrays are put there.
    if missing := {device.platform for device in devices} - {*platforms}:
      raise ValueError(
        f'{implementation=} runs on {" and ".join(platforms)}, and the arrays are on {missing.pop()}. '
        "Leave it out, or pass 'xla'."
      )
  if old := too_old(devices):
    raise ValueError(
      f'{implementation=} needs compute capability {_dotted(AMPERE)}, and {old.device_kind} has '
      f"{_dotted(compute_capability(old))}. Leave it out, or pass 'xla'."
    )


def refused(results, *, kernels: Sequence[str]):
  """Returns the results; lowering a program that uses them raises ValueError.

  For the branches of platforms without a kernel in `jax.lax.platform_dependent`: whatever traces the branch, such as vmap or a
  program for another platform, is unaffected. kernels: the platforms with a kernel, of 'tpu' and 'gpu'.
  """
  return jax.tree.map(lambda x: _refused.bind(x, kernels=tuple(kernels)), results)


def _refuse(ctx, *_, kernels: tuple[str, ...]):
  raise ValueError(
    f"implementation='pallas' runs on {' and '.join(kernels)}, and this program is compiled for "
    f"{' and '.join(ctx.module_context.platforms)}. Leave it out, or pass 'xla'."
  )


_refused = Primitive('refused')
_refused.def_abstract_eval(lambda x, *, kernels: x)
batching.defvectorized(_refused)
mlir.register_lowering(_refused, _refuse)


def gpus() -> Sequence[jax.Device]:
  """Returns the GPUs of this process, which need not be its default devices."""
  try:
    return jax.devices('gpu')
  except RuntimeError:
    return []


def too_old(devices: Iterable[jax.Device]) -> jax.Device | None:
  """Returns an NVIDIA GPU below AMPERE, or None if there is none."""
  return next((x for x in devices if (compute_capability(x) or AMPERE) < AMPERE), None)


def compute_capability(device: jax.Device) -> tuple[int, ...] | None:
  """Returns the compute capability of an NVIDIA GPU such as (7, 5); None for other devices."""
  found = re.fullmatch(r'(\d+)\.(\d+)', str(getattr(device, 'compute_capability', '')))
  return None if found is None else tuple(map(int, found.groups()))


def default_platform() -> str:
  """Returns where programs run whose arrays are not elsewhere: 'cpu', 'gpu' or 'tpu'."""
  return _default_device().platform


def _default_device() -> jax.Device:
  chosen = jax.config.jax_default_device  # A device, the name of a platform, or None.
  return chosen if hasattr(chosen, 'platform') else jax.devices(chosen)[0]


def _dotted(capability: tuple[int, ...]) -> str:
  return '.'.join(map(str, capability))
