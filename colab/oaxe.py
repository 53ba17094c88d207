# %% [markdown]
# # A model that stops repeating itself
# A model that predicts all target tokens at once cannot know which of several word orders its neighbours chose. Trained with
# cross-entropy it mixes them, and says tokens twice. Order-agnostic cross-entropy ([OaXE](https://arxiv.org/abs/2106.05093)) compares
# its prediction with the best order of the target's tokens instead. This notebook shows the loss, and trains a model with both (minutes
# on a CPU).

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
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import decoders
import jaxlm
from jaxlm import losses
from jaxlm.data import grammar
from jaxlm.losses.position_costs import position_costs
from jaxlm.models import nat, seq2seq
from pallas_kernels import linear_assignment
from trainers import translate

# QUICK trains for a few steps: every cell runs, but the translations mean nothing.
QUICK = bool(os.environ.get('QUICK'))
print(jax.__version__, jax.devices(), 'QUICK' if QUICK else '')

# %% [markdown]
# ## The loss alone
# Six positions are sure of a sentence. The losses are in nats per token. Cross-entropy charges every token that is not in its place.
# OaXE charges nothing for any order of the same tokens, but for a word that is said twice and one that is missing. OaXE of 2-grams
# charges the seam between phrases that moved, and most of an order in which no two neighbours stay together.

# %%
words = 'the old man saw a dog'.split()
target = jnp.arange(6)[None]


def sure_of(order, confidence=8.0):
  """Returns logits [1, 6, 6] of positions that are sure of the words in this order."""
  return confidence * jax.nn.one_hot(jnp.array([order]), 6)


orders = {'in place': [0, 1, 2, 3, 4, 5], 'phrases moved': [3, 4, 5, 0, 1, 2], 'scrambled': [5, 2, 0, 4, 1, 3], 'a word twice': [0, 1, 2, 2, 4, 5]}  # fmt: skip
table = {
  'cross-entropy': losses.cross_entropy, 'OaXE': losses.oaxe, 'OaXE, 2-grams': lambda *x: losses.ngram_oaxe(*x, n=2),
}  # fmt: skip
print(f'{"":36}' + ''.join(f'{name:>16}' for name in table))
for name, order in orders.items():
  found = [loss(sure_of(order), target) for loss in table.values()]
  said = ' '.join(words[i] for i in order)
  print(f'{name:14}{said:22}' + ''.join(f'{float(total / weight):16.2f}' for total, weight in found))

# %% [markdown]
# `losses.oaxe` takes the logits of any model. The assignment is found exactly on the device, inside the compiled step, and the gradient
# is that of cross-entropy with the target in the best order.

# %%
logits = sure_of(orders['phrases moved'], 2.0)
gradient = jax.grad(lambda x: losses.oaxe(x, target)[0])(logits)
print('Each position is pulled towards:', ' '.join(words[int(i)] for i in jnp.argmin(gradient[0], axis=1)))

# %% [markdown]
# ## Train with cross-entropy
# In a shell: `python -m trainers.translate nat`. Every sentence of the generated language has two word orders, subject first or verb
# first, and a coin decides. What a position should say then depends on the coin, which it cannot see: the best that cross-entropy can
# learn is a mixture of both orders. Running this cell again resumes the run, or finds it complete.

# %%
runs = Path(os.environ.get('RUN_DIRECTORY', 'runs/notebook'))


def setting(preset, name, **changes):
  """Returns the preset of that name with its run in `runs`; a QUICK one has 20 steps."""
  config = translate.PRESETS[preset][1]
  run = replace(config.run, directory=str(runs / name))
  if QUICK:
    run = replace(run, steps=20, eval_every=10, save_every=10)
    changes |= {'optimizer': replace(config.optimizer, warmup_steps=10)}
  return replace(config, run=run, eval=replace(config.eval, sentences=20 if QUICK else 200, show=0), **changes)


first = setting('nat', 'ce')
_ = translate.main(first)

# %% [markdown]
# ## Go on with OaXE
# In a shell: `python -m trainers.translate oaxe --start runs/nat`. OaXE goes on from a model of cross-entropy: of a model that knows
# nothing, any order is as good as any other. Targets that are less likely than 0.15 even in the best order have no loss, so that the
# model can leave the other order alone.

# %%
_ = translate.main(setting('oaxe', 'oaxe', start=str(runs / 'ce')))

