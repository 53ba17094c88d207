"""Generated users and items with the statistics of published recommendation data, a function of the seed.

Items lie in a space of features: clusters, sub-clusters, and items around their centres. The sizes of the clusters, and how often an item
is met, fall as powers of a rank. A user walks: the next cluster follows a Markov chain, and the next item is drawn from it by
popularity, or is the fixed sequel of the last item. Users begin at random times, so that a split by time cuts through histories.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxlm.data.interactions import Interactions
from jaxlm.data.items import Items

CLUSTERS, PER_CLUSTER, DIM = 16, 6, 32
STAY, FIRST, SECOND = 0.55, 0.28, 0.15
"""Probabilities that the next item is of the same cluster, and of its first and second preferred successor; the rest is uniform."""
SEQUEL = 0.25
"""Probability that the next item is the fixed sequel of the last one."""
LONGEST = 50
GAP = 0.05
"""Mean time between two interactions of a user; users begin within 0 .. 1."""
KINDS = (
  'Amber', 'Bold', 'Coral', 'Dusky', 'Early', 'Frosted', 'Golden', 'Hollow', 'Ivory', 'Jade', 'Keen', 'Lunar', 'Misty', 'Noble',
  'Opal', 'Pale',
)  # fmt: skip
THINGS = ('Anchor', 'Basket', 'Candle', 'Drum', 'Easel', 'Feather')


@dataclasses.dataclass(frozen=True)
class Size:
  items: int
  users: int


SIZES = {'tiny': Size(200, 400), 'small': Size(1000, 2000), 'medium': Size(12_000, 20_000)}


@dataclasses.dataclass(frozen=True)
class Made:
  """What was generated.

  Attributes:
    log: the interactions.
    items: their items, with feature vectors [I, 32] and titles.
    cluster: [I], the number of each item's cluster.
  """

  log: Interactions
  items: Items
  cluster: np.ndarray


def generate(size: Size = SIZES['small'], seed: int = 0) -> Made:
  """Returns generated interactions. The same size and seed give the same data."""
  rng = np.random.default_rng(seed)
  n = size.items
  share = np.arange(1, CLUSTERS + 1) ** -0.7
  cluster_I = rng.choice(CLUSTERS, n, p=share / share.sum())
  # Each cluster needs two items: walks stay in it, and have no repeats.
  cluster_I[rng.permutation(n)[: 2 * CLUSTERS]] = np.repeat(np.arange(CLUSTERS), 2)
  sub_I = rng.integers(PER_CLUSTER, size=n)
  centre = 2 * rng.standard_normal((CLUSTERS, 1, DIM))
  centre = centre + rng.standard_normal((CLUSTERS, PER_CLUSTER, DIM))
  vectors = centre[cluster_I, sub_I] + rng.standard_normal((n, DIM))
  popularity = (rng.permutation(n) + 1.0) ** -0.95
  members = [np.flatnonzero(cluster_I == c) for c in range(CLUSTERS)]
  bounds = [np.cumsum(popularity[m]) / popularity[m].sum() for m in members]
  sequel = np.array([rng.choice(members[c]) for c in cluster_I])
  share = np.bincount(cluster_I, minlength=CLUSTERS) / n
  chain = _chain(rng, share)
  start = np.cumsum(share)
  draw = lambda c: members[c][np.searchsorted(bounds[c], rng.random())]
  users, items, times = [], [], []
  for user in range(size.users):
    walk = _walk(rng, min(3 + rng.geometric(1 / 5), LONGEST, n), cluster_I, sequel, chain, start, draw)
    users += [user] * len(walk)
    items += walk
    times.append(rng.random() + np.cumsum(rng.exponential(GAP, len(walk))))
  name = lambda of, count: tuple(f'{of}{i:0{len(str(count - 1))}d}' for i in range(count))
  ids = name('item', n)
  log = Interactions(np.array(users), np.array(items), np.concatenate(times), name('user', size.users), ids)
  titles = tuple(f'{KINDS[c]} {THINGS[s]} {i}' for i, (c, s) in enumerate(zip(cluster_I, sub_I)))
  return Made(log, Items(ids, titles, titles, vectors.astype(np.float32)), cluster_I)


def _chain(rng, share) -> np.ndarray:
  """Returns the cumulative probabilities of the next cluster, [C, C]. Larger clusters are preferred by more clusters."""
  found = np.full((CLUSTERS, CLUSTERS), (1 - STAY - FIRST - SECOND) / CLUSTERS)
  for c in range(CLUSTERS):
    others = np.where(np.arange(CLUSTERS) == c, 0, share)
    first, second = rng.choice(CLUSTERS, 2, replace=False, p=others / others.sum())
    found[c, c] += STAY
    found[c, first] += FIRST
    found[c, second] += SECOND
  return np.cumsum(found, axis=1)


def _walk(rng, length, cluster_I, sequel, chain, start, draw) -> list[int]:
  """Returns the items of one user, without repeats. A walk that finds no new item in its cluster goes on in another one."""
  pick = lambda bounds: min(np.searchsorted(bounds, rng.random()), CLUSTERS - 1)
  walk = [int(draw(pick(start)))]
  tries = 0
  while len(walk) < length:
    last = walk[-1]
    if rng.random() < SEQUEL and not tries:
      item = int(sequel[last])
    else:
      item = int(draw(pick(start if tries > 20 else chain[cluster_I[last]])))
    tries = tries + 1 if item in walk else 0
    if not tries:
      walk.append(item)
  return walk
