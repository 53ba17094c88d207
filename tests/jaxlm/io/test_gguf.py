"""GGUF: every type the package can write, the layouts of llama.cpp, and a real model."""

import gguf
import jax
import numpy as np
import pytest

import jaxlm
from jaxlm.attention.positions import rope_frequencies
from jaxlm.config import ModelConfig, RopeConfig
from jaxlm.errors import CheckpointError
from jaxlm.io import gguf as gguf_io
from jaxlm.io import gguf_header, weights
from jaxlm.models import sharding
from jaxlm.models.transformer import abstract_params

Q = gguf.GGMLQuantizationType
# Rows are as long as a block, 32 values; all other dimensions differ.
LLAMA = ModelConfig(
  vocab_size=50, num_layers=2, model_dim=64, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=96, max_length=32,
  dtype='float32',
)  # fmt: skip


def random_lm(config):
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda x: (rng.normal(size=x.shape) * 0.3).astype('float32'), abstract_params(config))
  return jaxlm.LanguageModel(config, params)


def interleave(rows, heads):
  """llama.cpp's own permutation of q and k, as its converter writes it."""
  return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def file_tensors(lm, arch):
  """A model's parameters as llama.cpp lays them out, written without jaxlm.io's tables."""
  c, p = lm.config, lm.params
  out = {'token_embd.weight': p['embed']['embedding'], 'output_norm.weight': p['final_norm']['scale']}
  if not c.tied_embeddings:
    out['output.weight'] = p['head'].T
  for i in range(c.num_layers):
    layer = p[f'layer_{i}']
    a, m = layer['attention'], layer['mlp']
    rows = lambda kernel: kernel.reshape(kernel.shape[0], -1).T
    t = {f'attn_{x}.weight': rows(a[x]['kernel']) for x in 'qkv'}
    if c.qkv_bias:
      t |= {f'attn_{x}.bias': a[x]['bias'].reshape(-1) for x in 'qkv'}
    if arch == 'llama':
      for x, heads in (('q', c.num_heads), ('k', c.num_kv_heads)):
        t |= {f'attn_{x}.{part}': interleave(t[f'attn_{x}.{part}'], heads) for part in ('weight', 'bias') if f'attn_{x}.{part}' in t}  # fmt: skip
    if c.qk_norm:
      t |= {f'attn_{x}_norm.weight': a[f'{x}_norm']['scale'] for x in 'qk'}
    t |= {'attn_output.weight': a['o']['kernel'].reshape(-1, c.model_dim).T}
    t |= {f'ffn_{x}.weight': m[x]['kernel'].T for x in ('gate', 'up', 'down')}
    t |= {'attn_norm.weight': layer['attention_norm']['scale'], 'ffn_norm.weight': layer['mlp_norm']['scale']}
    if arch.startswith('gemma'):
      t |= {'post_attention_norm.weight': layer['attention_out_norm']['scale']}
      t |= {'post_ffw_norm.weight': layer['mlp_out_norm']['scale']}
    out |= {f'blk.{i}.{name}': value for name, value in t.items()}
  if arch.startswith('gemma'):
    out = {name: value + np.float32(1) if name.endswith('norm.weight') else value for name, value in out.items()}
  return out


def write(path, lm, arch='llama', kind=Q.F32, extra=None, tensors=None):
  """Writes a GGUF file; matrices are stored as `kind`, vectors as F32."""
  c = lm.config
  w = gguf.GGUFWriter(path, arch)
  w.add_block_count(c.num_layers)
  w.add_context_length(c.max_length)
  w.add_embedding_length(c.model_dim)
  w.add_feed_forward_length(c.mlp_dim)
  w.add_head_count(c.num_heads)
  w.add_head_count_kv(c.num_kv_heads)
  w.add_key_length(c.head_dim)
  w.add_layer_norm_rms_eps(c.norm_eps)
  w.add_rope_freq_base(c.rope.theta)
  for key, (value, value_type) in (extra or {}).items():
    w.add_key_value(key, value, value_type)
  for name, value in (tensors or file_tensors(lm, arch)).items():
    value = np.ascontiguousarray(value)
    as_kind = kind if value.ndim == 2 else Q.F32
    w.add_tensor(name, gguf.quants.quantize(value, as_kind), raw_dtype=as_kind)
  w.write_header_to_file()
  w.write_kv_data_to_file()
  w.write_tensors_to_file()
  w.close()
  return path


def close(a, b, tolerance):
  for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_allclose(np.asarray(x), np.asarray(y), atol=tolerance, err_msg=str(path))


@pytest.mark.parametrize(
  'arch, config',
  [
    ('llama', LLAMA),
    ('llama', LLAMA.replace(qkv_bias=True, tied_embeddings=True)),
    ('qwen2', LLAMA.replace(qkv_bias=True, tied_embeddings=True)),
    ('qwen3', LLAMA.replace(qk_norm=True, rope=RopeConfig(theta=1e6))),
  ],
)
def test_each_architecture_is_read_exactly(arch, config, tmp_path):
  lm = random_lm(config)
  back = jaxlm.load(write(tmp_path / 'model.gguf', lm, arch), 'float32')
  assert back.config == config
  assert back.tokenizer is None
  assert jax.tree.structure(back.params) == jax.tree.structure(lm.params)
  close(back.params, lm.params, 0)


