"""The decoder of Markov order k: what a prediction sees, in every mode, and decoding from the last k ids alone."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import caches
from jaxlm.models import seq2seq
from tests.jaxlm.models.test_seq2seq import LENGTHS, SOURCE, TINY, TOKENS, B, S, T, logits, memory_of, params_of, step
from tests.models import slow

SMALL = TINY.replace(encoder_layers=1, decoder_layers=2)
MODES = ('transparent', 'naive', 'split', 'unroll')


def field(config, last=T - 1):
  """Returns which target tokens the logits at position `last` depend on, by exact zeros of the Jacobian."""
  model = seq2seq.Seq2Seq(config)

  @jax.jit
  def jacobian(params):
    memory = seq2seq.memory(params, config, seq2seq.encode(params, config, SOURCE[:1], LENGTHS[:1]), LENGTHS[:1])

    def at(offsets_TD):
      # Tokens are moved by adding to their embeddings, through an embedding table that has one row per position.
      table = params['embed']['embedding'][TOKENS[0]] + offsets_TD
      moved = params | {'embed': {'embedding': jnp.concatenate([table, params['embed']['embedding'][T:]])}}
      out, _ = model.apply({'params': moved}, jnp.arange(T)[None], memory, method=seq2seq.Seq2Seq.decode)
      return out[0, last]

    return jax.jacrev(at)(jnp.zeros((T, config.model_dim)))

  return np.flatnonzero(np.abs(jacobian(params_of(config))).max(axis=(0, 2)) > 0).tolist()


EVERY_DAY = ((2, 1),)


@pytest.mark.parametrize('mode', ['transparent', 'split', 'unroll'])
@pytest.mark.parametrize(
  'layers, order',
  [pytest.param(n, k, marks=() if (n, k) in EVERY_DAY else pytest.mark.slow) for n in (1, 2, 6) for k in (1, 2, 3, 5)],
)
def test_a_prediction_depends_on_exactly_the_last_tokens(order, mode, layers):
  """Check 1 of the Markov decoder, by Jacobians: the prediction sees the k tokens and no other."""
  config = TINY.replace(markov_order=order, markov_mode=mode, decoder_layers=layers, encoder_layers=1)
  assert config.is_markov and field(config) == list(range(T - order, T))


@pytest.mark.parametrize(
  'order, layers, last',
  [(3, 2, T - 1), (3, 2, 3), *(pytest.param(*x, T - 1, marks=pytest.mark.slow) for x in ((2, 3), (5, 1)))],
)
def test_the_naive_window_leaks_through_its_layers(order, layers, last):
  config = TINY.replace(markov_order=order, markov_mode='naive', decoder_layers=layers, encoder_layers=1)
  assert not config.is_markov and len(field(config, last)) == min(last + 1, layers * (order - 1) + 1)


@pytest.mark.parametrize(
  'mode, position',
  [
    ('transparent', 'relative'),
    ('unroll', 'learned'),
    *(pytest.param(*x, marks=pytest.mark.slow) for x in (('transparent', 'sinusoidal'), ('split', 'relative'))),
  ],
)
def test_a_replaced_token_changes_the_predictions_that_see_it_and_no_bit_of_others(mode, position):
  """Checks 1 and 11 of the Markov decoder: the first token, BOS, is seen by the first k predictions and by no later one."""
  order = 3
  config = SMALL.replace(markov_order=order, markov_mode=mode, position=position)
  base = jnp.broadcast_to(TOKENS[:1], (T, T))
  replaced = base.at[jnp.arange(T), jnp.arange(T)].set((TOKENS[0] + 1) % 31)
  source, lengths = jnp.broadcast_to(SOURCE[1:], (T, S)), jnp.full(T, LENGTHS[1])
  params = params_of(config)
  plain, found = (logits(params, config, source, lengths, tokens) for tokens in (base, replaced))
  n, m = np.arange(T)[None], np.arange(T)[:, None]  # Row m has token m replaced.
  np.testing.assert_array_equal((np.asarray(plain) != np.asarray(found)).any(-1), (m <= n) & (n - m < order))
  chex.assert_trees_all_equal(found, logits(params, config, source.at[:, 4:].set(5), lengths, replaced))


@pytest.mark.parametrize('mode', ['naive', 'transparent', *slow('split', 'unroll')])
def test_relative_positions_make_a_homogeneous_chain(mode):
  """The same last tokens at other positions have the same next token; with absolute positions they have not."""
  # In the naive mode, a prediction sees one token more for each of the 2 layers.
  order, seen = (2, 3) if mode == 'naive' else (3, 3)
  later = jnp.concatenate([TOKENS[:, :5], TOKENS[:, :4]], axis=1)

  def both(position):
    config = SMALL.replace(markov_order=order, markov_mode=mode, position=position)
    params = params_of(config)
    out = logits(params, config, SOURCE, LENGTHS, later)
    return out[:, seen - 1 : 4], out[:, 5 + seen - 1 : 9]

  chex.assert_trees_all_close(*both('relative'), atol=1e-5)
  here, there = both('sinusoidal')
  assert (abs(here - there).max(axis=-1) > 0.1).all()


def test_relative_positions_of_a_full_history_are_those_of_t5():
  """Order 0 has them too; they are those of the largest order, which sees as much."""
  config = SMALL.replace(position='relative')
  params = params_of(config)
  found = logits(params, config, SOURCE, LENGTHS, TOKENS)
  chex.assert_trees_all_close(
    found, logits(params, config.replace(markov_order=T, markov_mode='naive'), SOURCE, LENGTHS, TOKENS), atol=1e-5
  )
  flat = dict(params, decoder=params['decoder'] | {'distance_table': jnp.zeros((3, 32))})
  assert abs(found - logits(flat, config, SOURCE, LENGTHS, TOKENS)).max() > 0.01
  # What stands nowhere is a bag of tokens: without the table their order would not matter.
  swapped = TOKENS.at[:, :2].set(TOKENS[:, 1::-1])
  one = config.replace(decoder_layers=1)
  last = lambda params, tokens: logits(params, one, SOURCE, LENGTHS, tokens)[:, -1]
  chex.assert_trees_all_close(last(flat, TOKENS), last(flat, swapped), atol=1e-5)
  assert abs(last(params, TOKENS) - last(params, swapped)).max() > 1e-3


def test_one_layer_is_the_same_in_all_modes():
  """Check 3 of the Markov decoder: keys and values of a single layer are made of embeddings in every mode."""
  one = SMALL.replace(decoder_layers=1, markov_order=3)
  params = params_of(one)
  attention_norm = params['decoder']['layer_0']['attention_norm']
  params['decoder']['layer_0']['embedding_norm'] = attention_norm  # The norm that the other modes have.
  found = {}
  for mode in MODES:
    config = one.replace(markov_mode=mode)
    wanted = jax.tree.structure(seq2seq.abstract_params(config))
    kept = dict(params, decoder=dict(params['decoder'], layer_0=dict(params['decoder']['layer_0'])))
    if mode != 'transparent':
      del kept['decoder']['layer_0']['embedding_norm']
    assert jax.tree.structure(kept) == wanted
    found[mode] = logits(kept, config, SOURCE, LENGTHS, TOKENS)
  for mode in ('transparent', 'unroll'):
    chex.assert_trees_all_close(found[mode], found['naive'], atol=1e-5)
  chex.assert_trees_all_equal(found['naive'], found['split'])


@pytest.mark.parametrize('mode', ['transparent', *slow(*(mode for mode in MODES if mode != 'transparent'))])
def test_an_order_of_the_whole_length_sees_everything(mode):
  """Check 2 of the Markov decoder: k = T is k without end, and an ordinary decoder in the modes that have its keys and values."""
  # The layers of the mode 'split' share the order, so that it has to be larger until each sees T tokens.
  enough = 2 * (T - 1) + 1 if mode == 'split' else T
  config = SMALL.replace(markov_order=enough, markov_mode=mode)
  params = params_of(config)
  found = logits(params, config, SOURCE, LENGTHS, TOKENS)
  more = config.replace(markov_order=2 * enough)
  chex.assert_trees_all_close(found, logits(params, more, SOURCE, LENGTHS, TOKENS), atol=1e-5)
  less = config.replace(markov_order=enough - 1)
  assert abs(found - logits(params, less, SOURCE, LENGTHS, TOKENS))[:, -1].max() > 1e-3
  if mode != 'transparent':
    chex.assert_trees_all_close(found, logits(params, SMALL, SOURCE, LENGTHS, TOKENS), atol=1e-5)


@pytest.mark.parametrize('mode', ['transparent', *slow(*(mode for mode in MODES if mode != 'transparent'))])
def test_reordered_beams_decode_as_they_were_trained(mode):
  """Check 5 of the Markov decoder: rows that are moved and doubled at each step, while their rings of 3 go around four times."""
  config, width, steps = SMALL.replace(markov_order=3, markov_mode=mode), 3, 13
  params, rng = params_of(config), np.random.default_rng(0)
  memory, rows = caches.Shared(memory_of(params, config, SOURCE, LENGTHS), width), B * width
  repeated = (jnp.repeat(x, width, axis=0) for x in (SOURCE, LENGTHS))
  expected = functools.partial(logits, params, config, *repeated)
  cache, history = seq2seq.empty_cache(config, rows, steps), np.zeros((rows, steps), np.int32)
  for t in range(steps):
    history[:, t] = rng.integers(3, 31, rows)
    found, cache = step(params, config, history[:, t : t + 1], memory, jnp.full((rows, 1), t), cache)
    np.testing.assert_allclose(found[:, 0], expected(history)[:, t], atol=1e-4)
    index = (rng.integers(0, width, (B, width)) + width * np.arange(B)[:, None]).reshape(-1)
    cache, history = cache.reordered(jnp.asarray(index)), history[index]
  assert len(np.unique(history[:width, 0])) == 1 < len(np.unique(history[:width, -1]))


@pytest.mark.parametrize(
  'mode, position', [('transparent', 'learned'), ('split', 'relative'), ('unroll', 'sinusoidal')]
)
def test_the_last_ids_alone_give_the_states_of_the_ring(mode, position):
  """Check 6 of the Markov decoder: one token and several tokens at a time."""
  config = SMALL.replace(markov_order=3, markov_mode=mode, position=position)
  params = params_of(config)
  memory = memory_of(params, config, SOURCE, LENGTHS)
  expected = logits(params, config, SOURCE, LENGTHS, TOKENS)
  cache = caches.RecentTokens.create(B, 3)
  for at in (slice(0, 1), slice(1, 2), slice(2, 3), slice(3, 4), slice(4, 9)):
    positions = jnp.broadcast_to(jnp.arange(T)[at], TOKENS[:, at].shape)
    found, cache = step(params, config, TOKENS[:, at], memory, positions, cache)
    np.testing.assert_allclose(found, expected[:, at], atol=1e-4)
  assert cache.nbytes == B * 3 * 4


def test_caches_that_do_not_fit_the_order_are_refused():
  params, unroll = seq2seq.abstract_params(TINY), TINY.replace(markov_order=3, markov_mode='unroll')
  memory = jax.eval_shape(lambda p: seq2seq.memory(p, TINY, seq2seq.encode(p, TINY, SOURCE, LENGTHS), LENGTHS), params)

  def run(config, cache):
    jax.eval_shape(lambda p, m: seq2seq.hidden(p, config, TOKENS, m, cache=cache)[0], params, memory)

  run(unroll, caches.Sequence())
  ids = caches.RecentTokens.create(B, 3)
  for config, cache, message in (
    (TINY, ids, 'needs a model of exact Markov order; with markov_order=0'),
    (
      unroll.replace(markov_mode='naive'),
      ids,
      "with markov_order=3 and markov_mode='naive' a prediction depends on more",
    ),
    (unroll.replace(markov_order=2), ids, 'holds the last 3 ids; a model with markov_order=2 .* needs 2'),
    (unroll, seq2seq.empty_cache(TINY, B, T), 'keeps token ids, and FullCache has no place for them'),
    (unroll, caches.Sequence(jnp.ones((B, T), jnp.int32)), 'Sequence has no place for them'),
  ):
    with pytest.raises(ValueError, match=message):
      run(config, cache)


@pytest.mark.slow
def test_modes_have_the_same_parameters_and_train_with_remat():
  """Only the norm of the embeddings is the transparent mode's own, so that a comparison is one of history alone."""
  count = lambda config: sum(x.size for x in jax.tree.leaves(seq2seq.abstract_params(config)))
  counts = {mode: count(TINY.replace(markov_order=3, markov_mode=mode)) for mode in MODES}
  assert counts['naive'] == counts['split'] == counts['unroll'] == count(TINY)
  assert counts['transparent'] == count(TINY) + 3 * 2 * TINY.model_dim
  config = TINY.replace(markov_order=3, markov_mode='unroll', position='relative', decoder_layers=1, encoder_layers=1)
  params = params_of(config)

  @functools.partial(jax.jit, static_argnums=1)
  def gradient(params, config):
    return jax.grad(lambda p: logits(p, config, SOURCE, LENGTHS, TOKENS)[..., :5].sum())(params)

  plain = gradient(params, config)
  chex.assert_trees_all_close(gradient(params, config.replace(remat='full')), plain, atol=1e-3)
  used = abs(plain['decoder']['distance_table']).max(axis=0) > 0
  assert used.tolist() == [True] * 3 + [False] * 29
