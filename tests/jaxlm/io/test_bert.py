"""BERT directories give the states that the formula says, and those of transformers; what is not computed is named."""

import json

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors

import jaxlm
from jaxlm import lm_states
from jaxlm.data.text_reader import LmTokens, TextReader
from jaxlm.errors import CheckpointError
from jaxlm.exam_config import ExamConfig
from jaxlm.models import functions

FIELDS = {
  'model_type': 'bert', 'vocab_size': 30, 'hidden_size': 12, 'num_hidden_layers': 2, 'num_attention_heads': 3, 'intermediate_size': 20,
  'max_position_embeddings': 16, 'type_vocab_size': 2, 'hidden_act': 'gelu', 'layer_norm_eps': 1e-12,
}  # fmt: skip
V, D, F, P, N = 30, 12, 20, 16, 3
WORDS = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'a', 'cat', 'sat', '##s', '.']


def tensors(rng):
  shapes = {
    'embeddings.word_embeddings.weight': (V, D), 'embeddings.position_embeddings.weight': (P, D),
    'embeddings.token_type_embeddings.weight': (2, D), 'pooler.dense.weight': (D, D), 'pooler.dense.bias': (D,),
    'embeddings.LayerNorm.weight': (D,), 'embeddings.LayerNorm.bias': (D,),
  }  # fmt: skip
  for i in range(2):
    layer = f'encoder.layer.{i}'
    for name, out, into in (
      *((f'attention.self.{x}', D, D) for x in ('query', 'key', 'value')),
      ('attention.output.dense', D, D), ('intermediate.dense', F, D), ('output.dense', D, F),
    ):  # fmt: skip
      shapes |= {f'{layer}.{name}.weight': (out, into), f'{layer}.{name}.bias': (out,)}
    for name in ('attention.output.LayerNorm', 'output.LayerNorm'):
      shapes |= {f'{layer}.{name}.weight': (D,), f'{layer}.{name}.bias': (D,)}
  return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def tokenizer_json():
  import tokenizers
  from tokenizers import models, normalizers, pre_tokenizers, processors

  made = tokenizers.Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token='[UNK]'))
  made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
  made.post_processor = processors.BertProcessing(('[SEP]', 3), ('[CLS]', 2))
  made.add_special_tokens(WORDS[:5])
  return made.to_str()


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """Returns (directory, its tensors)."""
  path, made = tmp_path_factory.mktemp('bert'), tensors(np.random.default_rng(0))
  (path / 'config.json').write_text(json.dumps(FIELDS))
  (path / 'tokenizer.json').write_text(tokenizer_json())
  marks = {f'{name}_token': f'[{name.upper()}]' for name in ('pad', 'unk', 'cls', 'sep', 'mask')}
  (path / 'special_tokens_map.json').write_text(json.dumps(marks))
  safetensors.save_file({f'bert.{name}': x for name, x in made.items()}, path / 'model.safetensors')
  return path, made


@pytest.fixture(scope='module')
def lm(model):
  return jaxlm.load(model[0], 'float32')


