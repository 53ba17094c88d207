"""The losses of models that predict all target tokens at once are their formulas."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxlm.models import nat, seq2seq
from jaxlm.seq2seq_config import NatConfig, Seq2SeqConfig
from trainers.step import Context, init_state, make_train_step
from trainers.translate import parallel_loss
from trainers.translate.config import TranslateConfig

MODEL = Seq2SeqConfig(
  kind='cmlm', vocab_size=11, encoder_layers=1, decoder_layers=1, model_dim=16, num_heads=2, mlp_dim=20, max_length=12,
  dtype='float32',
)  # fmt: skip
COPY = MODEL.replace(kind='nat', nat=NatConfig(decoder_input='uniform_copy'))
B, S, T = 3, 5, 6
LENGTHS, SOURCE_LENGTHS = np.array([6, 1, 0]), np.array([5, 2, 1])
BATCH = {
  'source': np.random.default_rng(0).integers(3, 10, (B, S)).astype(np.int32),
  'source_mask': np.arange(S)[None] < SOURCE_LENGTHS[:, None],
  'targets': np.random.default_rng(1).integers(3, 10, (B, T)).astype(np.int32),
  'mask': (np.arange(T)[None] < LENGTHS[:, None]).astype(np.float32),
}


def made(model=MODEL, **changes) -> TranslateConfig:
  base = TranslateConfig()
  return dataclasses.replace(
    base, model=model, data=dataclasses.replace(base.data, max_length=12, tokens=256), **changes
  )


def params_of(model):
  return jax.jit(nat.init_params, static_argnums=0)(model, jax.random.key(0))


@functools.partial(jax.jit, static_argnums=1)
def _log_p(params, model, inputs):
  states, length_log_p = nat.encode(params, model, BATCH['source'], jnp.asarray(SOURCE_LENGTHS))
  memory = seq2seq.memory(params, model, states, jnp.asarray(SOURCE_LENGTHS))
  if inputs is None:
    inputs = nat.unknown_targets(model, states, jnp.asarray(SOURCE_LENGTHS), jnp.asarray(LENGTHS), T)
  hidden = nat.hidden(params, model, inputs, jnp.asarray(LENGTHS), memory)
  return jax.nn.log_softmax(seq2seq.logits(params, model, hidden)), length_log_p


def log_p_of(params, model, inputs=None):
  """Returns the log-probabilities (of tokens, of lengths), with all target tokens unknown unless `inputs` says otherwise."""
  return tuple(map(np.asarray, _log_p(params, model, inputs)))


@functools.partial(jax.jit, static_argnames='config')
def terms_of(params, config, step=0, key=None):
  """Returns the terms of the loss of BATCH; without a key those of evaluation."""
  return parallel_loss.parallel_terms(params, BATCH, config, Context(step, key))


def test_masks_are_of_every_number_and_at_every_place():
  lengths = jnp.array([6, 1, 0, 2, 4])
  draw = jax.jit(jax.vmap(lambda key: parallel_loss.random_masks(key, lengths, T)))
  masked = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
  for row, n in enumerate(lengths.tolist()):
    assert not masked[:, row, n:].any()
    counts = np.bincount(masked[:, row].sum(axis=1), minlength=T + 1) / 4000
    expected = [k in range(1, max(n, 2)) for k in range(T + 1)] if n else [True] + [False] * T
    np.testing.assert_allclose(counts, np.array(expected) / sum(expected), atol=0.03)
    if n:
      shares = masked[:, row, :n].mean(axis=0)
      np.testing.assert_allclose(shares, shares.mean(), atol=0.03)


def test_masked_tokens_alone_have_a_loss_and_see_the_others():
  config, params = made(), params_of(MODEL)
  masked = np.asarray(parallel_loss.random_masks(jax.random.key(0), jnp.asarray(LENGTHS), T))
  log_p, length_log_p = log_p_of(params, MODEL, jnp.where(masked, MODEL.mask_id, BATCH['targets']))
  terms = terms_of(params, config)
  nll = -np.take_along_axis(log_p, BATCH['targets'][..., None], axis=2)[..., 0]
  assert 1 < masked.sum() < LENGTHS.sum()
  np.testing.assert_allclose(terms['ce'].total, nll[masked].sum(), rtol=1e-5)
  assert terms['ce'].weight == masked.sum()
  np.testing.assert_allclose(terms['length'].total, -length_log_p[0, 6] - length_log_p[1, 1], rtol=1e-5)
  assert terms['length'].weight == LENGTHS.sum() and terms['length'].factor == 1
  right = (length_log_p.argmax(axis=1) == LENGTHS)[:2].sum()
  assert terms['length_accuracy'][:2] == (right, 2) and terms['length_accuracy'].factor is None
  allowed = np.delete(log_p, MODEL.pad_id, axis=2)
  np.testing.assert_allclose(terms['max_probability'].total, np.exp(allowed.max(axis=2))[masked].sum(), rtol=1e-5)


@pytest.mark.parametrize('model', [MODEL.replace(kind='nat'), COPY], ids=['mask', 'copy'])
def test_without_known_tokens_every_target_has_a_loss(model):
  params = params_of(model)
  log_p, _ = log_p_of(params, model)
  terms = terms_of(params, made(model))
  nll = -np.take_along_axis(log_p, BATCH['targets'][..., None], axis=2)[..., 0]
  np.testing.assert_allclose(terms['ce'].total, (nll * BATCH['mask']).sum(), rtol=1e-5)
  assert terms['ce'].weight == LENGTHS.sum()


def test_training_smooths_and_draws_other_masks_in_every_step():
  config, params = made(), params_of(MODEL)
  loss = lambda key: terms_of(params, config, key=key)['ce']
  found = [loss(jax.random.key(seed)) for seed in (1, 1, 2, 3)]
  assert found[0] == found[1] and len({float(term.total) for term in found}) > 1
  plain = made(label_smoothing=0.0)
  unsmoothed = terms_of(params, plain, key=jax.random.key(1))
  assert unsmoothed['ce'].total != found[0].total and unsmoothed['ce'].weight == found[0].weight
  assert set(unsmoothed) == {'ce', 'length'}


def test_ctc_sums_over_the_alignments_of_targets_that_have_one():
  blank, logits = 3, jax.random.normal(jax.random.key(0), (4, 4, 4))
  lengths, targets = jnp.array([4, 3, 3, 1]), jnp.array([[1, 2, 0], [1, 1, 0], [1, 1, 2], [0, 0, 0]])
  n = [2, 2, 3, 0]  # The third needs four positions, and the last is a row that only fills the batch.
  mask = jnp.arange(3)[None] < jnp.array(n)[:, None]
  terms = jax.jit(parallel_loss.ctc_terms, static_argnums=4)(logits, lengths, targets, mask.astype(jnp.float32), blank)
  log_p, total = np.asarray(jax.nn.log_softmax(logits), np.float64), 0.0
  for row in range(2):
    p = 0.0
    for alignment in itertools.product(range(4), repeat=int(lengths[row])):
      if [a for a, _ in itertools.groupby(alignment) if a != blank] == targets[row, : n[row]].tolist():
        p += np.exp(sum(log_p[row, i, a] for i, a in enumerate(alignment)))
    total -= np.log(p)
  np.testing.assert_allclose(terms['ctc'].total, total, rtol=1e-4)
  assert terms['ctc'].weight == 4 and terms['too_long'] == (1, 3, None)


def test_an_upsampled_decoder_is_trained_with_ctc_and_without_a_length():
  model = MODEL.replace(kind='nat', nat=NatConfig(upsampling=3))
  params, config = params_of(model), made(model, loss='ctc')
  terms = terms_of(params, config)
  assert set(terms) == {'ctc', 'too_long', 'max_probability'} and terms['ctc'].weight == LENGTHS.sum()
  assert terms['max_probability'].weight == 3 * (5 + 2)
  loss = lambda params: terms_of(params, config, key=jax.random.key(0))['ctc'].total
  gradient = jax.jit(jax.grad(loss))(params)
  assert all(jnp.isfinite(g).all() and (g != 0).any() for g in jax.tree.leaves(gradient['decoder']['layer_0']['mlp']))


@pytest.mark.parametrize(
  'model, name',
  [(MODEL, 'ce'), (MODEL, 'oaxe')]
  + [
    pytest.param(*values, marks=pytest.mark.slow)
    for values in (
      (COPY, 'ce'),
      (MODEL, 'axe'),
      (MODEL, 'ngram-oaxe'),
      (COPY, 'ngram-oaxe'),
      (MODEL.replace(kind='nat', nat=NatConfig(upsampling=3)), 'ctc'),
    )
  ],
  ids=lambda value: value if isinstance(value, str) else value.kind,
)
def test_steps_make_each_loss_smaller(model, name):
  config, tx = made(model, loss=name, label_smoothing=0.0), optax.adam(0.01)
  loss = lambda params, batch, context: parallel_loss.parallel_terms(params, batch, config, context)
  step = jax.jit(make_train_step(loss, tx), donate_argnums=0)
  state = init_state(params_of(model), tx)
  found = []
  for _ in range(20):
    state, metrics = step(state, BATCH)
    found.append(metrics)
  for term in (name, 'loss') if name == 'ctc' else (name, 'length', 'loss'):
    assert np.mean([m[term] for m in found[-5:]]) < 0.9 * np.mean([m[term] for m in found[:3]])
