"""`flash_attention` on the chip: its error against float64 on the host, and its speed beside `jax.nn.dot_product_attention`.

A visible pair of query and key costs two dot products of the head size forward and five backward. Hidden pairs are not counted.
"""

from collections.abc import Callable, Iterator
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accelerator.record import Case
from benchmarks.accelerator.setting import Setting
from benchmarks.accelerator.timing import Compiled, seconds
from pallas_kernels import flash_attention
from pallas_kernels.attention import chosen_implementation
from pallas_kernels.attention_calls import Spec

CHECKED = {
  'causal': {},
  'window of 100': {'window': 100},
  'all at once': {'window': 100, 'alibi_slopes': np.float32([0.01, 0.03, 0.1, 0.3]), 'segments': True},
  'prefix, cap and slot': {'window': 100, 'prefix': 7, 'softcap': 2.0, 'slot_logit': np.float32([-1, 0, 1, 2])},
}
CUDNN = ('causal', 'window of 100')
CHECKS = (
  ('bfloat16', 64, 'causal'),
  ('bfloat16', 64, 'window of 100'),
  ('bfloat16', 64, 'all at once'),
  ('bfloat16', 80, 'causal'),
  ('bfloat16', 96, 'causal'),
  ('bfloat16', 128, 'causal'),
  ('bfloat16', 128, 'all at once'),
  ('bfloat16', 128, 'prefix, cap and slot'),
  ('bfloat16', 256, 'causal'),
  ('float32', 64, 'all at once'),
  ('float32', 64, 'prefix, cap and slot'),
)
DOCUMENTS = 8
"""Number of documents in a sequence, where attention within documents is timed."""
LIMITS = {'bfloat16': 1e-2, 'float32': 1e-5}
"""Largest allowed error |x - exact| / |exact|, with norms over all numbers of a result."""


PACKED = f'pallas, {DOCUMENTS} documents'


def cases(setting: Setting) -> Iterator[Case]:
  yield from checks(setting)
  yield from times(setting)


def implementations(setting: Setting, operation: str) -> dict[str, Callable]:
  """Returns attention functions (q, k, v, **options) by name."""
  ours = lambda q, k, v, **options: flash_attention(q, k, v, operation=operation, **options)
  found = {'xla': functools.partial(ours, implementation='xla')}
  if jax.default_backend() != 'cpu':
    found['pallas'] = functools.partial(ours, implementation='pallas')
  elif setting.tiny:
    found['pallas'] = functools.partial(ours, interpret=True)
  if operation == 'softmax' and jax.default_backend() == 'gpu':
    found['cudnn'] = functools.partial(ours, implementation='cudnn')
  return found


def checks(setting: Setting) -> Iterator[Case]:
  lowered, arguments = {}, {}
  small = (('bfloat16', 16, 'prefix, cap and slot'), ('float32', 16, 'all at once'))
  for operation in ('softmax', 'sigmoid'):
    for dtype, H, what in small if setting.tiny else CHECKS:
      length = 40 if setting.tiny else 320
      arrays, options = drawn(length, 4, 2, H, dtype), dict(CHECKED[what])
      if options.pop('segments', False):
        options['segments'] = jnp.arange(length)[None] // (length // 3)
      for name, attend in implementations(setting, operation).items():
        if name == 'cudnn' and (dtype == 'float32' or what not in CUDNN):
          continue
        at = operation, dtype, H, what, name
        arguments[at] = arrays, options
        run = jax.jit(outputs_and_gradients(functools.partial(attend, **options)))
        lowered[at] = lambda run=run, arrays=arrays: run.lower(*arrays)
  programs = Compiled(lowered)
  for at, (arrays, options) in arguments.items():
    labels = dict(zip(('operation', 'dtype', 'head', 'mask', 'implementation'), at))
    yield Case('attention against float64', labels, lambda at=at, a=arrays, o=options: check(programs[at], at[0], a, o))


def outputs_and_gradients(attend: Callable) -> Callable:
  def run(q, k, v, dout):
    out, vjp = jax.vjp(attend, q, k, v)
    return out, *vjp(dout)

  return run


def drawn(T: int, N: int, K: int, H: int, dtype: str, B: int = 1) -> list[jax.Array]:
  """Returns random q, k, v and output gradient."""
  shapes = (B, T, N, H), (B, T, K, H), (B, T, K, H), (B, T, N, H)
  return [jax.random.normal(jax.random.key(i), shape, dtype) for i, shape in enumerate(shapes)]


def check(program, operation: str, arrays: list[jax.Array], options: dict[str, Any]) -> dict[str, Any]:
  results = program(*arrays)
  exact = in_float64(*(np.asarray(x, np.float64) for x in arrays), operation=operation, **options)
  error = lambda x, e: float(np.linalg.norm(np.asarray(x, np.float64) - e) / np.linalg.norm(e))
  errors = {name: error(x, e) for name, x, e in zip(('out', 'dq', 'dk', 'dv'), results, exact)}
  return errors | {'right': max(errors.values()) < LIMITS[arrays[0].dtype.name]}


