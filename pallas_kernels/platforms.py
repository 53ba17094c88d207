"""Which platforms have a kernel of an operation."""

from collections.abc import Sequence

import jax


def require(platforms: Sequence[str], *arrays) -> None:
  """Raises ValueError if an array is on a platform without a kernel. Within `jit` the platform is not known, and nothing is checked.

  Args:
    platforms: those with a kernel, of 'tpu' and 'gpu'.
    arrays: the arguments of a call with implementation='pallas'.
  """
  if any(isinstance(x, jax.core.Tracer) for x in arrays):
    return
  here = {device.platform for x in arrays if isinstance(x, jax.Array) for device in x.devices()}
  here = here or {jax.default_backend()}  # NumPy's arrays are put there.
  if missing := here - {*platforms}:
    raise ValueError(
      f"implementation='pallas' runs on {' and '.join(platforms)}, and the arrays are on {missing.pop()}. Leave it out, or pass 'xla'."
    )