@pytest.mark.parametrize(
  'kind, tolerance', [(Q.F16, 1e-3), (Q.BF16, 6e-3), (Q.Q8_0, 6e-3), (Q.Q4_0, 0.12), (Q.Q4_1, 0.08), (Q.Q5_0, 0.06)]
)
def test_each_type_is_dequantised(kind, tolerance, tmp_path, monkeypatch):
  monkeypatch.setattr(weights, 'BLOCK_BYTES', 3000)  # several blocks of rows per tensor
  lm = random_lm(LLAMA)
  close(jaxlm.load(write(tmp_path / 'model.gguf', lm, kind=kind), 'float32').params, lm.params, tolerance)


def test_k_quants_are_dequantised(tmp_path):
  # The package reads these two but cannot write them, so their bytes are random (with finite scales) and the package's
  # own reading of a whole tensor is the reference.
  config = LLAMA.replace(model_dim=256, num_layers=1)
  lm, rng = random_lm(config), np.random.default_rng(0)
  path = write(tmp_path / 'model.gguf', lm, kind=Q.F16)
  for kind in (Q.Q4_K, Q.Q6_K):
    width = gguf.quants.quant_shape_to_byte_shape((50, 256), kind)[1]
    raw = rng.integers(0, 255, (50, width), dtype=np.uint8)
    scale = np.full((50, 1), 0.01, np.float16).view(np.uint8)
    raw[:, 0:2] = raw[:, 2:4] = scale
    raw[:, -2:] = scale
    (tmp_path / 'raw').write_bytes(b'x' * 7 + raw.tobytes())
    tensor = gguf_header.Tensor(tmp_path / 'raw', 't', kind, (50, 256), 7, raw.nbytes)
    embed = weights.Layout(config).read(weights.Entry('embed/embedding', 't', 'V,D'), tensor, 'float32')
    np.testing.assert_array_equal(embed, gguf.quants.dequantize(raw, kind))
  assert path.exists()


def test_the_header_says_what_the_gguf_package_says(tmp_path):
  lists = {'a.strings': (['x', 'é', ''], gguf.GGUFValueType.ARRAY), 'a.floats': ([0.5, 2.0], gguf.GGUFValueType.ARRAY)}
  path = write(tmp_path / 'model.gguf', random_lm(LLAMA), kind=Q.Q4_1, extra=lists)
  metadata, tensors = gguf_header.read_header(path)
  reader = gguf.GGUFReader(path)
  own = {key: field.contents() for key, field in reader.fields.items() if not key.startswith('GGUF.')}
  assert metadata == own and metadata['a.strings'] == ['x', 'é', '']
  for t in reader.tensors:
    ours = tensors[t.name]
    assert (ours.kind, ours.shape[::-1], ours.offset, ours.nbytes) == (
      t.tensor_type, tuple(t.shape), t.data_offset, t.n_bytes,
    )  # fmt: skip


def test_a_mesh_and_half_precision(tmp_path):
  lm = random_lm(LLAMA)
  path = write(tmp_path / 'model.gguf', lm)
  mesh = sharding.make_mesh(fsdp=2, tensor=2)
  spread = jaxlm.load(path, 'bfloat16', mesh)
  assert spread.config.dtype == 'bfloat16'
  for x, s in zip(jax.tree.leaves(spread.params), jax.tree.leaves(sharding.tree_shardings(lm.params, mesh))):
    assert x.sharding == s and x.dtype == 'bfloat16'


def value(x):
  return (x, gguf.GGUFValueType.FLOAT32 if isinstance(x, float) else gguf.GGUFValueType.UINT32)


def string(x):
  return (x, gguf.GGUFValueType.STRING)


@pytest.mark.parametrize(
  'extra, rope',
  [
    ({'type': string('linear'), 'factor': value(4.0)}, RopeConfig(scaling='linear', factor=4.0)),
    ({'type': string('none')}, RopeConfig()),
    (
      {'type': string('yarn'), 'factor': value(4.0), 'original_context_length': value(16)},
      RopeConfig(scaling='yarn', factor=4.0, original_length=16, attention_factor=0.1 * np.log(4.0) + 1.0),
    ),
  ],
)
def test_rope_scaling_is_read(extra, rope, tmp_path):
  extra = {f'llama.rope.scaling.{key}': v for key, v in extra.items()}
  path = write(tmp_path / 'model.gguf', random_lm(LLAMA), extra=extra)
  assert jaxlm.load(path, 'float32').config.rope == rope


