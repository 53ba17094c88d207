"""Small labelled texts, where a word says the class and its place does not matter."""

import json

import numpy as np
import pytest

from trainers import loop

COLOURS = ('red', 'green', 'blue')


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
  """Runs draw no curve of the loss, which takes a third of a short run; tests of the loop look at it."""
  monkeypatch.setattr(loop, 'plot_losses', lambda *_, **__: None)


def examples(n, seed):
  rng = np.random.default_rng(seed)
  for _ in range(n):
    colour = int(rng.integers(3))
    words = [f'w{i}' for i in rng.integers(0, 30, rng.integers(2, 7))]
    words.insert(int(rng.integers(len(words) + 1)), COLOURS[colour])
    tags = [tag for tag in ('p', 'q', 'r') if rng.random() < 0.4]
    yield {'text': ' '.join([*words, *tags]), 'label': COLOURS[colour], 'tags': tags}


@pytest.fixture(scope='session')
def texts(tmp_path_factory):
  """Returns a folder with train, valid and test files: .csv with one label, .jsonl with tags as well."""
  folder = tmp_path_factory.mktemp('texts')
  for seed, (name, n) in enumerate((('train', 120), ('valid', 40), ('test', 50))):
    made = list(examples(n, seed))
    (folder / f'{name}.csv').write_text('label,text\n' + ''.join(f'{e["label"]},{e["text"]}\n' for e in made))
    (folder / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, made)))
  return folder
