"""Logits of every family and variant against transformers, from its files to ours and back."""

import jax
import numpy as np
import pytest

import jaxlm
from jaxlm.models import functions
from tests.models import slow

torch = pytest.importorskip('torch', reason='parity with transformers: pip install -e .[parity]')
transformers = pytest.importorskip('transformers', reason='parity with transformers: pip install -e .[parity]')

LENGTHS = (11, 7, 4)
LLAMA = dict(num_attention_heads=6, num_key_value_heads=2, hidden_size=60, rms_norm_eps=1e-5)
SHARED = dict(
  vocab_size=97, num_hidden_layers=2, intermediate_size=52, max_position_embeddings=32, pad_token_id=None,
  bos_token_id=None, eos_token_id=None,
)  # fmt: skip
QWEN = dict(num_attention_heads=6, num_key_value_heads=2, hidden_size=60)


GEMMA = dict(
  num_attention_heads=4, num_key_value_heads=1, hidden_size=44, head_dim=10, sliding_window=4, query_pre_attn_scalar=7
)


def rope(**parameters):
  return dict(LLAMA, rope_parameters=dict(rope_theta=500.0, **parameters))


CASES = {
  'llama': ('llama', LLAMA),
  'llama biases, tied': ('llama', dict(LLAMA, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)),
  'llama head_dim': ('llama', dict(LLAMA, head_dim=14, hidden_act='gelu')),
  'llama linear': ('llama', rope(rope_type='linear', factor=3.0)),
  'llama dynamic': ('llama', dict(rope(rope_type='dynamic', factor=2.0), max_position_embeddings=8)),
  'llama llama3': (
    'llama',
    rope(
      rope_type='llama3', factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
    ),
  ),
  'llama yarn': (
    'llama', dict(rope(rope_type='yarn', factor=4.0, original_max_position_embeddings=64), max_position_embeddings=256),
  ),
  'llama yarn, all fields': (
    'llama',
    rope(
      rope_type='yarn', factor=2.0, original_max_position_embeddings=16, beta_fast=2.0, beta_slow=0.5,
      attention_factor=1.3, truncate=False,
    ),
  ),
  'llama yarn, mscale': (
    'llama',
    rope(rope_type='yarn', factor=2.0, original_max_position_embeddings=16, mscale=0.7, mscale_all_dim=1.1),
  ),
  'mistral': ('mistral', dict(LLAMA, hidden_size=44, head_dim=8, sliding_window=None)),
  'mistral window': ('mistral', dict(LLAMA, hidden_size=44, head_dim=8, sliding_window=4)),
  'qwen2': ('qwen2', QWEN),
  'qwen2 windows': ('qwen2', dict(QWEN, use_sliding_window=True, sliding_window=3, max_window_layers=1)),
  'qwen2 layer types': (
    'qwen2',
    dict(QWEN, use_sliding_window=True, sliding_window=3, layer_types=['sliding_attention', 'full_attention']),
  ),
  'qwen3': ('qwen3', dict(QWEN, head_dim=12)),
  'qwen3 biases, windows': (
    'qwen3',
    dict(QWEN, hidden_size=44, head_dim=12, attention_bias=True, use_sliding_window=True, sliding_window=3,
         max_window_layers=0, tie_word_embeddings=True),
  ),
  'gemma2': ('gemma2', GEMMA),
  'gemma2 biases, untied, caps': (
    'gemma2',
    dict(GEMMA, attention_bias=True, tie_word_embeddings=False, attn_logit_softcapping=2.0, final_logit_softcapping=1.5,
         layer_types=['full_attention', 'sliding_attention']),
  ),
  'gemma2 no caps, silu': (
    'gemma2', dict(GEMMA, attn_logit_softcapping=None, final_logit_softcapping=None, hidden_activation='silu'),
  ),
  'gemma3': ('gemma3_text', dict(GEMMA, num_hidden_layers=7)),
  'gemma3 linear': (
    'gemma3_text',
    dict(GEMMA, layer_types=['sliding_attention', 'full_attention'], final_logit_softcapping=1.5, rope_parameters=dict(
      full_attention=dict(rope_type='linear', factor=8.0, rope_theta=500.0),
      sliding_attention=dict(rope_type='default', rope_theta=100.0))),
  ),
  'gemma3 full layers only': ('gemma3_text', dict(GEMMA, layer_types=['full_attention'] * 2, attention_bias=True)),
  'gemma3 both sides': (
    'gemma3_text', dict(GEMMA, sliding_window=6, use_bidirectional_attention=True,
                        layer_types=['full_attention', 'sliding_attention']),
  ),
  'gpt2': ('gpt2', dict(n_embd=60, n_head=6, n_layer=2, n_positions=32, vocab_size=97)),
  'gpt2 untied, n_inner, relu': (
    'gpt2', dict(n_embd=60, n_head=6, n_layer=2, n_positions=32, vocab_size=97, n_inner=52, tie_word_embeddings=False,
                 activation_function='relu', layer_norm_epsilon=1e-3),
  ),
  'gpt_neox': ('gpt_neox', dict(hidden_size=48, num_attention_heads=4, rope_parameters=dict(
    rope_theta=500.0, rope_type='default', partial_rotary_factor=0.5))),
  'gpt_neox sequential': ('gpt_neox', dict(hidden_size=48, num_attention_heads=3, use_parallel_residual=False,
                                           attention_bias=False, hidden_act='gelu_new')),
  'opt': ('opt', dict(hidden_size=60, num_attention_heads=6, ffn_dim=52)),
  'opt no biases': ('opt', dict(hidden_size=60, num_attention_heads=6, ffn_dim=52, enable_bias=False,
                                tie_word_embeddings=False)),
}  # fmt: skip

