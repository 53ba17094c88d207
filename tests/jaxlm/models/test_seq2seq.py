"""The encoder-decoder is its formula, sees what it is to see and nothing else, and decodes as it was trained."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.config import DropoutConfig, to_dict
from jaxlm.models import seq2seq, sharding
from jaxlm.seq2seq_config import Seq2SeqConfig, seq2seq_config
from tests.models import slow

# All dimensions differ, so that a swapped axis fails.
TINY = Seq2SeqConfig(
  vocab_size=31, encoder_layers=2, decoder_layers=3, model_dim=24, num_heads=3, mlp_dim=20, max_length=40, dtype='float32'
)  # fmt: skip
B, S, T = 2, 7, 9
LENGTHS = jnp.array([S, 4])
SOURCE, TOKENS = (jnp.asarray(np.random.default_rng(n).integers(3, 31, (B, n), np.int32)) for n in (S, T))

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
  rng, params = np.random.default_rng(seed), init(config, jax.random.key(seed))
  return jax.tree.map(lambda x: np.asarray(x + 0.1 * rng.normal(size=x.shape), x.dtype), jax.device_get(params))


def by_hand(params, config, source, tokens):
  """Returns (the logits, the encoder's states) of one source and one target, by loops over NumPy arrays of float64."""
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
    near = lambda t, s: config.is_parallel or (s <= t and (not k or t - s < k))
    keys_of = lambda read: norm(w['embedding_norm'], e) if config.reads_embeddings else read
    bias = (lambda n, distance: p['decoder']['distance_table'][n, distance]) if relative else (lambda n, distance: 0.0)
    y = sub_layer(w['attention_norm'], y, lambda y: attend(w['attention'], y, keys_of(y), near, bias))
    y = sub_layer(w['cross_norm'], y, lambda y: attend(w['cross'], y, x, lambda t, s: True))
    return sub_layer(w['mlp_norm'], y, lambda y: mlp(w['mlp'], y))

  x = embed('embed' if config.embeddings == 'shared' else 'source_embed', source)
  if config.is_parallel:  # The token [LEN] has no position.
    x = np.concatenate([p['length_embed']['embedding'][:1], x])
  for i in range(config.encoder_layers):
    x = encoder_layer(p['encoder'][f'layer_{i}'], x)
  states = x if post else norm(p['encoder']['final_norm'], x)
  x = states[1:] if config.is_parallel else states
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
  head = p['head'] if config.embeddings == 'separate' else p['embed']['embedding'].T
  return y @ head + p.get('output_bias', 0.0), states


@pytest.mark.parametrize(
  'changes',
  [
    {},
    dict(norm_placement='post', output_bias=True),
    dict(markov_order=3, markov_mode='unroll'),
    *slow(
      dict(embeddings='separate', source_vocab_size=33),
      dict(embeddings='tied', markov_order=2),
      dict(markov_order=2, markov_mode='naive', norm_placement='post'),
      dict(markov_order=3, position='relative'),
    ),
  ],
  ids=str,
)
def test_logits_are_those_of_the_formula(changes):
  config = TINY.replace(**changes)
  params = params_of(config)
  found = logits(params, config, SOURCE, LENGTHS, TOKENS)
  for row, length in enumerate(LENGTHS):
    expected, _ = by_hand(params, config, np.asarray(SOURCE[row, :length]), np.asarray(TOKENS[row]))
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


@pytest.mark.parametrize(
  'changes',
  [
    {},
    *({'markov_order': 3, 'markov_mode': m} for m in ('transparent', 'unroll')),
    *slow(*({'markov_order': 3, 'markov_mode': m} for m in ('naive', 'split'))),
    *slow(
      {'position': 'relative'},
      *({'markov_order': 3, 'markov_mode': m, 'position': 'relative'} for m in ('transparent', 'unroll')),
    ),
  ],
  ids=str,
)
def test_decoding_step_by_step_equals_teacher_forcing(changes):
  """Check 5 of the Markov decoder: the rings of 3 tokens go around three times. test_markov reorders beams as well."""
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
