"""python -m jaxlm.analysis.evaluate: losses, multiple choice and differences are those by hand; what it prints and refuses."""

import dataclasses
import json
import math
import subprocess
import sys

import numpy as np
import pytest

import jaxlm
from jaxlm import analysis
from jaxlm.data import tokenizers
from jaxlm.errors import DataError
from jaxlm.evaluation import bootstrap, command, likelihood
from jaxlm.evaluation import choices as evaluate_choices
from jaxlm.language_model import LanguageModel
from tests.models import TINY, tiny_model

TEXTS = ['one two', 'Größe', 'a', 'the longest of them, which is cut in two because it has more than sixty-three bytes']
QUESTIONS = [
  {'context': 'Q: 1 + 1 =', 'choices': ['2', 'three'], 'answer': 0},
  {'context': 'The cat ', 'choices': ['sat', 'flew away', 'sang'], 'answer': 'sang'},
  {'context': '', 'choices': ['no', 'yes'], 'answer': 1},
]


def model(seed=0, **changes):
  lm = tiny_model(TINY.replace(vocab_size=259, direction='both', **changes), seed)
  return LanguageModel(lm.config, lm.params, tokenizers.ByteTokenizer())


def by_hand(lm, content):
  """-log p of content and EOS after BOS, the document alone."""
  return -likelihood.likelihoods(lm, [([256], [*content, 257])])[0].log_p


@pytest.mark.parametrize('direction', ['forward', 'reverse', 'both'])
def test_losses_are_those_of_each_document_alone(direction):
  lm = model()
  found = analysis.document_losses(lm, TEXTS[:3], direction=direction, batch_size=4)
  assert set(found.nll) == ({'forward', 'reverse'} if direction == 'both' else {direction})
  contents = [list(t.encode()) for t in TEXTS[:3]]
  for way, step in (('forward', 1), ('reverse', -1)):
    if way not in found.nll:
      continue
    np.testing.assert_allclose(found.nll[way], [by_hand(lm, c[::step]) for c in contents], rtol=1e-4)
    total = found.nll[way].sum()
    assert found.loss(way) == pytest.approx(total / (7 + 7 + 1 + 3))
    assert found.perplexity(way) == pytest.approx(math.exp(found.loss(way)))
    assert found.bits_per_byte(way) == pytest.approx(total / math.log(2) / 15)
  assert found.tokens.tolist() == [8, 8, 2] and found.bytes.tolist() == [7, 7, 1]


def test_the_direction_is_the_models_own_and_nothing_is_refused():
  assert set(analysis.document_losses(model(), ['ab']).nll) == {'forward'}
  reverse = LanguageModel(model().config.replace(direction='reverse'), model().params, tokenizers.ByteTokenizer())
  assert set(analysis.document_losses(reverse, ['ab']).nll) == {'reverse'}
  with pytest.raises(ValueError, match='no documents'):
    analysis.document_losses(model(), [])
  with pytest.raises(ValueError, match="direction 'back'"):
    analysis.document_losses(model(), ['ab'], direction='back')


def test_the_chosen_answer_is_the_likeliest_by_each_rule(tmp_path):
  path = tmp_path / 'questions.jsonl'
  path.write_text('\n'.join(map(json.dumps, QUESTIONS)))
  lm, questions = model(), analysis.read_questions(path)
  assert [q.answer for q in questions] == [0, 2, 1]
  found = analysis.answer_choices(lm, questions, batch_size=4)
  texts = [('Q: 1 + 1 =', [' 2', ' three']), ('The cat', [' sat', ' flew away', ' sang']), ('', ['no', 'yes'])]
  for got, (context, choices) in zip(found.log_p, texts, strict=True):
    expected = [-by_hand_pair(lm, context, choice) for choice in choices]
    np.testing.assert_allclose(got, expected, rtol=1e-4)
  assert [n.tolist() for n in found.tokens] == [[2, 6], [4, 10, 5], [2, 3]]
  assert [n.tolist() for n in found.bytes] == [[1, 5], [3, 9, 4], [2, 3]]
  for rule, sizes in (('sum', None), ('token', found.tokens), ('byte', found.bytes)):
    chosen = [int(np.argmax(x / (1 if sizes is None else sizes[i]))) for i, x in enumerate(found.log_p)]
    assert found.chosen(rule).tolist() == chosen
    assert found.accuracy(rule) == pytest.approx(np.mean(np.array(chosen) == [0, 2, 1]))


def by_hand_pair(lm, context, choice):
  before = list(context.encode())
  return -likelihood.likelihoods(lm, [([256, *before], list(choice.encode()))])[0].log_p


@pytest.mark.parametrize(
  'line, message',
  [
    ('{"context": "a"}', 'line 2: expected an object'),
    ('{"context": "a", "choices": ["b"], "answer": 0}', 'line 2: .* two or more'),
    ('{"context": "a", "choices": ["b", ""], "answer": 0}', 'line 2: .* none of them empty'),
    ('{"context": "a", "choices": ["b", "c"], "answer": 2}', r'line 2: answer=2 .* 0 \.\. 1'),
    ('{"context": "a", "choices": ["b", "c"], "answer": "d"}', "line 2: answer='d'"),
    ('{"context": ', 'line 2, cannot be read'),
  ],
)
def test_questions_that_are_none_are_refused_with_their_line(tmp_path, line, message):
  path = tmp_path / 'questions.jsonl'
  path.write_text(json.dumps(QUESTIONS[0]) + '\n' + line)
  with pytest.raises(DataError, match=message):
    evaluate_choices.read_questions(path)
  path.write_text('\n')
  with pytest.raises(DataError, match='holds no questions'):
    evaluate_choices.read_questions(path)


