"""Lines of a file become lines of another one, once each, also after an interruption."""

import pytest

from decoders import line_files


def test_flags_that_do_not_fit_are_named():
  for flags, message in (
    (((), None, None, 1), 'either --text TEXT'), ((('a',), 'f', None, 1), 'either --text TEXT'),
    ((('a',), None, 'out', 1), '--output FILE is for --input'), (((), 'f', None, 0), 'batch_size=0 must be at least 1'),
  ):  # fmt: skip
    with pytest.raises(ValueError, match=message):
      line_files.check_flags(*flags)
  line_files.check_flags((), 'f', 'out', 1)


def test_an_interrupted_output_is_continued_with_the_lines_that_are_left(tmp_path):
  source, output = tmp_path / 'in.txt', tmp_path / 'out.txt'
  source.write_text('a\nb\nc\n')
  seen = []

  def turn(model, lines, write, total, done, stop=None):
    seen.append((model, total, done))
    for name, text in lines:
      if text == stop:
        raise ValueError(f'{name} is bad')
      write([f'{text}{model}', text.upper()])

  run = lambda turn, **settings: line_files.turn_file(
    str(source), str(output), 'm', settings, lambda: '!', turn, per_line=2
  )
  with pytest.raises(ValueError, match='in.txt, line 2 is bad'):
    run(lambda *args: turn(*args, stop='b'), beam=1)
  with pytest.raises(ValueError, match='its beam is 1, and here it is 2'):
    run(turn, beam=2)
  run(turn, beam=1)
  assert output.read_text() == 'a!\nA\nb!\nB\nc!\nC\n' and seen == [('!', 3, 0), ('!', 3, 1)]


def test_without_an_output_lines_are_printed_and_an_empty_input_is_refused(tmp_path, capsys):
  source = tmp_path / 'in.txt'
  source.write_text('a\nb\n')
  copy = lambda model, lines, write, total, done: write([text for _, text in lines])
  line_files.turn_file(str(source), None, 'm', {}, lambda: None, copy)
  assert capsys.readouterr().out == 'a\nb\n'
  source.write_text('')
  with pytest.raises(ValueError, match='is empty: expected a text on each line'):
    line_files.turn_file(str(source), None, 'm', {}, lambda: None, copy)
