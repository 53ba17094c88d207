"""The paper's claim in miniature: a draft that reads its target's cache has more tokens accepted than the same draft without.

The text is periodic. A target of two layers learns to look up what followed the current token one period ago, which takes two steps of
attention. The draft has one layer, so it can learn this only from the target's keys and values.
"""

import functools

import jax
import numpy as np
import pytest

import decoders
from decoders.glide import GlideDecoding
from jaxlm.glide_config import GlideConfig, Target
from jaxlm.glide_model import GlideDraft
from jaxlm.language_model import LanguageModel
from jaxlm.models import glide
from tests.models import TINY, init
from trainers.config import OptimizerConfig
from trainers.glide.task import draft_terms
from trainers.next_token import next_token_loss
from trainers.optimizer import make_optimizer
from trainers.step import init_state, make_train_step

V, T, B, BLOCK = 24, 40, 32, 4
MODEL = TINY.replace(vocab_size=V, model_dim=48, num_heads=4, num_kv_heads=4, head_dim=12, mlp_dim=64, max_length=64)
DRAFT = GlideConfig(Target('periodic', MODEL), model_dim=32, num_heads=4, mlp_dim=64, block=BLOCK, dtype='float32')
SEEDS = (0, 1, 2)


def rows(seed: int, count: int, length: int) -> np.ndarray:
  """Returns [count, length] int32 ids; each row repeats different random tokens, 5 to 8 of them."""
  rng = np.random.default_rng(seed)
  periods = [rng.permutation(V)[: rng.integers(5, 9)] for _ in range(count)]
  return np.stack([np.resize(period, length) for period in periods]).astype(np.int32)


def fitted(params, loss, steps: int, seed: int, frozen=()):
  tx = make_optimizer(
    OptimizerConfig(learning_rate=4e-3, schedule='cosine', warmup_steps=20, weight_decay=0.0), steps
  ).tx
  step = jax.jit(make_train_step(loss, tx), donate_argnums=0)
  state = init_state(params, tx)
  for i in range(steps):
    ids, rng = rows(1000 * seed + i, B, T + 1), np.random.default_rng([seed, i])
    batch = {'tokens': ids[:, :-1], 'targets': ids[:, 1:], 'mask': np.ones((B, T), np.float32)}
    state, _ = step(state, batch | {'phase': rng.integers(0, BLOCK, B).astype(np.int32)}, frozen)
  return state.params


@functools.cache
def periodic_target() -> LanguageModel:
  loss = lambda params, batch, context: next_token_loss(params, batch, MODEL)
  return LanguageModel(MODEL, fitted(init(MODEL, jax.random.key(0)), loss, 1500, seed=9))


def acceptance(config: GlideConfig, seed: int) -> float:
  """Returns the share of drafted tokens that greedy decoding accepts after a draft was trained with this seed."""
  lm = periodic_target()
  loss = lambda params, batch, context: draft_terms(params, context.frozen, batch, config)
  params = fitted(glide.init_params(config, jax.random.key(seed)), loss, 400, seed, lm.params)
  prompts = rows(10**6, 16, 20).tolist()
  decoding = GlideDecoding(max_draft=BLOCK, bins=(1,), guard=False)
  out = decoders.glide.generate(lm, GlideDraft(config, params), prompts, max_new_tokens=24, glide=decoding)
  assert out.rows() == decoders.generate(lm, prompts, max_new_tokens=24).rows()
  return out.stats['acceptance']


@pytest.mark.study
def test_a_glimpse_of_the_targets_cache_has_more_tokens_accepted_than_seeds_explain():
  lm, held_out = periodic_target(), rows(10**6, 16, 44)
  out = decoders.generate(lm, held_out[:, :20].tolist(), max_new_tokens=24)
  assert np.mean(out.tokens == held_out[:, 20:]) > 0.9  # The target has learned the text.
  found = {cross: [acceptance(DRAFT.replace(cross=cross), seed) for seed in SEEDS] for cross in (True, False)}
  gain, noise = np.mean(found[True]) - np.mean(found[False]), np.std(list(found.values()), axis=1, ddof=1).max()
  assert min(found[True]) > max(found[False]) and gain > max(0.1, 4 * noise), found
