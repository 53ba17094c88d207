"""What jaxlm.load says of files that are broken, foreign or do not belong together."""

import json
import pickle
import sys
import types

import jax
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

import jaxlm
from jaxlm.config import ModelConfig
from jaxlm.data.tokenizers import ByteTokenizer
from jaxlm.errors import CheckpointError
from jaxlm.models.transformer import abstract_params

CONFIG = ModelConfig(
  vocab_size=50, num_layers=2, model_dim=24, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=20, max_length=32,
  dtype='float32',
)  # fmt: skip
PARAMS = jax.tree.map(lambda x: np.full(x.shape, 0.5, 'float32'), abstract_params(CONFIG))


@pytest.fixture
def model(tmp_path):
  """A good directory, to be broken."""
  jaxlm.save_huggingface(jaxlm.LanguageModel(CONFIG, PARAMS), tmp_path / 'model')
  return tmp_path / 'model'


def edit_config(directory, **changes):
  path = directory / 'config.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensors(directory, edit):
  path = directory / 'model.safetensors'
  tensors = safetensors_numpy.load_file(path)
  edit(tensors)
  safetensors_numpy.save_file(tensors, path)


def refuses(path, message, *absent):
  with pytest.raises(CheckpointError, match=message) as error:
    jaxlm.load(path, 'float32')
  for word in absent:
    assert word not in str(error.value)


@pytest.mark.parametrize('size', [0, 3, 8, 40, 1500, -1, -1000])
def test_a_truncated_safetensors_file_is_named(model, size):
  path = model / 'model.safetensors'
  data = path.read_bytes()
  path.write_bytes(data[:size])
  refuses(model, r'model\.safetensors.*truncated.*again')


def test_a_longer_or_garbled_safetensors_file_is_named(model):
  path = model / 'model.safetensors'
  data = path.read_bytes()
  path.write_bytes(data + b'more')
  refuses(model, r'model\.safetensors is corrupt: it has \d+ bytes, its header describes \d+')
  garbled = bytearray(data)
  garbled[20:30] = b'\xff' * 10
  path.write_bytes(garbled)
  refuses(model, r'model\.safetensors has a corrupt header')
  header = json.dumps({'t': {'dtype': 'F32', 'shape': [3], 'data_offsets': [0, 8]}}).encode()
  path.write_bytes(len(header).to_bytes(8, 'little') + header + b'x' * 8)
  refuses(model, r'model\.safetensors has a corrupt header.*\(3,\) cannot lie in bytes 0 to 8')


@pytest.mark.parametrize(
  'content, message',
  [
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n', 'Git LFS pointer.*git lfs pull'),
    (pickle.dumps({'a': 1}) + b' ' * 100, 'is a pickle'),
    (b'<!DOCTYPE html><html>Not found</html>' * 9, 'is not a safetensors file'),
    (np.random.default_rng(0).bytes(3000), 'is not a safetensors file'),
  ],
)
def test_a_foreign_file_named_safetensors_is_named(model, content, message):
  (model / 'model.safetensors').write_bytes(content)
  refuses(model, rf'model\.safetensors.*{message}')


def test_a_missing_shard_is_named(tmp_path):
  jaxlm.save_huggingface(jaxlm.LanguageModel(CONFIG, PARAMS), tmp_path, max_shard_size=6000)
  shards = sorted(tmp_path.glob('model-*.safetensors'))
  content = shards[1].read_bytes()
  shards[1].unlink()
  refuses(tmp_path, rf'{shards[1].name} is missing, but model.safetensors.index.json names it')
  shards[1].write_bytes(shards[2].read_bytes())
  refuses(tmp_path, rf'{shards[1].name} has no tensor .*, but model.safetensors.index.json says so')
  shards[1].write_bytes(content[:-7])
  refuses(tmp_path, rf'{shards[1].name} is truncated')
  (tmp_path / 'model.safetensors.index.json').write_text('{"weight_map": ')
  refuses(tmp_path, 'model.safetensors.index.json is not readable JSON')


def test_the_first_parameter_that_differs_is_named_with_both_shapes(model):
  edit_config(model, intermediate_size=28)
  refuses(
    model,
    r'parameter layer_0/mlp/\w+/kernel does not fit the config: tensor .model\.layers\.0\.mlp\.\w+_proj\.weight. has '
    r'shape \(.*20.*\), the config asks for \(.*28.*\)',
    'layer_1',
  )
  edit_config(model, intermediate_size=20, vocab_size=51)
  refuses(model, r'embed/embedding .*\(50, 24\), the config asks for \(51, 24\)')


