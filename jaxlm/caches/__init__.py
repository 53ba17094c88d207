"""Caches: they store keys and values, and compute a layer's attention over them. `jaxlm.caches.protocol` defines a cache."""

from jaxlm.caches.beams import Beams as Beams
from jaxlm.caches.branch import Branch as Branch
from jaxlm.caches.full import FullCache as FullCache
from jaxlm.caches.full import Sequence as Sequence
from jaxlm.caches.layered import LayeredCache as LayeredCache
from jaxlm.caches.layered import PooledCache as PooledCache
from jaxlm.caches.masked import Masked as Masked
from jaxlm.caches.packed import Packed as Packed
from jaxlm.caches.protocol import Cache as Cache
from jaxlm.caches.protocol import Draftable as Draftable
from jaxlm.caches.protocol import Readable as Readable
from jaxlm.caches.recent import RecentTokens as RecentTokens
from jaxlm.caches.shared import Shared as Shared
from jaxlm.caches.slots import New as New
from jaxlm.caches.slots import Slots as Slots
