"""python -m jaxlm.analysis.direction: scores survive a kill, selected texts are training data, reports are printed."""

import dataclasses
import json
import os
from pathlib import Path
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import jaxlm
from jaxlm import analysis
from jaxlm.analysis.direction import command
from jaxlm.analysis.direction import files as direction_files
from jaxlm.analysis.direction import report as direction_report
from jaxlm.analysis.direction import scores as direction_scores
from jaxlm.data import selection, sources, tokenizers
from jaxlm.errors import DataError
from jaxlm.language_model import LanguageModel
from tests.models import TINY, tiny_model


def model(seed=0):
  lm = tiny_model(TINY.replace(vocab_size=259, direction='both'), seed)
  return LanguageModel(lm.config, lm.params, tokenizers.ByteTokenizer())


@pytest.fixture
def corpus(tmp_path, monkeypatch):
  """A folder of two files, a model that `load` finds, parts that are written after every window."""
  monkeypatch.setattr(jaxlm, 'load', lambda path, dtype: model(int(path[-1])), raising=False)
  monkeypatch.setattr(direction_files.Parts.__init__, '__kwdefaults__', {'overwrite': False, 'seconds': 0.0})
  monkeypatch.chdir(tmp_path)
  random, folder = np.random.default_rng(0), tmp_path / 'texts'
  folder.mkdir()
  words = 'the a cat dog saw of and river - stone 12 walks'.split()
  for name, number in (('novel.jsonl', 40), ('wiki.jsonl', 25)):
    texts = [' '.join(random.choice(words, random.integers(1, 60))) for _ in range(number)]
    (folder / name).write_text(''.join(json.dumps({'text': t}) + '\n' for t in texts))
  return folder


def score(corpus, out='scores.parquet', **options):
  return command.score(command.ScoreConfig(str(corpus), 'model-0', out=out, **{'batch_size': 4, **options}))


def select(out='selected.jsonl', **options):
  return command.select(command.SelectConfig('scores.parquet', out=out, **{'min_tokens': 20, **options}))


def lines(path):
  return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_the_file_holds_what_the_function_yields(corpus, capsys):
  score(corpus)
  found = analysis.read_scores('scores.parquet')
  texts = list(sources.documents(str(corpus)))
  expected = list(analysis.score_documents(model(), texts, batch_size=4))
  assert len(found) == found.documents == len(texts) == 65
  for name in ('id', 'characters', 'tokens', 'nll_forward', 'nll_reverse', 'loss_forward', 'loss_reverse', 'S', 'se'):
    np.testing.assert_allclose(getattr(found, name), [getattr(s, name) for s in expected], rtol=1e-5, atol=1e-6)
  assert found.digest.to_pylist() == [direction_scores.text_digest(t) for t in texts]
  assert [found.domains[i] for i in found.domain] == ['novel.jsonl'] * 40 + ['wiki.jsonl'] * 25
  assert '65 of 65 documents scored' in capsys.readouterr().out
  assert not Path('scores.parquet.parts').exists()
  score(corpus, 'few.parquet', limit=10, min_tokens=50)
  few = analysis.read_scores('few.parquet')
  assert few.documents == 10 and few.tokens.min() >= 50 and len(few) == sum(s.tokens >= 50 for s in expected[:10])


def test_a_second_run_on_the_same_scores_is_refused_at_once_and_a_killed_one_keeps_nobody_out(corpus, monkeypatch):
  code = (
    'import sys, time\nfrom jaxlm.analysis.direction import files\n'
    'with files.locked("scores.parquet"):\n  print("held", flush=True)\n  time.sleep(600)'
  )
  env = {**os.environ, 'PYTHONPATH': str(Path(jaxlm.__file__).parents[1])}
  other = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE, text=True, env=env)
  try:
    assert other.stdout.readline() == 'held\n'
    load, loaded = jaxlm.load, []
    monkeypatch.setattr(jaxlm, 'load', lambda path, dtype: loaded.append(path) or load(path, dtype), raising=False)
    before = sorted(Path().iterdir())
    for overwrite in (False, True):
      with pytest.raises(DataError, match='Another run is writing scores.parquet'):
        score(corpus, overwrite=overwrite)
    assert not loaded and sorted(Path().iterdir()) == before
    score(corpus, 'other.parquet')
  finally:
    other.kill()
    other.wait()
  assert Path('scores.parquet.lock').exists()
  score(corpus)
  assert not Path('scores.parquet.lock').exists() and len(analysis.read_scores('scores.parquet')) == 65