def test_llama3_rope_is_recognised_by_its_divisors(tmp_path):
  rope = RopeConfig(
    theta=5e5, scaling='llama3', factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=8192
  )
  lm = random_lm(LLAMA.replace(rope=rope))
  plain, stretched = (np.asarray(rope_frequencies(LLAMA.replace(rope=r), 0)[0]) for r in (RopeConfig(theta=5e5), rope))
  tensors = {**file_tensors(lm, 'llama'), 'rope_freqs.weight': (plain / stretched).astype('float32')}
  assert jaxlm.load(write(tmp_path / 'model.gguf', lm, tensors=tensors), 'float32').config.rope == rope
  tensors['rope_freqs.weight'] = np.linspace(1, 3, 4).astype('float32')
  with pytest.raises(CheckpointError, match='rope_freqs.weight=.*not those of Llama 3'):
    jaxlm.load(write(tmp_path / 'other.gguf', lm, tensors=tensors), 'float32')


@pytest.mark.parametrize(
  'arch, extra, message',
  [
    ('gemma', {}, "Unknown GGUF architecture.*'gemma'.*gemma2, gemma3, llama, qwen2, qwen3"),
    ('llama', {'llama.expert_count': value(8)}, 'llama.expert_count=8 is not supported'),
    ('llama', {'split.count': value(2)}, 'split.count=2.*merge'),
    ('llama', {'llama.rope.scaling.type': string('longrope')}, "type='longrope'"),
    (
      'llama',
      {'llama.attention.sliding_window': string('wide')},
      r'model\.gguf: llama\.attention\.sliding_window=.wide. .*expected a whole number',
    ),
    ('llama', {'llama.rope.dimension_count': value(4)}, 'rope.dimension_count=4'),
  ],
)
def test_what_is_not_computed_is_refused_by_name(arch, extra, message, tmp_path):
  lm = random_lm(LLAMA)
  path = write(tmp_path / 'model.gguf', lm, arch, extra=extra, tensors=file_tensors(lm, 'llama'))
  with pytest.raises(CheckpointError, match=message):
    jaxlm.load(path, 'float32')


# ---- SmolLM2-135M-Instruct ----

SENTENCE = (
  'We hold these truths to be self-evident, that all men are created equal, that they are endowed by their Creator with '
  'certain unalienable Rights, that among these are Life, Liberty and the pursuit of Happiness.'
)
RIGHT, WRONG = 0.9159, 3.3764  # nats per token of SENTENCE, with q and k un-permuted and as they lie in the file


@pytest.fixture(scope='module')
def smollm2_path():
  from jaxlm.data import fetch

  try:
    return fetch.locate('smollm2') or fetch.fetch('smollm2')
  except Exception as e:
    pytest.skip(f'SmolLM2 cannot be had here: {e}')


def nll(lm, text, bos=False):
  tokens = np.array([lm.tokenizer.encode(text, bos=bos)])
  logp = np.asarray(jax.nn.log_softmax(jaxlm.forward(lm, tokens)))[0]
  return -logp[np.arange(tokens.size - 1), tokens[0, 1:]].mean()


@pytest.mark.real
def test_smollm2_reads_english_and_only_with_its_rows_unpermuted(smollm2_path, monkeypatch):
  right = jaxlm.load('smollm2', 'float32')
  entries = gguf_io.entries
  monkeypatch.setattr(gguf_io, 'entries', lambda config, arch: entries(config, 'qwen2'))
  wrong = jaxlm.load(smollm2_path, 'float32')
  a, b = nll(right, SENTENCE), nll(wrong, SENTENCE)
  print(f'{a=:.4f} {b=:.4f}')
  assert abs(a - RIGHT) < 1e-2 and abs(b - WRONG) < 1e-2
  assert a < 0.75 * b


@pytest.mark.real
def test_smollm2_gives_the_logits_of_transformers(smollm2_path, tmp_path):
  reason = 'parity with transformers: pip install -e .[parity]'
  torch = pytest.importorskip('torch', reason=reason)
  transformers = pytest.importorskip('transformers', reason=reason)
  lm = jaxlm.load(smollm2_path, 'float32')
  jaxlm.save_huggingface(lm, tmp_path)
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
  theirs_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
  tokens = np.array([lm.tokenizer.encode(SENTENCE)])
  assert theirs_tokenizer(SENTENCE, add_special_tokens=False)['input_ids'] == tokens[0].tolist()
  ours = np.asarray(jaxlm.forward(lm, tokens))
  with torch.no_grad():
    theirs = model(torch.tensor(tokens)).logits.numpy()
    exact = model.double()(torch.tensor(tokens)).logits.numpy()
  scale = np.abs(exact).max()
  errors = {'ours - theirs': ours - theirs, 'ours - float64': ours - exact, 'theirs - float64': theirs - exact}
  print(f'{scale=:.1f}', {name: f'{np.abs(e).max():.1e}' for name, e in errors.items()})
  # Over 30 layers float32 itself is off by about 1e-4 on logits as large as 30; a wrong layout would be off by 1.
  assert np.abs(errors['ours - theirs']).max() < 1e-4 * scale
  assert np.abs(errors['ours - float64']).max() < 3 * np.abs(errors['theirs - float64']).max()
