"""Decoding all tokens at once, against a NumPy loop of the published algorithm that sees one source and one length at a time."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import decoders
from decoders.options import Sampling
from decoders.translation import mask_predict
from jaxlm.errors import NotFiniteError
from jaxlm.models import nat, seq2seq
from jaxlm.seq2seq_config import NatConfig
from jaxlm.translation_model import Seq2SeqModel
from tests.decoders.beam.reference import EOS, PAD
from tests.decoders.translation.models_made import SOURCES, TINY, Letters, tiny

CMLM = TINY.replace(kind='cmlm', vocab_size=8, decoder_layers=1)
COPY = CMLM.replace(kind='nat', nat=NatConfig(decoder_input='uniform_copy'))
CTC = CMLM.replace(kind='nat', nat=NatConfig(upsampling=3))
ROOM = 16

init = jax.jit(nat.init_params, static_argnums=0)


@functools.cache
def model_of(config) -> Seq2SeqModel:
  """Returns a random model whose distributions are far from even: masks are small, so that positions and sources tell in them."""
  params = init(config, jax.random.key(3))
  is_mask_V1 = (jnp.arange(config.vocab_size) == config.mask_id)[:, None]
  params['embed']['embedding'] = jnp.where(is_mask_V1, 0.2, 3.0) * params['embed']['embedding']
  if 'length_embed' in params:
    params['length_embed']['embedding'] = 8 * params['length_embed']['embedding'].at[ROOM + 1 :].set(0.0)
  return Seq2SeqModel(config, params, Letters())


@functools.partial(jax.jit, static_argnums=1)
def _encode(params, config, source_1S):
  return nat.encode(params, config, source_1S, jnp.full((1,), source_1S.shape[1]))


@functools.partial(jax.jit, static_argnums=1)
def _log_p(params, config, source_1S, tokens_1T, n):
  """Returns the log-probabilities of one target of n tokens, of which those that are `config.mask_id` are not known."""
  S, n = jnp.full((1,), source_1S.shape[1]), n[None]
  states, _ = nat.encode(params, config, source_1S, S)
  memory = seq2seq.memory(params, config, states, S)
  inputs = tokens_1T if config.nat.decoder_input == 'mask' else nat.uniform_copy(states, S, n, tokens_1T.shape[1])
  return jax.nn.log_softmax(seq2seq.logits(params, config, nat.hidden(params, config, inputs, n, memory)))[0]


def published(model, source, iterations, length_beam, dedup, limit=ROOM) -> list[tuple[float, list[int]]]:
  """Returns (score, ids) of each candidate length, the best first."""
  config, source = model.config, jnp.asarray([[*source, EOS]])
  log_p_N = np.array(_encode(model.params, config, source)[1][0])
  log_p_N[limit + 1 :] = -np.inf
  found = {}
  for n in np.argsort(-log_p_N, kind='stable')[:length_beam]:
    n = min(max(int(n), 2), limit)
    tokens, p = np.full((1, ROOM), config.mask_id), np.zeros(n)
    for t in range(iterations):
      masked = np.argsort(p, kind='stable')[: max(1, n * (iterations - t) // iterations)] if t else np.arange(n)
      tokens[0, masked] = config.mask_id
      log_p_TV = np.array(_log_p(model.params, config, source, jnp.asarray(tokens), jnp.int32(n)), np.float64)
      log_p_TV[:, PAD] = -np.inf
      tokens[0, masked], p[masked] = log_p_TV[masked].argmax(1), log_p_TV[masked].max(1)
    ids = [int(i) for i in tokens[0, :n] if i not in (EOS, PAD, config.mask_id)]
    found.setdefault(n, (p.mean(), [token for token, _ in itertools.groupby(ids)] if dedup else ids))
  return sorted(found.values(), key=lambda pair: -pair[0])


def check(out, expected: list[list[tuple[float, list[int]]]], num_return: int):
  rows = list(zip(out.scores, out.rows()))
  for i, candidates in enumerate(expected):
    for (score, ids), (wanted, wanted_ids) in itertools.zip_longest(rows[i * num_return :][:num_return], candidates):
      assert ids == wanted_ids
      np.testing.assert_allclose(score, wanted, rtol=1e-4)


@pytest.mark.parametrize(
  'config, iterations',
  [(CMLM, 1), (CMLM, 4), pytest.param(COPY, 1, marks=pytest.mark.slow)],
  ids=['masks', 'refined', 'copies'],
)
def test_equals_the_published_loop(config, iterations):
  model = model_of(config)
  out = decoders.translate(model, SOURCES, iterations=iterations, length_beam=3, num_return=2, max_new_tokens=ROOM)
  expected = [published(model, source, iterations, 3, dedup=iterations == 1)[:2] for source in SOURCES]
  check(out, expected, 2)
  assert len({tuple(ids) for ids in out.rows()}) > 3 and out.stats['steps'] == iterations
  alone = decoders.translate(
    model, SOURCES[1:2], iterations=iterations, length_beam=3, num_return=2, max_new_tokens=ROOM
  )
  check(alone, expected[1:2], 2)
  in_batches = decoders.translate(
    model, SOURCES, iterations=iterations, length_beam=3, num_return=2, max_new_tokens=ROOM, batch_size=2
  )
  assert in_batches.rows() == out.rows()


def test_repetitions_are_counted_before_they_are_removed():
  model = model_of(CMLM)
  kept = decoders.translate(model, SOURCES, length_beam=3, max_new_tokens=ROOM, dedup=False)
  out = decoders.translate(model, SOURCES, length_beam=3, max_new_tokens=ROOM)
  assert out.rows() == [[token for token, _ in itertools.groupby(row)] for row in kept.rows()]
  repeated, words = sum(a == b for row in kept.rows() for a, b in zip(row, row[1:])), sum(map(len, kept.rows()))
  assert repeated > 0
  for found in (kept, out):
    assert found.stats['repeated_tokens'] == repeated and found.stats['tokens_before_dedup'] == words
    assert found.stats['repetition_ratio'] == repeated / words
  assert (
    out.text == [Letters().decode_target(row) for row in out.rows()] and out.stats['new_tokens'] == out.lengths.sum()
  )
  np.testing.assert_array_equal(out.scores, kept.scores)


def test_a_source_with_fewer_lengths_than_were_asked_for_has_empty_rows():
  out = decoders.translate(model_of(CMLM), SOURCES[:1], length_beam=4, num_return=4, max_new_tokens=3)
  assert (out.scores > -np.inf).tolist() == [True, True, False, False] and (out.lengths[2:] == 0).all()
  assert (out.tokens[2:] == PAD).all() and out.tokens.shape == (4, 3)


def test_few_logits_at_a_time_are_the_same(monkeypatch):
  config, key = CMLM, jax.random.key(0)
  hidden = jax.random.normal(key, (3, 5, config.model_dim))
  predict = lambda: mask_predict.predict(model_of(config).params, config, hidden)
  whole = predict()
  monkeypatch.setattr(mask_predict.losses, 'slice_logits', lambda: 4 * config.vocab_size)
  for a, b in zip(whole, predict()):
    np.testing.assert_allclose(a, b, rtol=1e-5)
  assert (whole[0] != PAD).all()


def test_ctc_models_collapse_three_positions_for_each_source_token():
  model = model_of(CTC)
  out = decoders.translate(model, SOURCES)
  for source, score, ids in zip(SOURCES, out.scores, out.rows()):
    n = 3 * (len(source) + 1)
    mask = jnp.full((1, 24), CTC.mask_id)
    log_p = np.array(_log_p(model.params, CTC, jnp.asarray([[*source, EOS]]), mask, jnp.int32(n)), np.float64)[:n]
    log_p[:, PAD] = -np.inf
    alignment = [token for token, _ in itertools.groupby(log_p.argmax(1))]
    assert ids == [token for token in alignment if token not in (CTC.mask_id, EOS)]
    np.testing.assert_allclose(score, log_p.max(1).mean(), rtol=1e-4)
  for name, value in (('length_beam', 2), ('dedup', True), ('max_new_tokens', 9)):
    with pytest.raises(
      ValueError, match=f'{name}={value} is for models that predict a length: this one has 3 positions'
    ):
      decoders.translate(model, SOURCES, **{name: value})


@pytest.mark.parametrize(
  'options, message',
  [
    ({'beam_size': 4}, "beam_size=4 is for models that write token by token, .*kind='cmlm'.* Use length_beam"),
    ({'length_penalty': 0.6}, 'length_penalty=0.6 is for models that write token by token'),
    ({'sampling': Sampling()}, 'sampling=.* is for models that write token by token'),
    ({'num_return': 6}, r'num_return=6 must be within 1 .. 5, the number of lengths that are tried \(length_beam\)'),
    ({'length_beam': 33}, r'length_beam=33 must be within 1 .. 32, the longest target'),
    ({'iterations': 0}, 'iterations=0 must be at least 1'),
    ({'batch_size': 0}, 'batch_size=0 must be at least 1'),
  ],
  ids=str,
)
def test_options_that_cannot_apply_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    decoders.translate(model_of(CMLM), SOURCES, **options)


def test_options_of_another_kind_are_refused():
  with pytest.raises(
    ValueError, match="iterations=4 needs a model that reads known tokens .* c.kind='nat': use iterations=1"
  ):
    decoders.translate(model_of(COPY), SOURCES, iterations=4)
  for options in ({'length_beam': 5}, {'iterations': 1}, {'dedup': False}):
    with pytest.raises(ValueError, match='is for models that predict all tokens at once .* Use beam_size'):
      decoders.translate(tiny(), SOURCES, **options)


def test_logits_that_are_not_numbers_name_the_source():
  model = model_of(CMLM)
  broken = Seq2SeqModel(CMLM, jax.tree.map(lambda x: x * jnp.nan, model.params))
  with pytest.raises(NotFiniteError, match='Source 2: the logits of its translation are not finite'):
    decoders.translate(broken, SOURCES)
