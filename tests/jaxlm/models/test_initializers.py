"""The statistics of new parameters, for each name of `ModelConfig.init`."""

import jax
import numpy as np
import pytest

from jaxlm.config import SinkConfig
from jaxlm.models import exam, nat, seq2seq, transformer
from tests.jaxlm.models import test_exam, test_nat, test_seq2seq
from tests.models import TINY, float64, init, slow

WIDE = TINY.replace(
  model_dim=128, num_heads=4, num_kv_heads=2, head_dim=24, mlp_dim=200, vocab_size=300, max_length=100
)
LEARNED = WIDE.replace(position='learned', gated_mlp=False)
FROZEN = [
  -0.16665823757648468,
  0.011493769474327564,
  0.054025255143642426,
  -0.14464013278484344,
  0.0500941127538681,
  0.02417866699397564,
]  # of the code before there was a choice


def spreads(config):
  """Returns the standard deviation of each kind of parameter, and the largest number of each."""
  params = jax.device_get(init(config, jax.random.key(0)))
  layer = params['layer_1']
  of = {name: layer['attention'][name]['kernel'] for name in 'qkvo'}
  of |= {name: layer['mlp'][name]['kernel'] for name in ('up', 'down')} | {'head': params['head']}
  of |= {name: params[name]['embedding'] for name in ('embed', 'position_embed') if name in params}
  assert all(abs(x.mean()) < 0.05 * x.std() for x in of.values())
  return {name: float(x.std()) for name, x in of.items()}, {name: float(np.abs(x).max()) for name, x in of.items()}


@pytest.mark.parametrize('config', [WIDE, LEARNED])
def test_sink_is_by_fan_in_and_narrower_at_the_end_of_a_gated_mlp(config):
  D, F, NH, L = 128, 200, 96, 2
  down = 1 / (F**0.5 * L) if config.gated_mlp else (0.4 / F) ** 0.5
  expected = dict.fromkeys(('q', 'k', 'v', 'up', 'head', 'embed', 'position_embed'), (0.4 / D) ** 0.5)
  expected |= {'o': (0.4 / NH) ** 0.5, 'down': down}
  found, largest = spreads(config)
  for name, std in found.items():
    assert std == pytest.approx(expected[name], rel=0.04), name
    assert largest[name] > 2.2 * std, (
      name
    )  # Not uniform. Flax's `variance_scaling` truncates, so no number is very large.


@pytest.mark.parametrize('x64', [False, *slow(True)])
def test_the_default_is_bit_for_bit_what_it_was(x64):
  with float64(x64):
    params = init(TINY, jax.random.key(0))
  assert {x.dtype.name for x in jax.tree.leaves(params)} == {'float32'}
  layer = params['layer_1']
  found = [params['embed']['embedding'][3, 2], params['head'][5, 7], layer['attention']['k']['kernel'][4, 1, 3]]
  found += [
    layer['attention']['o']['kernel'][3, 6, 1],
    layer['mlp']['up']['kernel'][2, 9],
    layer['mlp']['down']['kernel'][8, 8],
  ]
  np.testing.assert_allclose(np.asarray(found), FROZEN, rtol=1e-5)


@pytest.mark.parametrize('std', [0.02, 0.1])
def test_normal_has_one_spread_for_all(std):
  found, largest = spreads(LEARNED.replace(init='normal', init_std=std))
  for name in found:
    assert found[name] == pytest.approx(std, rel=0.04) and largest[name] > 3 * std, name


def test_xavier_is_uniform_by_the_whole_shape_of_a_projection():
  D, F, NH, KH = 128, 200, 96, 48
  sums = {'q': D + NH, 'k': D + KH, 'v': D + KH, 'o': D + NH, 'up': D + F, 'down': D + F}
  found, largest = spreads(LEARNED.replace(init='xavier'))
  for name, total in sums.items():
    assert found[name] == pytest.approx((2 / total) ** 0.5, rel=0.04), name
    assert 0.95 < largest[name] / (6 / total) ** 0.5 <= 1, name
  for name in ('embed', 'position_embed', 'head'):
    assert found[name] == pytest.approx(D**-0.5, rel=0.04) and largest[name] > 3 * D**-0.5, name


def test_a_name_that_is_none_and_a_spread_that_is_none_are_refused():
  with pytest.raises(ValueError, match="init 'xaver'.*Did you mean 'xavier'"):
    TINY.replace(init='xaver')
  with pytest.raises(ValueError, match='init_std=0.0 must be positive'):
    TINY.replace(init_std=0.0)


MODELS = {
  'sink logit, plus one': (transformer, TINY.replace(sink=SinkConfig('logit'), norm_plus_one=True)),
  'sink key and value, T5 distances': (transformer, TINY.replace(sink=SinkConfig('kv'), position='relative_t5')),
  'sink token, biases': (transformer, TINY.replace(sink=SinkConfig('token'), qkv_bias=True, out_bias=True)),
  'translation': (seq2seq, test_seq2seq.TINY.replace(output_bias=True)),
  'CMLM': (nat, test_nat.CMLM),
  'EXAM': (exam, test_exam.CODE),
  'fastText': (exam, test_exam.PRESETS['fastText']),
  'gated recurrent units': (exam, test_exam.PRESETS['code, many labels']),
}


@pytest.mark.parametrize('name', MODELS)
def test_parameters_are_float32_also_with_float64(name):
  module, config = MODELS[name]
  with float64():
    params = module.abstract_params(config)
  assert {x.dtype.name for x in jax.tree.leaves(params)} == {'float32'}
