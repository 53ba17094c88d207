"""The classifier equals its loops for every preset, and the classifiers that are its special cases."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm.exam_config import Backbone, Column, ExamConfig
from jaxlm.models import exam, functions
from jaxlm.models.interaction import Aggregation, Mlp
from tests.jaxlm.models.test_interaction import loop
from tests.models import TINY, slow, tiny_model

B, L, V = 3, 12, 20
COLUMNS = (Column('topic', 5), Column('tags', 4, multilabel=True))
PAPER = ExamConfig(vocab_size=V, columns=COLUMNS, dim=6, max_length=L)
CODE = PAPER.replace(front=4, hidden=2 * L, residual='sum', class_bias=True, output_bias=True, mask='before')
PRESETS = {
  'paper': PAPER,
  'code, one label': CODE,
  'code, many labels': PAPER.replace(encoder='gru', gru_layers=2, hidden=2 * L, output_bias=True, mask='none', side='left'),
  'region embedding': PAPER.replace(aggregator='sum', class_bias=True),
  'fastText': PAPER.replace(encoder='ngrams', buckets=30, aggregator='mean', class_bias=True),
  'context-word': PAPER.replace(encoder='context-word'),
}  # fmt: skip
run = jax.jit(exam.logits, static_argnums=1)


def text(config, lengths=(8, 5, 3)):
  """Returns (tokens, mask) of three texts, padded as the config says."""
  tokens = np.zeros((B, config.max_length), np.int32)
  rng = np.random.default_rng(1)
  for row, n in zip(tokens, lengths):
    first = config.padding_in_front if config.side == 'right' else config.max_length - n
    row[first : first + n] = rng.integers(2, V, n)
  return tokens, tokens > 0


def make(config):
  """Returns parameters whose numbers all matter; new biases are zero."""
  params = exam.abstract_params(config)
  rng = np.random.default_rng(2)
  return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), params)


def reference(params, config, tokens, mask):
  """Returns the logits from the states, which tests of their own hold against loops, by loops in float64."""
  states, real = exam.encode(params, config, tokens, mask)
  double = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  mlp = None
  if config.aggregator == 'mlp':
    first, second = double['mlp_in'], double['mlp_out']
    mlp = Mlp(first['kernel'], first['bias'], second['kernel'], second.get('bias', 0.0))
  table = double['class_table']
  how = Aggregation(config.aggregator, config.residual, config.mask)
  return loop(np.asarray(states, np.float64), table['kernel'], table.get('bias'), np.asarray(real), mlp, how)


@pytest.mark.parametrize('name', PRESETS)
def test_every_preset_is_its_loop(name):
  config = PRESETS[name]
  params, (tokens, mask) = make(config), text(config)
  expected = reference(params, config, tokens, mask)
  scale = np.abs(expected).max()
  np.testing.assert_allclose(run(params, config, tokens, mask) / scale, expected / scale, atol=1e-5)
  columns = exam.column_logits(config, expected)
  assert [x.shape for x in columns] == [(B, 5), (B, 4)] and np.array_equal(np.hstack(columns), expected)


@pytest.mark.parametrize(
  'name', ['paper', 'code, many labels', *slow(*sorted(set(PRESETS) - {'paper', 'code, many labels'}))]
)
def test_gradients_are_finite_differences(name):
  config = PRESETS[name].replace(columns=COLUMNS[:1])
  params, (tokens, mask) = jax.tree.map(lambda x: x / 2, make(config)), text(config)
  loss = jax.jit(lambda params: jnp.mean(jax.nn.log_softmax(exam.logits(params, config, tokens, mask))[:, 1]))
  leaves, structure = jax.tree.flatten(params)
  slopes = jax.tree.leaves(jax.jit(jax.grad(loss))(params))
  rng, checked, step, middle = np.random.default_rng(3), 0, 2e-3, float(loss(params))
  while checked < 20:
    i = int(rng.integers(len(leaves)))
    slope = np.asarray(slopes[i])
    # Half of the entries are those that matter: most embeddings are of words that no text has.
    places = np.argwhere(np.abs(slope) > 1e-3) if checked % 2 else np.argwhere(slope > -np.inf)
    if not len(places):
      continue
    place = tuple(places[rng.integers(len(places))])
    moved = [[np.array(leaf) for leaf in leaves] for _ in range(2)]
    for some, h in zip(moved, (step, -step)):
      some[i][place] += np.float32(h)
    up, down = (float(loss(jax.tree.unflatten(structure, some))) for some in moved)
    if abs(up - 2 * middle + down) > 2e-2 * abs(up - down) + 1e-5:  # A kink of relu or max lies within the step.
      continue
    np.testing.assert_allclose((up - down) / (2 * step), slope[place], rtol=3e-2, atol=2e-3)
    checked += 1


@pytest.mark.parametrize('encoder', ['word-context', *slow('context-word')])
def test_regions_of_several_sizes_share_units_and_units_may_be_one_number(encoder):
  """Beside the largest region lie those of a smaller model that has the middle units alone, at the same centres."""
  both = PAPER.replace(encoder=encoder, regions=(3,))
  tokens, mask = text(both)
  units = lambda params, size: params['units']['embedding'].reshape(V, size, -1)

  @functools.partial(jax.jit, static_argnums=1)
  def states(params, config):
    return exam.encode(params, config, tokens, mask)[0]

  params = make(both)
  found = states(params, both)
  assert found.shape == (B, both.positions, 2 * 6) and params['class_table']['kernel'].shape == (9, 12)
  np.testing.assert_array_equal(found[:, :, :6], states(params, PAPER.replace(encoder=encoder)))
  middle = params | {'units': {'embedding': units(params, 7)[:, 2:5].reshape(V, -1)}}
  alone = states(middle, PAPER.replace(encoder=encoder, region=3))  # Its centres begin two positions earlier.
  np.testing.assert_array_equal(found[:, :, 6:], alone[:, 2:-2])
  scalar = make(PAPER.replace(encoder=encoder, units='scalar'))
  spread = scalar | {'units': {'embedding': np.repeat(units(scalar, 7), 6, axis=2).reshape(V, -1)}}
  np.testing.assert_allclose(
    states(scalar, PAPER.replace(encoder=encoder, units='scalar')),
    states(spread, PAPER.replace(encoder=encoder)),
    rtol=1e-6,
  )
  if encoder == 'word-context':
    plain = PAPER.replace(units='none', pooling='sum')
    bare = make(plain)
    words = np.asarray(bare['embed']['embedding'])[tokens]
    expected = sum(words[:, j : j + plain.positions] for j in range(7))
    assert 'units' not in bare
    np.testing.assert_allclose(states(bare, plain), expected, rtol=1e-5, atol=1e-5)


def test_the_mean_of_scores_is_fasttext():
  config = PRESETS['fastText'].replace(ngrams=1)
  params, (tokens, mask) = make(config), text(config)
  embedding, table = params['embed']['embedding'], params['class_table']
  means = np.stack([np.asarray(embedding)[row[real]].mean(0) for row, real in zip(tokens, mask)])
  expected = means @ np.asarray(table['kernel']).T + np.asarray(table['bias'])
  np.testing.assert_allclose(run(params, config, tokens, mask), expected, atol=2e-6)


def test_the_residual_alone_is_the_region_embedding_classifier_with_its_bias_times_the_positions():
  params, (tokens, mask) = make(CODE), text(CODE)
  params['mlp_out'] = jax.tree.map(jnp.zeros_like, params['mlp_out'])
  alone = run(params, CODE, tokens, mask)
  region = CODE.replace(aggregator='sum', residual='none', class_bias=False)
  kept = {name: tree for name, tree in params.items() if 'mlp' not in name}
  kept['class_table'] = {'kernel': params['class_table']['kernel']}
  expected = run(kept, region, tokens, mask) + CODE.positions * params['class_table']['bias'].reshape(1, -1)
  np.testing.assert_allclose(alone, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('tile', [0, 1])
def test_permuted_classes_have_permuted_logits(tile):
  config = CODE.replace(class_tile=tile)
  params, (tokens, mask) = make(config), text(config)
  order = np.random.default_rng(0).permutation(config.classes)
  permuted = params | {'class_table': jax.tree.map(lambda x: x[order], params['class_table'])}
  found, expected = run(permuted, config, tokens, mask), np.asarray(run(params, config, tokens, mask))[:, order]
  # A matrix product of all classes may add the last ones in another order. Classes computed one by one are equal bit for bit.
  np.testing.assert_allclose(found, expected, rtol=0 if tile else 1e-5, atol=0 if tile else 1e-5)


def test_padding_beyond_the_windows_does_not_matter_but_with_a_bias_in_the_released_code():
  """A pad inside the window of a real word belongs to its region, in the released code as well."""
  config = PAPER.replace(class_bias=True)
  params, (tokens, mask) = make(config), text(config, (3, 2, 1))
  other = np.where((tokens == 0) & (np.arange(L) > 3 + 3 + 2), 7, tokens)
  assert (other != tokens).any()
  same = [run(params, config, t, mask) for t in (tokens, other)]
  np.testing.assert_array_equal(*same)
  longer = config.replace(max_length=L + 2, hidden=2 * config.positions, aggregator='sum')
  sums = {name: tree for name, tree in params.items() if 'mlp' not in name}
  wide = np.pad(tokens, ((0, 0), (0, 2)))
  np.testing.assert_allclose(
    run(sums, longer, wide, wide > 0), run(sums, config.replace(aggregator='sum'), tokens, mask), rtol=1e-5
  )
  before = {'aggregator': 'sum', 'mask': 'before'}
  grown = run(sums, longer.replace(**before), wide, wide > 0) - run(sums, config.replace(**before), tokens, mask)
  np.testing.assert_allclose(
    grown, jnp.broadcast_to(2 * sums['class_table']['bias'], grown.shape), rtol=1e-3, atol=1e-3
  )


LM = TINY.replace(num_layers=1)


def test_states_of_a_language_model_are_read_and_only_trained_if_asked_for():
  backbone = Backbone('somewhere', '', LM)
  config = PAPER.replace(encoder='lm', lm=backbone, vocab_size=LM.vocab_size)
  lm = tiny_model(LM)
  assert config.width == LM.model_dim and config.positions == L
  params, (tokens, mask) = make(config), text(config)
  states, _ = jax.jit(exam.encode, static_argnums=1)(params, config, tokens, mask, lm.params)
  hidden = jax.jit(lambda params, tokens: functions.hidden(params, LM, tokens)[0])(lm.params, tokens)
  np.testing.assert_allclose(states, hidden, atol=1e-6)
  with pytest.raises(ValueError, match='frozen language model needs `lm_params`'):
    exam.logits(params, config, tokens, mask)
  trained = config.replace(train_lm=True)
  both = params | {'lm': lm.params}

  @jax.jit
  def gradients(params, both, lm_params):
    of_frozen = jax.grad(lambda lm_params: (exam.logits(params, config, tokens, mask, lm_params) ** 2).sum())
    of_trained = jax.grad(lambda both: (exam.logits(both, trained, tokens, mask) ** 2).sum())
    return of_frozen(lm_params), of_trained(both)['lm']

  frozen, found = gradients(params, both, lm.params)
  assert not any(np.any(x) for x in jax.tree.leaves(frozen))
  assert np.any(found['embed']['embedding']) and exam.abstract_params(trained).keys() == both.keys()
  np.testing.assert_allclose(
    run(both, trained, tokens, mask), run(params, config, tokens, mask, lm.params), rtol=1e-5, atol=1e-6
  )


def test_an_encoder_that_sees_later_tokens_does_not_see_padding():
  config = PAPER.replace(encoder='lm', lm=Backbone('somewhere', '', LM.replace(causal=False)))
  params, (tokens, mask) = make(config), text(config)
  lm_params = tiny_model(LM).params
  plain, padded = (run(params, config, t, mask, lm_params) for t in (tokens, np.where(mask, tokens, 7)))
  np.testing.assert_array_equal(plain, padded)
  later = np.where(np.arange(L) == 2, 9, tokens)
  encode = jax.jit(exam.encode, static_argnums=1)
  states = [encode(params, config, t, mask, lm_params)[0][:, 0] for t in (tokens, later)]
  assert not np.allclose(*states)


def test_dropout_needs_a_key():
  config = PAPER.replace(dropout=0.5)
  params, (tokens, mask) = make(config), text(config)
  plain = run(params, config, tokens, mask)
  np.testing.assert_array_equal(plain, run(params, PAPER, tokens, mask))
  assert not np.allclose(plain, run(params, config, tokens, mask, None, jax.random.key(0)))