def test_a_killed_run_goes_on_and_yields_the_same_file(corpus, monkeypatch, capsys):
  score(corpus, 'whole.parquet')
  whole = list(sources.labelled(sources.documents(str(corpus))))

  def killed(source):
    yield from whole[:50]
    raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(sources, 'labelled', killed)
    patch.setattr(direction_scores, '_encoded', one_by_one)
    with pytest.raises(KeyboardInterrupt):
      score(corpus)
  parts = sorted(p.name for p in Path('scores.parquet.parts').glob('*.parquet'))
  assert len(parts) >= 2 and not Path('scores.parquet').exists()
  done = int(parts[-1].removesuffix('.parquet').split('-')[1])
  assert 0 < done < 50
  # What a kill in the midst of writing leaves, and a part that a crash cut short.
  Path('scores.parquet.parts', '.000000000099-000000000100.parquet').write_bytes(b'PAR1')
  broken = Path('scores.parquet.parts', parts[-1])
  broken.write_bytes(broken.read_bytes()[:-20])
  with pytest.raises(DataError, match='batch_size .4 then, 8 now'):
    score(corpus, batch_size=8)
  with pytest.raises(DataError, match='A run that was not finished left scores.parquet.parts'):
    select()
  scored = []
  window = direction_scores._scored
  monkeypatch.setattr(
    direction_scores, '_scored', lambda w, **k: scored.extend(number for number, *_ in w) or window(w, **k)
  )
  score(corpus)
  assert 'Going on after' in capsys.readouterr().out
  assert scored == list(range(int(parts[-1].split('-')[0]), 65))
  assert Path('scores.parquet').read_bytes() == Path('whole.parquet').read_bytes()
  score(corpus)
  assert 'complete already' in capsys.readouterr().out and len(scored) == 65 - scored[0]


def one_by_one(documents, tokenizer):
  """As `_encoded`, without reading ahead, so that windows are done when the kill comes."""
  for item in documents:
    yield item, np.array(tokenizer.encode(item[0]), np.int32)


def test_what_changed_since_is_named(corpus):
  score(corpus)
  other = dict(batch_size=4, out='scores.parquet')
  for words, config in (
    (r"model \(model-0 then, model-1 now\), the model's weights", command.ScoreConfig(str(corpus), 'model-1', **other)),
    ('max_length', command.ScoreConfig(str(corpus), 'model-0', max_length=32, **other)),
    ('reverse_model .None then', command.ScoreConfig(str(corpus), 'model-0', reverse_model='model-1', **other)),
  ):
    with pytest.raises(DataError, match=f'scores.parquet is of a run that differed in {words}'):
      command.score(config)
  command.score(command.ScoreConfig('texts', 'copy-of-model-0', **other))  # Other names of the same things.
  with open(corpus / 'wiki.jsonl', 'a') as file:
    file.write('{"text": "one more"}\n')
  with pytest.raises(DataError, match=r"the corpus's files \(size or time\)"):
    score(corpus)
  score(corpus, overwrite=True)
  assert analysis.read_scores('scores.parquet').documents == 66


@pytest.mark.parametrize('rule', selection.RULES)
def test_selected_texts_are_training_data(corpus, rule, capsys):
  score(corpus)
  target = str(corpus / 'novel.jsonl') if rule == 'dsir' else None
  manifest = select(rule=rule, fraction=0.3, target=target)
  texts = list(sources.documents(str(corpus)))
  found = lines('selected.jsonl')
  assert list(sources.documents('selected.jsonl')) == [x['text'] for x in found]
  assert all(x['text'] == texts[x['id']] and x['domain'] == ('novel.jsonl' if x['id'] < 40 else 'wiki.jsonl') for x in found)  # fmt: skip
  assert manifest['kept'] == {**manifest['kept'], 'documents': len(found), 'tokens': sum(x['tokens'] for x in found)}
  assert abs(manifest['kept']['tokens'] - manifest['budget_tokens']) <= max(len(t) for t in texts) + 1
  assert manifest['kept']['S_mean'] == pytest.approx(np.mean([x['S'] for x in found]))
  assert json.loads(Path('selected.jsonl.manifest').read_text()) == json.loads(json.dumps(manifest))
  assert manifest['options']['rule'] == rule and manifest['scored']['model'] == 'model-0'
  assert f'{rule}: {len(found)} of' in capsys.readouterr().out
  if rule in ('highest', 'lowest'):
    pool = manifest['pool']['S_mean']
    assert (manifest['kept']['S_mean'] > pool) == (rule == 'highest')


