"""Every parameter of every model is in the table, with the kind and the axes that it had before there was one."""

import functools

import jax
import pytest

from jaxlm.exam_config import Column, ExamConfig
from jaxlm.glide_config import GlideConfig
from jaxlm.models import exam, glide, nat, parameters, seq2seq, sharding
from jaxlm.models.transformer import abstract_params
from jaxlm.seq2seq_config import Seq2SeqConfig
from tests.jaxlm.attention.test_operations import VARIATIONS
from tests.jaxlm.models.test_transformer import VARIANTS
from tests.models import TINY

BIASED = dict(qkv_bias=True, out_bias=True, mlp_bias=True, qk_norm=True)
ALL = {**VARIATIONS, **VARIANTS, 'biases, layernorm': {**BIASED, 'norm': 'layernorm', 'norm_placement': 'hybrid'}}


SMALL = Seq2SeqConfig(vocab_size=50, model_dim=24, num_heads=4, mlp_dim=20, encoder_layers=1, decoder_layers=1)
SEQ2SEQ = SMALL.replace(embeddings='separate', position='learned', output_bias=True, markov_order=3)
ALL |= {'encoder-decoder': SMALL, 'encoder-decoder, all options': SEQ2SEQ, 'masked': SMALL.replace(kind='cmlm')}
ALL |= {'encoder-decoder, relative': SMALL.replace(position='relative')}
DRAFT = GlideConfig(model_dim=24, num_heads=4, mlp_dim=20, cross_norm=True)
ALL |= {'draft': DRAFT, 'draft, all options': DRAFT.replace(draft='parallel', embedding='target')}
EXAM = ExamConfig(vocab_size=50, columns=(Column('topic', 6),), dim=8, max_length=12, class_bias=True, output_bias=True)
ALL |= {
  'norm of the embeddings': {'norm': 'layernorm', 'embedding_norm': True},
  'classifier': EXAM,
  'classifier, gru': EXAM.replace(encoder='gru', gru_layers=2),
  'classifier, n-grams': EXAM.replace(encoder='ngrams', buckets=40),
}


def leaves(changes):
  if isinstance(changes, ExamConfig):
    params = exam.abstract_params(changes)
  elif isinstance(changes, Seq2SeqConfig):
    params = (nat if changes.is_parallel else seq2seq).abstract_params(changes)
  elif isinstance(changes, GlideConfig):
    params = glide.abstract_params(changes)
  else:
    params = abstract_params(TINY.replace(**changes))
  return [(tuple(key.key for key in path), x) for path, x in jax.tree_util.tree_leaves_with_path(params)]


@functools.cache
def leaves_of(name):
  return leaves(ALL[name])


def kind_by_name(path):
  if path[-1] == 'embedding':
    return 'embedding'
  if len(path) > 1 and 'norm' in path[-2]:
    return 'norm'
  return 'bias' if path[-1] in ('bias', 'output_bias') else 'matrix'


@pytest.mark.parametrize('name', ALL)
def test_every_parameter_is_in_the_table(name):
  for path, x in leaves_of(name):
    assert parameters.axes_of(path, x.ndim) is not None, path
    assert parameters.kind_of(path) == kind_by_name(path), path


def test_every_rule_is_of_a_parameter():
  used = {r for name in ALL for path, x in leaves_of(name) for r in parameters.rules_of(path) if len(r.axes) == x.ndim}
  assert used == set(parameters.RULES)


def test_one_pattern_has_one_kind_and_a_path_one_pattern():
  for name in ALL:
    for path, _ in leaves_of(name):
      assert len({(rule.pattern, rule.kind) for rule in parameters.rules_of(path)}) == 1, path


def test_what_is_not_in_the_table_has_no_rule_and_lies_whole():
  for path, ndim in ((('readout',), 2), (('layer_0', 'attention', 'q', 'kernel'), 0), (('layer_0', 'x', 'kernel'), 2)):
    assert parameters.axes_of(path, ndim) is None
  assert parameters.kind_of(('readout',)) is None
  mesh = sharding.make_mesh(fsdp=2, tensor=2)
  assert sharding.spec(('readout',), (4, 4), mesh) == jax.P(None, None)


def test_matrices_are_split_by_model_width_and_by_heads_mlp_or_vocabulary():
  mesh = sharding.make_mesh(fsdp=2, tensor=2)
  specs = {path[-2:]: sharding.spec(path, x.shape, mesh) for path, x in leaves({**BIASED, 'position': 'learned'})}
  assert specs['embed', 'embedding'] == jax.P('tensor', 'fsdp') and specs['position_embed', 'embedding'] == jax.P(
    None, 'fsdp'
  )
  assert specs['q', 'kernel'] == specs['k', 'kernel'] == specs['v', 'kernel'] == jax.P('fsdp', 'tensor', None)
  assert specs['o', 'kernel'] == jax.P('tensor', None, 'fsdp') and specs['down', 'kernel'] == jax.P('tensor', 'fsdp')
  assert specs['up', 'kernel'] == specs['gate', 'kernel'] == specs['head',] == jax.P('fsdp', 'tensor')
  assert specs['q', 'bias'] == jax.P('tensor', None) and specs['up', 'bias'] == jax.P('tensor')
  assert specs['final_norm', 'scale'] == specs['o', 'bias'] == specs['down', 'bias'] == jax.P(None)