# %%
logged = {
  name: [json.loads(line) for line in (runs / name / 'metrics.jsonl').read_text().splitlines()]
  for name in ('ce', 'oaxe')
}
figure, axes = plt.subplots(1, 3, figsize=(11, 3), layout='constrained')
titles = {
  'valid_share': '% of translations valid',
  'repetition_ratio': '% of tokens repeated',
  'max_probability': 'confidence, %',
}
for axis, (name, title) in zip(axes, titles.items()):
  for run, offset in (('ce', 0), ('oaxe', first.run.steps)):
    points = [(offset + row['step'], 100 * row[f'valid/{name}']) for row in logged[run] if f'valid/{name}' in row]
    axis.plot(*zip(*points), marker='.', label={'ce': 'cross-entropy', 'oaxe': 'OaXE'}[run])
  axis.set(title=title, xlabel='step', ylim=(0, None))
axes[0].legend()
plt.show()

# %% [markdown]
# ## What the models say
# Words that are equal to the one before them are in brackets. One pass of the decoder writes all of them.

# %%
models = {name: jaxlm.load(runs / name) for name in ('ce', 'oaxe')}
language = grammar.parse('grammar:short:test')
pairs = list(itertools.islice(language, 4 if QUICK else 6))
texts = {
  name: decoders.translate(model, [source for source, _ in pairs], length_beam=1, dedup=False).text for name, model in models.items()
}  # fmt: skip


def marked(text):
  tokens = text.split()
  return ' '.join(f'[{w}]' if i and w == tokens[i - 1] else w for i, w in enumerate(tokens))


for i, (source, reference) in enumerate(pairs):
  print(source, f'\n  reference      {reference}')
  for name, said in texts.items():
    verdict = 'valid' if language.is_valid(source, said[i]) else 'not valid'
    print(f'  {dict(ce="cross-entropy", oaxe="OaXE")[name]:14} {marked(said[i])}  ({verdict})')

# %% [markdown]
# ## A picture of an alignment
# Rows are positions of the decoder, columns the words of the reference: dark is likely. Crosses are cross-entropy's targets, circles the
# best order, which the assignment finds. The model of cross-entropy gives each position the words of two orders. The model of OaXE
# has chosen one, and where the reference has the other one, the circles follow it.

# %%
# A reference that has the order that the model does not choose.
source, said = next((s, t) for s, t in language if t.split()[0][0] == 'V' and len(s.split()) > 6)


def costs_of(model):
  """Returns -log p of each position for each token of the reference, [1, T, T], and the best order, [1, T]."""
  c, ids = model.config, model.tokenizer
  source_1S = jnp.array([[*ids.source.encode(source), c.source_end_id]])
  targets_1T = jnp.array([[*ids.target.encode(said), c.eos_id]])
  lengths, source_lengths = jnp.array([targets_1T.shape[1]]), jnp.array([source_1S.shape[1]])
  states, _ = nat.encode(model.params, c, source_1S, source_lengths)
  inputs = nat.unknown_targets(c, states, source_lengths, lengths, targets_1T.shape[1])
  hidden = nat.hidden(model.params, c, inputs, lengths, seq2seq.memory(model.params, c, states, source_lengths))
  nll = position_costs(seq2seq.logits(model.params, c, hidden), targets_1T).nll
  return nll, linear_assignment(nll)


figure, axes = plt.subplots(1, 2, figsize=(9, 4.4), layout='constrained')
for axis, (name, model) in zip(axes, models.items()):
  nll, columns = costs_of(model)
  axis.imshow(np.exp(-np.asarray(nll[0])), cmap='Blues', vmin=0, vmax=1)
  T = nll.shape[1]
  axis.plot(range(T), range(T), 'x', color='#c44e52', label='cross-entropy')
  axis.plot(np.asarray(columns[0]), range(T), 'o', mfc='none', color='#55a868', markersize=10, label='OaXE')
  axis.set_xticks(range(T), [*said.split(), 'EOS'], rotation=60, fontsize=8)
  axis.set(title={'ce': 'trained with cross-entropy', 'oaxe': 'trained with OaXE'}[name], ylabel='position')
axes[1].legend(fontsize=8, loc='lower left')
plt.show()

# %% [markdown]
# ## Phrases, real text and speed
# OaXE may scramble a phrase, since every order is the same to it; `--loss ngram-oaxe` keeps neighbours together. `python -m
# benchmarks.translation --study oaxe` compares the losses with error bars, and measures decoding beside a model that writes token by
# token. The results are in [docs/benchmarks.md](../docs/benchmarks.md#order-agnostic-losses), the models and all options in
# [docs/non_autoregressive.md](../docs/non_autoregressive.md).