def test_the_bootstrap_is_paired_and_covers_the_truth():
  random = np.random.default_rng(0)
  hard = random.normal(0, 10, 400)  # What makes a document hard is common to both.
  ours, theirs = hard + 100 + random.normal(0, 1, 400), hard + 99 + random.normal(0, 1, 400)
  d = bootstrap.paired_difference(ours, theirs)
  assert d.low < 1 < d.high and d.high - d.low < 0.4 and d.p < 0.01 and d.items == 400
  same = bootstrap.paired_difference(ours, ours)
  assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
  assert d == bootstrap.paired_difference(ours, theirs, seed=0) != bootstrap.paired_difference(ours, theirs, seed=1)
  weighted = bootstrap.paired_difference([2.0, 9.0], [1.0, 1.0], [2, 3], [1, 4])
  assert weighted.value == pytest.approx(11 / 5 - 2 / 5)
  covered = 0
  for _ in range(60):
    right = random.random((2, 80)) < [[0.6], [0.5]]
    d = bootstrap.paired_difference(*right, resamples=300)
    covered += d.low <= 0.1 <= d.high
  assert covered >= 50


@pytest.fixture
def files(tmp_path, monkeypatch):
  load = lambda path, dtype, **other: dataclasses.replace(model(int(path[-1])), **other)
  monkeypatch.setattr(jaxlm, 'load', load, raising=False)
  (tmp_path / 'held.jsonl').write_text('\n'.join(json.dumps({'text': t}) for t in TEXTS))
  (tmp_path / 'questions.jsonl').write_text('\n'.join(map(json.dumps, QUESTIONS)))
  return tmp_path


def test_the_command_prints_and_writes_both_models_and_their_difference(files, capsys):
  held, questions, out = files / 'held.jsonl', files / 'questions.jsonl', files / 'out' / 'numbers.json'
  make = lambda **more: command.EvaluateConfig(
    'runs/model-0', (f'small={held}', str(held)), choices=(f'q={questions}',), batch_size=4, direction='both',
    against='runs/model-1', resamples=200, out=str(out), **more,
  )  # fmt: skip
  command.main(make())
  said, printed = json.loads(out.read_text()), capsys.readouterr().out
  for seed in (0, 1):
    found = analysis.document_losses(model(seed), TEXTS, direction='both', batch_size=4)
    numbers = said['documents'][f'model-{seed}']['small']
    assert numbers['tokens'] == sum(len(t.encode()) + 1 for t in TEXTS) and numbers['documents'] == 4
    for way in ('forward', 'reverse'):
      assert numbers[way]['loss'] == pytest.approx(found.loss(way), rel=1e-6)
      assert f'{found.loss(way):.4f}' in printed and f'{found.bits_per_byte(way):.4f}' in printed
  losses = [said['documents'][f'model-{i}']['small']['forward']['loss'] for i in (0, 1)]
  differences = {(d['set'], d['measure']): d for d in said['differences']}
  d = differences['small', 'loss, forward']
  assert d['value'] == pytest.approx(losses[0] - losses[1]) and d['low'] <= d['value'] <= d['high']
  assert {m for s, m in differences if s == 'q'} == {'accuracy, sum', 'accuracy, token', 'accuracy, byte'}
  assert set(said['choices']['model-1']['q']['accuracy']) == {'sum', 'token', 'byte'}
  assert said['documents']['model-0']['small'] == said['documents']['model-0'][str(held)]
  with pytest.raises(FileExistsError, match='--overwrite'):
    command.main(make())
  command.main(make(overwrite=True, limit=1))
  assert json.loads(out.read_text())['documents']['model-0']['small']['documents'] == 1


def test_the_command_says_what_is_wrong_and_shows_help_without_jax(files, monkeypatch):
  for args, message in (
    ([], 'error: There is nothing to evaluate on'),
    (['embedded', 'embedded'], "error: Two sets are called 'embedded': name one of them, as in NAME=embedded"),
    (['embedded', '--batch-size', '0'], 'error: batch_size=0'),
    (['nowhere.txt'], "error: There is no file or folder 'nowhere.txt'"),
    (['--choices', 'nowhere.jsonl'], 'error: nowhere.jsonl cannot be read'),
  ):
    monkeypatch.setattr(sys, 'argv', ['evaluate', 'model-0', *args])
    with pytest.raises(SystemExit, match=message):
      command.run()
  assert command.named((f'a=b={files}',)) == {'a': f'b={files}'}
  (files / 'a=b').mkdir()
  assert command.named((str(files / 'a=b'),)) == {str(files / 'a=b'): str(files / 'a=b')}
  code = "import jaxlm.analysis.evaluate, sys; sys.exit(any(m in sys.modules for m in ('jax', 'numpy')))"
  assert subprocess.run([sys.executable, '-c', code]).returncode == 0


def test_another_tokenizer_is_named(files):
  tokenizers.ByteTokenizer().save(files / 'bytes')
  numbers = [
    command.main(
      command.EvaluateConfig('runs/model-0', (f'small={files / "held.jsonl"}',), batch_size=4, tokenizer=name)
    )['documents']
    for name in (None, 'bytes', str(files / 'bytes'))
  ]
  assert numbers[0] == numbers[1] == numbers[2]
  with pytest.raises(ValueError, match='has no tokenizer, so it cannot read text: name one with --tokenizer'):
    command.main(command.EvaluateConfig('runs/model-0', (str(files / 'held.jsonl'),), tokenizer='none'))
  with pytest.raises(ValueError, match='holds no tokenizer'):
    command.main(command.EvaluateConfig('runs/model-0', (str(files / 'held.jsonl'),), tokenizer=str(files)))
