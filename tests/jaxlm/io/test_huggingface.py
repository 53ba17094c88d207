"""Our own way out and in again, without transformers: configs, dtypes, shards, meshes, memory, overwriting."""

import json
import os
from pathlib import Path
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

import jaxlm
from jaxlm.config import ModelConfig, RopeConfig
from jaxlm.data.tokenizers import ByteTokenizer
from jaxlm.errors import CheckpointError
from jaxlm.io import families, huggingface, weights
from jaxlm.io.fields import Fields
from jaxlm.models import sharding
from jaxlm.models.transformer import abstract_params

LLAMA = ModelConfig(
  vocab_size=50, num_layers=2, model_dim=24, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=20, max_length=32,
  dtype='float32',
)  # fmt: skip
BIASES = dict(qkv_bias=True, out_bias=True, mlp_bias=True)
GPT = LLAMA.replace(norm='layernorm', gated_mlp=False, num_kv_heads=4, head_dim=6, **BIASES)
GEMMA = LLAMA.replace(
  norm_placement='sandwich', norm_plus_one=True, activation='gelu_tanh', query_scale_dim=24, scaled_embeddings=True,
  tied_embeddings=True, windows=(3, 0), num_kv_heads=1,
)  # fmt: skip
CONFIGS = {
  'llama': LLAMA.replace(rope=RopeConfig(theta=5e5, scaling='llama3', factor=8.0, original_length=16)),
  'mistral': LLAMA.replace(windows=(3,)),
  'qwen2': LLAMA.replace(qkv_bias=True, windows=(0, 3), tied_embeddings=True),
  'qwen3': LLAMA.replace(qk_norm=True),
  'gemma2': GEMMA.replace(attention_softcap=50.0, logit_softcap=30.0),
  'gemma3_text': GEMMA.replace(
    qk_norm=True, local_rope_theta=100.0, rope=RopeConfig(theta=500.0, scaling='linear', factor=8.0)
  ),
  'opt': GPT.replace(position='learned', activation='relu', tied_embeddings=True),
  'gpt2': GPT.replace(position='learned', activation='gelu_tanh', tied_embeddings=True),
  'gpt_neox': GPT.replace(parallel_residual=True, activation='gelu', rope=RopeConfig(fraction=0.34)),
}


def random_lm(config, dtype='float32', seed=0, tokenizer=None) -> jaxlm.LanguageModel:
  """All parameters random, biases and norms included, so that a swapped one shows."""
  rng = np.random.default_rng(seed)
  params = jax.tree.map(lambda x: (rng.normal(size=x.shape) * 0.3).astype(dtype), abstract_params(config))
  return jaxlm.LanguageModel(config, params, tokenizer)


def assert_same_params(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b)):
    assert x.dtype == y.dtype
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y), str(path))


@pytest.mark.parametrize('name', CONFIGS)
def test_each_family_is_chosen_and_comes_back_bit_equal(name, tmp_path):
  lm = random_lm(CONFIGS[name])
  jaxlm.save_huggingface(lm, tmp_path)
  assert json.loads((tmp_path / 'config.json').read_text())['model_type'] == name
  back = jaxlm.load(tmp_path, 'float32')
  assert_same_params(back.params, lm.params)
  assert families.meaning(back.config) == families.meaning(lm.config)
  assert back.config.dtype == 'float32'
  assert back.tokenizer is None


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_half_precision_keeps_its_bits_through_shards(dtype, tmp_path):
  lm = random_lm(CONFIGS['gpt_neox'], dtype)
  jaxlm.save_huggingface(lm, tmp_path, max_shard_size='3KB')
  index = json.loads((tmp_path / huggingface.INDEX).read_text())
  files = set(index['weight_map'].values())
  assert len(files) > 2 and files == {p.name for p in tmp_path.glob('*.safetensors')}
  assert index['metadata']['total_size'] == sum(x.nbytes for x in jax.tree.leaves(lm.params))
  assert_same_params(jaxlm.load(tmp_path, dtype).params, lm.params)
  whole = jaxlm.load(tmp_path, 'float32')
  assert whole.config.dtype == 'float32'
  assert_same_params(whole.params, jax.tree.map(lambda x: x.astype('float32'), lm.params))


