# %% [markdown]
# # Which word spoke for which label?
# [EXAM](https://arxiv.org/abs/1811.09386) classifies a text by comparing each word with each label: a score for every pair, and one small
# network that turns the scores of a label into its logit. This notebook trains it on docstrings of Python's standard library (minutes on
# a CPU), shows what each word adds to each label, and does the same where a text has several labels.

# %%
# Installs jaxlm and keeps the jax of this machine, which matches its TPU. Running this cell again is safe.
import importlib.util
import subprocess
import sys

REPOSITORY = ''  # 'git+https://...' of your copy; not needed if jaxlm is installed already
if importlib.util.find_spec('jaxlm') is None:
  assert REPOSITORY, 'Set REPOSITORY above to the address of your copy of jaxlm.'
  subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', f'jaxlm @ {REPOSITORY}'], check=True)

# %%
from dataclasses import replace
import json
import os
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import decoders
import jaxlm
from jaxlm.data import labelled
from trainers import classify

# QUICK trains for a few steps: every cell runs, but the labels mean nothing.
QUICK = bool(os.environ.get('QUICK'))
runs = Path(os.environ.get('RUN_DIRECTORY', 'runs/notebook'))
print(jax.__version__, jax.devices(), 'QUICK' if QUICK else '')

# %% [markdown]
# ## Train
# In a shell: `python -m trainers.classify`. The texts are docstrings, the label is the package that each is from. The run selects its
# best parameters on held-out texts and measures the test texts once. Running this cell again resumes the run, or finds it complete.


# %%
def trained(name, steps, **data):
  """Trains EXAM in the folder `name` of the runs and returns the classifier."""
  config = classify.PRESETS['docstrings'][1]
  run = replace(config.run, directory=str(runs / name), steps=30 if QUICK else steps, eval_every=15 if QUICK else 100, save_every=15 if QUICK else 100)  # fmt: skip
  classify.main(replace(config, run=run, data=replace(config.data, **data)))
  return jaxlm.load(runs / name)


model = trained('packages', 700)
print(model)


# %%
def curve(name, metric):
  """Returns (steps, values) of a metric of the held-out texts."""
  rows = [json.loads(line) for line in (runs / name / 'metrics.jsonl').read_text().splitlines()]
  return zip(*[(row['step'], row[f'valid/{metric}']) for row in rows if f'valid/{metric}' in row])


plt.figure(figsize=(5, 2.6), layout='constrained')
plt.plot(*curve('packages', 'accuracy'), marker='.')
plt.xlabel('step')
plt.title('accuracy on held-out docstrings, 18 packages')
plt.ylim(0, 1)
plt.show()

# %% [markdown]
# ## What each word adds
# With `explain=True` the classifier returns contributions: with `rest`, the part that belongs to no word, they add up to the logit.

# %%
parts = labelled.open_parts('docstrings')
texts = [row.text for row in parts.test if 8 <= len(row.text.split()) <= 16][:40]
out = decoders.classify(model, texts, top=5, explain=True)
first = max(range(len(texts)), key=lambda i: out.probabilities[i, 0])
found = out.contributions[first]
print(texts[first])
print('labels:', out.labels[first], out.probabilities[first].round(3))
print('contributions + rest:', (found.scores.sum(1) + found.rest).round(3), ' logits:', found.logits.round(3))
print('speak most for', found.labels[0], ':', found.strongest(0))


# %%
def heat_map(axis, scores, found, names, title):
  """Draws scores [labels, words]: green speaks for a label, red against it."""
  largest = np.abs(scores).max()
  image = axis.imshow(scores, cmap='RdYlGn', vmin=-largest, vmax=largest, aspect='auto')
  axis.set_xticks(range(len(found.words)), [word.replace('$', r'\$') for word in found.words], rotation=60, ha='right')
  axis.set_yticks(range(len(names)), names)
  axis.set_title(title, fontsize=10)
  axis.figure.colorbar(image, ax=axis)


names = [f'{label} {p:.0%}' for label, p in zip(found.labels, out.probabilities[first])]
figure, axes = plt.subplots(2, 1, figsize=(9, 6.2), layout='constrained')
heat_map(axes[0], found.scores, found, names, 'what each word adds to the logit')
heat_map(axes[1], found.interaction, found, names, 'interaction scores, before the network')
plt.show()

# %% [markdown]
# The lower picture is the one of the paper. The upper one is the score times the slope of the network, and adds up to the logit. Here the
# two look alike, since this model adds the sum of the scores to the network's output. Without that sum, as in the paper's text
# (`residual='none'`), the network may give a position a negative slope, and then a word with a high score speaks against the label.
# A contribution belongs to a place in the text: its representation has read three words on each side.

# %% [markdown]
# ## Several labels
# A text of several docstrings has the labels of all of them. In a shell: `python -m trainers.classify --data.source mixed.jsonl
# --data.multilabel labels`. Each label has a probability of its own, and those above a threshold are predicted, which is chosen on
# held-out texts.


# %%
def mixed(part, number, seed):
  """Yields texts of one to three docstrings, with the packages of all."""
  rows, rng = list(part), np.random.default_rng(seed)
  for _ in range(number):
    some = [rows[i] for i in rng.integers(0, len(rows), rng.integers(1, 4))]
    words = [' '.join(row.text.split()[:20]) for row in some]
    yield {'text': ' '.join(words), 'labels': sorted({row.labels[0][0] for row in some})}


runs.mkdir(parents=True, exist_ok=True)
for seed, (name, part) in enumerate(zip(('train', 'valid', 'test'), parts)):
  rows = mixed(part, (300 if QUICK else 6000) if name == 'train' else 300, seed)
  (runs / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, rows)))
files = {f'{name}source': str(runs / f'{part}.jsonl') for name, part in (('', 'train'), ('valid_', 'valid'), ('test_', 'test'))}  # fmt: skip
several = trained('mixed', 700, labels=('labels',), multilabel=('labels',), **files)

# %%
rows = [json.loads(line) for line in (runs / 'test.jsonl').read_text().splitlines()]
chosen = [row for row in rows if len(row['labels']) == 2 and len(row['text'].split()) < 26][:30]
out = decoders.classify(several, [row['text'] for row in chosen], top=4, explain=True)
right = [i for i, row in enumerate(chosen) if sorted(out.predicted[i]) == row['labels']] or [0]
print(f'{len(right)} of {len(chosen)} texts have exactly their two labels')
shown = right[0]
found = out.contributions[shown]
print(chosen[shown]['text'], '\n  labels:', chosen[shown]['labels'], ' predicted:', out.predicted[shown])
names = [f'{label} {p:.0%}' for label, p in zip(found.labels, out.probabilities[shown])]
figure, axis = plt.subplots(figsize=(11, 3.4), layout='constrained')
heat_map(axis, found.scores, found, names, 'what each word adds: each docstring speaks for its own package')
plt.show()

# %% [markdown]
# `decoders.classification.html(out, texts)` gives the same as coloured text, and `python -m decoders.classify RUN --text "..." --explain
# --heatmap map.html` in a shell. `encoder='lm'` puts the same comparison on the states of a language model, or of MiniLM.
