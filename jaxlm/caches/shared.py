"""One memory that several rows read: the beams of a source share its keys and values, so none are copied."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flax import struct

from jaxlm.attention.rule import AttentionRule
from jaxlm.caches import sizes

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int


@struct.dataclass
class Shared:
  """A cache of B rows, each of which is read by `width` rows side by side.

  The queries of these rows are read as more queries of the one row, so that attention needs no copy of its keys and values.
  """

  cache: Any  # `jaxlm.caches.protocol.Readable`, of B rows
  width: int = struct.field(pytree_node=False)

  @property
  def nbytes(self) -> int:
    return sizes.nbytes(self)

  def __repr__(self) -> str:
    return f'Shared(each row is read by {self.width}; {self.cache!r})'

  def read(
    self,
    layer: int,
    q: Float[Array, 'R T N H'],
    positions: Int[Array, 'R T'],
    rule: AttentionRule,
    lengths: Int[Array, ' B'] | None = None,
  ) -> Float[Array, 'R T N H']:
    """See `jaxlm.caches.protocol.Readable`. Row r of R = B width reads the cache's row r // width; `lengths` are the cache's."""
    _, T, N, H = q.shape
    together = self.cache.read(
      layer, q.reshape(-1, self.width * T, N, H), positions.reshape(-1, self.width * T), rule, lengths
    )
    return together.reshape(q.shape)