def test_dtype_defaults_to_float32_on_a_cpu(tmp_path):
  jaxlm.save_huggingface(random_lm(LLAMA, 'bfloat16'), tmp_path)
  lm = jaxlm.load(tmp_path)
  assert lm.config.dtype == 'float32' and {str(x.dtype) for x in jax.tree.leaves(lm.params)} == {'float32'}
  with pytest.raises(ValueError, match="dtype='int8'.*float32, bfloat16"):
    jaxlm.load(tmp_path, 'int8')


def test_files_are_what_the_safetensors_package_reads(tmp_path):
  lm = random_lm(CONFIGS['gpt2'])
  jaxlm.save_huggingface(lm, tmp_path)
  theirs = safetensors_numpy.load_file(tmp_path / 'model.safetensors')
  fused = theirs['transformer.h.1.attn.c_attn.weight']
  q = lm.params['layer_1']['attention']['q']['kernel']
  np.testing.assert_array_equal(fused[:, : q.shape[0]], q.reshape(q.shape[0], -1))
  assert 'lm_head.weight' not in theirs


def test_blocks_of_rows_add_up(monkeypatch, tmp_path):
  lms = {name: random_lm(config) for name, config in CONFIGS.items()}
  monkeypatch.setattr(weights, 'BLOCK_BYTES', 700)  # a few rows at a time, not a divisor of anything
  for name, lm in lms.items():
    jaxlm.save_huggingface(lm, tmp_path / name)
    assert_same_params(jaxlm.load(tmp_path / name, 'float32').params, lm.params)


def test_parameters_are_placed_on_a_mesh_as_they_are_read(tmp_path):
  lm = random_lm(LLAMA)
  jaxlm.save_huggingface(lm, tmp_path)
  mesh = sharding.make_mesh(fsdp=2, tensor=2)
  spread = jaxlm.load(tmp_path, 'float32', mesh)
  wanted = sharding.tree_shardings(lm.params, mesh)
  for (path, x), s in zip(jax.tree_util.tree_leaves_with_path(spread.params), jax.tree.leaves(wanted)):
    assert x.sharding == s, path
  kernel = spread.params['layer_0']['attention']['q']['kernel']
  assert kernel.addressable_shards[0].data.shape == (12, 2, 8)  # of [24, 4, 8]: it is split, not copied
  tokens = np.arange(10).reshape(2, 5)
  np.testing.assert_allclose(jaxlm.forward(spread, tokens), jaxlm.forward(lm, tokens), atol=1e-5)
  # A model spread over devices is saved as any other.
  jaxlm.save_huggingface(spread, tmp_path / 'again')
  assert_same_params(jaxlm.load(tmp_path / 'again', 'float32').params, lm.params)


def test_tokenizer_travels_with_the_model(tmp_path):
  lm = random_lm(LLAMA.replace(vocab_size=300), tokenizer=ByteTokenizer())
  jaxlm.save_huggingface(lm, tmp_path)
  back = jaxlm.load(tmp_path, 'float32')
  assert back.tokenizer.decode(back.tokenizer.encode('Grüße')) == 'Grüße'
  assert json.loads((tmp_path / 'config.json').read_text())['eos_token_id'] == 257
  assert json.loads((tmp_path / 'generation_config.json').read_text())['pad_token_id'] == 258


def test_nothing_is_overwritten_unasked(tmp_path):
  first, second = random_lm(LLAMA, tokenizer=None), random_lm(LLAMA, seed=1)
  jaxlm.save_huggingface(first, tmp_path, max_shard_size=4000)
  with pytest.raises(FileExistsError, match=r'already holds config.json.*overwrite=True'):
    jaxlm.save_huggingface(second, tmp_path)
  assert_same_params(jaxlm.load(tmp_path, 'float32').params, first.params)
  jaxlm.save_huggingface(second, tmp_path, overwrite=True)
  assert_same_params(jaxlm.load(tmp_path, 'float32').params, second.params)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['config.json', 'generation_config.json', 'model.safetensors']


def test_other_files_of_the_user_are_not_overwritten_unasked(tmp_path):
  (tmp_path / 'generation_config.json').write_text('{"mine": 1}')
  with pytest.raises(FileExistsError, match='generation_config.json'):
    jaxlm.save_huggingface(random_lm(LLAMA), tmp_path)
  assert [p.name for p in tmp_path.iterdir()] == ['generation_config.json']
  assert json.loads((tmp_path / 'generation_config.json').read_text()) == {'mine': 1}