def test_order_is_shuffled_by_the_seed_or_that_of_the_corpus(corpus):
  score(corpus)
  ids = {}
  for name, options in {
    'a': {'seed': 1}, 'b': {'seed': 1, 'overwrite': True}, 'c': {'seed': 2}, 'original': {'order': 'original'},
  }.items():  # fmt: skip
    select(f'{name}.jsonl', fraction=0.4, **options)
    ids[name] = [x['id'] for x in lines(f'{name}.jsonl')]
  assert ids['a'] == ids['b'] != ids['c'] and sorted(ids['a']) == sorted(ids['c']) == ids['original']
  S = [x['S'] for x in lines('a.jsonl')]
  assert S != sorted(S) and S != sorted(S, reverse=True)
  select('domains.jsonl', fraction=0.4, per_domain=True)
  assert {x['domain'] for x in lines('domains.jsonl')} == {'novel.jsonl', 'wiki.jsonl'}
  assert [p.name for p in Path('.').glob('.*.jsonl*')] == []


def test_select_refuses_what_does_not_fit(corpus):
  score(corpus)
  select()
  for error, words, options in (
    (FileExistsError, 'selected.jsonl is there already', {}),
    (ValueError, "rule 'higest'. Did you mean 'highest'", {'rule': 'higest'}),
    (ValueError, '--target goes with --rule dsir', {'rule': 'dsir'}),
    (ValueError, 'must end in .jsonl', {'out': 'selected.txt'}),
    (ValueError, 'is in the folder', {'out': str(corpus / 'new.jsonl')}),
    (DataError, 'None of the 65 documents has min_tokens=999', {'out': 'new.jsonl', 'min_tokens': 999}),
    (DataError, 'more than the pool has', {'out': 'new.jsonl', 'budget_tokens': 10**8}),
  ):
    with pytest.raises(error, match=words):
      select(**options)
  corpus.rename('moved')
  with pytest.raises(DataError, match='name where it is now with --corpus'):
    select('newer.jsonl')
  select('new.jsonl', corpus='moved')
  Path('moved/wiki.jsonl').write_text('{"text": "else"}\n' * 25)
  with pytest.raises(DataError, match='Document 4. of the corpus is not the text'):
    select('newer.jsonl', fraction=1.0, corpus='moved')
  Path('moved/wiki.jsonl').unlink()
  with pytest.raises(DataError, match='ends before document 4'):
    select('newer.jsonl', fraction=1.0, corpus='moved')
  assert not Path('newer.jsonl').exists() and not list(Path('.').glob('.newer*'))


