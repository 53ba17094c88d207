"""Models as other programs leave them: their folders, absent fields, tensors without use, and values that lie."""

import copy
import json
import os
import sys
import types
import warnings

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

import jaxlm
from jaxlm.config import ModelConfig, RopeConfig
from jaxlm.errors import CheckpointError
from jaxlm.io import families, gemma_families
from jaxlm.io.fields import Fields
from jaxlm.models.transformer import abstract_params

CONFIG = ModelConfig(
  vocab_size=50, num_layers=2, model_dim=24, num_heads=4, num_kv_heads=2, head_dim=6, mlp_dim=20, max_length=32,
  dtype='float32',
)  # fmt: skip


@pytest.fixture
def model(tmp_path):
  params = jax.tree.map(lambda x: np.full(x.shape, 0.5, 'float32'), abstract_params(CONFIG))
  jaxlm.save_huggingface(jaxlm.LanguageModel(CONFIG, params), tmp_path / 'model')
  return tmp_path / 'model'


def edit(path, **changes):
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# ---- whose model it is ----


@pytest.mark.parametrize('value', ['gpt2', {'num_layers': 2}, None])
def test_a_folder_or_a_field_of_a_run_does_not_make_a_foreign_model_one(model, value):
  (model / 'checkpoints').mkdir()
  edit(model / 'config.json', model=value)
  assert jaxlm.load(model, 'float32').config == CONFIG


def test_a_gguf_file_beside_checkpoints_is_loaded(model):
  from tests.jaxlm.io.test_gguf import write

  (model / 'config.json').unlink()
  (model / 'model.safetensors').unlink()
  (model / 'checkpoints').mkdir()
  params = jax.tree.map(lambda x: np.full(x.shape, 0.5, 'float32'), abstract_params(CONFIG))
  write(model / 'model.gguf', jaxlm.LanguageModel(CONFIG, params))
  assert jaxlm.load(model, 'float32').config.model_dim == 24


def test_a_second_copy_of_the_weights_is_not_fetched_nor_read(model, monkeypatch):
  hub, asked = types.ModuleType('huggingface_hub'), {}
  hub.snapshot_download = lambda name, **kwargs: asked.update(kwargs) or str(model)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', hub)
  (model / 'model.safetensors').rename(model / 'model-00001-of-00001.safetensors')
  safetensors_numpy.save_file({'tok_embeddings.weight': np.ones((2, 2))}, model / 'consolidated.safetensors')
  assert jaxlm.load('some-org/some-model', 'float32').config == CONFIG
  import fnmatch

  wanted = lambda name: (
    any(fnmatch.fnmatch(name, p) for p in asked['allow_patterns'])
    and not any(fnmatch.fnmatch(name, p) for p in asked['ignore_patterns'])
  )
  files = ['config.json', 'model-00001-of-00002.safetensors', 'tokenizer.model', 'merges.txt', 'chat_template.jinja']
  assert all(map(wanted, files))
  others = ['consolidated.safetensors', 'consolidated.00.safetensors', 'original/x.safetensors', 'onnx/config.json']
  assert not any(map(wanted, [*others, 'pytorch_model.bin']))
  (model / 'model-00001-of-00001.safetensors').unlink()
  with pytest.raises(CheckpointError, match='no weights.*consolidated.safetensors has names of its own'):
    jaxlm.load(model)


# ---- absent and null ----

