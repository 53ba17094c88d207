"""The command labels texts and files, continues after an interruption, and says what is wrong in one line."""

import json

import numpy as np
import pytest

import decoders
from decoders.classification import command
from decoders.classification.command import ClassifyFlags
from jaxlm.errors import DataError
from jaxlm.language_model import LanguageModel
from tests.decoders.classification.models_made import made
from tests.interruption import interrupted_at
from tests.models import TINY

LINES = ['a b c', '', 'h g', 'a', 'c d e f', 'b b']


@pytest.fixture(autouse=True)
def model(monkeypatch):
  import jaxlm

  monkeypatch.setattr(
    jaxlm, 'load', lambda path, dtype: made() if path == 'run' else LanguageModel(TINY, {}), raising=False
  )
  monkeypatch.setattr(command, 'BATCHES', 1)


def test_texts_are_shown_with_labels_and_words(capsys, tmp_path):
  page = tmp_path / 'map.html'
  command.main(ClassifyFlags('run', text=('a b c',), top=2, explain=True, heatmap=str(page)))
  shown = capsys.readouterr()
  out = decoders.classify(made(), ['a b c'], top=2, explain=True)
  lines = shown.out.splitlines()
  assert lines[:2] == ['a b c', f'  topic: {out.predicted[0][0]}'] and len(lines) == 7
  assert f'{out.probabilities[0, 0]:6.1%}  {out.labels[0][0]}   [a ' in lines[2] and 'rest' in lines[2]
  assert '<table>' in page.read_text() and '1 texts' in shown.err


def test_a_file_is_labelled_line_by_line_and_continued(tmp_path, monkeypatch):
  source, output = tmp_path / 'in.txt', tmp_path / 'out.jsonl'
  source.write_text('\n'.join(LINES) + '\n')
  flags = ClassifyFlags('run', input=str(source), output=str(output), top=2, batch_size=2, stats=False)
  with interrupted_at(monkeypatch, decoders, 'classify', 2):
    command.main(flags)
  begun = output.read_text()
  assert begun.count('\n') == 2
  with pytest.raises(ValueError, match='unfinished output of another run: its top is 2, and here it is 1'):
    command.main(ClassifyFlags('run', input=str(source), output=str(output), top=1, batch_size=2))
  command.main(flags)
  rows = output.read_text().split('\n')
  assert rows[1] == '' and rows[-1] == '' and len(rows) == 7 and output.read_text().startswith(begun)
  expected = decoders.classify(made(), [line for line in LINES if line], top=2)
  found = [json.loads(row) for row in rows if row]
  assert [row['topic']['labels'] for row in found] == expected.labels
  np.testing.assert_allclose([row['topic']['probabilities'] for row in found], expected.probabilities, atol=1e-5)
  assert [row['tags']['predicted'] for row in found] == expected.columns['tags'].predicted
  with pytest.raises(ValueError, match='is there already'):
    command.main(flags)


def test_explained_lines_add_up(tmp_path, capsys):
  source = tmp_path / 'in.txt'
  source.write_text('a b c\n')
  command.main(ClassifyFlags('run', input=str(source), explain=True, top=1, stats=False))
  (row,) = capsys.readouterr().out.splitlines()
  found, out = json.loads(row)['topic'], decoders.classify(made(), ['a b c'], top=1, explain=True)
  assert found['words'] == ['a', 'b', 'c']
  total = np.sum(found['contributions'], axis=1) + found['rest']
  np.testing.assert_allclose(total, out.contributions[0].logits, atol=1e-5)


@pytest.mark.parametrize(
  'flags, message',
  [
    ({}, 'Pass either --text TEXT ... or --input FILE'),
    ({'text': ('a',), 'output': 'x'}, '--output FILE is for --input FILE'),
    ({'input': 'a', 'heatmap': 'x.png'}, '--heatmap FILE is for --text'),
    ({'text': ('a',), 'heatmap': 'x.doc'}, '--heatmap x.doc must end in .html'),
    ({'text': ('a',), 'top': 0}, 'top=0 must be at least 1'),
    ({'text': ('a', ' ')}, 'Text 1 is empty'),
    ({'input': 'nowhere.txt'}, 'nowhere.txt'),
    ({'model': 'other', 'text': ('a',)}, 'other is no text classifier but a LanguageModel'),
  ],
)
def test_flags_that_cannot_work_are_named(flags, message):
  with pytest.raises((ValueError, DataError), match=message):
    command.main(ClassifyFlags(**{'model': 'run'} | flags))


def test_an_empty_file_is_refused(tmp_path):
  (tmp_path / 'e.txt').write_text('')
  with pytest.raises(ValueError, match='e.txt is empty: expected a text on each line'):
    command.main(ClassifyFlags('run', input=str(tmp_path / 'e.txt')))
