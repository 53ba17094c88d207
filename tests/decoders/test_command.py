"""The command line's part that is not the decoders': what its flags mean together."""

import dataclasses

import pytest

import decoders
from decoders.command import GenerateConfig, lazy_config, main
from decoders.glide import GlideDecoding
from decoders.simlayerkv import KiviConfig, LazyConfig, preset
from decoders.swift.config import SwiftConfig
import jaxlm
from jaxlm.data.tokenizers import ByteTokenizer
from jaxlm.language_model import LanguageModel
from tests.glide_drafts import tiny_draft
from tests.models import TINY, tiny_model
from tests.tokenizers_made import byte_level_bpe


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
  with pytest.raises(ValueError, match="implementation='pallas' runs on TPUs, .* computes on cpu"):
    main(GenerateConfig('m', prompt=('a',), max_new_tokens=2, implementation='pallas'))
  with pytest.raises(ValueError, match='--preset is for --decoder simlayerkv, not for plain'):
    main(GenerateConfig('m', prompt=('a',), preset='kivi'))


@pytest.mark.slow
def test_drafting_decoders_print_the_same_text(monkeypatch, capsys):
  model = TINY.replace(vocab_size=259, max_length=256, num_layers=4)
  lm = LanguageModel(model, tiny_model(model).params, ByteTokenizer())
  glide = tiny_draft(model)
  monkeypatch.setattr(jaxlm, 'load', lambda path, dtype: glide if path == 'g' else lm, raising=False)
  swift = SwiftConfig(max_draft=3, guard=False, search=False)
  own = {
    'prompt-lookup': {'draft_tokens': 4},
    'draft': {'draft_model': 'd', 'draft_tokens': 3},
    'swift': {'swift': swift},
    'glide': {'draft': 'g', 'glide': GlideDecoding(guard=False, bins=(1,))},
  }
  main(GenerateConfig('m', prompt=('A line of text.',), max_new_tokens=12))
  expected, _ = capsys.readouterr()
  for decoder, flags in own.items():
    main(GenerateConfig('m', prompt=('A line of text.',), decoder=decoder, max_new_tokens=12, **flags))
    said, notes = capsys.readouterr()
    assert said == expected and 'tokens a round' in notes
    assert ('accepted by place in the chain' in notes) == (decoder == 'glide')
  with pytest.raises(ValueError, match='needs the smaller model'):
    main(GenerateConfig('m', prompt=('a',), decoder='draft'))
  with pytest.raises(ValueError, match='--lookup-first is for --decoder swift or glide, not for draft'):
    main(GenerateConfig('m', prompt=('a',), decoder='draft', lookup_first=True))
  for flags, message in (
    ({'decoder': 'glide'}, 'pass --draft RUN'),
    ({'decoder': 'glide', 'draft': 'd'}, 'd is not a GliDe draft'),
    ({'decoder': 'draft', 'draft_model': 'g'}, 'g is a GliDe draft: pass it as --draft'),
    ({'decoder': 'swift', 'draft': 'g'}, '--draft is for --decoder glide, not for swift'),
  ):
    with pytest.raises(ValueError, match=message):
      main(GenerateConfig('m', prompt=('a',), **flags))
  with pytest.raises(ValueError, match='g is a GliDe draft for tiny: pass that model'):
    main(GenerateConfig('g', prompt=('a',)))


def test_chat_templates_get_variables_and_tokenizers_are_chosen(monkeypatch, capsys, tmp_path):
  model = TINY.replace(vocab_size=404, max_length=256)
  own, other, loads = ByteTokenizer(), byte_level_bpe(), []
  own.chat_template = "{{ messages[0]['content'] }}{% if thinking is defined %} {{ thinking }}{% endif %}{{ tools | length if tools else '' }}"
  lm = LanguageModel(model, tiny_model(model).params, own)

  def load(path, dtype, tokenizer='its own'):
    loads.append(tokenizer)
    return lm if tokenizer == 'its own' else dataclasses.replace(lm, tokenizer=tokenizer)

  monkeypatch.setattr(jaxlm, 'load', load, raising=False)
  other.save(tmp_path / 'other')
  said = lambda **flags: main(GenerateConfig('m', max_new_tokens=6, stats=False, **flags)) or capsys.readouterr().out
  text = lambda lm, prompt: decoders.generate(lm, [prompt], max_new_tokens=6).text[0] + '\n'
  assert said(chat='Hi') == text(lm, 'Hi')
  given = '{"thinking": false, "tools": [{"type": "function"}]}'
  assert said(chat='Hi', chat_template_args=given) == text(lm, 'Hi False1')
  changed = dataclasses.replace(lm, tokenizer=other)
  for place in ('other', 'other/tokenizer.json'):
    assert said(prompt=('Hello',), tokenizer=str(tmp_path / place)) == 'Hello' + text(changed, 'Hello')
    assert loads[-1].fingerprint == other.fingerprint
  assert said(chat='Hi', tokenizer=str(tmp_path / 'other')) == text(changed, changed.tokenizer.chat('Hi'))
  rows = decoders.generate(dataclasses.replace(lm, tokenizer=None), [[1, 15], [7]], max_new_tokens=6).rows()
  assert said(prompt=('1 15', '7'), tokenizer='none') == ''.join(' '.join(map(str, row)) + '\n' for row in rows)
  for flags, message in (
    ({'prompt': ('a',), 'chat_template_args': '{}'}, 'is for --chat'),
    ({'chat': 'Hi', 'chat_template_args': '{'}, "--chat-template-args '{' is no JSON"),
    ({'chat': 'Hi', 'chat_template_args': '[1]'}, 'is no JSON object'),
    ({'chat': 'Hi', 'chat_template_args': '{"messages": 1}'}, "cannot set 'messages'"),
    ({'chat': 'Hi', 'tokenizer': 'none'}, '--chat needs a tokenizer'),
    ({'prompt': ('Hi',), 'tokenizer': 'none'}, "token ids with spaces between, such as .*; got 'Hi'"),
    ({'prompt': ('Hi',), 'tokenizer': str(tmp_path)}, 'holds no tokenizer: expected a folder with one'),
  ):
    with pytest.raises(ValueError, match=message):
      said(**flags)