SHAPE = dict(
  vocab_size=50, num_hidden_layers=2, hidden_size=24, num_attention_heads=4, num_key_value_heads=2,
  intermediate_size=20, max_position_embeddings=8192,
)  # fmt: skip
WINDOWS = [  # fields of config.json, windows by layer
  ('mistral', {}, (4096, 4096)),
  ('mistral', {'sliding_window': None}, (0, 0)),
  ('mistral', {'sliding_window': 7}, (7, 7)),
  ('qwen2', {}, (0, 0)),
  ('qwen2', {'use_sliding_window': True}, (0, 0)),
  ('qwen2', {'use_sliding_window': True, 'max_window_layers': 1}, (0, 4096)),
  ('qwen2', {'use_sliding_window': True, 'max_window_layers': 0, 'sliding_window': None}, (0, 0)),
  ('qwen3', {'use_sliding_window': True, 'max_window_layers': 0, 'sliding_window': 9}, (9, 9)),
  ('qwen3', {'use_sliding_window': True, 'max_window_layers': 1}, (0, 4096)),
  ('qwen3', {'use_sliding_window': False, 'max_window_layers': 0, 'sliding_window': 9}, (0, 0)),
  ('gemma2', {}, (4096, 0)),
  ('gemma2', {'sliding_window': 9}, (9, 0)),
  ('gemma3_text', {'sliding_window': 9}, (9, 9)),
  ('gemma3_text', {'sliding_window': 9, 'sliding_window_pattern': 2}, (9, 0)),
  ('gemma3_text', {'layer_types': ['full_attention', 'sliding_attention']}, (0, 4096)),
  ('llama', {'sliding_window': 7}, (0, 0)),
]


@pytest.mark.parametrize('kind, given, windows', WINDOWS)
def test_absent_and_null_windows_mean_what_the_family_means(kind, given, windows):
  fields = Fields(dict(SHAPE, model_type=kind, **given))
  config = families.family_of(fields).config(fields)
  assert tuple(config.window(i) or 0 for i in range(2)) == windows


@pytest.mark.parametrize('kind, given, windows', WINDOWS)
def test_the_windows_are_those_of_transformers(kind, given, windows):
  transformers = pytest.importorskip('transformers', reason='the peer is not installed: pip install jaxlm[parity]')
  config = transformers.AutoConfig.for_model(kind, **SHAPE, **given)
  if kind == 'llama':
    return
  types = getattr(config, 'layer_types', None) or ['sliding_attention'] * 2
  window = getattr(config, 'sliding_window', None) or 0
  assert tuple(window if kind == 'sliding_attention' else 0 for kind in types) == windows


# ---- tensors without use ----


@pytest.mark.parametrize(
  'name', ['model.layers.0.self_attn.rotary_emb.inv_freq', 'v_head.summary.weight', 'score.weight', 'mtp.layers.0.x']
)
def test_tensors_that_have_no_part_in_the_logits_are_left_out_with_one_line(model, name):
  path = model / 'model.safetensors'
  tensors = safetensors_numpy.load_file(path)
  safetensors_numpy.save_file(tensors | {name: np.ones(3, np.float32)}, path)
  with pytest.warns(UserWarning, match=rf"model\.safetensors: '{name}' left out") as said:
    lm = jaxlm.load(model, 'float32')
  assert len(said) == 1 and lm.config == CONFIG


@pytest.mark.parametrize('name', ['model.layers.0.self_attn.q_proj.bias', 'model.layers.2.mlp.up_proj.weight'])
def test_tensors_that_a_layer_would_use_are_not_left_out(model, name):
  path = model / 'model.safetensors'
  tensors = safetensors_numpy.load_file(path)
  safetensors_numpy.save_file(tensors | {name: np.ones(3, np.float32)}, path)
  with pytest.raises(CheckpointError, match=f'unexpected tensors.*{name}'):
    jaxlm.load(model, 'float32')


@pytest.mark.parametrize('base', ['model.language_model.', 'language_model.model.'])  # of transformers 5 and 4
def test_the_text_model_of_a_multimodal_gemma_3_is_read_and_the_rest_named_in_one_line(base, tmp_path):
  config = CONFIG.replace(
    norm_placement='sandwich', norm_plus_one=True, scaled_embeddings=True, qk_norm=True, tied_embeddings=True,
    activation='gelu_tanh', windows=(3, 0), local_rope_theta=100.0,
  )  # fmt: skip
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype('float32'), abstract_params(config))
  lm = jaxlm.LanguageModel(config, params)
  jaxlm.save_huggingface(lm, tmp_path)
  fields = json.loads((tmp_path / 'config.json').read_text())
  nested = {'model_type': 'gemma3', 'architectures': ['Gemma3ForConditionalGeneration'], 'text_config': fields}
  (tmp_path / 'config.json').write_text(json.dumps(nested))
  tensors = safetensors_numpy.load_file(tmp_path / 'model.safetensors')
  tensors = {base + name.removeprefix('model.'): tensor for name, tensor in tensors.items()}
  tensors['vision_tower.vision_model.post_layernorm.bias'] = np.ones(3, np.float32)
  safetensors_numpy.save_file(tensors, tmp_path / 'model.safetensors')
  with pytest.warns(UserWarning, match='the text model is read; 1 tensors of the image encoder are left out') as said:
    back = jaxlm.load(tmp_path, 'float32')
  assert len(said) == 1 and families.meaning(back.config) == families.meaning(config)
  jax.tree.map(np.testing.assert_array_equal, back.params, lm.params)
  for bad in (None, 5, []):
    (tmp_path / 'config.json').write_text(json.dumps(nested | {'text_config': bad}))
    with pytest.raises(CheckpointError, match='text_config'):
      jaxlm.load(tmp_path)