def reference(w, tokens):
  """Returns the states of one text, as the formula says, in float64."""
  from scipy.special import erf

  w = {name: x.astype(np.float64) for name, x in w.items()}
  dense = lambda x, name: x @ w[f'{name}.weight'].T + w[f'{name}.bias']

  def norm(x, name):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * w[f'{name}.weight'] + w[f'{name}.bias']

  embed = lambda kind, at: w[f'embeddings.{kind}_embeddings.weight'][at]
  x = norm(
    embed('word', tokens) + embed('position', np.arange(len(tokens))) + embed('token_type', 0), 'embeddings.LayerNorm'
  )
  for i in range(2):
    layer, heads = f'encoder.layer.{i}', []
    q, k, v = (dense(x, f'{layer}.attention.self.{name}') for name in ('query', 'key', 'value'))
    for h in range(N):
      part = slice(h * D // N, (h + 1) * D // N)
      logits = q[:, part] @ k[:, part].T / np.sqrt(D // N)
      p = np.exp(logits - logits.max(-1, keepdims=True))
      heads.append(p / p.sum(-1, keepdims=True) @ v[:, part])
    mixed = dense(np.concatenate(heads, axis=1), f'{layer}.attention.output.dense')
    x = norm(x + mixed, f'{layer}.attention.output.LayerNorm')
    up = dense(x, f'{layer}.intermediate.dense')
    x = norm(x + dense(up * (1 + erf(up / np.sqrt(2))) / 2, f'{layer}.output.dense'), f'{layer}.output.LayerNorm')
  return x


def test_states_are_those_of_the_formula_whatever_the_padding(model, lm):
  rows = [[2, 5, 6, 7, 8, 9, 3], [2, 9, 3]]
  tokens, mask = np.zeros((2, 9), np.int32), np.zeros((2, 9), bool)
  for i, row in enumerate(rows):
    tokens[i, : len(row)], mask[i, : len(row)] = row, True
  found = jax.jit(functions.text_states, static_argnums=1)(lm.params, lm.config, tokens, mask)
  for row, states in zip(rows, np.asarray(found)):
    np.testing.assert_allclose(states[: len(row)], reference(model[1], row), rtol=2e-4, atol=2e-5)


def test_texts_begin_and_end_as_the_model_expects(lm):
  words = LmTokens(lm.tokenizer)
  assert words.encode('A cats sat.') == [2, 5, 6, 8, 7, 9, 3] and words.encode('  ') == []
  assert words.pieces('cat .') == ['[CLS]', 'cat', '.', '[SEP]']
  reader = TextReader(words, (), ())
  first, last = (ExamConfig(encoder='lm', max_length=4, keep=keep) for keep in ('first', 'last'))
  text = ' '.join(['cat', 'sat', *['a'] * 2000, '.'])  # Of a text that is cut the token that ends it is kept.
  assert reader.encode(text, first) == [2, 6, 7, 3] and reader.encode(text, last) == [5, 5, 9, 3]
  assert reader.pieces(text, first) == ['[CLS]', 'cat', 'sat', '[SEP]'] and reader.encode('cat', first) == [2, 6, 3]
  assert (lm.tokenizer.bos_id, lm.tokenizer.eos_id, lm.tokenizer.pad_id) == (2, 3, 0)


def test_embeddings_are_means_of_states_of_length_one(model, lm):
  found = lm_states.embed(lm, ['a cat sat .', 'cat'])
  for text, vector in zip(('a cat sat .', 'cat'), found):
    mean = reference(model[1], LmTokens(lm.tokenizer).encode(text)).mean(0)
    np.testing.assert_allclose(vector, mean / np.linalg.norm(mean), rtol=2e-4, atol=2e-5)
  # A text that is cut keeps the token that ends it.
  np.testing.assert_allclose(lm_states.embed(lm, ['cat a cat sat'], max_tokens=3), found[1:], rtol=1e-5)
  with pytest.raises(ValueError, match="Text 1 is empty: ' ' has no token"):
    lm_states.embed(lm, ['a', ' '])
  with pytest.raises(ValueError, match='max_tokens=17 must be within 2 .. 16'):
    lm_states.embed(lm, ['a'], max_tokens=17)


@pytest.mark.parametrize('change, message', [
  ({'position_embedding_type': 'relative_key'}, 'positions have learned embeddings'),
  ({'is_decoder': True}, 'a BERT that writes text is another model'),
  ({'num_attention_heads': 5}, 'hidden_size=12 is not a multiple'),
  ({'hidden_size': 9}, r'embed/embedding does not fit the config'),
  ({'num_hidden_layers': 3}, 'parameter layer_2/attention/q/kernel is missing'),
])  # fmt: skip
def test_what_is_not_computed_is_named(model, tmp_path, change, message):
  (tmp_path / 'config.json').write_text(json.dumps(FIELDS | change))
  (tmp_path / 'model.safetensors').symlink_to(model[0] / 'model.safetensors')
  with pytest.raises(CheckpointError, match=message):
    jaxlm.load(tmp_path, 'float32')


def test_an_encoder_is_not_saved_as_a_model_that_it_is_not(lm, tmp_path):
  with pytest.raises(ValueError, match='no family expresses .*embedding_norm=True'):
    jaxlm.save_huggingface(lm, tmp_path / 'saved')


def parity(directory, texts, dtype='float32'):
  """Returns the largest difference from transformers among the states of real tokens, divided by the largest state."""
  torch = pytest.importorskip('torch', reason='the peer is not installed: pip install jaxlm[parity]')
  transformers = pytest.importorskip('transformers', reason='the peer is not installed: pip install jaxlm[parity]')
  peer = transformers.BertModel.from_pretrained(directory).eval()
  lm = jaxlm.load(directory, dtype)
  rows = [LmTokens(lm.tokenizer).encode(text) for text in texts]
  assert rows == transformers.AutoTokenizer.from_pretrained(directory)(texts)['input_ids']
  ((numbers, tokens, mask),) = lm_states.batches(rows)
  mask = mask[: len(rows)]
  with torch.no_grad():
    expected = peer(torch.tensor(tokens[: len(rows)]).long(), torch.tensor(mask).long()).last_hidden_state.numpy()
  found = jax.jit(functions.text_states, static_argnums=1)(lm.params, lm.config, tokens, np.pad(mask, ((0, len(tokens) - len(mask)), (0, 0)), constant_values=True))  # fmt: skip
  return np.abs(np.asarray(found)[: len(rows)] - expected)[mask].max() / np.abs(expected).max()


@pytest.mark.slow
def test_states_are_those_of_transformers(model):
  assert parity(model[0], ['a cat sat.', 'cats', 'sat a a a']) < 1e-5


@pytest.mark.real
@pytest.mark.slow
def test_minilm_has_the_states_of_transformers_and_knows_what_is_alike():
  from jaxlm.data import fetch

  place = fetch.verified('minilm')
  if place is None:
    pytest.skip('MiniLM is not fetched: python -m jaxlm.data.fetch minilm')
  assert parity(place, ['The cat sat on the mat.', 'Unbelievably, tokenizers differ!']) < 1e-5
  texts = ['A man is eating food.', 'A man is eating a piece of bread.', 'The girl is carrying a baby.']
  alike = (vectors := lm_states.embed(jaxlm.load('minilm'), texts)) @ vectors.T
  np.testing.assert_allclose(np.diag(alike), 1, rtol=1e-5)
  assert alike[0, 1] > 0.7 and max(alike[0, 2], alike[1, 2]) < 0.2