def in_float64(
  q,
  k,
  v,
  dout,
  *,
  operation: str,
  window: int | None = None,
  prefix: int = 0,
  softcap: float = np.inf,
  alibi_slopes=None,
  segments=None,
  slot_logit=None,
) -> tuple[np.ndarray, ...]:
  """Returns out, dq, dk and dv in NumPy, by the formulas of pallas_kernels.attention_kernels."""
  T, N, H = q.shape[1:]
  K = k.shape[2]
  heads_first = lambda x: x.swapaxes(1, 2)
  q, k, v, dout = heads_first(q), *(np.repeat(heads_first(x), N // K, axis=1) for x in (k, v)), heads_first(dout)
  distance = np.arange(T)[:, None] - np.arange(T)[None]
  logits = q @ k.swapaxes(2, 3) * H**-0.5
  damping = 1.0
  if softcap < np.inf:
    damping = 1 - np.tanh(logits / softcap) ** 2
    logits = softcap * np.tanh(logits / softcap)
  if alibi_slopes is not None:
    logits = logits - np.float64(alibi_slopes)[None, :, None, None] * np.abs(distance)
  visible = (distance >= 0) & (distance < (window or T)) | (np.arange(T) < prefix)
  if segments is not None:
    visible = visible & (np.asarray(segments)[:, None, :, None] == np.asarray(segments)[:, None, None])
  if operation == 'sigmoid':
    w = np.where(visible, 1 / (1 + np.exp(-logits)), 0)
  else:
    w = np.where(visible, np.exp(logits), 0)
    slot = 0.0 if slot_logit is None else np.exp(np.float64(slot_logit))[None, :, None, None]
    w = w / (w.sum(axis=-1, keepdims=True) + slot)
  out, dw = w @ v, dout @ v.swapaxes(2, 3)
  dlogits = w * (1 - w) * dw if operation == 'sigmoid' else w * (dw - (dout * out).sum(axis=-1, keepdims=True))
  dlogits = dlogits * damping
  dq, dk, dv = dlogits @ k * H**-0.5, dlogits.swapaxes(2, 3) @ q * H**-0.5, w.swapaxes(2, 3) @ dout
  of_group = lambda x: x.reshape(x.shape[0], K, N // K, T, H).sum(axis=2)
  return tuple(map(heads_first, (out, dq, of_group(dk), of_group(dv))))


def times(setting: Setting) -> Iterator[Case]:
  lowered, chosen = {}, {}
  for T, N, K, H in setting.attention:
    B = max(1, setting.attention_tokens // T)
    arrays = [jax.ShapeDtypeStruct((B, T, n, H), jnp.bfloat16) for n in (N, K, K, N)]
    for operation in ('softmax', 'sigmoid'):
      attends = implementations(setting, operation)
      if T != 4096 and not setting.tiny:  # It is slow, so one length is enough.
        del attends['xla']
      elif operation == 'softmax':
        attends['jax.nn, xla'] = functools.partial(jax.nn.dot_product_attention, is_causal=True, implementation='xla')
      if 'pallas' in attends and (T == 4096 or setting.tiny):
        segments = np.broadcast_to(np.arange(T, dtype=np.int32) * DOCUMENTS // T, (B, T))
        attends[PACKED] = functools.partial(attends['pallas'], segments=segments)
      default = chosen_implementation(Spec(operation, True, None, H**-0.5, 0.0, False, None, None), *arrays[:2])
      for name, attend in attends.items():
        row = B, T, N, K, H, operation, name
        chosen[row] = default
        for way, run in (('forward', attend), ('both', outputs_and_gradients(attend))):
          args = arrays if way == 'both' else arrays[:3]
          lowered[*row, way] = lambda run=run, args=args: jax.jit(run).lower(*args)
  programs = Compiled(lowered)
  programs.wait()
  for row in chosen:
    labels = dict(zip(('batch', 'T', 'heads', 'key heads', 'head', 'operation', 'implementation'), row))
    labels['default'] = row[-1] == chosen[row]
    yield Case('attention, bfloat16, causal', labels, lambda row=row: time_of(programs, row, setting))


def time_of(programs: Compiled, row: tuple, setting: Setting) -> dict[str, float]:
  B, T, N, K, H, *_, name = row
  arrays, documents = drawn(T, N, K, H, 'bfloat16', B), DOCUMENTS if name == PACKED else 1
  flops = 2 * B * N * T * (T / documents + 1) / 2 * H  # of one product
  found = {}
  for way, products, args in (('forward', 2, arrays[:3]), ('both', 7, arrays)):
    program = programs[(*row, way)]
    taken = seconds(lambda program=program, args=args: program(*args), setting.min_seconds, setting.repeats)
    found |= {f'{way} ms': 1e3 * taken, f'{way} TFLOP/s': products * flops / taken / 1e12}
  return found