def test_what_a_multimodal_gemma_3_leaves_out_has_the_defaults_of_its_config_class():
  fields = Fields({'model_type': 'gemma3', 'text_config': dict(hidden_size=2560, num_hidden_layers=34, sliding_window=1024,
                   intermediate_size=10240, rope_scaling=dict(factor=8.0, rope_type='linear'))})  # fmt: skip
  inside = gemma_families.text_fields(fields)
  config = families.family_of(inside).config(inside)
  assert (config.vocab_size, config.num_heads, config.num_kv_heads, config.head_dim) == (262_208, 8, 4, 256)
  assert (config.max_length, config.rope.theta, config.rope.factor) == (131_072, 1e6, 8.0)
  assert (config.local_rope_theta, config.window(4), config.window(5), config.tied_embeddings) == (
    1e4,
    1024,
    None,
    True,
  )


# ---- values that lie ----

BAD = [
  *(None, -1, 0, 1.5, 1e300, 10**9, 10**30, 'x', '', True, False, [], [1], [[1]], {}, {'a': 1}, ['full_attention']),
  *(float('nan'), float('inf'), -0.0),
]
ROPES = {
  'llama': RopeConfig(scaling='llama3', factor=2.0, original_length=16),
  'mistral': RopeConfig(scaling='yarn', factor=2.0, original_length=16),
  'qwen2': RopeConfig(scaling='linear', factor=2.0),
  'qwen3': RopeConfig(scaling='dynamic', factor=2.0),
  'gemma3_text': RopeConfig(scaling='linear', factor=8.0),
}


def family_fields(name):
  family = families.FAMILIES[name]
  plain = name in ('opt', 'gpt2', 'gpt_neox')
  config = CONFIG.replace(rope=ROPES.get(name, RopeConfig()))
  if name.startswith('gemma'):
    config = config.replace(norm_placement='sandwich', norm_plus_one=True, scaled_embeddings=True, windows=(3, 0))
  if plain:
    config = config.replace(
      norm='layernorm', gated_mlp=False, num_kv_heads=4, qkv_bias=True, out_bias=True, mlp_bias=True
    )
  fields = {'model_type': name, **family.write(config)}
  extra = dict.fromkeys(('sliding_window', 'layer_types', 'head_dim', 'attention_bias', 'tie_word_embeddings'))
  extra |= dict.fromkeys(('sliding_window_pattern', 'rope_local_base_freq', 'use_bidirectional_attention'))
  extra |= dict.fromkeys(('quantization_config', 'partial_rotary_factor', 'n_inner', 'use_sliding_window'))
  return extra | fields


@pytest.mark.parametrize('name', families.FAMILIES)
def test_every_field_of_every_family_is_checked_before_it_is_used(name):
  """A value that cannot be meant gives the named error at once; none gives another error, or a model without end."""
  good = family_fields(name)
  families.family_of(Fields(good)).config(Fields(good))
  places = [(key,) for key in good]
  places += [
    (key, inner) for key in good if isinstance(good[key], dict) for inner in [*good[key], 'mscale', 'truncate']
  ]
  refused = 0
  for *outer, key in places:
    for value in BAD:
      fields = copy.deepcopy(good)
      (fields[outer[0]] if outer else fields)[key] = value
      try:
        config = families.family_of(Fields(fields)).config(Fields(fields))
      except CheckpointError as e:
        refused += 1
        assert 'config.json' in str(e) and len(str(e)) < 600
        continue
      assert all(type(getattr(config, size)) is int for size in ('vocab_size', 'num_layers', 'model_dim', 'head_dim'))
      assert config.num_layers <= 10_000 and max(config.vocab_size, config.mlp_dim, config.max_length) <= 10**8
      assert np.isfinite([config.norm_eps, config.rope.theta, config.rope.factor]).all()
  assert refused > 7 * len(good)


