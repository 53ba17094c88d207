"""Chooses the form of flash attention for a platform, pads the arrays to whole blocks, and calls the form.

Array names carry shapes: B batch, T queries, S keys, N query heads, K key heads, H head dim.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from pallas_kernels import attention_kernels as kernels
from pallas_kernels import attention_looped, attention_streamed, attention_xla, blocks, platforms
from pallas_kernels.arithmetic import HIDDEN

FASTEST = {'tpu': 'tpu', 'cuda': 'gpu', 'rocm': 'gpu', 'cpu': 'xla'}
"""Platform -> how a call without an `implementation` runs: the kernels compiled for 'tpu' or 'gpu', or 'xla'."""
DEFAULT_BLOCKS = {'tpu': (512, 512), 'gpu': (64, 64), 'interpret': (128, 128)}  # (queries, keys), not tuned


@dataclasses.dataclass(frozen=True)
class Spec:
  """The static arguments of a call, independent of shapes and platform."""

  operation: str
  causal: bool
  window: int | None
  scale: float
  bias: float
  alibi: bool
  block_q: int | None
  block_k: int | None
  num_warps: int = 4
  """On a GPU: number of warps (groups of 32 threads) that share a block."""
  num_stages: int = 2
  """On a GPU: number of pipeline stages, that is of blocks loaded at the same time."""
  prefix: int = 0
  softcap: float | None = None
  slot: bool = False
  """Whether there is a slot, which attention_slot.py adds to the kernels' results."""


@dataclasses.dataclass(frozen=True)
class Form:
  """One of the forms of the function: 'xla', or the kernels of a 'tpu' or 'gpu'."""

  name: str
  interpret: Any = False
  """True: as ordinary JAX operations; or `pltpu.InterpretParams`, which simulate a TPU."""


def platform_dependent(call, how: str | Form | None, *arrays):
  """Returns call(form, *arrays); the form is chosen when the program is lowered for a platform.

  how: 'xla' or a Form is used on all platforms; 'interpret' is the TPU's kernels, interpreted; 'pallas' is the platform's
    kernels; None is FASTEST.
  """
  fixed = {'xla': Form('xla'), 'interpret': Form('tpu', interpret=True)}.get(how, how)
  if isinstance(fixed, Form):
    return call(fixed, *arrays)
  kinds = {'tpu': 'tpu', 'cuda': 'gpu', 'rocm': 'gpu'} if how == 'pallas' else FASTEST
  branches = {platform: functools.partial(call, Form(kind)) for platform, kind in kinds.items()}
  if how == 'pallas':
    branches['default'] = lambda *arrays: platforms.refused(call(Form('xla'), *arrays), kernels=('tpu', 'gpu'))
  return jax.lax.platform_dependent(*arrays, **branches)


def forward(spec: Spec, form: Form, q, k, v, slopes, segments):
  """Returns out [B, T, N, H] and, for softmax, the log-sum-exp [B, N, T], -HIDDEN for a row without keys; None for sigmoid."""
  if form.name == 'xla':
    return attention_xla.forward(spec, q, k, v, slopes, segments)
  rule, (kernel, options) = _rule(spec, form, q, k, segments), _kernels(spec, form)
  arrays = _by_head(q, rule.block_q, form), *(_by_head(x, rule.block_k, form) for x in (k, v))
  out, *lse = kernel.forward(rule, options, slopes, *arrays, _padded_segments(rule, segments))
  return _like(out, q), lse[0][:, :, : q.shape[1]] if lse else None


def backward(spec: Spec, form: Form, q, k, v, slopes, segments, dout, stats):
  """Returns dq, dk, dv. stats: (lse, delta), each [B, N, T], for softmax; () for sigmoid."""
  if form.name == 'xla':
    return attention_xla.backward(spec, q, k, v, slopes, segments, dout, stats)
  rule, (kernel, options) = _rule(spec, form, q, k, segments), _kernels(spec, form)
  q_BNTH, dout_BNTH = (_by_head(x, rule.block_q, form) for x in (q, dout))
  k_BKSH, v_BKSH = (_by_head(x, rule.block_k, form) for x in (k, v))
  # The lse of padding rows is huge, so that exp(S - lse) is 0 there.
  fills = (-HIDDEN, 0.0)
  stats = [_longer(x, rule.block_q, axis=2, constant_values=fill) for x, fill in zip(stats, fills)]
  arguments = (
    rule, options, slopes, q_BNTH, k_BKSH, v_BKSH, dout_BNTH, stats, _padded_segments(rule, segments)
  )  # fmt: skip
  dk, dv = kernel.key_gradients(*arguments)
  return _like(kernel.query_gradient(*arguments), q), _like(dk, k), _like(dv, v)


def _kernels(spec: Spec, form: Form):
  """Returns the module with a form's kernels, and how it calls them."""
  if form.name == 'tpu':
    return attention_streamed, form.interpret
  return attention_looped, attention_looped.launch(form.interpret, spec.num_warps, spec.num_stages)


def _rule(spec: Spec, form: Form, q, k, segments) -> kernels.Rule:
  (T, N), (S, K) = q.shape[1:3], k.shape[1:3]
  reach = None if spec.window is None else spec.window - 1
  default_q, default_k = DEFAULT_BLOCKS['interpret' if form.interpret else form.name]
  compiled = form == Form('tpu')
  block_q = blocks.size(spec.block_q or default_q, T, compiled_for_tpu=compiled)
  block_k = blocks.size(spec.block_k or default_k, S, compiled_for_tpu=compiled)
  return kernels.Rule(
    operation=spec.operation, scale=spec.scale, bias=spec.bias, softcap=spec.softcap, alibi=spec.alibi, causal=spec.causal,
    segments=segments is not None, before=reach, after=0 if spec.causal else reach, prefix=spec.prefix, keys=S, offset=S - T,
    group=N // K, block_q=block_q, block_k=block_k, query_blocks=-(-T // block_q), key_blocks=-(-S // block_k),
  )  # fmt: skip


def _by_head(x_BTNH, block: int, form: Form):
  return blocks.by_head(x_BTNH, block, tpu=form.name == 'tpu', compiled_for_tpu=form == Form('tpu'))


def _like(x_BNTH, like_BTNH):
  T, _, H = like_BTNH.shape[1:]
  return x_BNTH[:, :, :T, :H].swapaxes(1, 2).astype(like_BTNH.dtype)


def _padded_segments(rule: kernels.Rule, segments_BT):
  """Returns the segments of all queries and of all keys, padded like them; None for None."""
  if segments_BT is None:
    return None
  # Padding repeats the last segment, so that it reaches no block that the last token does not reach.
  return tuple(_longer(segments_BT, block, axis=1, mode='edge') for block in (rule.block_q, rule.block_k))


def _longer(x, block: int, *, axis: int, **options):
  """Returns x with its length along `axis` padded to a multiple of `block`; options are those of `jnp.pad`."""
  widths = [(0, 0)] * x.ndim
  widths[axis] = (0, -x.shape[axis] % block)
  return jnp.pad(x, widths, **options)
