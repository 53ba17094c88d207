"""Translations, scores and ways of early stopping equal those of transformers' Marian with the same weights."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import decoders
from jaxlm.seq2seq_config import Seq2SeqConfig
from jaxlm.translation_model import Seq2SeqModel

torch = pytest.importorskip('torch', reason='the peer is not installed: pip install jaxlm[parity]')
transformers = pytest.importorskip('transformers', reason='the peer is not installed: pip install jaxlm[parity]')

PAD, EOS = 39, 0
MARIAN = dict(
  vocab_size=40, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
  encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=32, pad_token_id=PAD, eos_token_id=EOS, bos_token_id=None,
  decoder_start_token_id=PAD, forced_eos_token_id=None, scale_embedding=True, activation_function='swish',
)  # fmt: skip
CONFIG = Seq2SeqConfig(
  vocab_size=40, encoder_layers=2, decoder_layers=2, model_dim=16, num_heads=4, mlp_dim=24, max_length=32, start_id=PAD,
  eos_id=EOS, pad_id=PAD, norm_placement='post', activation='silu', output_bias=True, dtype='float32',
)  # fmt: skip
SOURCES = [[5, 6, 7, 8], [9], [11, 12, 13, 14, 15, 16, 17], [20, 3], [30, 31, 30], [22, 21, 5]]
LAYER = {
  'attention': 'self_attn', 'attention_norm': 'self_attn_layer_norm', 'cross': 'encoder_attn', 'cross_norm': 'encoder_attn_layer_norm',
  'up': 'fc1', 'down': 'fc2', 'mlp_norm': 'final_layer_norm',
}  # fmt: skip


@functools.cache
def peer():
  """Returns Marian with random weights that are large enough for distributions that are far from even."""
  torch.manual_seed(0)
  model = transformers.MarianMTModel(transformers.MarianConfig(**MARIAN)).eval()
  with torch.no_grad():
    for name, x in model.named_parameters():
      if 'embed_positions' not in name and 'norm' not in name:
        x.copy_(torch.randn_like(x) * 0.4)
    model.final_logits_bias.copy_(torch.randn_like(model.final_logits_bias))
    model.final_logits_bias[0, EOS] += 6.0
  return model


def ours() -> Seq2SeqModel:
  """Returns the same model in this library."""
  state = {name: np.asarray(x) for name, x in peer().state_dict().items()}
  array = lambda name: jnp.asarray(state[name])
  heads = lambda x: x.reshape(*x.shape[:-1], 4, 4)

  def projections(name):
    found = {
      n: {'kernel': heads(array(f'{name}.{n}_proj.weight').T), 'bias': heads(array(f'{name}.{n}_proj.bias'))}
      for n in 'qkv'
    }
    out = {'kernel': array(f'{name}.out_proj.weight').T.reshape(4, 4, -1), 'bias': array(f'{name}.out_proj.bias')}
    return found | {'o': out}

  norm = lambda name: {'scale': array(f'{name}.weight'), 'bias': array(f'{name}.bias')}
  dense = lambda name: {'kernel': array(f'{name}.weight').T, 'bias': array(f'{name}.bias')}

  def layer(name, crosses):
    parts = {n: f'{name}.{theirs}' for n, theirs in LAYER.items()}
    found = {'attention': projections(parts['attention']), 'mlp': {n: dense(parts[n]) for n in ('up', 'down')}}
    found |= {n: norm(parts[n]) for n in ('attention_norm', 'mlp_norm')}
    return found | ({'cross': projections(parts['cross']), 'cross_norm': norm(parts['cross_norm'])} if crosses else {})

  stack = lambda name: {f'layer_{i}': layer(f'model.{name}.layers.{i}', name == 'decoder') for i in range(2)}
  params = {
    'encoder': stack('encoder'),
    'decoder': stack('decoder'),
    'embed': {'embedding': array('model.shared.weight')},
  }
  return Seq2SeqModel(CONFIG, params | {'output_bias': array('final_logits_bias')[0]})


def theirs(num_return: int, **settings):
  """Returns (ids without start and padding, score) of each row."""
  rows = [[*source, EOS] for source in SOURCES]
  width = max(map(len, rows))
  out = peer().generate(
    input_ids=torch.tensor([row + [PAD] * (width - len(row)) for row in rows]),
    attention_mask=torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
    num_return_sequences=num_return, bad_words_ids=[[PAD]], do_sample=False, return_dict_in_generate=True, output_scores=True,
    **settings,
  )  # fmt: skip
  ids = [[int(t) for t in row[1:] if t != PAD] for row in out.sequences]
  return ids, out.sequences_scores.numpy() if 'sequences_scores' in out else None


@pytest.mark.parametrize(
  'early, penalty, least',
  [(False, 1.0, 0), (False, 0.6, 4), (True, 1.0, 0), (True, -0.5, 0), ('never', 1.0, 0), ('never', 0.0, 3)],
)
def test_beams_equal_those_of_transformers(early, penalty, least):
  settings = dict(early_stopping=early, length_penalty=penalty, max_new_tokens=20, min_new_tokens=least)
  ids, scores = theirs(3, num_beams=4, **settings)
  out = decoders.translate(ours(), SOURCES, beam_size=4, num_return=3, **settings)
  assert out.rows() == ids
  np.testing.assert_allclose(out.scores, scores, rtol=1e-4)
  assert out.lengths.min() < 20  # Some searches end before the greatest length.


def test_greedy_equals_that_of_transformers():
  ids, _ = theirs(1, num_beams=1, max_new_tokens=20)
  assert decoders.translate(ours(), SOURCES, beam_size=1, max_new_tokens=20).rows() == ids
