"""The parts of the protocol: what a read returns, of every cache that can be read, and which cache has which part."""

import functools

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.attention.attend import attend
from jaxlm.attention.rule import AttentionRule, distances, layer_rule
from jaxlm.caches import Branch, Cache, Draftable, FullCache, LayeredCache, PooledCache, Readable, Sequence
from jaxlm.caches.kivi import KiviConfig
from jaxlm.caches.layered import pooled
from jaxlm.caches.packed import pack
from jaxlm.caches.slots import EMPTY, everything_of, window_of
from jaxlm.caches.voted import heavy_of
from tests.models import TINY, slow

B, K, N, S, H = 3, 2, 4, 24, 8
INITIAL, RECENT, SPARE, LAYER = 1, 5, 2, 1
LENGTHS = np.array([17, 9, 3])
KIVI = KiviConfig(4, group=8, residual=8)
KINDS = ('full', 'everything', 'append', 'ring', 'heads', 'packed', 'pooled', 'pooled packed')
LAZY_LB = np.array([[False, True, False], [True, False, True]])


def normal(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


# Slots without a token are not zeros: an attention that saw them would be another one.
KEYS, VALUES = (tuple(normal(10 * i + layer, B, K, S, H) for layer in range(2)) for i in range(2))
PLAIN = layer_rule(TINY, 0)
SLOT = {'slot_key': normal(30, K, H), 'slot_value': normal(31, K, H)}
RULES = {
  'softmax': PLAIN,
  'window': PLAIN.replace(window=4),
  'prefix': PLAIN.replace(prefix=3),
  'alibi': PLAIN.replace(position='alibi'),
  'sigmoid': PLAIN.replace(operation='sigmoid', offset=-1.0),
  'sigmoid_len': PLAIN.replace(operation='sigmoid_len'),
  'slot': PLAIN.replace(**SLOT),
  'slot logit': PLAIN.replace(operation='elu1_norm', slot_logit=normal(32, N)),
}


@struct.dataclass
class Everything(AttentionRule):
  """A rule by which every query sees every key."""

  def visible(self, q_positions_BT, k_positions):
    return jnp.ones(distances(q_positions_BT, k_positions).shape, bool)


fields = lambda rule: {name: getattr(rule, name) for name in AttentionRule.__dataclass_fields__}
EVERYTHING = {name: Everything(**fields(RULES[name])) for name in ('softmax', 'sigmoid_len', 'slot')}


@functools.cache
def made(kind):
  lengths = jnp.asarray(LENGTHS)
  window = {'initial': INITIAL, 'recent': RECENT, 'room': S - INITIAL - RECENT}
  ring = window | {'room': None, 'spare': SPARE}
  votes = normal(33, B, K, S)

  def row(layer, b):
    one = (x[layer][b : b + 1] for x in (KEYS, VALUES))
    one = (*one, lengths[b : b + 1])
    memory = window_of(*one, **window) if LAZY_LB[layer, b] else everything_of(*one)
    return pack(memory, lengths[b : b + 1], KIVI) if kind == 'pooled packed' else memory

  layered = lambda keep: LayeredCache(tuple(keep(k, v, lengths) for k, v in zip(KEYS, VALUES)))
  return {
    'full': lambda: FullCache(KEYS, VALUES, (False, False)),
    'everything': lambda: layered(everything_of),
    'append': lambda: layered(lambda *kv: window_of(*kv, **window)),
    'ring': lambda: layered(lambda *kv: window_of(*kv, **ring)),
    'heads': lambda: layered(lambda *kv: heavy_of(*kv, votes, total=6, recent=2, pool=1, room=4)),
    'packed': lambda: layered(lambda k, v, n: pack(everything_of(k, v, n), n, KIVI)),
    'pooled': lambda: pooled(LAZY_LB.astype(int), 2, row, lambda layer: None),
    'pooled packed': lambda: pooled(LAZY_LB.astype(int), 2, row, lambda layer: None),
  }[kind]()


def kept(kind, cache):
  """Returns which tokens each head of each row has, [B, K, S], before a ring looks at a query's position."""
  slot_S, length_B1 = np.arange(S), LENGTHS[:, None]
  there_BS = slot_S < length_B1
  recent = RECENT + SPARE if kind == 'ring' else RECENT
  window_BS = there_BS & ((slot_S < INITIAL) | (slot_S >= length_B1 - recent))
  if kind == 'heads':
    positions_BKC = np.asarray(cache.layers[LAYER].positions)
    return (positions_BKC[..., None] == slot_S).any(axis=2)
  kept_BS = {
    'append': window_BS, 'ring': window_BS, 'pooled': np.where(LAZY_LB[LAYER][:, None], window_BS, there_BS)
  }.get(kind, there_BS)  # fmt: skip
  return np.broadcast_to(kept_BS[:, None], (B, K, S))


@jax.jit
def attends(cache, q, k, v, positions, rules):
  return {name: cache.attend(LAYER, q, k, v, positions, rule) for name, rule in rules.items()}


@jax.jit
def reads(caches, q, positions, rules, lengths=None):
  return {name: caches[name].read(LAYER, q, positions, rule, lengths) for name, rule in rules.items()}


@jax.jit
def masked(q, positions, rules, mask_BKTS):
  """Returns the attention over the whole sequence of what the mask shows, NaN for queries that it shows nothing."""
  slot_1S = jnp.arange(S)[None]

  def one(rule):
    out_BTNH = attend(q, KEYS[LAYER], VALUES[LAYER], positions, slot_1S, rule, mask_BKTS)
    sees_BKT = (rule.visible(positions, slot_1S)[:, None] & mask_BKTS).any(axis=-1)
    return jnp.where(sees_BKT.all(axis=1)[:, :, None, None], out_BTNH, jnp.nan)

  return {name: one(rule) for name, rule in rules.items()}


def close(actual, expected, atol=1e-5):
  assert actual.keys() == expected.keys() and actual
  for name in actual:
    defined = ~np.isnan(expected[name])
    assert defined.mean() > 0.25
    np.testing.assert_allclose(actual[name][defined], expected[name][defined], atol=atol, err_msg=name)


@pytest.mark.parametrize('kind', [*KINDS[:-2], *slow(*KINDS[-2:])])
def test_a_read_equals_the_attention_of_tokens_that_are_there_already(kind):
  cache = made(kind)
  before = jax.tree.map(np.array, cache)
  rules = (
    {n: RULES[n] for n in ('softmax', 'sigmoid', 'slot')} if 'packed' in kind else RULES
  )  # Others compile for long.
  q, k, v = normal(1, B, 1, N, H), normal(2, B, 1, K, H), normal(3, B, 1, K, H)
  positions, lengths = jnp.asarray(LENGTHS)[:, None], jnp.asarray(LENGTHS)
  grown = attends(cache, q, k, v, positions, rules)
  out, after = {n: out for n, (out, _) in grown.items()}, {n: cache for n, (_, cache) in grown.items()}
  close(reads(after, q, positions, rules), out)
  assert jax.tree.structure(cache) == jax.tree.structure(before)
  for actual, expected in zip(jax.tree.leaves(cache), jax.tree.leaves(before)):
    np.testing.assert_array_equal(actual, expected)
  same = dict.fromkeys(rules, cache)
  without = reads(same, q, positions, rules, lengths)
  for name in rules:  # The new token counts: it is not in the cache that was not extended.
    assert abs(without[name] - out[name]).max() > 1e-3
  if 'packed' not in kind:  # There, one more token lets an older one be rounded.
    close(reads(after, q, positions, rules, lengths), without)


@pytest.mark.parametrize('kind', [kind for kind in KINDS if 'packed' not in kind])
def test_queries_anywhere_see_the_tokens_that_are_kept(kind):
  cache = made(kind)
  q = normal(4, B, 4, N, H)
  past = LENGTHS[:, None] - 1 - np.array([[2, 0, 1, 2]])
  anywhere = np.array([[19, 0, 14, 3], [2, 9, 21, 8], [1, 4, 2, 11]])

  def expected(rules, positions, lengths):
    near = np.ones((B, 4, S), bool)
    if kind == 'ring':
      near = (np.arange(S) > positions[:, :, None] - RECENT) | (np.arange(S) < INITIAL)
    counted = np.arange(S) < lengths[:, None]
    return masked(q, positions, rules, (kept(kind, cache) & counted[:, None])[:, :, None] & near[:, None])

  for rules, positions, lengths in (
    (RULES, past, None),
    (RULES, anywhere, LENGTHS),
    (RULES, anywhere, LENGTHS - 2),
    (EVERYTHING, anywhere, LENGTHS if kind == 'full' else None),
    (EVERYTHING, anywhere, LENGTHS - 2),
  ):
    actual = reads(dict.fromkeys(rules, cache), q, positions, rules, lengths)
    close(actual, expected(rules, positions, LENGTHS if lengths is None else lengths))
  if kind not in ('full', 'everything'):  # What was forgotten counts.
    everything = np.broadcast_to(kept('full', cache)[:, :, None], (B, K, 4, S))
    others = masked(q, anywhere, EVERYTHING, everything & (np.arange(S) < (LENGTHS - 2)[:, None])[:, None, None])
    assert all(np.nanmax(abs(others[name] - actual[name])) > 1e-3 for name in others)


def test_an_encoders_memory_is_slots_that_are_read_by_queries_of_another_sequence():
  """Against each row alone in NumPy: T queries of a target sequence, sources of other lengths and no order between the two."""
  sources = made('everything')
  q = normal(5, B, 6, N, H)
  positions = np.broadcast_to(np.arange(6), (B, 6))
  out = reads({'softmax': sources}, q, positions, {'softmax': EVERYTHING['softmax']})['softmax']
  for b, n in enumerate(LENGTHS):
    for head in range(N):
      keys, values = (np.asarray(x[LAYER][b, head // (N // K), :n], np.float64) for x in (KEYS, VALUES))
      weights = np.exp(np.asarray(q[b, :, head], np.float64) @ keys.T * PLAIN.scale)
      np.testing.assert_allclose(out[b, :, head], weights / weights.sum(axis=1, keepdims=True) @ values, atol=1e-5)


def test_caches_say_which_parts_they_have():
  sequence, branch = Sequence(), Branch.create(made('full'), TINY, B, 2)
  for cache in (sequence, branch):
    assert isinstance(cache, Cache) and not isinstance(cache, Readable | Draftable)
  for kind in KINDS:
    cache = made(kind)
    assert isinstance(cache, Cache) and isinstance(cache, Readable) and isinstance(cache, Draftable)
    assert cache.exact == ('packed' not in kind)
    assert type(cache) is {'full': FullCache, 'pooled': PooledCache, 'pooled packed': PooledCache}.get(
      kind, LayeredCache
    )
  mixed = LayeredCache((*made('everything').layers, *made('packed').layers))
  assert not mixed.exact


def test_unused_slots_are_told_by_lengths_in_a_full_cache_alone():
  """The case that the protocol's docstring names: a full cache without `lengths`, and a rule that is not causal."""
  q, positions, rules = normal(6, B, 1, N, H), jnp.asarray(LENGTHS)[:, None], {'softmax': EVERYTHING['softmax']}
  read = lambda kind, lengths: reads({'softmax': made(kind)}, q, positions, rules, lengths)['softmax']
  np.testing.assert_allclose(read('full', LENGTHS), read('everything', None), atol=1e-5)
  assert abs(read('full', None) - read('full', LENGTHS)).max() > 1e-2
  assert int((np.asarray(made('everything').layers[LAYER].positions) == EMPTY).sum()) == (S - LENGTHS).sum()