@pytest.mark.parametrize('stage', ['weights', 'config'])
def test_an_interrupted_save_leaves_what_was_there(stage, monkeypatch, tmp_path):
  first = random_lm(LLAMA)
  jaxlm.save_huggingface(first, tmp_path)

  def interrupted(*args):
    raise KeyboardInterrupt

  monkeypatch.setattr(huggingface, '_write_weights' if stage == 'weights' else '_write_json', interrupted)
  for directory, overwrite in ((tmp_path, True), (tmp_path / 'new', False)):
    with pytest.raises(KeyboardInterrupt):
      jaxlm.save_huggingface(random_lm(LLAMA, seed=1), directory, overwrite=overwrite)
  monkeypatch.undo()
  assert_same_params(jaxlm.load(tmp_path, 'float32').params, first.params)
  with pytest.raises(CheckpointError, match='is not a model'):
    jaxlm.load(tmp_path / 'new')


def test_a_save_killed_while_moving_does_not_load(monkeypatch, tmp_path):
  jaxlm.save_huggingface(random_lm(LLAMA), tmp_path)
  replace = os.replace

  def killed(source, target):
    if Path(target).name == 'config.json':
      raise KeyboardInterrupt
    replace(source, target)

  monkeypatch.setattr(os, 'replace', killed)
  with pytest.raises(KeyboardInterrupt):
    jaxlm.save_huggingface(random_lm(LLAMA, seed=1), tmp_path, overwrite=True)
  with pytest.raises(CheckpointError, match='no config.json'):
    jaxlm.load(tmp_path)


@pytest.mark.parametrize(
  'config, message',
  [
    (LLAMA.replace(attention='sigmoid'), "no family expresses attention='sigmoid'"),
    (LLAMA.replace(attention_softcap=30.0), 'nearest is llama, without attention_softcap=30.0'),
    (LLAMA.replace(position='none'), "no family expresses position='none'"),
    (LLAMA.replace(qk_norm=True, mlp_bias=True), 'all fields at once; nearest is'),
    (GEMMA.replace(mlp_bias=True), 'nearest is gemma2, without mlp_bias=True'),
    (LLAMA.replace(windows=(2, 3)), r'no family expresses windows=\(2, 3\)'),
    (LLAMA.replace(head_dim=6, rope=RopeConfig(fraction=0.7)), 'nearest is llama, without rope.fraction=0.7'),
  ],
)
def test_what_no_family_expresses_is_named(config, message, tmp_path):
  with pytest.raises(ValueError, match=message):
    jaxlm.save_huggingface(jaxlm.LanguageModel(config, {}), tmp_path / 'new')
  assert not (tmp_path / 'new').exists()


def test_parameters_that_do_not_fit_the_config_are_not_saved(tmp_path):
  lm = random_lm(LLAMA)
  other = jaxlm.LanguageModel(LLAMA.replace(mlp_dim=21), lm.params)
  with pytest.raises(ValueError, match=r'layer_0/mlp/.*/kernel has shape .*20.*, the config asks for .*21'):
    jaxlm.save_huggingface(other, tmp_path)


def test_sizes_of_shards():
  assert [huggingface.parse_size(s) for s in (7, '7', '5GB', '1.5 kB', '2GiB')] == [7, 7, 5 * 10**9, 1500, 2 << 30]
  for bad in ('', '5 files', '-1', '0', 'GB'):
    with pytest.raises(ValueError, match='max_shard_size'):
      huggingface.parse_size(bad)


BASE = dict(
  model_type='llama', vocab_size=50, num_hidden_layers=2, hidden_size=24, num_attention_heads=4, intermediate_size=20,
  max_position_embeddings=64,
)  # fmt: skip


def read(**fields):
  fields = Fields({**BASE, **fields})
  return families.family_of(fields).config(fields)


def test_rope_is_read_from_transformers_4_and_5():
  new = read(rope_parameters=dict(rope_type='linear', factor=4.0, rope_theta=5e5))
  old = read(rope_theta=5e5, rope_scaling=dict(type='linear', factor=4.0))
  assert new.rope == old.rope == RopeConfig(theta=5e5, scaling='linear', factor=4.0)
  assert read(rope_scaling=None).rope == RopeConfig()
  pythia = dict(model_type='gpt_neox', hidden_size=32, rotary_pct=0.5, rotary_emb_base=2e4)
  assert read(**pythia).rope == RopeConfig(theta=2e4, fraction=0.5)
  assert read(model_type='gpt_neox', hidden_size=32).rope.fraction == 0.25
  yarn = read(rope_scaling=dict(type='yarn', original_max_position_embeddings=16, factor=None)).rope
  assert (yarn.factor, yarn.original_length) == (4.0, 16)


