"""An output that is gone on with: no line is lost, repeated or overwritten."""

import json

import pytest

from decoders.resumable import Blocks

FACTS = {'model': 'm', 'beam_size': 4, 'sources': 5}


def test_an_interrupted_output_is_gone_on_with(tmp_path):
  output = tmp_path / 'out.txt'
  first = Blocks(output, FACTS, 2)
  assert first.done == 0 and not list(tmp_path.iterdir())
  first.write(['a', 'b\nc\x0bd', '', 'e'])
  assert output.read_text() == 'a\nb c d\n\ne\n'
  for rest in ('', 'f\n', 'f\ng'):  # of a source whose lines are not complete
    output.write_text('a\nb c d\n\ne\n' + rest)
    assert Blocks(output, FACTS, 2).done == 2
  second = Blocks(output, FACTS, 2)
  second.write(['x', 'y', 'x', 'y', 'x', 'ÿ'])
  second.end()
  assert output.read_text(encoding='utf-8') == 'a\nb c d\n\ne\nx\ny\nx\ny\nx\nÿ\n' and [*tmp_path.iterdir()] == [output]


def test_an_output_that_was_cut_after_its_last_line_is_ended(tmp_path):
  output = tmp_path / 'out.txt'
  Blocks(output, FACTS, 1).write(['a'] * 5)
  last = Blocks(output, FACTS, 1)
  assert last.done == 5
  last.end()
  assert output.read_text() == 'a\n' * 5 and [*tmp_path.iterdir()] == [output]


def test_outputs_that_do_not_belong_are_refused_and_left_alone(tmp_path):
  output, note = tmp_path / 'out.txt', tmp_path / 'out.txt.unfinished.json'

  def refused(message, **changes):
    before = output.read_text()
    with pytest.raises(ValueError, match=message):
      Blocks(output, FACTS | changes, 1)
    assert output.read_text() == before

  output.write_text('mine\n')
  refused('is there already, and is not the unfinished output')
  output.unlink()
  Blocks(output, FACTS, 1).write(['a', 'b'])
  refused('another run: its beam_size is 4, and here it is 3', beam_size=3)
  refused("another run: its model is 'm', and here it is 'n'", model='n')
  output.write_text('a\n' * 6)
  refused('has 6 lines, more than the 5 of this input')
  for damaged in ('{', '[]', json.dumps({'model': 'm'})):
    note.write_text(damaged)
    refused('unfinished.json is damaged')
