"""Every implementation of `flash_attention` against float64: its error may be twice that of dense attention in the same dtype.

Blocks and pieces are small, so that each case has several.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import attention_xla, flash_attention
from tests.pallas_kernels import dense

pytestmark = pytest.mark.usefixtures('compile_quickly')

BLOCKS = {'block_q': 32, 'block_k': 64}
IMPLEMENTATIONS = {
  'tpu': {'interpret': True, **BLOCKS},
  'gpu': {'interpret': 'gpu', **BLOCKS},
  'xla': {'implementation': 'xla'},
}
SLOTS = {
  'logit': ('slot_logit',),
  'key': ('slot_key',),
  'key and value': ('slot_key', 'slot_value'),
  'none': (),
}
DOCUMENTS = 'documents'  # Three documents after a token that they share.


def case(name, lengths, heads, H, dtype, *, slot='none', **options):
  return pytest.param(lengths, heads, H, dtype, slot, options, id=name)


# (T, S), (N, K), H. The everyday cases have each feature with both operations, and most head sizes. In the backward pass of a TPU,
# the keys of the prefix of "documents" have a call of their own.
CASES = [
  case('causal', (97, 97), (4, 2), 32, 'bfloat16', scale=0.3),
  case('window, prefix, cap', (97, 97), (4, 2), 80, 'float32', window=20, prefix=37, softcap=1.5, slot='key and value'),
  case('documents', (130, 130), (3, 1), 64, 'bfloat16', prefix=5, window=17, alibi_slopes=3, segments=DOCUMENTS),
  case('queries at the end', (70, 140), (4, 1), 32, 'bfloat16', window=30, prefix=70, bias=-3.0, slot='logit'),
  case('all keys', (97, 97), (3, 1), 96, 'float32', causal=False, window=20, bias=1.5, alibi_slopes=3, softcap=3.0),
]
SLOW = [
  case('queries before all keys', (97, 40), (2, 1), 32, 'float32', bias=0.5, slot='key'),
  case('256', (130, 130), (2, 1), 256, 'bfloat16', softcap=4.0, window=40),
  case('128', (33, 33), (2, 2), 128, 'float32', slot='logit', segments=DOCUMENTS),
  case('64', (1, 100), (4, 2), 64, 'bfloat16', slot='key and value', softcap=2.0, alibi_slopes=4),
  case('80', (257, 257), (2, 2), 80, 'bfloat16', bias=-5.5, prefix=257, alibi_slopes=2),
  case('96', (113, 203), (3, 1), 96, 'float32', window=70, prefix=64, bias=-3.0, alibi_slopes=3, slot='key'),
  case('all keys and a slot', (113, 203), (4, 2), 128, 'bfloat16', causal=False, alibi_slopes=4, slot='key and value'),
  case('documents of all keys', (64, 64), (4, 2), 64, 'float32', causal=False, segments=DOCUMENTS, slot='logit', softcap=2.0),
  case('one key', (5, 1), (2, 1), 16, 'float32', slot='key', window=1, prefix=1),
  case('many blocks', (513, 513), (2, 1), 64, 'float32', window=100, prefix=130, slot='key'),
]  # fmt: skip


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
  """The XLA form takes 16 queries at a time."""
  monkeypatch.setattr(attention_xla, 'PIECE_WEIGHTS', 1)


def drawn(lengths, heads, H, dtype, slot, options, operation):
  """Returns ([q, k, v, those of the slot], dout, the options of `flash_attention` with their arrays)."""
  (T, S), (N, K) = lengths, heads
  rng = np.random.default_rng(T + S + N + H)
  normal = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
  q, k, v, dout = normal(2, T, N, H), normal(2, S, K, H), normal(2, S, K, H), normal(2, T, N, H)
  slots = {'slot_logit': normal(N), 'slot_key': normal(K, H), 'slot_value': normal(K, H)}
  options = {'operation': operation, **options}
  if 'alibi_slopes' in options:
    options['alibi_slopes'] = np.linspace(0.02, 0.3, N).astype(np.float32)
  if options.get('segments') == DOCUMENTS:
    ends = np.asarray([[1, T // 3, T // 2], [1, T // 2, T - 2]])
    numbers = (np.arange(T)[None, None] >= ends[:, :, None]).sum(axis=1)
    options['segments'] = np.where(numbers == 0, -1, numbers).astype(np.int32)
  return [q, k, v, *(slots[name] for name in SLOTS[slot])], dout, options


def errors(results, exact):
  return [np.abs(np.asarray(x, np.float64) - e).max() for x, e in zip(results, exact)]


@functools.cache
def allowed(argument):
  """Returns ([q, k, v, ...], dout, options, exact results, errors that are allowed); one for all implementations."""
  lengths, heads, H, dtype, slot, options, operation = argument
  arrays, dout, options = drawn(lengths, heads, H, dtype, slot, dict(options), operation)
  named = lambda given: dict(zip(SLOTS[slot], given))
  exact = dense.exact(*arrays[:3], dout, **options, **named(arrays[3:]))
  low = lambda q, k, v, *given: dense.attention(q, k, v, **options, **named(given))
  low_errors = errors(jax.jit(lambda arrays, dout: dense.gradients(low, arrays, dout))(tuple(arrays), dout), exact)
  # float32 sums have another order here, and some results of a dense product in float32 happen to be exact.
  limits = [2 * error + 2e-6 * np.abs(e).max() + 1e-7 for error, e in zip(low_errors, exact)]
  return arrays, dout, options, exact, limits


# The GPU's kernels share their formulas with the TPU's: one operation shows their loops.
COMBINATIONS = [(how, operation) for how in IMPLEMENTATIONS for operation in ('softmax', 'sigmoid')]


@pytest.mark.parametrize(
  'how, operation',
  [pytest.param(*c, marks=pytest.mark.slow) if c == ('gpu', 'sigmoid') else c for c in COMBINATIONS],
)
class TestEveryImplementation:
  @pytest.mark.parametrize('lengths, heads, H, dtype, slot, options', CASES)
  def test_everyday(self, operation, lengths, heads, H, dtype, slot, options, how):
    self.check(how, lengths, heads, H, dtype, slot, options, operation)

  @pytest.mark.slow
  @pytest.mark.parametrize('lengths, heads, H, dtype, slot, options', SLOW)
  def test_rarer(self, operation, lengths, heads, H, dtype, slot, options, how):
    self.check(how, lengths, heads, H, dtype, slot, options, operation)

  def check(self, how, lengths, heads, H, dtype, slot, options, operation):
    key = lengths, heads, H, dtype, slot, tuple(options.items()), operation
    arrays, dout, options, exact, limits = allowed(key)

    def attend(q, k, v, *given):
      return flash_attention(q, k, v, **options, **dict(zip(SLOTS[slot], given)), **IMPLEMENTATIONS[how])

    results = jax.jit(lambda arrays, dout: dense.gradients(attend, arrays, dout))(tuple(arrays), dout)
    names = 'out', 'dq', 'dk', 'dv', *(f'd{name}' for name in SLOTS[slot])
    for name, x, array in zip(names, results, (arrays[0], *arrays)):
      assert x.dtype == array.dtype and x.shape == array.shape, name
    for name, error, limit in zip(names, errors(results, exact), limits):
      assert error <= limit, name