def test_missing_and_unexpected_parameters_are_named(model):
  edit_config(model, num_hidden_layers=3)
  refuses(model, r'parameter layer_2/\S+ is missing: there is no tensor .model\.layers\.2\.\S+')
  edit_config(model, num_hidden_layers=1)
  refuses(model, r'unexpected tensors.*model\.layers\.1\.\S+.* and 4 more')
  edit_config(model, num_hidden_layers=2)
  edit_tensors(model, lambda t: t.pop('lm_head.weight'))
  refuses(model, r'parameter head is missing')


def test_weights_stored_as_integers_are_refused(model):
  edit_tensors(model, lambda t: t.update({'model.norm.weight': np.ones(24, np.int8)}))
  refuses(model, r"tensor 'model\.norm\.weight' is stored as I8")


def test_a_tokenizer_larger_than_the_vocabulary_is_refused_with_both_sizes(model):
  ByteTokenizer().save(model)
  refuses(model, r'the tokenizer has 259 ids, the model only 50 \(vocab_size\)')


def test_a_broken_tokenizer_is_named(model):
  (model / 'tokenizer.json').write_text('{"version": ')
  refuses(model, r'tokenizer\.json')


@pytest.mark.parametrize(
  'content, message', [('', 'not readable JSON'), ('[]', 'holds a list'), ('{}', "'model_type'")]
)
def test_a_broken_config_is_named(model, content, message):
  (model / 'config.json').write_text(content)
  refuses(model, rf'config\.json.*{message}')


def test_config_fields_of_the_wrong_kind_are_named(model):
  edit_config(model, num_hidden_layers=0)
  refuses(model, r'config\.json: num_hidden_layers=0 .*expected a whole number from 1 to 10000')
  edit_config(model, num_hidden_layers=2, hidden_size='wide')
  refuses(model, r"config\.json: hidden_size='wide' .*expected a whole number")


@pytest.mark.parametrize('name', ['pytorch_model.bin', 'model.pt', 'weights.ckpt'])
def test_pickles_are_refused_with_the_reason(model, name, tmp_path):
  (model / 'model.safetensors').rename(model / name)
  refuses(model, rf'{name} is not read: pickled weights run whatever code they contain.*safetensors')
  refuses(model / name, 'pickled weights run')
  (model / 'config.json').unlink()
  refuses(model, 'pickled weights run')


def test_directories_that_hold_no_model_say_what_is_expected(model, tmp_path):
  kinds = r'Expected a run directory of ours.*Hugging Face directory.*\.gguf.*fetched name.*ORG/NAME'
  (tmp_path / 'empty').mkdir()
  refuses(tmp_path / 'empty', rf'empty is not a model\. {kinds}')
  (tmp_path / 'notes.txt').write_text('hello')
  refuses(tmp_path / 'notes.txt', rf'notes\.txt is not a model\. {kinds}')
  refuses(model / 'model.safetensors', 'holds weights only: load its directory')
  (model / 'model.safetensors').unlink()
  refuses(model, 'has a config.json but no weights: expected model.safetensors')


def test_a_path_that_does_not_exist_suggests_names():
  kinds = r'Expected a run directory of ours.*Names that can be fetched: .*smollm2'
  refuses('smolm2', rf"no model at 'smolm2'\. Did you mean 'smollm2'\? {kinds}")
  refuses('/no/such/model', kinds, 'Did you mean')
  refuses('tests/no-such-model', kinds, 'Hub id it')  # tests/ is here, so this is no Hub organisation


def test_a_name_that_is_not_fetched_yet_says_how(monkeypatch):
  from jaxlm.data import fetch

  monkeypatch.setattr(fetch, 'locate', lambda name: None)
  refuses('smollm2', 'has not been fetched yet: python -m jaxlm.data.fetch smollm2')


def test_a_hub_id_goes_through_huggingface_hub(model, monkeypatch):
  hub = types.ModuleType('huggingface_hub')
  asked = []
  hub.snapshot_download = lambda name, **kwargs: asked.append((name, kwargs['allow_patterns'])) or str(model)
  monkeypatch.setitem(sys.modules, 'huggingface_hub', hub)
  assert jaxlm.load('some-org/some-model', 'float32').config == CONFIG
  assert asked[0][0] == 'some-org/some-model'
  assert not any('bin' in pattern for pattern in asked[0][1])

  def offline(name, **kwargs):
    raise ConnectionError('no route')

  hub.snapshot_download = offline
  refuses('some-org/some-model', r"'some-org/some-model' here.*Hub id.*ConnectionError: no route")
  monkeypatch.setitem(sys.modules, 'huggingface_hub', None)
  refuses('some-org/some-model', r'needs huggingface_hub: pip install jaxlm\[hub\]')