CASES_SAVED_AS_THEMSELVES = set(CASES) - {'gpt_neox sequential', 'gpt2 untied, n_inner, relu'}


def random_model(model_type, fields, dtype=torch.float32):
  torch.manual_seed(0)
  ids = dict(pad_token_id=None, bos_token_id=None, eos_token_id=None)
  fields = {**(ids if model_type == 'gpt2' else SHARED), **fields}
  if model_type == 'opt':
    del fields['intermediate_size']
  config = transformers.AutoConfig.for_model(model_type, **fields)
  model = transformers.AutoModelForCausalLM.from_config(config).eval()
  with torch.no_grad():  # Initial biases are zero and initial norms one: a swapped or forgotten one would not show.
    for name, p in model.named_parameters():
      p.normal_(1.0 if ('norm' in name and 'gemma' not in model_type) or '.ln_' in name else 0.0, 0.2)
  return model.to(dtype)


def batch(vocab_size):
  tokens = np.random.default_rng(1).integers(0, vocab_size, (len(LENGTHS), max(LENGTHS)), dtype=np.int32)
  real = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
  return np.where(real, tokens, 0), real


def their_logits(model, tokens, real):
  with torch.no_grad():
    return model(torch.tensor(tokens), attention_mask=torch.tensor(real.astype(int))).logits.numpy()


def assert_equal_logits(lm, model):
  tokens, real = batch(lm.config.vocab_size)
  if not lm.config.causal:  # Ours would see the padding of the shorter rows.
    tokens, real = tokens[:1], real[:1]
  ours, theirs = np.asarray(jaxlm.forward(lm, tokens)), their_logits(model, tokens, real)
  difference = np.abs(ours - theirs)[real].max()
  print(f'{lm.config=} {difference=:.1e} {np.abs(theirs).max()=:.1f}')
  assert difference < 1e-4


@pytest.mark.parametrize('name', CASES)
def test_logits_equal_transformers_there_and_back(name, tmp_path):
  model = random_model(*CASES[name])
  model.save_pretrained(tmp_path / 'theirs')
  lm = jaxlm.load(tmp_path / 'theirs', 'float32')
  assert_equal_logits(lm, model)

  jaxlm.save_huggingface(lm, tmp_path / 'ours')
  back = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'ours')
  if name in CASES_SAVED_AS_THEMSELVES:
    assert back.config.model_type == CASES[name][0]
  assert_equal_logits(lm, back)

  again = jaxlm.load(tmp_path / 'ours', 'float32')
  jax.tree.map(np.testing.assert_array_equal, again.params, lm.params)
  assert_equal_logits(again, model)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('name', ['llama', 'gpt2', 'gpt_neox'])
def test_half_precision_shards_are_read_and_written(name, dtype, tmp_path):
  model = random_model(*CASES[name], dtype=dtype)
  model.save_pretrained(tmp_path / 'theirs', max_shard_size='20KB')
  assert len(list((tmp_path / 'theirs').glob('model-*.safetensors'))) > 1
  # Not model.float(): its RoPE frequencies stay rounded to half precision.
  whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'theirs', dtype=torch.float32)
  assert_equal_logits(jaxlm.load(tmp_path / 'theirs', 'float32'), whole)

  half = jaxlm.load(tmp_path / 'theirs', str(dtype).removeprefix('torch.'))
  jaxlm.save_huggingface(half, tmp_path / 'ours', max_shard_size='20KB')
  assert len(list((tmp_path / 'ours').glob('model-*.safetensors'))) > 1
  theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / 'ours')
  assert theirs.dtype == dtype
  for (name, a), b in zip(model.named_parameters(), theirs.parameters(), strict=True):
    np.testing.assert_array_equal(a.detach().float().numpy(), b.detach().float().numpy(), name)


def test_base_model_without_output_layer_is_read_when_embeddings_are_tied(tmp_path):
  model = random_model(*CASES['gpt2'])
  model.transformer.save_pretrained(tmp_path)  # names begin with 'h.0.', not 'transformer.h.0.'
  assert_equal_logits(jaxlm.load(tmp_path, 'float32'), model)


