"""The encoder-decoder is its formula, sees what it is to see and nothing else, and decodes as it was trained."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import caches
from jaxlm.config import DropoutConfig, to_dict
from jaxlm.models import seq2seq, sharding
from jaxlm.seq2seq_config import Seq2SeqConfig, seq2seq_config

# All dimensions differ, so that a swapped axis fails.
TINY = Seq2SeqConfig(
  vocab_size=31, encoder_layers=2, decoder_layers=3, model_dim=24, num_heads=3, mlp_dim=20, max_length=40, dtype='float32'
)  # fmt: skip
B, S, T = 2, 7, 9
LENGTHS = jnp.array([S, 4])
SOURCE = jax.random.randint(jax.random.key(1), (B, S), 3, 31)
TOKENS = jax.random.randint(jax.random.key(2), (B, T), 3, 31)

init = jax.jit(seq2seq.init_params, static_argnums=0)


@functools.partial(jax.jit, static_argnums=1)
def logits(params, config, source, lengths, tokens, key=None):
  memory = seq2seq.memory(params, config, seq2seq.encode(params, config, source, lengths, key), lengths)
  return seq2seq.logits(params, config, seq2seq.hidden(params, config, tokens, memory, key=key)[0])


@functools.partial(jax.jit, static_argnums=1)
def memory_of(params, config, source, lengths):
  return seq2seq.memory(params, config, seq2seq.encode(params, config, source, lengths), lengths)


@functools.partial(jax.jit, static_argnums=1)
def step(params, config, tokens, memory, positions, cache):
  hidden, cache = seq2seq.hidden(params, config, tokens, memory, positions, cache)
  return seq2seq.logits(params, config, hidden), cache


def params_of(config, seed=0):
  """Parameters with biases and norms that are not 0 and 1, which hide mistakes."""
  params = init(config, jax.random.key(seed))
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
  return tree.unflatten([x + 0.1 * jax.random.normal(k, x.shape) for k, x in zip(keys, leaves)])


def by_hand(params, config, source, tokens):
  """Returns the logits of one source and one target, by loops over NumPy arrays of float64."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  D, N, H = config.model_dim, config.num_heads, config.head_dim
  post, k = config.norm_placement == 'post', config.markov_order

  def norm(w, x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + config.norm_eps) * w['scale'] + w['bias']

  def dense(w, x):
    return np.tensordot(x, w['kernel'], w['kernel'].ndim - w['bias'].ndim) + w['bias']

  def attend(w, x, kv, visible, bias=lambda n, distance: 0.0):
    q, keys, values = dense(w['q'], x), dense(w['k'], kv), dense(w['v'], kv)
    out = np.zeros_like(q)
    for t in range(len(q)):
      for n in range(N):
        score = lambda s: q[t, n] @ keys[s, n] / H**0.5 + bias(n, t - s)  # noqa: B023
        scores = np.array([score(s) if visible(t, s) else -np.inf for s in range(len(kv))])
        weights = np.exp(scores - scores.max())
        out[t, n] = (weights / weights.sum()) @ values[:, n]
    return dense(w['o'], out)

  def mlp(w, x):
    return dense(w['down'], np.maximum(dense(w['up'], x), 0))

  def sub_layer(w, x, f):
    return norm(w, x + f(x)) if post else x + f(norm(w, x))

  def embed(table, ids, first=0, absolute=True):
    position, i = first + np.arange(len(ids))[:, None], np.arange(D // 2)
    angles = position / 10000 ** (i / (D // 2))
    return p[table]['embedding'][ids] * D**0.5 + absolute * np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

  def encoder_layer(w, x):
    x = sub_layer(w['attention_norm'], x, lambda x: attend(w['attention'], x, x, lambda t, s: True))
    return sub_layer(w['mlp_norm'], x, lambda x: mlp(w['mlp'], x))

  def decoder_layer(w, y, e, x):
    near = lambda t, s: s <= t and (not k or t - s < k)
    keys_of = lambda read: norm(w['embedding_norm'], e) if config.reads_embeddings else read
    bias = (lambda n, distance: p['decoder']['distance_table'][n, distance]) if relative else (lambda n, distance: 0.0)
    y = sub_layer(w['attention_norm'], y, lambda y: attend(w['attention'], y, keys_of(y), near, bias))
    y = sub_layer(w['cross_norm'], y, lambda y: attend(w['cross'], y, x, lambda t, s: True))
    return sub_layer(w['mlp_norm'], y, lambda y: mlp(w['mlp'], y))

  x = embed('embed' if config.embeddings == 'shared' else 'source_embed', source)
  for i in range(config.encoder_layers):
    x = encoder_layer(p['encoder'][f'layer_{i}'], x)
  x = x if post else norm(p['encoder']['final_norm'], x)
  relative = config.position == 'relative'

  def decode(ids, first):
    y = e = embed('embed', ids, first, not relative)
    for i in range(config.decoder_layers):
      y = decoder_layer(p['decoder'][f'layer_{i}'], y, e, x)
    return y if post else norm(p['decoder']['final_norm'], y)

  if config.markov_mode == 'unroll':
    y = np.stack([decode(tokens[max(n + 1 - k, 0) : n + 1], max(n + 1 - k, 0))[-1] for n in range(len(tokens))])
  else:
    y = decode(tokens, 0)
  return y @ (p['head'] if config.embeddings == 'separate' else p['embed']['embedding'].T) + p.get('output_bias', 0.0)


@pytest.mark.parametrize(
  'changes',
  [
    {},
    dict(norm_placement='post', output_bias=True),
    dict(embeddings='separate', source_vocab_size=33),
    dict(embeddings='tied', markov_order=2),
    dict(markov_order=2, markov_mode='naive', norm_placement='post'),
    dict(markov_order=3, markov_mode='unroll'),
    dict(markov_order=3, position='relative'),
  ],
  ids=str,
)
def test_logits_are_those_of_the_formula(changes):
  config = TINY.replace(**changes)
  params = params_of(config)
  found = logits(params, config, SOURCE, LENGTHS, TOKENS)
  for row, length in enumerate(LENGTHS):
    expected = by_hand(params, config, np.asarray(SOURCE[row, :length]), np.asarray(TOKENS[row]))
    np.testing.assert_allclose(found[row], expected, rtol=2e-4, atol=2e-4)


def test_padding_of_a_source_and_later_target_tokens_change_nothing():
  params = params_of(TINY)
  base = logits(params, TINY, SOURCE, LENGTHS, TOKENS)
  padded = logits(params, TINY, SOURCE.at[1, 4:].set(5), LENGTHS, TOKENS)
  chex.assert_trees_all_equal(base, padded)
  later = logits(params, TINY, SOURCE, LENGTHS, TOKENS.at[:, 6].set(5))
  chex.assert_trees_all_equal(base[:, :6], later[:, :6])
  assert (base[:, 6:] != later[:, 6:]).any(axis=-1).all()
  other = logits(params, TINY, SOURCE.at[1, 3].set(5), LENGTHS, TOKENS)
  assert (base[1] != other[1]).any(axis=-1).all() and (base[0] == other[0]).all()


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


EVERY_DAY = ((1, 1), (1, 3), (2, 2), (2, 5), (6, 3))


@pytest.mark.parametrize('mode', ['transparent', 'split', 'unroll'])
@pytest.mark.parametrize(
  'layers, order',
  [pytest.param(n, k, marks=() if (n, k) in EVERY_DAY else pytest.mark.slow) for n in (1, 2, 6) for k in (1, 2, 3, 5)],
)
def test_a_prediction_depends_on_exactly_the_last_tokens(order, mode, layers):
  """Check 1 of the Markov decoder, by Jacobians: the prediction sees the k tokens and no other."""
  config = TINY.replace(markov_order=order, markov_mode=mode, decoder_layers=layers, encoder_layers=1)
  assert config.is_markov and field(config) == list(range(T - order, T))


@pytest.mark.parametrize('order, layers, last', [(2, 3, T - 1), (3, 2, T - 1), (5, 1, T - 1), (3, 2, 3)])
def test_the_naive_window_leaks_through_its_layers(order, layers, last):
  config = TINY.replace(markov_order=order, markov_mode='naive', decoder_layers=layers, encoder_layers=1)
  assert not config.is_markov and len(field(config, last)) == min(last + 1, layers * (order - 1) + 1)


MODES = ('transparent', 'naive', 'split', 'unroll')


@pytest.mark.parametrize('position', ['sinusoidal', 'learned', 'relative'])
@pytest.mark.parametrize('mode', ['transparent', 'split', 'unroll'])
def test_a_replaced_token_changes_the_predictions_that_see_it_and_no_bit_of_others(mode, position):
  """Checks 1 and 11 of the Markov decoder: the first token, BOS, is seen by the first k predictions and by no later one."""
  order = 3
  config = TINY.replace(markov_order=order, markov_mode=mode, position=position)
  base = jnp.broadcast_to(TOKENS[:1], (T, T))
  replaced = base.at[jnp.arange(T), jnp.arange(T)].set((TOKENS[0] + 1) % 31)
  source, lengths = jnp.broadcast_to(SOURCE[1:], (T, S)), jnp.full(T, LENGTHS[1])
  params = params_of(config)
  plain, found = (logits(params, config, source, lengths, tokens) for tokens in (base, replaced))
  n, m = np.arange(T)[None], np.arange(T)[:, None]  # Row m has token m replaced.
  np.testing.assert_array_equal((np.asarray(plain) != np.asarray(found)).any(-1), (m <= n) & (n - m < order))
  chex.assert_trees_all_equal(found, logits(params, config, source.at[:, 4:].set(5), lengths, replaced))


@pytest.mark.parametrize('mode', MODES)
def test_relative_positions_make_a_homogeneous_chain(mode):
  """The same last tokens at other positions have the same next token; with absolute positions they have not."""
  # With the window of the naive mode, a prediction sees 3 layers x 1 token before its own.
  order, seen = (2, 4) if mode == 'naive' else (3, 3)
  later = jnp.concatenate([TOKENS[:, :5], TOKENS[:, :4]], axis=1)

  def both(position):
    config = TINY.replace(markov_order=order, markov_mode=mode, position=position)
    params = params_of(config)
    out = logits(params, config, SOURCE, LENGTHS, later)
    return out[:, seen - 1 : 4], out[:, 5 + seen - 1 : 9]

  chex.assert_trees_all_close(*both('relative'), atol=1e-5)
  here, there = both('sinusoidal')
  assert (abs(here - there).max(axis=-1) > 0.1).all()


def test_relative_positions_of_a_full_history_are_those_of_t5():
  """Order 0 has them too; they are those of the largest order, which sees as much."""
  config = TINY.replace(position='relative')
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
  one = TINY.replace(decoder_layers=1, markov_order=3)
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


@pytest.mark.parametrize('mode', MODES)
def test_an_order_of_the_whole_length_sees_everything(mode):
  """Check 2 of the Markov decoder: k = T is k without end, and an ordinary decoder in the modes that have its keys and values."""
  # The layers of the mode 'split' share the order, so that it has to be larger until each sees T tokens.
  enough = 3 * (T - 1) + 1 if mode == 'split' else T
  config = TINY.replace(markov_order=enough, markov_mode=mode)
  params = params_of(config)
  found = logits(params, config, SOURCE, LENGTHS, TOKENS)
  more = config.replace(markov_order=2 * enough)
  chex.assert_trees_all_close(found, logits(params, more, SOURCE, LENGTHS, TOKENS), atol=1e-5)
  less = config.replace(markov_order=enough - 1)
  assert abs(found - logits(params, less, SOURCE, LENGTHS, TOKENS))[:, -1].max() > 1e-3
  if mode != 'transparent':
    chex.assert_trees_all_close(found, logits(params, TINY, SOURCE, LENGTHS, TOKENS), atol=1e-5)


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'position': 'relative'},
    *({'markov_order': 3, 'markov_mode': m} for m in MODES),
    *({'markov_order': 3, 'markov_mode': m, 'position': 'relative'} for m in ('transparent', 'unroll')),
  ],
  ids=str,
)
def test_decoding_step_by_step_equals_teacher_forcing(changes):
  config = TINY.replace(**changes)
  params = params_of(config)
  memory = memory_of(params, config, SOURCE, LENGTHS)
  expected = logits(params, config, SOURCE, LENGTHS, TOKENS)
  cache = seq2seq.empty_cache(config, B, T)
  sizes = []
  for t in range(T):
    found, cache = step(params, config, TOKENS[:, t : t + 1], memory, jnp.full((B, 1), t), cache)
    np.testing.assert_allclose(found[:, 0], expected[:, t], atol=1e-4)
    sizes.append(cache.nbytes)
  assert len(set(sizes)) == 1
  if config.rereads:
    assert sizes[0] == B * 3 * 4
  elif config.markov_order:
    slots = [layer.keys.shape[2] for layer in cache.layers]
    assert slots == ([2, 2, 1] if config.markov_mode == 'split' else [3, 3, 3])


