"""The command line's part that is not the decoders': what its flags mean together."""

import pytest

import decoders
from decoders.command import GenerateConfig, lazy_config, main
from decoders.simlayerkv import KiviConfig, LazyConfig, preset
from decoders.swift.config import SwiftConfig
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
  whole = decoders.generate(lm, [text], max_new_tokens=8, eos_id=None)
  first = int(whole.tokens[0, 0])
  for ends, left in (({'eos_id': ('<bos>', str(first))}, whole.text[0][:1]), ({'stop': (whole.text[0][:2],)}, '')):
    main(GenerateConfig('m', prompt=(text,), max_new_tokens=8, **ends))
    assert capsys.readouterr().out == f'{text}{left}\n'
  for ends, message in (({'eos_id': ('259',)}, 'eos_id=259 is no token'), ({'eos_id': ('ab',)}, "eos_id='ab'"), ({'stop': ('',)}, 'stop string')):  # fmt: skip
    with pytest.raises(ValueError, match=message):
      main(GenerateConfig('m', prompt=(text,), max_new_tokens=8, **ends))
  with pytest.raises(ValueError, match='--preset is for --decoder simlayerkv, not for plain'):
    main(GenerateConfig('m', prompt=('a',), preset='kivi'))


def test_drafting_decoders_print_the_same_text(monkeypatch, capsys):
  model = TINY.replace(vocab_size=259, max_length=256, num_layers=4)
  lm = LanguageModel(model, tiny_model(model).params, ByteTokenizer())
  monkeypatch.setattr(jaxlm, 'load', lambda path, dtype: lm, raising=False)
  swift = SwiftConfig(max_draft=3, guard=False, search=False)
  own = {
    'prompt-lookup': {'draft_tokens': 4},
    'draft': {'draft_model': 'd', 'draft_tokens': 3},
    'swift': {'swift': swift},
  }
  main(GenerateConfig('m', prompt=('A line of text.',), max_new_tokens=12))
  expected, _ = capsys.readouterr()
  for decoder, flags in own.items():
    main(GenerateConfig('m', prompt=('A line of text.',), decoder=decoder, max_new_tokens=12, **flags))
    said, notes = capsys.readouterr()
    assert said == expected and 'tokens a round' in notes
  with pytest.raises(ValueError, match='needs the smaller model'):
    main(GenerateConfig('m', prompt=('a',), decoder='draft'))
  with pytest.raises(ValueError, match='--lookup-first is for --decoder swift, not for draft'):
    main(GenerateConfig('m', prompt=('a',), decoder='draft', lookup_first=True))
