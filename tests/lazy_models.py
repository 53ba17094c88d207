"""A small model, ragged prompts, and a full cache that hides: what several tests of cut caches share."""

import functools

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.attention.attend import attend
from jaxlm.caches import FullCache, LayeredCache
from jaxlm.caches.rows import heads_first, write_rows
from jaxlm.caches.slots import everything_of, window_of
from jaxlm.models.transformer import Transformer
from tests.models import TINY

MODEL = TINY.replace(num_layers=3)
LENGTHS = (40, 23, 5)
PROMPTS = [np.random.default_rng(i).integers(0, 50, n).tolist() for i, n in enumerate(LENGTHS)]


@struct.dataclass
class Masked:
  """A full cache that hides what lazy layers would have forgotten: the specification of `LayeredCache`."""

  cache: FullCache
  lazy: jax.Array  # [L] bool
  lengths: jax.Array  # [B], when the layers were cut
  initial: int  # Values of the program and no constants: tests that change them share it.
  recent: int
  ring: bool = struct.field(pytree_node=False)

  @property
  def fresh(self):
    return False

  def attend(self, layer, q, k, v, positions, rule):
    old = self.cache
    keys, values = (
      write_rows(x[layer], heads_first(new), positions[:, 0]) for x, new in ((old.keys, k), (old.values, v))
    )
    slot_1S = jnp.arange(keys.shape[2])[None]
    if self.ring:
      kept_BTS = slot_1S[:, None] > positions[:, :, None] - self.recent
    else:
      kept_BTS = jnp.broadcast_to(
        (slot_1S >= self.lengths[:, None] - self.recent)[:, None], (*positions.shape, keys.shape[2])
      )
    mask_BTS = kept_BTS | (slot_1S < self.initial)[:, None] | ~self.lazy[layer]
    out = attend(q, keys, values, positions, slot_1S, rule, mask_BTS)
    put = lambda layers, new: layers[:layer] + (new,) + layers[layer + 1 :]
    return out, self.replace(cache=FullCache(put(old.keys, keys), put(old.values, values), old.empty))


@functools.partial(jax.jit, static_argnames='config')
def read(params, tokens_BT, *, config):
  cache = FullCache.create(config, tokens_BT.shape[0], 64)
  return Transformer(config).apply({'params': params}, tokens_BT, cache=cache)[1]


@functools.partial(jax.jit, static_argnames='config')
def one_by_one(params, cache, lengths_B, tokens_BT, *, config):
  """Returns logits [B, T, V] of tokens read one by one."""

  def step(carry, token_B):
    cache, position_B = carry
    logits, cache = Transformer(config).apply({'params': params}, token_B[:, None], position_B[:, None], cache)
    return (cache, position_B + 1), logits[:, 0]

  return jax.lax.scan(step, (cache, lengths_B), tokens_BT.T)[1].transpose(1, 0, 2)


def forced(*args, config):
  """Returns the logits of `one_by_one` as a NumPy array, so that no part or difference of them is a program."""
  return np.asarray(one_by_one(*args, config=config))


def padded(prompts=PROMPTS, width=40):
  return np.array([p + [0] * (width - len(p)) for p in prompts], np.int32), np.array([*map(len, prompts)], np.int32)


@functools.partial(jax.jit, static_argnames=('lazy_L', 'initial', 'recent', 'room'))
def cut(cache, lazy_L, lengths, initial, recent, room):
  cut_one = functools.partial(window_of, lengths=lengths, initial=initial, recent=recent, room=room)
  pairs = zip(cache.keys, cache.values, lazy_L)
  return LayeredCache(tuple(cut_one(k, v) if lazy else everything_of(k, v, lengths) for k, v, lazy in pairs))
