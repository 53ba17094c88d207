"""The command line's part that is not the decoders': what its flags mean together."""

import pytest

import decoders
from decoders.command import GenerateConfig, lazy_config, main
from decoders.simlayerkv import KiviConfig, LazyConfig, preset
import jaxlm
from jaxlm.data.tokenizers import ByteTokenizer
from jaxlm.language_model import LanguageModel
from tests.models import TINY, tiny_model


def test_flags_change_a_preset():
  config = GenerateConfig('m', preset='kvpress', lazy=LazyConfig(threshold=0.8), quant_bits=2, quant_group=16)
  assert lazy_config(config) == preset('kvpress', threshold=0.8, quant=KiviConfig(2, 16, 16))
  assert lazy_config(GenerateConfig('m', lazy=LazyConfig(n_full=3))) == LazyConfig(n_full=3)
  with pytest.raises(ValueError, match="Did you mean 'snapkv'"):
    lazy_config(GenerateConfig('m', preset='snapk'))


def test_the_command_decodes_as_the_functions_do(monkeypatch, capsys):
  model = TINY.replace(vocab_size=259, max_length=256)
  lm = LanguageModel(model, tiny_model(model).params, ByteTokenizer())
  monkeypatch.setattr(jaxlm, 'load', lambda path, dtype: lm, raising=False)
  text = 'A line of text. ' * 8
  said = {}
  for decoder, lazy in (('plain', LazyConfig()), ('simlayerkv', LazyConfig(n_recent=16, n_full=1))):
    main(GenerateConfig('m', prompt=(text,), decoder=decoder, lazy=lazy, max_new_tokens=8, prefill_chunk=50))
    said[decoder], notes = capsys.readouterr()
    assert ('lazy layers [[' in notes) == (decoder == 'simlayerkv')
  assert said['plain'].startswith(text)
  assert said['plain'] == text + decoders.generate(lm, [text], max_new_tokens=8).text[0] + '\n'
  with pytest.raises(ValueError, match='are for --decoder simlayerkv, not for plain'):
    main(GenerateConfig('m', prompt=('a',), preset='kivi'))