@pytest.mark.parametrize('value', [5, None, '', '/etc/passwd', '../model.safetensors', 'a/b.safetensors', 'x\0.safetensors'])  # fmt: skip
def test_an_index_that_names_a_file_elsewhere_is_refused(model, value):
  (model / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': {'lm_head.weight': value}}))
  with pytest.raises(CheckpointError, match=r"index\.json says that 'lm_head\.weight' lies in .*expected the name of"):
    jaxlm.load(model)


@pytest.mark.parametrize('name', ['config.json', 'tokenizer_config.json', 'generation_config.json'])
@pytest.mark.parametrize('raw', [b'', b'[]', b'null', b'5', b'\xff\xfe', b'[' * 100_000, b'{"a":' * 5000])
def test_json_that_is_none_is_named(model, name, raw):
  from jaxlm.data.tokenizers import ByteTokenizer

  ByteTokenizer().save(model)
  (model / name).write_bytes(raw)
  if name != 'config.json':
    (model / 'tokenizer.json').write_text('{}')
  with pytest.raises(CheckpointError, match=name.replace('.', r'\.')):
    jaxlm.load(model)


def test_files_that_are_no_files_do_not_hang(model):
  (model / 'model.safetensors').unlink()
  os.mkfifo(model / 'model.safetensors')
  with pytest.raises(CheckpointError, match='no weights'):
    jaxlm.load(model)


def test_nothing_is_said_of_a_good_model(model):
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    jaxlm.load(model, 'float32')


@pytest.mark.parametrize('arch', ['llama', 'qwen2', 'qwen3', 'gemma2', 'gemma3'])
def test_every_field_of_a_gguf_header_is_checked_before_it_is_used(tmp_path, arch):
  from jaxlm.io import gguf, gguf_header
  from tests.jaxlm.io.test_gguf import write

  config = CONFIG.replace(qkv_bias=arch == 'qwen2', qk_norm=arch == 'qwen3')
  if arch.startswith('gemma'):
    config = config.replace(norm_placement='sandwich', norm_plus_one=True)
  params = jax.tree.map(lambda x: np.full(x.shape, 0.5, 'float32'), abstract_params(config))
  metadata, tensors = gguf_header.read_header(write(tmp_path / 'a.gguf', jaxlm.LanguageModel(config, params), arch))
  names = [f'{arch}.{name}' for name in ('expert_count', 'attention.sliding_window', 'rope.scaling.type')]
  names += [f'{arch}.rope.{name}' for name in ('scaling.factor', 'freq_base', 'scale_linear', 'dimension_count')]
  names += [name for name in metadata if name.startswith(('general.arch', arch))] + ['split.count']
  if arch.startswith('gemma'):
    names += [
      f'{arch}.{name}' for name in ('attention.sliding_window_pattern', 'rope.freq_base_swa', 'final_logit_softcapping')
    ]
  yarn = {f'{arch}.rope.scaling.type': 'yarn', f'{arch}.rope.scaling.factor': 2.0}
  names += [f'{arch}.rope.scaling.{name}' for name in ('original_context_length', 'yarn_beta_fast', 'attn_factor')]
  refused = 0
  for name in dict.fromkeys(names):
    for value in BAD:
      given = metadata | (yarn if 'scaling' in name else {}) | {name: value}
      try:
        config = Fields(given, 'a.gguf').config(lambda fields: gguf.read_config(fields, tensors))
      except CheckpointError as e:
        refused += 1
        assert 'a.gguf' in str(e) and len(str(e)) < 600
        continue
      assert config.num_layers <= 10_000 and max(config.mlp_dim, config.max_length) <= 10**8
      assert np.isfinite([config.norm_eps, config.rope.theta, config.rope.factor]).all()
  assert refused > 9 * len(names)