# ---- GGUF ----


@pytest.fixture
def gguf_path(tmp_path):
  from tests.jaxlm.io.test_gguf import write

  return write(tmp_path / 'model.gguf', jaxlm.LanguageModel(CONFIG, PARAMS))


@pytest.mark.parametrize('size', [0, 3, 4, 10, 100, 700, 2000, -1, -3000])
def test_a_truncated_gguf_file_is_named(gguf_path, size):
  gguf_path.write_bytes(gguf_path.read_bytes()[:size])
  refuses(gguf_path, r'model\.gguf.*(truncated|not a GGUF file).*again')


def test_a_corrupt_or_foreign_gguf_file_is_named(gguf_path):
  data = bytearray(gguf_path.read_bytes())
  gguf_path.write_bytes(b'GGUF' + np.random.default_rng(0).bytes(500))
  refuses(gguf_path, r'model\.gguf.*truncated or corrupt GGUF')
  data[4:8] = (99).to_bytes(4, 'little')  # a version of the format that nobody knows
  gguf_path.write_bytes(data)
  refuses(gguf_path, r'model\.gguf.*corrupt GGUF.*version')
  gguf_path.write_bytes(b'PK\x03\x04' + b'0' * 500)
  refuses(gguf_path, r'model\.gguf is not a GGUF file')


def test_gguf_tensors_that_do_not_fit_are_named(tmp_path):
  from tests.jaxlm.io.test_gguf import file_tensors, write

  lm = jaxlm.LanguageModel(CONFIG, PARAMS)
  good = file_tensors(lm, 'llama')
  path = write(tmp_path / 'a.gguf', lm, tensors={k: v for k, v in good.items() if k != 'blk.1.ffn_up.weight'})
  refuses(path, r'a\.gguf: parameter layer_1/mlp/up/kernel is missing.*blk\.1\.ffn_up\.weight')
  path = write(tmp_path / 'b.gguf', lm, tensors={**good, 'blk.0.attn_k.weight': np.ones((8, 24), np.float32)})
  refuses(path, r'layer_0/attention/k/kernel.*\(8, 24\), the config asks for \(16, 24\)')
  path = write(tmp_path / 'c.gguf', lm, tensors={**good, 'blk.0.extra.weight': np.ones((8, 24), np.float32)})
  refuses(path, r'unexpected tensors.*blk\.0\.extra\.weight')
  path = write(tmp_path / 'd.gguf', lm, tensors={k: v for k, v in good.items() if k != 'token_embd.weight'})
  refuses(path, r'embed/embedding is missing')
  refuses(tmp_path, r'holds 4 GGUF files; name one of them')


def test_a_tokenizer_that_is_not_understood_does_not_keep_the_weights_away(tmp_path, model):
  from gguf import GGUFWriter

  from tests.jaxlm.io import test_gguf

  class Tagged(GGUFWriter):
    def write_header_to_file(self, *args, **kwargs):
      self.add_string('tokenizer.ggml.model', 'gpt2')
      self.add_string('tokenizer.ggml.pre', 'of-next-year')
      self.add_array('tokenizer.ggml.tokens', [chr(97 + i) for i in range(20)])
      self.add_array('tokenizer.ggml.merges', ['a b'])
      super().write_header_to_file(*args, **kwargs)

  lm = jaxlm.LanguageModel(CONFIG, PARAMS)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr('gguf.GGUFWriter', Tagged)
    path = test_gguf.write(tmp_path / 'a.gguf', lm)
  (model / 'tokenizer.json').write_text('{}')
  for place, name in ((path, "a.gguf.*pre-tokenizer 'of-next-year'"), (model, 'tokenizer.json')):
    refuses(place, rf'{name}.*weights can be used without it: jaxlm\.load\(\.\.\., tokenizer=None\)')
    assert jaxlm.load(place, 'float32', tokenizer=None).tokenizer is None
    with pytest.raises(CheckpointError, match='the tokenizer has 259 ids, the model only 50'):
      jaxlm.load(place, 'float32', tokenizer=ByteTokenizer())
  small = ByteTokenizer()
  small._bytes = small._bytes[:50]
  assert jaxlm.load(path, 'float32', tokenizer=small).tokenizer is small