@pytest.mark.parametrize('mode', MODES)
def test_reordered_beams_decode_as_they_were_trained(mode):
  """Check 5 of the Markov decoder: rows that are moved and doubled at each step, while their rings of 3 go around four times."""
  config, width, steps = TINY.replace(markov_order=3, markov_mode=mode, decoder_layers=2), 3, 13
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


@pytest.mark.parametrize('mode', ['transparent', 'split', 'unroll'])
@pytest.mark.parametrize('position', ['learned', 'relative'])
def test_the_last_ids_alone_give_the_states_of_the_ring(mode, position):
  """Check 6 of the Markov decoder: one token and several tokens at a time."""
  config = TINY.replace(markov_order=3, markov_mode=mode, position=position, decoder_layers=2)
  params = params_of(config)
  memory = memory_of(params, config, SOURCE, LENGTHS)
  expected = logits(params, config, SOURCE, LENGTHS, TOKENS)
  cache = caches.RecentTokens.create(B, 3)
  for at in (slice(0, 1), slice(1, 2), slice(2, 7), slice(7, 9)):
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


def test_dropout_is_of_training_only_and_every_place_has_a_key_of_its_own():
  config = TINY.replace(dropout=DropoutConfig(residual=0.3, attention=0.2, mlp=0.1))
  params = params_of(config)
  plain = logits(params, TINY, SOURCE, LENGTHS, TOKENS)
  chex.assert_trees_all_equal(logits(params, config, SOURCE, LENGTHS, TOKENS), plain)
  dropped = [logits(params, config, SOURCE, LENGTHS, TOKENS, jax.random.key(s)) for s in (0, 0, 1)]
  chex.assert_trees_all_equal(dropped[0], dropped[1])
  assert abs(dropped[0] - dropped[2]).max() > 0.1 and abs(dropped[0] - plain).max() > 0.1
  remat = logits(params, config.replace(remat='full'), SOURCE, LENGTHS, TOKENS, jax.random.key(0))
  chex.assert_trees_all_close(remat, dropped[0], atol=1e-5)


