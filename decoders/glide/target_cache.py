"""What a GliDe draft reads of its target's cache: which caches it can read, and the part that a windowed draft needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from jaxlm.caches import FullCache, LayeredCache, Packed, PooledCache, Slots
from jaxlm.caches.slots import window_of
from jaxlm.glide_config import GlideConfig
from jaxlm.models.glide import num_before

if TYPE_CHECKING:
  from jaxtyping import Array, Int


def check_cache(config: GlideConfig, cache: Any, reread: int) -> None:
  """Raises ValueError unless the cache holds, exactly, all tokens of the layers that the draft reads.

  Args:
    cache: the target's.
    reread: number of tokens that the draft may read again in a round; a draft with a window needs so many tokens beyond it.
  """
  for layer in config.target_layers:
    for memory, rows in _memories(cache, layer):
      if reason := _missing(config, memory, rows, reread):
        raise ValueError(
          f'The draft reads layer {layer} of its target, and the cache {reason}. Keep this layer whole (for lazy layers: name '
          'it in LazyConfig.exempt_layers), or use a draft that reads another layer.'
        )


def fewest_slots(cache: Any) -> int | None:
  """Returns the number of slots of the smallest layer; None for caches whose layers all have room for the whole text."""
  memories = {LayeredCache: 'layers', PooledCache: 'pools'}.get(type(cache))
  return None if memories is None else min(memory.positions.shape[-1] for memory in getattr(cache, memories))


def _memories(cache: Any, layer: int) -> list[tuple[Any, Any]]:
  """Returns the memories that hold a layer, each with its rows that do (None: all)."""
  if isinstance(cache, LayeredCache):
    return [(cache.layers[layer], None)]
  if isinstance(cache, PooledCache):
    kind_B, row_B = np.asarray(cache.kind[layer]), np.asarray(cache.row[layer])
    return [(cache.pools[kind], row_B[kind_B == kind]) for kind in sorted(set(kind_B.tolist()))]
  return [(cache, None)]


def _missing(config: GlideConfig, memory: Any, rows: Any, reread: int) -> str:
  """Returns what a memory lacks for the draft, as the end of a sentence; '' if nothing."""
  if isinstance(memory, FullCache):
    return ''
  if isinstance(memory, Packed):
    return f'is quantised there to {memory.config.bits} bits'
  if not isinstance(memory, Slots):
    return f'is a {type(memory).__name__} there, which the draft cannot read'
  if memory.recent is not None:
    # Each of several layers needs tokens before those that the layer above it needs, however long the draft has not read on.
    if config.num_layers == 1 and config.window and memory.recent >= config.window + reread:
      return ''
    return f'holds only the first {memory.initial} and the latest {memory.recent} tokens there'
  evicted = np.asarray(memory.evicted if rows is None else memory.evicted[rows])
  return f'has evicted {evicted.max()} tokens there' if evicted.max() > 0 else ''


def narrowed(config: GlideConfig, cache: Any, end: Int[Array, ' R'], reread: int) -> Any:
  """Returns the cache to read for queries that see at most the tokens before `end` of each row, and none `window` + `reread` before it.

  With a window, the tokens that the queries may see are taken out of a full cache, so that the cost of reading does not grow with its
  size. Other caches are returned as they are.
  """
  most = config.window + reread
  if not (config.window and config.cross and isinstance(cache, FullCache)) or cache.keys[0].shape[2] <= most:
    return cache
  end = end + num_before(config)
  part = lambda i: window_of(cache.keys[i], cache.values[i], end, initial=0, recent=most, room=0)
  layers = {i: part(i) for i in set(config.target_layers)}
  return LayeredCache(tuple(layers.get(i) for i in range(len(cache.keys))))
