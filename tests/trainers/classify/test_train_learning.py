"""What classifiers learn: an order that a bag of words cannot see."""

import json

import numpy as np
import pytest

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
