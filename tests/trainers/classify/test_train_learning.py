"""What classifiers learn: an order that a bag of words cannot see, and the package of a docstring."""

import collections
import json

import numpy as np
import pytest

from jaxlm.data import labelled
from tests.trainers.classify.runs import parse
from trainers import classify


def trained(directory, source, *flags, preset='docstrings', **parts):
  """Returns the results of a run: {'held-out': {...}, 'test': {...}}."""
  files = [x for name, path in parts.items() for x in (f'--data.{name}-source', str(path))]
  run = '--run.directory', str(directory), '--run.no-tensorboard'
  classify.main(parse(preset, '--data.source', str(source), *files, *run, *flags))
  return json.loads((directory / 'classification.json').read_text())['metrics']


def write(path, rows):
  path.write_text('\n'.join(json.dumps(row) for row in rows), encoding='utf-8')
  return path


def places(n, seed):
  """Yields texts of twelve words with one keyword; the class is the third of the text in which it stands."""
  rng = np.random.default_rng(seed)
  for _ in range(n):
    place, words = int(rng.integers(12)), [f'w{i}' for i in rng.integers(0, 20, 12)]
    words[place] = 'key'
    yield {'text': ' '.join(words), 'label': str(place // 4)}


@pytest.mark.study
@pytest.mark.slow
def test_the_mlp_learns_where_a_word_stands_and_a_sum_over_words_does_not(tmp_path):
  files = [
    write(tmp_path / f'{name}.jsonl', places(n, i)) for i, (name, n) in enumerate((('train', 1500), ('valid', 300)))
  ]
  short = (
    '--model.max-length',
    '18',
    '--model.dim',
    '16',
    '--run.steps',
    '600',
    '--run.patience',
    '0',
    '--optimizer.learning-rate',
    '5e-3',
  )
  exam = trained(tmp_path / 'exam', files[0], *short, '--model.dropout', '0', valid=files[1])
  # A region reaches three words, so near the ends it sees padding: regions of one word see none.
  bag = trained(tmp_path / 'bag', files[0], *short, '--model.region', '1', preset='region', valid=files[1])
  assert exam['held-out']['accuracy'] > 0.95
  assert bag['held-out']['accuracy'] < 0.45


def naive_bayes(parts, words):
  """Returns the test accuracy of multinomial naive Bayes on single words."""
  counts, texts = collections.defaultdict(collections.Counter), collections.Counter()
  for row in parts.train:
    (label,) = row.labels[0]
    texts[label] += 1
    counts[label].update(words(row.text))
  vocabulary = {word for some in counts.values() for word in some}
  labels = sorted(texts)
  totals = {label: sum(counts[label].values()) + len(vocabulary) for label in labels}

  def score(label, text):
    log_p = [np.log((counts[label][word] + 1) / totals[label]) for word in words(text) if word in vocabulary]
    return np.log(texts[label]) + sum(log_p)

  rows = list(parts.test)
  return np.mean([max(labels, key=lambda label, row=row: score(label, row.text)) == row.labels[0][0] for row in rows])


@pytest.mark.study
@pytest.mark.slow
def test_exam_is_as_good_as_its_encoder_on_docstrings_and_both_better_than_naive_bayes(tmp_path):
  from jaxlm.data.word_vocabulary import SPLITTERS

  bayes = naive_bayes(labelled.open_parts('docstrings'), SPLITTERS['words'])
  accuracy = {}
  for preset in ('docstrings', 'region'):
    runs = [
      trained(
        tmp_path / f'{preset}-{seed}', 'docstrings', '--run.seed', str(seed), '--data.seed', str(seed), preset=preset
      )
      for seed in range(3)
    ]
    accuracy[preset] = [run['test']['accuracy'] for run in runs]
  means = {preset: np.mean(found) for preset, found in accuracy.items()}
  print(f'naive Bayes {bayes:.3f}; {accuracy}; means {means}')
  assert means['docstrings'] >= means['region'] - 0.003 and min(means.values()) > bayes, (accuracy, bayes)