def test_the_text_model_is_read_from_gemma_3_with_an_image_encoder(tmp_path):
  text = dict(SHARED, **GEMMA, layer_types=['sliding_attention', 'full_attention'])
  vision = dict(
    hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
  )
  torch.manual_seed(0)
  model = transformers.Gemma3ForConditionalGeneration(
    transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, image_token_index=96)
  ).eval()
  model.save_pretrained(tmp_path)
  with pytest.warns(UserWarning, match='the text model is read; .* tensors of the image encoder are left out'):
    lm = jaxlm.load(tmp_path, 'float32')
  tokens, _ = batch(96)
  with torch.no_grad():
    theirs = model(torch.tensor(tokens)).logits.numpy()
  np.testing.assert_allclose(np.asarray(jaxlm.forward(lm, tokens)), theirs, atol=1e-4)


def test_gemma_rounds_as_transformers_does_in_bfloat16(tmp_path):
  """The embedding's scale and 1 + weight are rounded where transformers rounds them; a double rounding would show."""
  model = random_model('gemma3_text', dict(GEMMA, num_hidden_layers=2), torch.bfloat16)
  model.save_pretrained(tmp_path)
  lm = jaxlm.load(tmp_path, 'bfloat16')
  tokens, _ = batch(97)
  ids = torch.tensor(tokens)
  embedded, _, _ = functions.embedded(lm.params, lm.config, tokens)
  with torch.no_grad():
    theirs = model.model.embed_tokens(ids)
    np.testing.assert_array_equal(np.asarray(embedded, np.float32), theirs.float().numpy())
    normed = model.model.layers[0].input_layernorm(theirs)
  ours = functions.attention_input(lm.params['layer_0'], lm.config, 0, embedded)
  np.testing.assert_array_equal(np.asarray(ours, np.float32), normed.float().numpy())


def test_a_config_as_transformers_4_wrote_it_is_read(tmp_path):
  import json

  model = random_model(*CASES['llama llama3'])
  model.save_pretrained(tmp_path)
  path = tmp_path / 'config.json'
  fields = json.loads(path.read_text())
  rope_parameters = fields.pop('rope_parameters')
  fields['rope_theta'] = rope_parameters.pop('rope_theta')
  fields['rope_scaling'] = rope_parameters
  fields['torch_dtype'] = fields.pop('dtype')
  path.write_text(json.dumps(fields))
  assert_equal_logits(jaxlm.load(tmp_path, 'float32'), model)


@pytest.mark.parametrize(
  'scaling',
  [
    dict(rope_type='yarn', factor=4.0, original_max_position_embeddings=16),
    *slow(
      dict(rope_type='linear', factor=4.0),
      dict(rope_type='dynamic', factor=4.0),
      dict(
        rope_type='llama3', factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=16
      ),
    ),
  ],
  ids=['yarn', 'linear', 'dynamic', 'llama3'],
)
def test_contexts_that_only_a_scaling_stretches_are_generated_from(scaling, tmp_path):
  """max_position_embeddings is 16 as trained, and the prompt has 24 tokens."""
  import decoders

  torch.manual_seed(0)
  config = transformers.Qwen2Config(
    **dict(SHARED, max_position_embeddings=16), **QWEN, rope_parameters=dict(rope_theta=100.0, **scaling)
  )
  peer = transformers.Qwen2ForCausalLM(config).eval()
  with torch.no_grad():
    for parameter in peer.parameters():
      parameter.normal_(0, 0.4)
  peer.save_pretrained(tmp_path)
  lm = jaxlm.load(tmp_path, 'float32')
  assert lm.config.max_length == 64
  prompt = list(range(1, 25))
  with torch.no_grad():
    logits = peer(torch.tensor([prompt])).logits.numpy()
  np.testing.assert_allclose(np.asarray(jaxlm.forward(lm, [prompt])), logits, atol=2e-4)
  out = decoders.generate(lm, [prompt], max_new_tokens=6, eos_id=None).tokens[0].tolist()
  if scaling['rope_type'] != 'dynamic':
    theirs = peer.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False, use_cache=False)
    assert out == theirs[0, 24:].tolist()
    return
  # Dynamic frequencies follow the length. Keys in a cache cannot, so all are made for the length that will be reached:
  # that is one token more than the last input.
  with torch.no_grad():
    for position, token in enumerate(out):
      peer.model.rotary_emb.max_seq_len_cached = 16
      text = torch.tensor([prompt + out[:position]])
      at = torch.arange(text.shape[1])
      peer.model(torch.zeros((1, 30), dtype=torch.long))  # the longest text seen sets the frequencies
      last = peer(text, position_ids=at[None]).logits[0, -1]
      assert last.argmax().item() == token