@pytest.mark.parametrize(
  'rope, length',
  [
    # As model cards advise: only the scaling is added, and max_position_embeddings stays as the model was trained.
    (dict(rope_type='yarn', factor=4.0, original_max_position_embeddings=64), 256),
    (dict(rope_type='yarn', factor=4.0), 256),
    (dict(rope_type='linear', factor=4.0), 256),
    (dict(rope_type='dynamic', factor=2.0), 128),
    (dict(rope_type='llama3', factor=8.0, original_max_position_embeddings=64), 512),
    # The stretched length is written already.
    (dict(rope_type='yarn', factor=4.0, original_max_position_embeddings=16), 64),
    (dict(rope_type='llama3', factor=32.0, original_max_position_embeddings=16), 64),
    (dict(rope_type='yarn', factor=None, original_max_position_embeddings=16), 64),
    (dict(rope_type='default'), 64),
  ],
)
@pytest.mark.parametrize('layout', ['rope_parameters', 'rope_scaling'])
def test_stretched_contexts_are_as_long_as_their_scaling_makes_them(rope, length, layout):
  config = read(**{layout: rope, 'rope_theta': 100.0})
  assert (config.max_length, config.rope.theta) == (length, 100.0)
  if rope['rope_type'] == 'dynamic':
    assert config.rope.original_length == 64
  family = families.FAMILIES['llama']
  again = family.config(Fields(family.write(config)))
  assert families.meaning(again) == families.meaning(config)
  # A length that no scaling gives survives as well.
  shorter = config.replace(max_length=48)
  assert families.meaning(family.config(Fields(family.write(shorter)))) == families.meaning(shorter)


def test_rope_of_gemma_3_is_read_from_transformers_4_and_5():
  gemma = dict(model_type='gemma3_text', num_hidden_layers=7)
  new = read(
    **gemma,
    rope_parameters=dict(
      full_attention=dict(rope_type='linear', factor=8.0, rope_theta=5e5),
      sliding_attention=dict(rope_type='default', rope_theta=2e4),
    ),
  )
  old = read(**gemma, rope_theta=5e5, rope_local_base_freq=2e4, rope_scaling=dict(rope_type='linear', factor=8.0))
  assert new.rope == old.rope == RopeConfig(theta=5e5, scaling='linear', factor=8.0)
  assert new.local_rope_theta == old.local_rope_theta == 2e4
  assert new.max_length == old.max_length == 64  # As written: Gemma's files say the stretched length.
  assert new.windows == old.windows == (4096,) * 5 + (0,)
  plain = read(**gemma)
  assert (plain.rope, plain.local_rope_theta) == (RopeConfig(theta=1e6), 1e4)
  assert read(model_type='gemma2').rope == RopeConfig(theta=1e4) and read(model_type='gemma2').local_rope_theta is None


def test_windows_are_read():
  mistral = dict(model_type='mistral', num_key_value_heads=2)
  assert read(**mistral, sliding_window=7).windows == (7,)
  assert read(**mistral, sliding_window=None).windows == ()
  qwen = dict(model_type='qwen2', sliding_window=7)
  assert read(**qwen, use_sliding_window=False, max_window_layers=0).windows == ()
  assert read(**qwen, use_sliding_window=True, max_window_layers=1).windows == (0, 7)
  types = ['sliding_attention', 'full_attention']
  assert read(**qwen, use_sliding_window=True, layer_types=types).windows == (7, 0)


