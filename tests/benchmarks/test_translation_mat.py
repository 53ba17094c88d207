"""The study of Markov orders: its scores are right, nothing is trained twice, its parts write what they should, and orders matter."""

import json

import numpy as np
import pytest
import sacrebleu

from benchmarks import report, translation
from benchmarks import translation_mat as study
from benchmarks import translation_mat_agreement as agreement
from benchmarks import translation_mat_models as models
from benchmarks import translation_mat_scores as scores
from benchmarks import translation_mat_speed as speed


@pytest.fixture
def results(tmp_path, monkeypatch):
  """An empty folder for results, and an empty cache folder."""
  monkeypatch.setenv('JAXLM_CACHE', str(tmp_path / 'cache'))
  monkeypatch.setattr(report, 'RESULTS', tmp_path / 'results')
  return tmp_path / 'results'


def spoiled(texts, probability, seed):
  """Returns the texts with words that are wrong with a probability, which may depend on the number of words."""
  rng = np.random.default_rng(seed)
  wrong = lambda text: probability(len(text.split()))
  return [' '.join('wrong' if rng.random() < wrong(text) else word for word in text.split()) for text in texts]


def made_up(n=160):
  """Returns (pairs, translations by order): order 8 is as good as full history, 2 is worse on all sentences, and 1 on long ones."""
  rng = np.random.default_rng(0)
  texts = [' '.join(rng.choice(list('abcdefghijk'), rng.integers(4, 24))) for _ in range(n)]
  wrong = {0: lambda n: 0.1, 8: lambda n: 0.1, 2: lambda n: 0.25, 1: lambda n: 0.1 + 0.3 * (n > 13)}
  found = {order: [spoiled(texts, p, (order, seed)) for seed in range(2)] for order, p in wrong.items()}
  return [(text, text) for text in texts], found


def test_scores_say_which_orders_are_worse_and_where():
  pairs, found = made_up()
  tables = scores.scored('made up', pairs, found, lambda source, text: source == text)
  by_order = {row['order']: row for row in tables['orders']}
  assert list(by_order) == ['1', '2', '8', 'full', 'references']
  corpus_bleu = lambda order, seed: sacrebleu.corpus_bleu(found[order][seed], [[t for _, t in pairs]]).score
  for order, row in ((0, by_order['full']), (2, by_order['2'])):
    assert row['seeds'] == pytest.approx([corpus_bleu(order, seed) for seed in range(2)], abs=0.006)
    assert row['BLEU'] == pytest.approx(np.mean([corpus_bleu(order, seed) for seed in range(2)]))
  assert by_order['2']['full less k'] == pytest.approx(by_order['full']['BLEU'] - by_order['2']['BLEU'])
  assert by_order['2']['from'] > 0 and by_order['full']['full less k'] == 0
  assert by_order['full']['valid'] == np.mean([[text == pair[0] for text, pair in zip(t, pairs)] for t in found[0]])
  slopes = {row['order']: row for row in tables['slopes']}
  assert slopes['1']['from'] > 0 and slopes['8']['from'] < 0 < slopes['8']['to']
  quartiles = [row for row in tables['quartiles'] if row['order'] == '1']
  assert sum(row['sentences'] for row in quartiles) == len(pairs)
  x, y = np.arange(4), [row['full less k'] for row in quartiles]
  assert slopes['1']['BLEU a quartile'] == pytest.approx(np.polyfit(x, y, 1)[0])
  said = [(v['statement'].split(':')[0], v['pass']) for v in scores.checks(tables)]
  assert [passed for order, passed in said if order == 'made up, order 8'] == [True, True]
  assert ('made up, order 1', False) in said and len(said) == 4


def test_an_order_above_4_that_is_worse_is_a_miss():
  pairs, found = made_up()
  tables = scores.scored('made up', pairs, {0: found[0], 8: found[2], 64: found[8]}, None)
  assert [v['pass'] for v in scores.checks(tables)[:3]] == [False, False, True]  # Than full, than 64; 64 than full.
  row = tables['orders'][0]
  assert row['order'] == '8' and 0 < row['64 from'] < row['64 less k'] < row['64 to'] and 'valid' not in row


def test_quartiles_keep_sources_of_one_length_together():
  found = scores.quartiles([' '.join('a' * n) for n in (1, 1, 2, 3, 3, 4, 5, 7, 9)])
  assert found.tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]


def test_repeated_bigrams_are_those_that_occurred_before_in_the_text():
  assert scores.repeated_bigrams(['a b a b a', 'a b']) == 2 / 5
  assert scores.repeated_bigrams(['a', '']) == 0


def test_places_that_have_to_agree():
  source = 'pick w1 same w2 w3 w4 , pick w5 same w6 w7 w8 ,'
  assert agreement.asked(source, shared=False) == [2, 9]
  assert agreement.asked(source, shared=True) == [7]


def agreeing(task, order, accuracy, **more):
  return {'task': task, 'order': order, 'accuracy': accuracy, 'words': 100, 'chance': 0.25, **more}