def test_parameters_lie_on_a_mesh_and_give_the_same_logits():
  params = params_of(TINY)
  mesh = sharding.make_mesh(fsdp=2, tensor=2)
  placed = jax.device_put(params, sharding.tree_shardings(params, mesh))
  assert placed['decoder']['layer_0']['cross']['q']['kernel'].sharding.shard_shape((24, 3, 8)) == (12, 3, 8)
  found = logits(placed, TINY, SOURCE, LENGTHS, TOKENS)
  np.testing.assert_allclose(found, logits(params, TINY, SOURCE, LENGTHS, TOKENS), atol=1e-4)


def test_configs_are_read_back_and_bad_ones_name_their_numbers():
  config = TINY.replace(markov_order=4, dropout=DropoutConfig(residual=0.1))
  assert seq2seq_config(to_dict(config)) == config
  for changes, message in (
    (dict(num_heads=5), 'model_dim=24 is not a multiple of self.num_heads=5'),
    (dict(source_vocab_size=40), 'needs one vocabulary, not self.source_vocab_size=40 and self.vocab_size=31'),
    (dict(eos_id=31), 'eos_id=31 is not within'),
    (dict(embeddings='tied', source_vocab_size=9, eos_id=12), r'sources end with, 12, is not within 0 .. 9 - 1'),
    (dict(markov_order=-1), 'markov_order=-1 must be at least 1, or 0'),
    (dict(markov_mode='transparant'), "Did you mean 'transparent'"),
    (dict(model_dim=27, position='relative'), "position='relative' adds sinusoids, which need an even width"),
  ):
    with pytest.raises(ValueError, match=message):
      TINY.replace(**changes)
