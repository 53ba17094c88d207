"""OPUS-MT models are read and written as transformers has them: the same logits, the same token ids, the same text."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxlm
from jaxlm.data import marian_tokenizer, tokenizers
from jaxlm.errors import CheckpointError
from jaxlm.io import marian
from jaxlm.io.fields import Fields
from jaxlm.models import seq2seq

torch = pytest.importorskip('torch', reason='parity needs PyTorch: pip install "jaxlm[parity]"')
transformers = pytest.importorskip('transformers', reason='parity needs transformers: pip install "jaxlm[parity]"')

ENGLISH = ['the cat sat on the mat', 'a dog and a cat ran', 'the dog sat', 'cats and dogs on mats'] * 4
GERMAN = ['die Katze saß auf der Matte', 'ein Hund und eine Katze liefen', 'der Hund saß', 'Katzen und Hunde'] * 4


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  """A random Marian model with a tokenizer, as transformers saves it."""
  place = tmp_path_factory.mktemp('marian') / 'model'
  protos = [tokenizers.train_sentencepiece(texts, 290)._proto for texts in (ENGLISH, GERMAN)]
  import sentencepiece

  pieces = {}
  for proto in protos:
    model = sentencepiece.SentencePieceProcessor(model_proto=proto)
    pieces |= dict.fromkeys(model.id_to_piece(i) for i in range(model.get_piece_size()))
  pieces = [p for p in pieces if p not in ('<unk>', '</s>', '<pad>', '<s>')]
  vocabulary = {p: i for i, p in enumerate(['</s>', '<unk>', *pieces, '>>deu<<', '<pad>'])}
  marian_tokenizer.MarianTokenizer(tuple(protos), (vocabulary, vocabulary)).save(place)
  torch.manual_seed(0)
  config = transformers.MarianConfig(
    vocab_size=len(vocabulary), d_model=24, encoder_layers=2, decoder_layers=3, encoder_attention_heads=3,
    decoder_attention_heads=3, encoder_ffn_dim=20, decoder_ffn_dim=20, max_position_embeddings=64, scale_embedding=True,
    activation_function='swish', pad_token_id=vocabulary['<pad>'], eos_token_id=0, forced_eos_token_id=0,
    decoder_start_token_id=vocabulary['<pad>'], init_std=0.3,
  )  # fmt: skip
  model = transformers.MarianMTModel(config).eval()
  with torch.no_grad():
    model.final_logits_bias.normal_()
  model.save_pretrained(place)
  return place


def their_logits(place, source, lengths, tokens):
  model = transformers.MarianMTModel.from_pretrained(place).eval()
  mask = np.arange(source.shape[1])[None] < np.asarray(lengths)[:, None]
  with torch.no_grad():
    inputs = dict(
      input_ids=torch.tensor(source), attention_mask=torch.tensor(mask), decoder_input_ids=torch.tensor(tokens)
    )
    return model(**inputs).logits.numpy()


def our_logits(model, source, lengths, tokens):
  args, lengths = (model.params, model.config), jnp.asarray(lengths)
  memory = seq2seq.memory(*args, seq2seq.encode(*args, jnp.asarray(source), lengths), lengths)
  return np.asarray(seq2seq.logits(*args, seq2seq.hidden(*args, jnp.asarray(tokens), memory)[0]))


SOURCE = np.array([[5, 9, 3, 17, 22, 8, 0], [4, 30, 11, 0, 1, 1, 1]])
LENGTHS = [7, 4]


def tokens_of(model):
  return np.concatenate(
    [np.full((2, 1), model.config.start_id), np.random.default_rng(0).integers(2, 60, (2, 5))], axis=1
  )


def test_logits_are_those_of_transformers_and_are_written_back(directory, tmp_path):
  model = jaxlm.load(directory, 'float32')
  assert 'Seq2SeqModel(2 + 3 layers x 24' in repr(model) and 'MarianTokenizer' in repr(model)
  tokens = tokens_of(model)
  expected = their_logits(directory, SOURCE, LENGTHS, tokens)
  np.testing.assert_allclose(our_logits(model, SOURCE, LENGTHS, tokens), expected, atol=1e-4)
  jaxlm.save_huggingface(model, tmp_path / 'copy')
  np.testing.assert_allclose(their_logits(tmp_path / 'copy', SOURCE, LENGTHS, tokens), expected, atol=1e-5)
  again = jaxlm.load(tmp_path / 'copy', 'float32')
  assert again.config == model.config and jax.tree.all(
    jax.tree.map(lambda a, b: (a == b).all(), again.params, model.params)
  )
  with pytest.raises(FileExistsError, match='overwrite=True'):
    jaxlm.save_huggingface(model, tmp_path / 'copy')


def test_tokens_and_text_are_those_of_transformers(directory, tmp_path):
  jaxlm.save_huggingface(jaxlm.load(directory, 'float32'), tmp_path / 'copy')
  for place in (directory, tmp_path / 'copy'):
    ours, theirs = marian_tokenizer.from_directory(place), transformers.MarianTokenizer.from_pretrained(place)
    for text in ('the cat sat', '>>deu<< a dog', '>>xyz<< mats', '', 'Übergrößen 漢字', ' two  spaces '):
      assert [*ours.encode_source(text), ours.eos_id] == theirs(text).input_ids
      assert [*ours.encode_target(text), ours.eos_id] == theirs(text_target=text).input_ids
    for ids in ([5, 9, 12, 0], [7, ours.pad_id, 30, 1, 44], []):
      assert ours.decode_target(ids) == theirs.decode(ids, skip_special_tokens=True)
  assert marian_tokenizer.from_directory(tmp_path) is None


def test_a_source_cannot_write_markers(directory):
  tokenizer = marian_tokenizer.from_directory(directory)
  assert tokenizer.eos_id not in tokenizer.encode_source('the</s> cat')
  assert tokenizer.encode_source('>>xyz<< mats')[0] == tokenizer.unk_id


@pytest.mark.parametrize('part', ['source.spm', 'target.spm', 'vocab.json'])
def test_missing_and_damaged_parts_are_named_and_the_weights_load_without(directory, tmp_path, part):
  shutil.copytree(directory, tmp_path / 'model')
  for damage in (lambda file: file.write_bytes(b'{"a": "b"}'), lambda file: file.unlink()):
    damage(tmp_path / 'model' / part)
    with pytest.raises(CheckpointError, match=rf'(?s)(model|{part}).*tokenizer=None'):
      jaxlm.load(tmp_path / 'model')
    with pytest.warns(UserWarning, match='has no tokenizer'):
      assert jaxlm.load(tmp_path / 'model', tokenizer=None).tokenizer is None


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'normalize_before': True}, 'normalize_before=True is not supported'),
    ({'decoder_attention_heads': 4}, 'decoder_attention_heads=4 is not supported'),
    ({'decoder_vocab_size': 7}, 'decoder_vocab_size=7 is not supported'),
    ({'d_model': 25}, 'model_dim=25 is not a multiple'),
    (
      {'d_model': 48},
      r'embed/embedding does not fit the config: .* shape \(\d+, 24\), the config asks for \(\d+, 48\)',
    ),
    ({'encoder_layers': 10**9}, 'encoder_layers=1000000000'),
    ({'pad_token_id': 'x'}, "pad_token_id='x'"),
  ],
)
def test_what_is_not_computed_is_named(directory, tmp_path, changes, message):
  shutil.copytree(directory, tmp_path / 'model')
  file = tmp_path / 'model' / 'config.json'
  file.write_text(json.dumps(json.loads(file.read_text()) | changes))
  with pytest.raises(CheckpointError, match=message):
    jaxlm.load(tmp_path / 'model')


@pytest.mark.parametrize('edit', ['absent', None, 'x', -1, 2**70, 0.5, True, [], {}], ids=str)
def test_every_field_is_checked_before_anything_is_computed_from_it(directory, edit):
  whole = json.loads((directory / 'config.json').read_text())
  for name in whole:
    changed = {k: v for k, v in whole.items() if k != name} if edit == 'absent' else whole | {name: edit}
    try:
      config = marian.read_config(Fields(changed, 'config.json'))
    except CheckpointError as e:
      assert 'config.json' in str(e), (name, edit)
      continue
    assert max(config.vocab_size, config.model_dim, config.mlp_dim, config.encoder_layers, config.max_length) < 10**8


def test_models_that_are_none_of_marians_say_why(directory, tmp_path):
  model = jaxlm.load(directory, 'float32')
  config = model.config.replace(norm_placement='pre', markov_order=3)
  with pytest.raises(ValueError, match="cannot express norm_placement='pre', markov_order=3"):
    jaxlm.save_huggingface(type(model)(config, model.params), tmp_path / 'copy')
  assert not (tmp_path / 'copy').exists()
