"""Layer-wise prefill: each layer's cache is cut before the next layer is computed.

Memory holds only the kept caches, one layer's whole cache, and the hidden states between two layers. If the number of full layers
is given, a heap holds the layers that are still full: as soon as it has one too many, the laziest of them is cut (LightTransfer,
v2 of https://arxiv.org/abs/2410.13846).
"""

from collections.abc import Callable
import dataclasses
import functools
import heapq
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from decoders.simlayerkv.config import LazyConfig, exempt, full_layers
from jaxlm.caches.full import FullCache
from jaxlm.caches.layered import LayeredCache
from jaxlm.config import ModelConfig
from jaxlm.models import functions


@struct.dataclass
class SingleLayerCache:
  """A cache of one layer, which ignores the layer's number."""

  cache: Any

  def attend(self, layer: int, q, k, v, positions, rule):
    del layer
    out, cache = self.cache.attend(0, q, k, v, positions, rule)
    return out, SingleLayerCache(cache)


@struct.dataclass
class CompressedPrompt:
  """The cut cache of the prompts, with the lazy ratios and the lazy layers."""

  cache: LayeredCache
  ratios: jax.Array  # [B, L] float32
  lazy: tuple[bool, ...] = struct.field(pytree_node=False)
  full_bytes: int = struct.field(pytree_node=False)

  @property
  def nbytes(self) -> int:
    return self.cache.nbytes


@functools.partial(jax.jit, static_argnames='config')
def embed(params, tokens_BT, total_B, *, config: ModelConfig):
  return functions.embedded(params, config, tokens_BT, length=total_B)


@functools.partial(jax.jit, static_argnames=('config', 'index', 'capacity', 'score'), donate_argnames='x_BTD')
def one_layer(params, x_BTD, positions_BT, scheme, lengths_B, *, config: ModelConfig, index: int, capacity: int, score):
  """Returns (the hidden states after the layer, its cache with ratios [B, 1])."""
  cache = score(FullCache.create(config.replace(num_layers=1, windows=()), len(x_BTD), capacity), lengths_B)
  x_BTD, alone = functions.block(params, config, index, x_BTD, positions_BT, scheme, SingleLayerCache(cache))
  return x_BTD, alone.cache


@functools.partial(jax.jit, static_argnames='config')
def finish(params, x_BTD, last_B, *, config: ModelConfig):
  """Returns logits [B, V] after each row's last token."""
  last_BD = functions.normed(params, config, x_BTD[jnp.arange(len(last_B)), last_B])
  return functions.logits(params, config, last_BD)


def prefill(
  clock, lm, padded, total_B, capacity: int, lazy: LazyConfig, score: Any, compact: Callable
) -> tuple[jax.Array, CompressedPrompt]:
  """Returns (float32 logits [B, V] after each row's last token, the cut cache).

  Args:
    clock, padded, total_B, capacity: as for `decoders.strategies.WholeMemory.read`.
    score: wraps a layer's cache so that it records its lazy ratio.
    compact: (keys, values, lengths, votes, cut=bool) -> the cache that a layer keeps.

  Raises:
    ValueError: several rows with batch='group', ratios that are not finite, or more full layers than the model has.
  """
  c, lengths = lm.config, padded.lengths
  if lazy.batch == 'group' and len(lengths) > 1:
    raise ValueError(
      f"prefill='layerwise' reads {len(lengths)} rows at once: pass batch='all' or 'mean', or batch_size=1."
    )
  fixed, longest = exempt(lazy, c), int(lengths.max()) + score.before
  n_full = full_layers(lazy, c, longest)
  score = dataclasses.replace(score, layers=1)
  x_BTD, positions_BT, scheme = clock.run('prefill', embed, lm.params, jnp.asarray(padded.tokens), total_B, config=c)
  lengths_B = jnp.asarray(lengths)
  held: list[tuple[float, int]] = []  # heap of (-ratio, -layer): the laziest layer first, the later one of equal layers
  layers: list[Any] = [None] * c.num_layers
  lazy_L, ratios, full_bytes = [False] * c.num_layers, [], 0

  def compress_layer(layer: int, cut: bool) -> None:
    cache, votes = layers[layer]
    arrays = cache.keys[0], cache.values[0]
    layers[layer] = jax.block_until_ready(compact(*arrays, lengths_B + score.before, votes, cut=cut))
    lazy_L[layer] = cut
    kept = {id(x) for x in jax.tree.leaves(layers[layer])}
    for x in arrays:
      if id(x) not in kept:
        x.delete()

  for layer in range(c.num_layers):
    # Layers that differ only in their parameters share a program.
    index = layer % len(c.windows) if c.windows else 0
    x_BTD, cache = clock.run(
      'prefill', one_layer, lm.params[f'layer_{layer}'], x_BTD, positions_BT, scheme, lengths_B,
      config=c, index=index, capacity=capacity, score=score,
    )  # fmt: skip
    ratio_B = np.asarray(cache.ratios)[:, 0]
    if not np.isfinite(ratio_B).all():
      raise ValueError(f'The lazy ratio of layer {layer} is {ratio_B.tolist()}: activations are not finite.')
    ratio = float(ratio_B.min() if lazy.batch == 'all' else ratio_B.mean())
    layers[layer] = cache.whole, cache.votes[0]
    ratios.append(ratio_B)
    full_bytes += cache.whole.nbytes
    del cache
    if fixed[layer] or longest <= lazy.kept:
      compress_layer(layer, False)
    elif lazy.threshold is not None:
      compress_layer(layer, ratio > lazy.threshold)
    else:
      heapq.heappush(held, (-ratio, -layer))
      if len(held) > max(0, n_full - int(fixed.sum())):
        compress_layer(-heapq.heappop(held)[1], True)
  for _, layer in held:
    compress_layer(-layer, False)
  logits_BV = clock.run('prefill', finish, lm.params, x_BTD, lengths_B - 1 + score.before, config=c)
  ratios_BL = jnp.asarray(np.stack(ratios, axis=1))
  return logits_BV, CompressedPrompt(LayeredCache(tuple(layers)), ratios_BL, tuple(lazy_L), full_bytes)