@pytest.mark.parametrize(
  'fields, message',
  [
    (dict(model_type='lama'), "Unknown model family.*'lama'.*Did you mean 'llama'.*gpt_neox"),
    (dict(model_type='mixtral'), "'mixtral'"),
    (dict(hidden_act='quick_gelu'), "hidden_act='quick_gelu' is not supported.*silu"),
    (dict(rope_scaling=dict(rope_type='longrope', factor=2.0)), 'rope_type.*longrope.*yarn'),
    (dict(rope_scaling=dict(rope_type='linear')), 'linear scaling needs a factor'),
    (dict(partial_rotary_factor=0.5), 'partial_rotary_factor=0.5 is not supported'),
    (dict(rope_parameters=dict(full_attention=dict(rope_type='default'))), 'all layers share'),
    (dict(model_type='gemma2', num_attention_heads=5), 'num_attention_heads=5.*hidden_size=24 is not a multiple'),
    (dict(model_type='gemma2', use_bidirectional_attention=True), 'use_bidirectional_attention=True.*are causal'),
    (dict(model_type='gemma3_text', attn_logit_softcapping=50.0), 'attn_logit_softcapping=50.0'),
    (dict(model_type='gemma3_text', sliding_window=None), 'sliding_attention.*with sliding_window=0'),
    (
      dict(model_type='gemma3_text', rope_parameters=dict(sliding_attention=dict(rope_type='linear', factor=2.0))),
      'layers with a window are not stretched',
    ),
    (dict(quantization_config=dict(quant_method='gptq')), 'quantization_config=.*gptq'),
    (dict(num_attention_heads=5), 'num_attention_heads=5.*hidden_size=24 is not a multiple'),
    (dict(hidden_size=None), "the field 'hidden_size' is missing"),
    (dict(num_key_value_heads=3), 'num_heads=4 is not a multiple'),
    (dict(model_type='qwen2', layer_types=['chunked_attention'] * 2), 'chunked_attention'),
    (dict(model_type='qwen2', layer_types=['full_attention']), 'num_hidden_layers=2'),
    (dict(model_type='opt', ffn_dim=8, do_layer_norm_before=False), 'do_layer_norm_before=False'),
    (dict(model_type='opt', ffn_dim=8, word_embed_proj_dim=12), 'word_embed_proj_dim=12'),
    (dict(model_type='gpt2', scale_attn_by_inverse_layer_idx=True), 'scale_attn_by_inverse_layer_idx=True'),
    (dict(model_type='gpt2', add_cross_attention=True), 'add_cross_attention=True'),
  ],
)
def test_what_is_not_computed_is_refused_by_name(fields, message):
  with pytest.raises(CheckpointError, match=message):
    read(**fields)


PEAK = """
import json, sys
import jax, jax.numpy as jnp, jaxlm
from jaxlm.io import families, huggingface  # imports and one compilation belong to the baseline
jax.config.update('jax_platforms', 'cpu')
jax.jit(lambda x: x + 1)(jnp.zeros(3)).block_until_ready()
fields = families.Fields(huggingface.read_json(huggingface.Path(sys.argv[1]) / 'config.json'))
families.parameter_paths(families.family_of(fields).config(fields))
# Not getrusage: its peak begins at that of the process that started this one.
peak = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) * 1024
before = peak()
lm = jaxlm.load(sys.argv[1], sys.argv[2])
print(json.dumps([peak() - before, sum(x.nbytes for x in jax.tree.leaves(lm.params))]))
"""


@pytest.mark.skipif(not os.path.exists('/proc/self/status'), reason='reads the peak from /proc')
@pytest.mark.parametrize(
  'stored, dtype',
  [
    ('bfloat16', 'float32'),
    pytest.param('bfloat16', 'bfloat16', marks=pytest.mark.slow),
    pytest.param('float32', 'bfloat16', marks=pytest.mark.slow),
  ],
)
def test_loading_takes_little_more_memory_than_the_model(stored, dtype, tmp_path):
  config = LLAMA.replace(
    vocab_size=30000, num_layers=6, model_dim=768, num_heads=12, num_kv_heads=4, head_dim=64, mlp_dim=2048
  )
  lm = jaxlm.LanguageModel(config, jax.tree.map(lambda x: np.ones(x.shape, stored), abstract_params(config)))
  jaxlm.save_huggingface(lm, tmp_path, max_shard_size='150MB')
  out = subprocess.run(
    [sys.executable, '-c', PEAK, str(tmp_path), dtype],
    env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  extra, size = json.loads(out.splitlines()[-1])
  print(f'{stored} -> {dtype}: peak {extra / 1e6:.0f} MB for {size / 1e6:.0f} MB of parameters, {extra / size:.2f}')
  assert size > 150e6
  assert extra < 1.3 * size
