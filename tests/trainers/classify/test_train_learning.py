"""What classifiers learn: an order that a bag of words cannot see, thousands of labels, and more of real texts than their baselines."""

from collections import Counter
import itertools
import json

import numpy as np
import pytest

from jaxlm.data import labelled, word_vocabulary
from jaxlm.evaluation.classification import kanshan_precision
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


LABELS, EACH = 2000, 3


def many(n, seed):
  """Yields texts with three of 2,000 labels, of Zipf's law; each label has a word of its own, among words of no meaning."""
  rng = np.random.default_rng(seed)
  p = 1 / (50 + np.arange(LABELS))
  first = iter(range(0, LABELS, EACH))  # Every label occurs in the training texts.
  for _ in range(n):
    start = next(first, None) if seed == 0 else None
    some = (
      rng.choice(LABELS, EACH, replace=False, p=p / p.sum())
      if start is None
      else range(start, min(start + EACH, LABELS))
    )
    words = [f'l{label}' for label in some] + [f'w{i}' for i in rng.integers(0, 50, 9)]
    yield {'text': ' '.join(rng.permutation(words)), 'tags': [f't{label}' for label in some]}


@pytest.mark.study
@pytest.mark.slow
def test_two_thousand_labels_are_learned_tenfold_better_than_their_frequencies(tmp_path):
  files = [
    write(tmp_path / f'{name}.jsonl', many(n, i)) for i, (name, n) in enumerate((('train', 20_000), ('valid', 500)))
  ]
  found = trained(
    tmp_path / 'run', files[0], '--model.max-length', '18', '--model.region', '1', '--model.class-tile', '250', '--model.dropout', '0',
    '--model.residual', 'sum', '--data.labels', 'tags', '--data.multilabel', 'tags', '--data.batch-size', '128', '--data.min-texts', '1',
    '--run.steps', '500', '--run.eval-every', '250', '--run.save-every', '250', '--run.patience', '0', '--optimizer.learning-rate', '1e-2',
    valid=files[1],
  )['held-out']  # fmt: skip
  truth = [set(row['tags']) for row in many(500, 1)]
  counts = Counter(itertools.chain.from_iterable(row['tags'] for row in many(20_000, 0)))
  frequent = [label for label, _ in counts.most_common(5)]
  prior = kanshan_precision(np.array([np.mean([label in row for row in truth]) for label in frequent]))
  assert len(counts) == LABELS and found['kanshan_p'] > 10 * prior > 0


def naive_bayes(parts):
  """Returns the accuracy of multinomial naive Bayes on single words, smoothed by 1."""
  split = lambda row: word_vocabulary.SPLITTERS['words'](row.text)
  labels = Counter(row.labels[0][0] for row in parts.train)
  counts = {label: Counter() for label in labels}
  for row in parts.train:
    counts[row.labels[0][0]].update(split(row))
  words = len(set(itertools.chain.from_iterable(counts.values())))
  total = {label: sum(count.values()) + words for label, count in counts.items()}

  def likeliest(row):
    logits = {
      label: np.log(labels[label]) + sum(np.log((count[word] + 1) / total[label]) for word in split(row))
      for label, count in counts.items()
    }
    return max(logits, key=logits.get)

  return np.mean([likeliest(row) == row.labels[0][0] for row in parts.test])


@pytest.mark.long
def test_docstrings_are_told_apart_as_well_as_by_the_encoder_alone(tmp_path, capsys):
  """Three seeds of each; the printed means and deviations are those of the documentation."""
  scores = {preset: [] for preset in ('docstrings', 'region')}
  for preset, found in scores.items():
    for seed in range(3):
      seeds = '--run.seed', str(seed), '--data.seed', str(seed)
      results = trained(tmp_path / f'{preset}-{seed}', 'docstrings', *seeds, preset=preset)
      found.append(100 * results['test']['accuracy'])
  bayes = 100 * naive_bayes(labelled.open_parts('docstrings'))
  with capsys.disabled():
    for preset, found in scores.items():
      print(f'\n{preset}: {np.mean(found):.2f} +- {np.std(found, ddof=1):.2f} % of {np.round(found, 2)}', end='')
    print(f'\nnaive Bayes: {bayes:.2f} %')
  exam, encoder = (np.mean(found) for found in scores.values())
  assert exam >= encoder - 0.3 and min(exam, encoder) > bayes
