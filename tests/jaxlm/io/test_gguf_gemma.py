"""Gemma in GGUF files: what its files leave out, norm weights stored with 1 added, and a real model."""

import gguf
import jax
import numpy as np
import pytest

import jaxlm
from jaxlm.config import RopeConfig
from tests.jaxlm.io.test_gguf import LLAMA, SENTENCE, close, nll, random_lm, string, value, write

GEMMA = LLAMA.replace(
  norm_placement='sandwich', norm_plus_one=True, scaled_embeddings=True, activation='gelu_tanh', tied_embeddings=True,
  num_kv_heads=1,
)  # fmt: skip
GEMMA3 = GEMMA.replace(num_layers=7, qk_norm=True, rope=RopeConfig(theta=1e6))
LOCAL = GEMMA3.replace(windows=(9,) * 5 + (0,), local_rope_theta=1e4)


@pytest.mark.parametrize(
  'arch, config, extra',
  [
    ('gemma2', GEMMA.replace(windows=(4096, 0), attention_softcap=50.0, logit_softcap=30.0), {}),
    (
      'gemma2',
      GEMMA.replace(num_layers=46, windows=(9, 0), query_scale_dim=16, attention_softcap=20.0, logit_softcap=10.0),
      {'attention.sliding_window': 9, 'attn_logit_softcapping': 20.0, 'final_logit_softcapping': 10.0},
    ),
    ('gemma3', LOCAL, {'attention.sliding_window': 9}),
    ('gemma3', GEMMA3, {}),
    (
      'gemma3',
      LOCAL.replace(windows=(9, 0), local_rope_theta=500.0),
      {'attention.sliding_window': 9, 'attention.sliding_window_pattern': 2, 'rope.freq_base_swa': 500.0},
    ),
    (
      'gemma3',
      LOCAL.replace(windows=(0, 9, 9, 0, 9, 9, 9), rope=RopeConfig(theta=1e6, scaling='linear', factor=8.0)),
      {'attention.sliding_window': 9, 'attention.sliding_window_pattern': [w > 0 for w in (0, 9, 9, 0, 9, 9, 9)],
       'rope.scaling.type': 'linear', 'rope.scaling.factor': 8.0},
    ),
  ],
)  # fmt: skip
def test_gemma_is_read_with_what_its_files_leave_out(arch, config, extra, tmp_path):
  lm = random_lm(config)
  # As in the checkpoints that are converted: in bfloat16, where the file's 1 + weight is exact in float32.
  lm = jaxlm.LanguageModel(config, jax.tree.map(lambda x: x.astype('bfloat16').astype('float32'), lm.params))
  kinds = {int: value, float: value, str: string, list: lambda x: (x, gguf.GGUFValueType.ARRAY)}
  path = write(tmp_path / 'model.gguf', lm, arch, extra={f'{arch}.{k}': kinds[type(v)](v) for k, v in extra.items()})
  back = jaxlm.load(path, 'float32')
  assert back.config == config
  close(back.params, lm.params, 0)
  close(jaxlm.load(path, 'bfloat16').params, lm.params, 0)


# ---- Gemma 3 270M ----

TEXTS = (
  'Hello world 123', 'New  line\n\n x', 'Grüße, 日本語 🙂', '    indented code', "It's <table> a test", '\t\ttabs', '<unused3> and <bos>',
)  # fmt: skip


@pytest.fixture(scope='module')
def lm():
  from jaxlm.data import fetch

  if fetch.locate('gemma3-270m') is None:
    pytest.skip('Gemma 3 270M is not fetched: python -m jaxlm.data.fetch gemma3-270m')
  return jaxlm.load('gemma3-270m', 'float32')


@pytest.mark.real
def test_gemma_3_reads_english_with_both_bases_and_norms_as_they_are(lm):
  """Losses in nats per token, the tokens of BOS and SENTENCE."""
  assert sum(x.size for x in jax.tree.leaves(lm.params)) == 268_098_176
  assert lm.config.windows == (512,) * 5 + (0,)
  right = nll(lm, SENTENCE, bos=True)
  one_base = nll(
    jaxlm.LanguageModel(lm.config.replace(local_rope_theta=1e6), lm.params, lm.tokenizer), SENTENCE, bos=True
  )
  add = lambda path, x: x + 1 if path[-1].key == 'scale' else x
  shifted = jaxlm.LanguageModel(lm.config, jax.tree_util.tree_map_with_path(add, lm.params), lm.tokenizer)
  one_more = nll(shifted, SENTENCE, bos=True)
  print(f'{right=:.4f} {one_base=:.4f} {one_more=:.4f} {nll(lm, SENTENCE)=:.4f} without BOS')
  assert abs(right - 0.6442) < 1e-2
  assert one_base > right + 0.5 and one_more > right + 5


@pytest.mark.real
@pytest.mark.slow
def test_gemma_3_gives_the_logits_of_transformers_beyond_its_windows(lm, tmp_path):
  reason = 'parity with transformers: pip install -e .[parity]'
  torch = pytest.importorskip('torch', reason=reason)
  transformers = pytest.importorskip('transformers', reason=reason)
  from jaxlm.data import embedded

  tokens = np.array([lm.tokenizer.encode(next(d for d in embedded.read() if len(d) > 6000), bos=True)[:700]])
  assert tokens.shape == (1, 700)
  jaxlm.save_huggingface(lm, tmp_path)
  model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
  assert model.config.model_type == 'gemma3_text'
  with torch.no_grad():
    theirs = model(torch.tensor(tokens)).logits.numpy()
  difference, scale = np.abs(np.asarray(jaxlm.forward(lm, tokens)) - theirs).max(), np.abs(theirs).max()
  print(f'{difference=:.1e} {scale=:.1f}')
  assert difference < 3e-4 * scale


@pytest.mark.real
@pytest.mark.slow
def test_gemma_3_has_the_tokens_of_transformers(lm):
  """transformers makes its own tokenizer of the file's vocabulary."""
  transformers = pytest.importorskip('transformers', reason='the peer is not installed: pip install jaxlm[parity]')
  from jaxlm.data import fetch

  path = fetch.locate('gemma3-270m')
  peer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
  assert (lm.tokenizer.bos_id, lm.tokenizer.stop_ids, lm.tokenizer.adds_bos) == (2, (1, 106), True)
  for text in TEXTS:
    ids = lm.tokenizer.encode(text, special=True)
    assert ids == peer.encode(text, add_special_tokens=False), text
    assert lm.tokenizer.decode(ids, skip_special=False) == text
