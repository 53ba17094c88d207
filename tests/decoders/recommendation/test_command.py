"""The command recommends items by name, continues after an interruption, and says what is wrong in one line."""

import dataclasses
import json

import numpy as np
import pytest

import decoders
from decoders import atspeed
from decoders.recommendation import command
from decoders.recommendation.command import RecommendFlags
from jaxlm.data import catalogue
from jaxlm.data.catalogue import Catalogue
from jaxlm.data.item_trie import ItemTrie
from jaxlm.errors import DataError
from tests.interruption import interrupted_at
from tests.models import TINY, tiny_model

CODES = np.array([[n // 4, n % 4] for n in range(11)] + [[2, 2]])  # Items 10 and 11 share an identifier.
ITEMS = Catalogue.from_names(
  [f'i{n}' for n in range(12)], [f'Film {n}' for n in range(12)], catalogue.code_names(CODES), np.arange(12), history=3
)
K = 13  # More than there are; the same everywhere, so that one program serves all.
OTHER = Catalogue.from_names(ITEMS.item_ids, ITEMS.titles, catalogue.code_names(CODES[::-1]), np.arange(12), history=3)
LINES = ['["i1", "film 2"]', '', '[]', '["i5"]', '["i7", "i8", "i9", "i10"]', '["i2"]']


def model(tokenizer=ITEMS, seed=0, config=TINY):
  return dataclasses.replace(tiny_model(config, seed), tokenizer=tokenizer)


@pytest.fixture(autouse=True)
def models(monkeypatch):
  import jaxlm

  found = {
    'run': model(),
    'draft': model(seed=1, config=TINY.replace(num_layers=1)),
    'other': model(OTHER),
    'lm': tiny_model(),
  }
  monkeypatch.setattr(jaxlm, 'load', lambda path, dtype: found[path], raising=False)


def expected(names, allowed=None):
  """Returns the ids of the items that the search finds after the named ones."""
  trie = ITEMS.trie() if allowed is None else ITEMS.trie().allowed(allowed)
  history = ITEMS.find(names)
  out = atspeed.recommend(model(), None, trie, [ITEMS.prompt(history)], k=K)
  return [ITEMS.item_ids[i] for i in out.items[0]]


def printed(capsys):
  return [line.split('(')[1].rstrip(')') for line in capsys.readouterr().out.splitlines()]


def test_items_are_printed_by_title_with_scores(capsys):
  command.main(RecommendFlags('run', history=('i1', 'FILM 2'), k=K))
  lines = capsys.readouterr()
  first = lines.out.splitlines()[0].split()
  assert first[0] == '1' and float(first[1]) < 0 and first[2] == 'Film' and '1 histories' in lines.err
  assert [line.split('(')[1].rstrip(')') for line in lines.out.splitlines()] == expected(['i1', 'i2'])


def test_a_draft_gives_the_same_items(capsys):
  command.main(RecommendFlags('run', history=('i1', 'i2'), k=K, draft='draft', beam=K, stats=False))
  assert printed(capsys) == expected(['i1', 'i2'])


def test_an_empty_history_and_more_items_than_there_are(capsys):
  command.main(RecommendFlags('run', history=('',), k=K, stats=False))
  found = printed(capsys)
  assert found == expected([]) and sorted(found) == sorted(ITEMS.item_ids)
  assert found.index('i11') + 1 == found.index('i10')  # They share an identifier, and i11 is more popular.


def test_seen_items_are_left_out_and_others_are_not_allowed(capsys, tmp_path):
  best = expected(['i1', 'i2'])
  command.main(RecommendFlags('run', history=tuple(best[:2]), k=K, exclude_seen=True, stats=False))
  found = printed(capsys)
  assert not set(found) & set(best[:2]) and len(found) == 10
  (tmp_path / 'allow.txt').write_text('Film 3\n\ni4\n')
  command.main(RecommendFlags('run', history=('i1',), k=K, allow=str(tmp_path / 'allow.txt'), stats=False))
  assert printed(capsys) == expected(['i1'], allowed=[3, 4])
  (tmp_path / 'allow.txt').write_text('Film 3\ni99\n')
  with pytest.raises(DataError, match="allow.txt, line 2: Unknown item 'i99'"):
    command.main(RecommendFlags('run', history=('i1',), allow=str(tmp_path / 'allow.txt')))
  (tmp_path / 'allow.txt').write_text('\n')
  with pytest.raises(ValueError, match='names no item'):
    command.main(RecommendFlags('run', history=('i1',), allow=str(tmp_path / 'allow.txt')))


def test_a_file_is_answered_line_by_line_and_continued(tmp_path, monkeypatch):
  source, output = tmp_path / 'in.jsonl', tmp_path / 'out.jsonl'
  source.write_text('\n'.join(LINES) + '\n')
  flags = RecommendFlags('run', input=str(source), output=str(output), k=K, batch_size=1, stats=False)
  monkeypatch.setattr(command, 'BATCHES', 2)
  with interrupted_at(monkeypatch, atspeed, 'recommend', 2):
    command.main(flags)
  begun = output.read_text()
  assert begun.count('\n') == 2
  with pytest.raises(ValueError, match='unfinished output of another run: its k is 13, and here it is 3'):
    command.main(dataclasses.replace(flags, k=3))
  command.main(flags)
  rows = output.read_text().split('\n')
  assert output.read_text().startswith(begun) and len(rows) == 7 and rows[1] == rows[-1] == ''
  for line, row in zip(LINES, rows):
    if line:
      assert [item['id'] for item in json.loads(row)] == expected(json.loads(line))
  assert json.loads(rows[0])[0].keys() == {'id', 'title', 'score'}


def test_drawn_items_depend_on_the_line_and_not_on_the_batch(tmp_path, monkeypatch, capsys):
  source, output = tmp_path / 'in.jsonl', tmp_path / 'out.jsonl'
  source.write_text('["i1"]\n' * 9 + '\n' + '["i1"]\n' * 6)
  flags = RecommendFlags('run', input=str(source), k=3, verify='relaxed_exact', stats=False)

  def found(**changes):
    command.main(dataclasses.replace(flags, **changes))
    return ids_of(capsys.readouterr().out)

  def ids_of(text):
    return [tuple(item['id'] for item in json.loads(line)) if line else () for line in text.splitlines()]

  monkeypatch.setattr(command, 'BATCHES', 2)
  lines = found(batch_size=1)
  assert found(batch_size=2) == lines == found(batch_size=8) and lines[9] == ()
  # 12 identifiers in lists of three: blocks that draw the same would repeat.
  assert len(set(lines)) > 8 and not any(lines[:n] == lines[n : 2 * n] for n in (2, 4))
  with interrupted_at(monkeypatch, atspeed, 'recommend', 2):
    found(batch_size=2, output=str(output))
  found(batch_size=8, output=str(output))
  assert ids_of(output.read_text()) == lines


@pytest.mark.parametrize(
  'flags, message',
  [
    (dict(), 'Pass either --history ITEM ... or --input FILE'),
    (dict(history=('i1',), output='x'), '--output FILE is for --input FILE'),
    (dict(history=('i1',), k=0), 'k=0 must be at least 1'),
    (dict(history=('i1',), batch_size=0), 'batch_size=0 must be at least 1'),
    (dict(history=('i1',), draft='draft', k=50), 'beam=40 must be at least k=50'),
    (dict(history=('i1',), select='score'), "select='score' is for verify='relaxed'"),
    (dict(history=('i1', 'i77')), "--history: Unknown item 'i77'.* To leave out such items: --unknown skip"),
    (dict(history=('i1', '')), "--history: Unknown item ''.* To leave out such items: --unknown skip"),
    (dict(history=('i1',), draft='other'), '--draft other and run have other identifiers'),
    (dict(history=('i1',), draft='lm'), '--draft lm is no recommender'),
  ],
)
def test_what_is_wrong_is_said(flags, message):
  with pytest.raises(ValueError, match=message):
    command.main(RecommendFlags('run', **flags))


@pytest.mark.parametrize('unknown', ['error', 'skip'])
def test_a_title_of_several_items_is_never_left_out(tmp_path, monkeypatch, unknown):
  import jaxlm

  same = dataclasses.replace(ITEMS, titles=('Film', 'film', *ITEMS.titles[2:]))
  monkeypatch.setattr(jaxlm, 'load', lambda path, dtype: model(same))
  (tmp_path / 'in.jsonl').write_text('["Film 3", "FILM"]\n')
  message = r"in.jsonl, line 1: 2 items have the title 'FILM'. Give one of their ids instead: i0, i1.$"
  with pytest.raises(DataError, match=message):
    command.main(RecommendFlags('run', input=str(tmp_path / 'in.jsonl'), unknown=unknown))


def test_titles_and_other_decoders_are_refused_with_what_to_do():
  with pytest.raises(ValueError, match="History 0 is 'Film 2'; expected token ids"):
    atspeed.recommend(model(), None, ITEMS.trie(), ['Film 2'], k=2)
  with pytest.raises(ValueError, match='This model is a recommender.*Use decoders.atspeed.recommend'):
    decoders.generate(model(), [[1, 2]])


def test_the_identifiers_of_a_draft_are_compared_from_python_too():
  with pytest.raises(
    DataError, match=f'The draft and the model have other identifiers.*{OTHER.digest}.*{ITEMS.digest}'
  ):
    atspeed.recommend(model(), model(OTHER), ITEMS.trie(), [ITEMS.prompt([1])], k=2, beam=2)
  with pytest.raises(
    DataError, match=r'Of \d+ identifiers of ItemTrie.*, the model knows \d+: the trie was made for other'
  ):
    atspeed.recommend(model(), None, ItemTrie.from_ids(ITEMS.tokens[:, ::-1]), [ITEMS.prompt([1])], k=2)


def test_lines_that_are_no_histories_are_named_and_unknown_items_can_be_skipped(tmp_path, capsys):
  for line, message in (
    ('{"a": 1}', r"line 1: found {'a': 1}; expected a list of items"),
    ('i1', 'line 1 is not JSON'),
    ('["i1", ""]', "line 1: Unknown item ''"),
    ('["i1", "nowhere"]', "line 1: Unknown item 'nowhere'"),
  ):
    (tmp_path / 'in.jsonl').write_text(line + '\n')
    with pytest.raises(DataError, match=message):
      command.main(RecommendFlags('run', input=str(tmp_path / 'in.jsonl')))
  command.main(RecommendFlags('run', input=str(tmp_path / 'in.jsonl'), k=K, unknown='skip', stats=False))
  assert [item['id'] for item in json.loads(capsys.readouterr().out)] == expected(['i1'])