def test_agreement_is_judged_by_mode_and_by_what_a_task_needs():
  row = lambda mode, order, accuracy: {
    'mode': mode,
    'order': order,
    'distance': 4,
    'accuracy': accuracy,
    'chance': 0.25,
  }
  rows = [row('transparent', 3, 0.28), row('transparent', 4, 0.99), row('naive', 3, 0.9), row('naive', 4, 0.99)]
  clauses = [agreeing('independent', '2', 0.97), agreeing('shared', '4', 0.26), agreeing('shared', '5', 0.99)]
  assert [v['pass'] for v in agreement.checks(rows, clauses)] == [True] * 6
  rows = [row('transparent', 3, 0.5), row('transparent', 4, 0.9), row('naive', 3, 0.5), row('naive', 4, 0.99)]
  clauses = [agreeing('independent', '2', a) for a in (1.0, 0.9)]
  clauses += [agreeing('shared', '4', 0.4), agreeing('shared', '5', 0.5)]
  assert [v['pass'] for v in agreement.checks(rows, clauses)] == [False] * 6


def test_speed_is_judged_by_the_ratio_of_the_ends():
  row = lambda order, length, ms, kb: {'order': order, 'length': length, 'ms a step': ms, 'state kB': kb}
  rows = [row('4', 32, 1.0, 8), row('4', 512, 1.1, 8), row('full', 32, 1.0, 10), row('full', 512, 2.0, 160)]
  assert [v['pass'] for v in speed.checks(rows)] == [True] * 4
  rows = [row('4', 32, 1.0, 8), row('4', 512, 1.3, 9), row('full', 32, 1.0, 10), row('full', 512, 1.0, 10)]
  assert [v['pass'] for v in speed.checks(rows)] == [False] * 4


@pytest.mark.slow
def test_orders_are_written_and_a_model_is_trained_once(results, monkeypatch):
  config = study.Config(parts=('orders',), corpora=('grammar',), orders=(0, 2), seeds=1, sentences=40, tiny=True)
  study.main(config)
  written = json.loads((results / 'translation_mat_orders.json').read_text())
  assert [row['order'] for row in written['rows']] == ['2', 'full', 'references']
  assert {row['order'] for row in written['quartiles']} == {'2', 'full'} and len(written['checks']) == 1
  assert (results / 'translation_mat_orders.png').stat().st_size > 10_000

  def train(*_):
    raise AssertionError('trained again')

  monkeypatch.setattr(models, 'train', train)
  study.main(config)
  again = json.loads((results / 'translation_mat_orders.json').read_text())
  assert again['rows'] == written['rows']
  # Order 3 is not there, and without training it is left out.
  study.main(study.Config(**(vars(config) | {'orders': (0, 2, 3), 'train': False})))
  assert json.loads((results / 'translation_mat_orders.json').read_text())['rows'] == written['rows']
  with pytest.raises(AssertionError, match='trained again'):
    study.main(study.Config(**(vars(config) | {'orders': (0, 2, 3)})))
  with pytest.raises(ValueError, match='full history'):
    study.main(study.Config(**(vars(config) | {'seeds': 2, 'train': False})))


@pytest.mark.slow
def test_agreement_is_written(results, monkeypatch):
  monkeypatch.setattr(agreement, 'CLAUSE_ORDERS', {'shared': (5,)})
  study.main(study.Config(parts=('agreement',), distances=(1,), modes=('naive',), tiny=True))
  written = json.loads((results / 'translation_mat_agreement.json').read_text())
  assert [(r['mode'], r['order'], r['words']) for r in written['rows']] == [('naive', 1, 500), ('naive', 2, 500)]
  assert [r['clauses'] for r in written['clauses']] == [2, 3, 4, 5]
  assert (results / 'translation_mat_agreement.png').stat().st_size > 10_000


@pytest.mark.slow
def test_the_command_runs_a_study(results, capsys):
  options = '--parts speed --tiny --lengths 4 8 --speed-orders 2 0 --repeats 1'
  translation.main(['--study', 'mat', *options.split()])
  written = json.loads((results / 'translation_mat_speed.json').read_text())
  assert [(r['order'], r['length']) for r in written['rows']] == [('2', 4), ('2', 8), ('full', 4), ('full', 8)]
  assert written['rows'][0]['state kB'] == written['rows'][1]['state kB'] and len(written['checks']) == 4
  assert (results / 'translation_mat_speed.png').stat().st_size > 10_000
  with pytest.raises(SystemExit):
    translation.main(['--study', 'speed'])
  with pytest.raises(ValueError, match='needs 0'):
    study.Config(orders=(1, 2))


@pytest.mark.slow
@pytest.mark.study
def test_a_class_is_copied_if_and_only_if_the_order_reaches_it(results):
  rows = agreement.rows(distances=(4,), modes=('transparent', 'naive'), tiny=False)
  verdicts = agreement.checks(rows, [])
  assert len(verdicts) == 3 and all(v['pass'] for v in verdicts), verdicts