def test_damaged_and_foreign_scores_are_named(corpus):
  score(corpus)
  whole, table = Path('scores.parquet').read_bytes(), pq.read_table('scores.parquet')
  written = lambda t: pq.write_table(t, 'scores.parquet')
  column = lambda name, x: table.set_column(table.column_names.index(name), name, pa.array(x))
  S = table['S'].to_pylist()
  for words, damage in (
    ('not a readable Parquet file', lambda: Path('scores.parquet').write_bytes(whole[: len(whole) // 2])),
    ('not a readable Parquet file', lambda: Path('scores.parquet').write_bytes(b'')),
    ('not a file of scores', lambda: written(table.replace_schema_metadata({}))),
    ('lacks the columns se', lambda: written(table.drop_columns(['se']))),
    ('S of document 3 is nan', lambda: written(column('S', [*S[:3], float('nan'), *S[4:]]))),
    ('holds document 0 65 times', lambda: written(column('id', [0] * 65))),
    ('none was long enough', lambda: written(column('S', pa.nulls(65, pa.float64())))),
  ):
    damage()
    with pytest.raises(DataError, match=f'scores.parquet.*{words}'):
      select()
  Path('scores.parquet').unlink()
  with pytest.raises(DataError, match="There is no file 'scores.parquet'"):
    command.report(command.ReportConfig('scores.parquet'))


def test_report_is_printed_and_drawn(corpus, capsys):
  score(corpus)
  said = command.report(command.ReportConfig('scores.parquet', texts=4, min_tokens=20, output='out', characters=60))
  printed = capsys.readouterr().out
  scores = analysis.read_scores('scores.parquet')
  rows = np.flatnonzero(scores.tokens >= 20)
  assert [x['domain'] for x in said['distribution']] == ['novel.jsonl', 'wiki.jsonl', 'all']
  assert said['distribution'][-1]['50%'] == f'{np.median(scores.S[rows]):.4f}'
  assert set(said['rank_correlations']) == {'forward loss', 'tokens', *direction_report.FEATURES}
  easiest = [x['S'] for x in said['texts']['easiest in reverse']]
  assert easiest == sorted(scores.S[rows])[::-1][:4] and easiest[0] == pytest.approx(scores.S[rows].max())
  assert said['texts']['easiest forward'][0]['S'] == scores.S[rows].min()
  for name in ('---- middle ----', f'S {easiest[0]:+.4f}', 'Rank correlation of S over'):
    assert name in printed
  assert Path('out/direction.png').stat().st_size > 20_000
  assert json.loads(Path('out/report.json').read_text()) == json.loads(json.dumps(said))
  few = command.report(command.ReportConfig('scores.parquet', texts=0, min_tokens=200, sample=2, output='out'))
  assert few['texts'] == {}
  with pytest.raises(DataError, match='lower --min-tokens'):
    command.report(command.ReportConfig('scores.parquet', min_tokens=10**6))


def test_features_of_texts():
  assert direction_report.type_token_ratio('the cat and The dog') == 0.8
  assert direction_report.list_share('- a\n* b\n1. c\nplain\n\n<b>x</b>') == 0.8
  assert direction_report.list_share('A sentence.\nAnother - with a dash.') == 0
  assert direction_report.repeated_line_share('a\nb\na\n a ') == 0.5
  assert [f('') for f in direction_report.FEATURES.values()] == [0, 0, 1 - 0 / 1]
  groups = direction_report.extremes(np.arange(7.0), 20)
  assert [x.tolist() for x in groups.values()] == [[0, 1], [2, 3], [6, 5]]


def test_bad_input_to_score_is_refused(corpus, tmp_path):
  (tmp_path / 'empty.jsonl').write_text('\n')
  for words, options in (
    ('holds no text', {'corpus': 'empty.jsonl'}),
    ("Did you mean 'texts'", {'corpus': 'text'}),
    ('is in the folder', {'out': str(corpus / 'scores.parquet')}),
    ('batch_size=0', {'batch_size': 0}),
    ('limit=0', {'limit': 0}),
    ('max_length=100 must be within', {'max_length': 100}),
  ):
    config = command.ScoreConfig(str(corpus), 'model-0', out='bad.parquet')
    with pytest.raises(ValueError, match=words):
      command.score(dataclasses.replace(config, **options))
  assert not Path('bad.parquet').exists() and not (corpus / 'scores.parquet').exists()


def test_a_model_of_one_direction_is_warned_of(corpus, monkeypatch, capsys):
  lm = model()
  forward = LanguageModel(lm.config.replace(direction='forward'), lm.params, lm.tokenizer)
  monkeypatch.setattr(jaxlm, 'load', lambda path, dtype: forward)
  score(corpus, limit=3)
  assert 'warning: The model was trained on forward text only' in capsys.readouterr().err


def test_help_of_each_command_comes_without_jax():
  code = """
import sys
from jaxlm.analysis.direction import command
for words in ([], ['score'], ['select'], ['report']):
  try:
    command.parse([*words, '--help'])
  except SystemExit:
    pass
sys.exit(any(m in sys.modules for m in ('jax', 'numpy')))
"""
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  for word in ('--reverse-model', '--budget-tokens', '--characters', 'score', 'report', *selection.RULES):
    assert word in done.stdout


def test_command_says_what_is_wrong_in_one_line(monkeypatch):
  monkeypatch.setattr(sys, 'argv', ['direction', 'select', 'no.parquet', '--rule', 'randem'])
  with pytest.raises(SystemExit, match="error: Unknown rule 'randem'. Did you mean 'random'"):
    command.run()
