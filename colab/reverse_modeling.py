# %% [markdown]
# # Text read from its end
# A language model can also be trained on reversed text: the same tokens, last one first
# ([arXiv 2410.09817](https://arxiv.org/abs/2410.09817)). A model trained only forward cannot read reversed text. This notebook trains
# a model on both directions, generates the text before a sentence, and ranks documents by the difference of the two losses.

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
import itertools
import json
import os
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import decoders
import jaxlm
from jaxlm.analysis.direction.scores import score_documents
from jaxlm.data import embedded, selection
from trainers import pretrain

# QUICK trains a model of bytes for a few steps: every cell runs, but the results mean nothing.
QUICK = bool(os.environ.get('QUICK'))
print(jax.__version__, jax.devices(), 'QUICK' if QUICK else '')

# %% [markdown]
# ## Train both ways
# In a shell: `python -m trainers.pretrain --direction both`. The model is not told the direction of a text; it sees it from the first
# tokens.

# %%
run = Path(os.environ.get('RUN_DIRECTORY', 'runs/both'))
_, config = pretrain.PRESETS['smoke' if QUICK else 'embedded']
config = replace(
  config,
  direction='both',
  reverse=pretrain.ReverseConfig(pairing='duplicate'),
  run=replace(config.run, directory=str(run), steps=30 if QUICK else 1200, eval_every=10 if QUICK else 100),
)
_ = pretrain.main(config)

# %%
logged = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
figure, axis = plt.subplots(figsize=(6, 3))
for name, label in (('valid/loss_forward', 'held out, forward'), ('valid/loss_reverse', 'held out, reverse')):
  points = [(row['step'], row[name]) for row in logged if name in row]
  axis.plot(*zip(*points), marker='.', label=label)
axis.set(xlabel='step', ylabel='loss (nats per token)')
axis.legend()
plt.show()

# %% [markdown]
# ## What comes before?
# In reverse the prompt is the end of a text, and the model generates towards its beginning. `out.text` is in reading order.

# %%
lm = jaxlm.load(run)
sampling = decoders.Sampling(temperature=0.7, top_k=40)
for end in (' is returned.', ' raises ValueError.'):
  out = decoders.generate(lm, [end], max_new_tokens=24, direction='reverse', sampling=sampling, num_samples=2)
  for text in out.text:
    print(repr(text), '<-', repr(end))

# %% [markdown]
# ## Which texts are easier from their end?
# S is the forward loss minus the reverse loss. This cell scores documents that the model may have seen in training. To select data,
# score text that it has not seen.

# %%
texts = [text[:1500] for text in itertools.islice(embedded.read(), 24 if QUICK else 300)]
scores = list(score_documents(lm, texts, batch_size=8))
S = np.array([score.S for score in scores])
order = np.argsort(S)
for name, which in (('forward', order[:3]), ('in reverse', order[::-1][:3])):
  for i in which:
    print(f'easier {name}: S {S[i]:+.3f}  {" ".join(texts[i].split())[:90]}')
figure, axis = plt.subplots(figsize=(6, 3))
axis.hist(S, bins=30, color='#4c72b0')
axis.axvline(0, color='#999999', linewidth=0.8)
axis.set(xlabel='S (nats per token): easier in reverse to the right', ylabel='documents')
plt.show()

# %% [markdown]
# ## Keep a budget
# In a shell, for corpora of any size: `python -m jaxlm.analysis.direction score CORPUS --model runs/both`, then `select` and
# `report`.

# %%
pool = selection.Pool(np.arange(len(S)), np.array([score.tokens for score in scores]), S)
kept = selection.select(pool, fraction=0.1, rule='highest')
print(f'{kept.kept.sum()} of {len(S)} documents, {kept.tokens} tokens, S from {S[kept.kept].min():+.3f} on')

# %% [markdown]
# ## A model trained only forward
# SmolLM2-135M reads a page, and then the same tokens reversed.

# %%
from jaxlm.data import fetch

try:
  smollm2 = fetch.locate('smollm2') if QUICK else fetch.fetch('smollm2')
except (OSError, ValueError) as error:
  smollm2 = None
  print(error)
if smollm2 is not None:
  (score,) = score_documents(jaxlm.load(smollm2), [texts[10][: 200 if QUICK else 1500]], batch_size=1, max_length=512)
  print(f'forward {score.loss_forward:.2f}, in reverse {score.loss_reverse:.2f} nats per token')
