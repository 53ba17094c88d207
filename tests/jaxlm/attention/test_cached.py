"""Caches whose attention goes through `decode_attention` give what they give without it; on a CPU by its XLA form or interpreted."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoders
from decoders import programs, simlayerkv, speculative
from decoders.simlayerkv import KiviConfig, LazyConfig
from jaxlm.attention import cached
from jaxlm.attention.rule import AttentionRule
from jaxlm.caches import FullCache, Packed, packed, slots
from jaxlm.caches.slots import EMPTY, New
from jaxlm.config import SinkConfig
from tests.models import TINY, slow, tiny_model

B, T, C = 2, 3, 40
CONFIG = TINY.replace(head_dim=16)
LENGTHS = np.int32([33, 7])
K, H = CONFIG.num_kv_heads, CONFIG.head_dim


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.fixture
def taken(monkeypatch):
  """Grows with each call of `decode_attention`."""
  calls, attend = [], cached.decode_attention
  monkeypatch.setattr(
    cached, 'decode_attention', lambda *args, **kwargs: calls.append(kwargs) or attend(*args, **kwargs)
  )
  return calls


def full_arrays():
  return normal(B, K, C, H, seed=1), normal(B, K, C, H, seed=2)


def full():
  return FullCache((normal(B, K, C, H, seed=1),), (normal(B, K, C, H, seed=2),), (False,))


def appending():
  return slots.everything_of(*full_arrays(), jnp.asarray(LENGTHS))


def ring(initial=2):
  return slots.window_of(
    *full_arrays(), jnp.asarray(LENGTHS), initial=initial, recent=16, room=None, spare=3
  )  # fmt: skip


def apart():
  """Heads have kept different tokens: those of two steps, of either parity."""
  memory = appending()
  positions = np.full((B, K, C), EMPTY, np.int32)
  for b, length in enumerate(LENGTHS // 2):
    for k in range(K):
      positions[b, k, :length] = 2 * np.arange(length) + k
  return memory.replace(positions=jnp.asarray(positions), evicted=jnp.asarray(LENGTHS - LENGTHS // 2))


def quantised(residual=16):
  return packed.pack(appending(), jnp.asarray(LENGTHS), KiviConfig(4, 8, residual))


def cut():
  """The first two and the latest 16 tokens, and room for more."""
  return slots.window_of(*full_arrays(), jnp.asarray(LENGTHS), initial=2, recent=16, room=8)


MEMORIES = {'appending': appending, 'cut': cut, 'ring': ring, 'heads apart': apart, 'quantised': quantised}
RULES = {
  'plain': AttentionRule('softmax', H**-0.5),
  'window': AttentionRule('softmax', 0.3, window=9),
  'sigmoid, capped': AttentionRule('sigmoid', 0.3, softcap=2.0, offset=-1.0),
  'alibi, an extra key': AttentionRule(
    'softmax', 0.3, position='alibi', slot_key=normal(K, H, seed=7), slot_value=normal(K, H, seed=8)
  ),
  'an extra logit': AttentionRule('softmax', 0.3, slot_logit=np.float32([0.5, 1, 2, 3])),
}
HOW = {'xla': {'implementation': 'xla'}, 'kernel': {'interpret': True}}


def drawn_new():
  """Returns queries at the ends of the rows, and a drafted tree of three tokens: one, and two that follow it."""
  positions = jnp.asarray(LENGTHS)[:, None] + jnp.asarray([[0, 1, 1]])
  seen = np.broadcast_to(np.asarray([[1, 0, 0], [1, 1, 0], [1, 0, 1]], bool), (B, T, T))
  new = New(normal(B, T, K, H, seed=4), normal(B, T, K, H, seed=5), positions, jnp.asarray(seen))
  return normal(B, T, CONFIG.num_heads, H, seed=3), positions, new


def same_both_ways(taken, how, call, *args):
  """Checks that `call` gives the same by decode_attention as without it."""
  expected = jax.jit(lambda *args: call(*args))(*args)
  assert not taken
  with cached.through(**HOW[how]):
    actual = jax.jit(lambda *args: call(*args))(*args)
  assert len(taken) == 1
  np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize('how', HOW)
@pytest.mark.parametrize('rule', ['plain', *slow('window', 'sigmoid, capped', 'alibi, an extra key', 'an extra logit')])
class TestFullCache:
  def test_read(self, taken, rule, how):
    q, positions, _ = drawn_new()
    same_both_ways(taken, how, lambda c, q, p, r: c.read(0, q, p, r), full(), q, positions, RULES[rule])

  def test_beside(self, taken, rule, how):
    q, positions, new = drawn_new()
    same_both_ways(taken, how, lambda c, *args: c.beside(0, *args), full(), q, positions, new, RULES[rule])


@pytest.mark.parametrize('how', HOW)
@pytest.mark.parametrize('kind', MEMORIES)
@pytest.mark.parametrize('rule', ['window', *slow(*(name for name in RULES if name != 'window'))])
def test_memories_read_drafts(taken, kind, rule, how):
  q, positions, new = drawn_new()
  rule = RULES[rule].replace(window=None) if kind == 'ring' else RULES[rule]
  memory = jax.jit(MEMORIES[kind])()
  same_both_ways(taken, how, lambda m, *args: m.attended_beside(*args), memory, q, positions, new, rule)


@pytest.mark.parametrize('kind', MEMORIES)
@pytest.mark.parametrize('pooled', [False, True])
def test_memories_are_read_up_to_a_length(taken, kind, pooled):
  q, positions, _ = drawn_new()
  lengths, rows = jnp.asarray(LENGTHS - 2), jnp.asarray([1, 0]) if pooled else None
  memory = jax.jit(MEMORIES[kind])()
  same_both_ways(
    taken, 'xla', lambda m, q, p, r, *more: m.read(q, p, r, *more), memory, q, positions, RULES['plain'], rows, lengths
  )


@pytest.mark.parametrize('length', [3, 16, 17, 31, 32, 33])
def test_quantised_memories_at_the_borders_of_blocks(taken, length):
  """The exact keys and values begin at different slots, which depend on the length."""
  lengths = jnp.full(B, length)
  memory = jax.jit(lambda: packed.pack(slots.everything_of(*full_arrays(), lengths), lengths, KiviConfig(4, 8, 16)))()
  q = normal(B, 1, CONFIG.num_heads, H, seed=3)
  same_both_ways(taken, 'xla', Packed.attended, memory, q, lengths[:, None] - 1, RULES['plain'])


def test_queries_of_an_encoder_read_all_used_slots(taken):
  q, positions, _ = drawn_new()
  rule = AttentionRule('softmax', 0.3, causal=False)
  same_both_ways(taken, 'xla', lambda c, q, p, n: c.read(0, q, p, rule, n), full(), q, positions, jnp.asarray(LENGTHS))


@pytest.mark.parametrize(
  'changes',
  [
    {'operation': 'sigmoid_norm'},
    {'power': 2.0},
    {'row_sum': 0.5},
    {'prefix': 3},
    {'position': 'relative_t5'},
    {'causal': False, 'window': 4},
    {'dropout': 0.1},
  ],
)
def test_other_rules_go_their_own_way(changes):
  rule = RULES['plain'].replace(**changes)
  with cached.through(implementation='xla'):
    assert cached.is_default(RULES['plain'], jnp.zeros((1, 1, 4, 16)))
    assert not cached.knows(rule) and not cached.is_default(rule, jnp.zeros((1, 1, 4, 16)))


def test_long_inputs_and_windows_within_rings_go_their_own_way(taken):
  rule, q = RULES['plain'], jnp.zeros((B, cached.LONGEST + 1, 4, H))
  with cached.through(implementation='xla'):
    assert not cached.is_default(rule, q)
    assert jax.jit(ring)().for_kernel(RULES['window'], q[:, :1]) is None
    assert jax.jit(functools.partial(ring, initial=0))().for_kernel(RULES['window'], q[:, :1]).window == 9


@pytest.mark.parametrize(
  'table, devices, dtype, used',
  [
    ('pallas', 1, 'bfloat16', True),
    ('pallas', 1, 'float32', False),
    ('pallas', 4, 'bfloat16', False),
    ('xla', 1, 'bfloat16', False),
  ],
)
def test_the_table_decides(monkeypatch, table, devices, dtype, used):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
  monkeypatch.setattr(jax, 'device_count', lambda: devices)
  monkeypatch.setitem(cached.FASTEST, 'tpu', table)
  assert cached.is_default(RULES['plain'], jnp.zeros((1, 1, 4, 16), dtype)) is used


def test_a_cpu_does_not_use_it():
  assert not cached.is_default(RULES['plain'], jnp.zeros((1, 1, 4, 16), jnp.bfloat16))


@pytest.fixture
def fresh_programs():
  """Compiled programs do not remember how their attention was traced."""
  forget = lambda: (programs.forget(), jax.clear_caches())
  forget()
  yield
  forget()


DECODED = {
  'full': (CONFIG, lambda lm, *args, **kwargs: decoders.generate(lm, *args, **kwargs)),
  'a window and an extra key': (
    CONFIG.replace(windows=(6, 0), sink=SinkConfig('logit')),
    lambda lm, *args, **kwargs: decoders.generate(lm, *args, **kwargs),
  ),
  'lazy, a ring': (
    CONFIG,
    lambda lm, *args, **kwargs: simlayerkv.generate(
      lm, *args, lazy=LazyConfig(n_initial=2, n_recent=6, n_full=1, growth='ring'), **kwargs
    ),
  ),
  '4 bits': (
    CONFIG,
    lambda lm, *args, **kwargs: simlayerkv.generate(
      lm, *args, lazy=LazyConfig(n_initial=2, n_recent=6, n_full=2, quant=KiviConfig(4, 8, 8)), **kwargs
    ),
  ),
  'a drafted tree': (
    CONFIG,
    lambda lm, *args, **kwargs: speculative.generate(lm, *args, drafter=speculative.PromptLookup(), **kwargs),
  ),
}


@pytest.mark.parametrize('name', ['full', *slow(*list(DECODED)[1:])])
def test_the_same_tokens_are_decoded(name, taken, fresh_programs):
  config, generate = DECODED[name]
  lm = tiny_model(config)
  prompts = [[3, 7, 9, 3, 7, 9, 3, 7, 9, 4, 3, 7], [5, 6, 5, 6, 5]]
  run = lambda: generate(lm, prompts, max_new_tokens=14, eos_id=None).tokens
  expected = run()
  assert not taken
  programs.forget()
  jax.clear_caches()
  with cached.through(interpret=True):
    actual = run()
  assert taken
  np.testing.assert_array_equal(actual, expected)
