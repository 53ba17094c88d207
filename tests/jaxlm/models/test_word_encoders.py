"""The encoders of words are what their formulas say, written as loops over words and neighbours."""

import jax
import numpy as np
import pytest

from jaxlm.exam_config import ExamConfig
from jaxlm.models import exam, word_encoders

B, L, R, K, D = 2, 9, 5, 3, 4
RADIUS = R // 2


region = jax.jit(word_encoders.region_embedding, static_argnums=2)
gru, ngrams = jax.jit(word_encoders.gru), jax.jit(word_encoders.ngram_ids, static_argnums=(2, 3))
context = jax.jit(word_encoders.context_word_embedding, static_argnums=2)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


@pytest.fixture
def rng():
  return np.random.default_rng(0)


@pytest.mark.parametrize('merge, fold', [('max', np.max), ('sum', np.sum)])
def test_region_embeddings_are_products_of_a_word_and_a_unit(rng, merge, fold):
  words, units = rng.normal(size=(B, L, K)), rng.normal(size=(B, L, R, K))
  centres = range(RADIUS, L - RADIUS)
  expected = {'word-context': np.zeros((B, len(centres), K)), 'context-word': np.zeros((B, len(centres), K))}
  for b in range(B):
    for p, t in enumerate(centres):
      around = [(j, t + j - RADIUS) for j in range(R)]
      expected['word-context'][b, p] = fold([units[b, t, j] * words[b, n] for j, n in around], axis=0)
      expected['context-word'][b, p] = fold([units[b, n, j] * words[b, t] for j, n in around], axis=0)
  inner = slice(RADIUS, L - RADIUS)
  found = region(words, units[:, inner], merge)
  np.testing.assert_allclose(found, expected['word-context'], rtol=1e-5, atol=1e-6)
  found = context(words[:, inner], units, merge)
  np.testing.assert_allclose(found, expected['context-word'], rtol=1e-5, atol=1e-6)


def test_windows_of_a_text_by_hand():
  """Ten words, twelve positions, four zeros in front: 12 - 6 regions, whose centres are the positions 3 to 8."""
  config = ExamConfig(vocab_size=10, dim=1, max_length=12, front=4)
  params = jax.tree.map(lambda x: np.zeros(x.shape, np.float32), exam.abstract_params(config))
  # The vector of a word is its id, and its unit has 1 for the neighbour three places before, 0 for the others.
  params['embed']['embedding'] = np.arange(10, dtype=np.float32)[:, None]
  params['units']['embedding'][:, 0] = 1
  tokens = np.array([[0, 0, 0, 0, 2, 3, 4, 5, 6, 7, 8, 9]], np.int32)
  states, real = jax.jit(exam.encode, static_argnums=1)(params, config, tokens, tokens > 0)
  assert config.positions == 6 and config.words == 8
  np.testing.assert_array_equal(states[0, :, 0], [0, 0, 0, 0, 2, 3])
  np.testing.assert_array_equal(real[0], [False, True, True, True, True, True])


def gru_loop(x, kernel, bias, state_kernel, state_bias, mask):
  out = np.zeros((*x.shape[:2], K))
  for b in range(len(x)):
    h = np.zeros(K)
    for t in range(x.shape[1]):
      parts = lambda v: (v[:K], v[K : 2 * K], v[2 * K :])
      (xr, xz, xc), (ur, uz, uc) = parts(x[b, t] @ kernel + bias), parts(h @ state_kernel)
      r, z = sigmoid(xr + ur), sigmoid(xz + uz)
      c = np.tanh(xc + r * (uc + state_bias))
      h = (1 - z) * c + z * h if mask[b, t] else h
      out[b, t] = h
  return out


def test_the_gru_is_its_loop_and_padding_leaves_its_state(rng):
  x, shapes = rng.normal(size=(B, L, D)), [(D, 3 * K), (3 * K,), (K, 3 * K), (K,)]
  parameters = [rng.normal(size=shape) for shape in shapes]
  mask = np.arange(L) >= np.array([[3], [0]])
  found = gru(x.astype(np.float32), *(p.astype(np.float32) for p in parameters), mask)
  np.testing.assert_allclose(found, gru_loop(x, *parameters, mask), atol=1e-5)
  everywhere = gru(x.astype(np.float32), *(p.astype(np.float32) for p in parameters))
  np.testing.assert_allclose(everywhere, gru_loop(x, *parameters, np.ones((B, L), bool)), atol=1e-5)


def test_ngrams_have_ids_of_their_own_and_need_real_words():
  tokens = np.arange(2, 42).reshape(1, 40)
  mask = np.arange(40)[None] < 30
  ids, real = map(np.asarray, ngrams(tokens, mask, 3, 1_000_000))
  assert ids.shape == real.shape == (1, 39 + 38) and ids.min() >= 0 and ids.max() < 1_000_000
  assert len(set(ids[0].tolist())) == 77
  np.testing.assert_array_equal(real[0], [*(np.arange(39) < 29), *(np.arange(38) < 28)])
  shifted = np.asarray(ngrams(np.roll(tokens, 1, axis=1), np.roll(mask, 1, axis=1), 3, 1_000_000)[0])
  np.testing.assert_array_equal(shifted[0, 1:39], ids[0, :38])
  # The order of words matters.
  assert np.asarray(ngrams(tokens[:, [1, 0]], mask[:, :2], 2, 1_000_000)[0])[0, 0] != ids[0, 0]
  assert np.asarray(ngrams(tokens, mask, 3, 7)[0]).max() < 7
