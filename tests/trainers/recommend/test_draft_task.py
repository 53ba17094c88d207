"""Beams beside a row give the states of plain passes over each path, and the terms of the loss are those of the losses on them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import losses
from jaxlm.models import functions
from tests.models import TINY, init
from trainers.recommend import draft_task
from trainers.recommend.config import LossConfig

L, K, B, T = 3, 4, 2, 12
DRAFT, TARGET = TINY.replace(num_layers=1), TINY.replace(num_layers=1, mlp_dim=12)
RNG = np.random.default_rng(0)
BEAMS = RNG.integers(2, 50, (B, K, L)).astype(np.int32)
BEAMS[1, 3] = -1  # This history has three beams.
BATCH = {
  'tokens': RNG.integers(2, 50, (B, T)).astype(np.int32),
  'targets': RNG.integers(2, 50, (B, T)).astype(np.int32),
  'mask': (RNG.random((B, T)) < 0.8).astype(np.float32),
  'prompt': np.array([7, 4], np.int32),
  'weight': np.ones(B, np.float32),
  'beams': BEAMS,
}
LEGAL = RNG.random((L, 50)) < 0.6


@pytest.fixture(scope='module')
def found():
  """Returns (states of the rows and of the beams, those of plain passes, the terms of each loss, logits of both models)."""
  params, target = init(DRAFT, jax.random.key(1)), init(TARGET, jax.random.key(2))

  @jax.jit
  def everything(params, target):
    states = draft_task.read(params, DRAFT, BATCH, L)
    theirs = draft_task.read(target, TARGET, BATCH, L)
    paths = np.zeros((B, K, T), np.int32)
    for b in range(B):
      p = BATCH['prompt'][b]
      paths[b, :, :p] = BATCH['tokens'][b, :p]
      paths[b, :, p : p + L - 1] = np.maximum(BEAMS[b, :, :-1], 0)
    plain = functions.hidden(params, DRAFT, jnp.asarray(paths.reshape(B * K, T)))[0].reshape(B, K, T, -1)
    alone = functions.hidden(params, DRAFT, BATCH['tokens'])[0]
    terms = {
      name: draft_task.draft_terms(params, target, BATCH, DRAFT, TARGET, LEGAL, LossConfig(name, alpha=0.3))
      for name in ('sft', 'word-kd', 'seq-kd', 'seq-kd-released', 'atspeed-s', 'atspeed-r')
    }
    logits = [
      functions.logits(p, c, x) for (p, c), xs in (((params, DRAFT), states), ((target, TARGET), theirs)) for x in xs
    ]
    return (
      states,
      (alone, plain),
      {n: {k: (t.total, t.weight) for k, t in one.items()} for n, one in terms.items()},
      logits,
    )

  return jax.device_get(everything(params, target))


def test_tokens_of_beams_see_the_history_and_their_own_beam(found):
  (row, beams), (alone, plain), _, _ = found
  np.testing.assert_allclose(row, alone, atol=1e-5)
  for b in range(B):
    p = BATCH['prompt'][b]
    np.testing.assert_allclose(beams[b], plain[b, :, p - 1 : p - 1 + L], atol=1e-5)


def test_terms_are_those_of_the_losses(found):
  _, _, terms, (q_row, q, p_row, p) = found
  there = (BEAMS >= 0).astype(np.float32)

  released = np.maximum(BEAMS, 0)
  released[:, :, 0] = BATCH['targets'][[0, 1], BATCH['prompt'] - 1][:, None]  # The data's own first code.

  @jax.jit
  def expected():
    mask, ce = BATCH['mask'], losses.cross_entropy(q_row, BATCH['targets'], BATCH['mask'])
    on_beams = lambda kind: losses.topk_alignment(q, p, LEGAL[None, None], there, kind)
    return ce, {
      'word-kd': losses.word_kd(q_row, p_row, mask), 'seq-kd': losses.seq_kd(q, np.maximum(BEAMS, 0), there),
      'seq-kd-released': losses.seq_kd(q, released, there), 'atspeed-s': on_beams('strict'), 'atspeed-r': on_beams('relaxed'),
    }  # fmt: skip

  ce, by_name = jax.device_get(expected())
  assert list(terms['sft']) == ['ce']
  for name, value in by_name.items():
    np.testing.assert_allclose(terms[name]['ce'], ce, rtol=1e-5)
    np.testing.assert_allclose(terms[name][name], value, rtol=1e-4, err_msg=name)
  assert terms['atspeed-r']['atspeed-r'][1] == 7 * L  # The missing beam has no weight.


def test_shares_of_the_terms_and_rows_without_beams():
  shapes = jax.eval_shape(lambda: (init(DRAFT, jax.random.key(1)), init(TARGET, jax.random.key(2))))

  def factors(loss, batch):
    kept = {}

    def run(params, target):
      terms = draft_task.draft_terms(params, target, batch, DRAFT, TARGET, LEGAL, loss)
      kept.update({name: term.factor for name, term in terms.items()})
      return ()

    jax.eval_shape(run, *shapes)
    return kept

  assert factors(LossConfig('atspeed-s', alpha=0.25), BATCH) == {'ce': 0.75, 'atspeed-s': 0.25}
  assert factors(LossConfig('atspeed-s', alpha=1.0), BATCH) == {'ce': None, 'atspeed-s': 1.0}
  assert factors(LossConfig('sft', alpha=0.25), BATCH) == {'ce': 1.0}
  without = {name: x for name, x in BATCH.items() if name != 'beams'}
  assert factors(LossConfig('seq-kd'), without) == {'ce': 0.5}  # Held-out rows: the cross-entropy is what is reported.
  assert dataclasses.replace(LossConfig(), name='word-kd').alpha == 0.5
