"""The command that translates texts and files."""

import dataclasses
import io
import sys

import pytest

import decoders
from decoders.translation import blocks
from decoders.translation.command import TranslateConfig, main
import jaxlm
from jaxlm.translation_model import Seq2SeqModel
from tests.decoders.translation.models_made import tiny
from tests.decoders.translation.test_parallel import CMLM, model_of
from tests.interruption import interrupted_at
from tests.models import tiny_model

LINES = ['abc', 'f', '', 'dede', 'bb', '  ', 'a', 'cafe', 'fab', 'bed']
SHORT = {'max_new_tokens': 6, 'beam_size': 2, 'stats': False}


@pytest.fixture(autouse=True)
def models(monkeypatch):
  found = {
    'm': tiny(),
    'masked': model_of(CMLM),
    'other': tiny_model(),
    'mute': dataclasses.replace(tiny(), tokenizer=None),
  }
  monkeypatch.setattr(jaxlm, 'load', lambda path, dtype: found[path], raising=False)


def expected(lines=LINES, num_return=1) -> list[str]:
  """Returns the lines that the function gives, all in one call."""
  texts = [line for line in lines if line.strip()]
  out = iter(decoders.translate(tiny(), texts, max_new_tokens=6, beam_size=2, num_return=num_return).text)
  return [next(out) if line.strip() else '' for line in lines for _ in range(num_return)]


def file_of(tmp_path, lines=LINES):
  path = tmp_path / 'in.txt'
  path.write_text(''.join(line + '\n' for line in lines))
  return str(path)


def test_texts_are_printed(monkeypatch, capsys):
  main(TranslateConfig('m', text=('abc', 'f'), **SHORT))
  assert capsys.readouterr().out.splitlines() == expected(['abc', 'f'])
  monkeypatch.setattr(sys, 'stdin', io.StringIO('abc\nf\n'))
  main(TranslateConfig('m', text=('-',), **SHORT | {'stats': True}))
  out, notes = capsys.readouterr()
  assert out.splitlines() == expected(['abc', 'f']) and 'tokens/s; encoding' in notes


def test_models_that_predict_all_tokens_at_once_have_their_flags(capsys):
  main(TranslateConfig('masked', text=('abc', 'f'), iterations=4, length_beam=3, dedup=True))
  out, notes = capsys.readouterr()
  expected = decoders.translate(model_of(CMLM), ['abc', 'f'], iterations=4, length_beam=3, dedup=True)
  assert (
    out.splitlines() == expected.text and f'{expected.stats["repetition_ratio"]:.1%} of tokens were repeated' in notes
  )
  with pytest.raises(ValueError, match='beam_size=2 is for models that write token by token'):
    main(TranslateConfig('masked', text=('abc',), beam_size=2))


@pytest.mark.parametrize('num_return', [1, 2])
def test_a_file_is_translated_in_order(tmp_path, capsys, monkeypatch, num_return):
  monkeypatch.setattr(blocks, 'BATCHES', 2)
  flags = SHORT | {'input': file_of(tmp_path), 'num_return': num_return, 'batch_size': 2}
  main(TranslateConfig('m', **flags))
  assert capsys.readouterr().out.split('\n')[:-1] == expected(num_return=num_return)
  main(TranslateConfig('m', output=str(tmp_path / 'out.txt'), **flags))
  assert (tmp_path / 'out.txt').read_text().split('\n')[:-1] == expected(num_return=num_return)
  assert sorted(p.name for p in tmp_path.iterdir()) == ['in.txt', 'out.txt']
  with pytest.raises(ValueError, match='is there already'):
    main(TranslateConfig('m', output=str(tmp_path / 'out.txt'), **flags))


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
  monkeypatch.setattr(blocks, 'BATCHES', 2)
  output = tmp_path / 'out.txt'
  config = TranslateConfig('m', input=file_of(tmp_path), output=str(output), batch_size=2, **SHORT)
  with interrupted_at(monkeypatch, decoders, 'translate', 2):
    main(config)
  assert output.read_text().split('\n')[:-1] == expected()[:4]
  with pytest.raises(ValueError, match='its beam_size is 2, and here it is 1'):
    main(dataclasses.replace(config, beam_size=1))
  with output.open('a') as file:
    file.write('half a li')
  main(config)
  assert output.read_text().split('\n')[:-1] == expected()
  assert sorted(p.name for p in tmp_path.iterdir()) == ['in.txt', 'out.txt']


def test_an_input_that_has_changed_is_noticed(tmp_path, monkeypatch):
  output = tmp_path / 'out.txt'
  config = TranslateConfig('m', input=file_of(tmp_path), output=str(output), **SHORT)
  with monkeypatch.context() as patch:
    patch.setattr('decoders.resumable.Blocks.end', lambda self: None)
    main(config)
  file_of(tmp_path, ['b', *LINES[1:]])
  with pytest.raises(ValueError, match='its sha256 of the input is'):
    main(config)


@pytest.mark.parametrize(
  'model, flags, message',
  [
    ('m', {}, 'Pass either --text TEXT ... or --input FILE'),
    ('m', {'text': ('a',), 'input': 'in.txt'}, 'Pass either'),
    ('m', {'text': ('a',), 'output': 'out.txt'}, '--output FILE is for --input FILE'),
    ('m', {'text': ('a',), 'batch_size': 0}, 'batch_size=0 must be at least 1'),
    ('m', {'text': ('a', 'zz')}, 'Text 2 has token id 28'),
    ('other', {'text': ('a',)}, 'other is no encoder-decoder but a LanguageModel'),
    ('mute', {'text': ('a',)}, 'mute has no tokenizer'),
    ('m', {'input': 'missing.txt'}, 'missing.txt cannot be read'),
    ('m', {'input': '/dev/null'}, 'is no file, and it is read more than once'),
  ],
)
def test_what_cannot_be_done_is_refused(model, flags, message):
  with pytest.raises(ValueError, match=message):
    main(TranslateConfig(model, **flags))


@pytest.mark.parametrize(
  'content, flags, message',
  [
    (b'abc\nzz\n', {}, 'in.txt, line 2 has token id 28'),
    (b'abc\n' + b'a' * 40, {}, 'in.txt, line 2 has 41 tokens with its EOS, and the model reads at most 32'),
    (b'abc\n\xff\n', {}, 'in.txt, line 2: byte 0xff at column 1 is not UTF-8'),
    (b'', {}, 'in.txt is empty'),
    (b'abc\n', {'num_return': 3}, 'num_return=3 must be within'),
  ],
)
def test_a_bad_file_is_refused_before_anything_is_written(tmp_path, content, flags, message):
  path = tmp_path / 'in.txt'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message):
    main(TranslateConfig('m', input=str(path), output=str(tmp_path / 'out.txt'), **SHORT, **flags))
  assert [*tmp_path.iterdir()] == [path]


def test_ids_that_decode_to_several_lines_are_one_line(capsys, monkeypatch):
  class Breaking:
    encode_source = staticmethod(lambda text: [3])
    decode_target = staticmethod(lambda ids: 'one\ntwo')

  broken = Seq2SeqModel(tiny().config, tiny().params, Breaking())
  monkeypatch.setattr(jaxlm, 'load', lambda path, dtype: broken, raising=False)
  main(TranslateConfig('m', text=('a',), **SHORT))
  assert capsys.readouterr().out == 'one two\n'
