"""A map that is easy to compute and hard to invert is easier to read in one direction (https://arxiv.org/abs/2401.17505)."""

import jax
import numpy as np
import pytest

from jaxlm.analysis.direction.scores import score_documents
from jaxlm.config import ModelConfig
from jaxlm.data import directions
from jaxlm.data.corpus import TokenCorpus
from jaxlm.language_model import LanguageModel
from jaxlm.models.transformer import init_params
from trainers.config import OptimizerConfig
from trainers.next_token import next_token_loss
from trainers.optimizer import make_optimizer
from trainers.step import init_state, make_train_step

BITS, BOS, EOS = 10, 4, 5
STEPS = 200
MODEL = ModelConfig(
  vocab_size=6, num_layers=2, model_dim=64, num_heads=4, num_kv_heads=4, head_dim=16, mlp_dim=128, max_length=88,
  dtype='float32', direction='both', position='learned',
)  # fmt: skip


def sparse_map(rng) -> np.ndarray:
  """Returns an invertible matrix over GF(2) with two ones a row, but one: rows of two alone add up to zero."""
  while True:
    A = np.zeros((BITS, BITS), int)
    for i, row in enumerate(A):
      row[rng.choice(BITS, 2 if i else 1, replace=False)] = 1
    if round(np.linalg.det(A)) % 2:
      return A


def strings(count: int, A: np.ndarray, order: str, rng) -> list[list[int]]:
  x = rng.integers(0, 2, (count, BITS))
  parts = {'x': x, 'y': 2 + x @ A.T % 2}  # Of other letters, so that a text's direction shows at once.
  return np.concatenate([parts[name] for name in order], axis=1).tolist()


@pytest.mark.slow
@pytest.mark.study
@pytest.mark.parametrize('order, sign', [('xy', -1), ('yx', 1)])
def test_a_sparse_map_is_read_best_from_cause_to_effect(order, sign):
  rng = np.random.default_rng(0)
  A = sparse_map(rng)
  corpus = TokenCorpus.from_documents([[BOS, *s, EOS] for s in strings(20000, A, order, rng)])
  reading = directions.Reading('both', BOS, MODEL.vocab_size)
  batches = directions.make_batches(corpus, reading, batch_size=64, length=MODEL.max_length, seed=0)
  tx = make_optimizer(OptimizerConfig(learning_rate=3e-3, warmup_steps=20, schedule='constant'), STEPS).tx
  step = jax.jit(make_train_step(lambda p, b, _: next_token_loss(p, b, MODEL), tx), donate_argnums=0)
  state = init_state(init_params(MODEL, jax.random.key(0)), tx)
  for number in range(STEPS):
    batch = batches.batch(number)
    state, _ = step(state, {name: batch[name] for name in ('tokens', 'targets', 'mask', 'segments', 'positions')})
  scores = score_documents(
    LanguageModel(MODEL, state.params), strings(200, A, order, rng), bos_id=BOS, eos_id=EOS, batch_size=8
  )
  S = np.array([s.S for s in scores])
  assert sign * S.mean() > 0.1 + 4 * S.std() / len(S) ** 0.5, (S.mean(), S.std())
