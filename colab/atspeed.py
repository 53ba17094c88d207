# %% [markdown]
# # Lists of recommendations in fewer calls
# A generative recommender is a language model whose words are codes of items: it reads the items of a history and generates the next
# one. A beam search gives a list. With a draft model that searches ahead, the large model only verifies, and the list stays the same
# (AtSpeed, [arXiv 2410.05165](https://arxiv.org/abs/2410.05165)). This notebook makes identifiers, trains a recommender and two drafts
# on generated users, and compares them (minutes on a CPU).

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
from jaxlm.data.interactions import TEST
from trainers import recommend
from trainers.recommend import ids

# QUICK trains for a few steps: every cell runs, but the lists mean nothing.
QUICK = bool(os.environ.get('QUICK'))
runs = Path(os.environ.get('RUN_DIRECTORY', 'runs/notebook'))
print(jax.__version__, jax.devices(), 'QUICK' if QUICK else '')

# %% [markdown]
# ## Items and their identifiers
# In a shell: `python -m trainers.recommend ids`. Residual k-means turns the features of an item into three codes: the first one names a
# group of items, and each further one divides it. Where items share all three codes, a fourth one tells them apart.

# %%
made = recommend.PRESETS['ids-tiny' if QUICK else 'ids'][1]
recommend.main(replace(made, run=recommend.IdsRunConfig(str(runs / 'recommend-ids'))))
data = ids.load(runs / 'recommend-ids')
items, histories = data.catalogue, data.histories
print(items)
print(items.report)
for i in histories.of(0, 0)[:4]:
  print(items.titles[i], [items.pieces[token] for token in items.tokens[i]])

# %% [markdown]
# ## A recommender
# In a shell: `python -m trainers.recommend target`. Running a cell that trains again resumes its run, or finds it complete.


# %%
def briefly(config, steps, name, **changes):
  """Returns a config with another number of steps, evaluated four times, and a run directory."""
  steps = 8 if QUICK else steps
  run = replace(
    config.run, steps=steps, directory=str(runs / name), eval_every=steps // 4, save_every=steps // 4, log_every=25
  )
  return replace(config, run=run, **changes)


tiny = '-tiny' if QUICK else ''
target = recommend.PRESETS[f'target{tiny}'][1]
_ = recommend.main(briefly(target, 400, 'recommend-target', ids=str(runs / 'recommend-ids')))

# %% [markdown]
# ## Two drafts
# Both have one layer. One learns from the data alone (`sft`). The other one is also pulled to the target's distribution on the
# target's own beams (`atspeed-s`), since in a search it is asked about prefixes that are not in the data. In a shell: `python -m
# trainers.recommend draft --loss.name sft`.

# %%
draft = recommend.PRESETS['tiny' if QUICK else 'draft'][1]
losses = ('sft', 'atspeed-s')
for loss in losses:
  config = briefly(
    draft, 300, f'recommend-draft-{loss}',
    target=str(runs / 'recommend-target'),
    loss=replace(draft.loss, name=loss),
    beams=replace(draft.beams, file=str(runs / 'beams.jsonl')),
  )  # fmt: skip
  _ = recommend.main(config)

# %% [markdown]
# The trainer measures a draft by what it is for: the mean number of accepted steps of a search. It keeps the parameters of the best
# evaluation.

# %%
figure, axis = plt.subplots(figsize=(6, 3), layout='constrained')
for loss in losses:
  lines = (runs / f'recommend-draft-{loss}' / 'metrics.jsonl').read_text().splitlines()
  rows = [row for row in map(json.loads, lines) if 'valid/accept_steps' in row]
  axis.plot([row['step'] for row in rows], [row['valid/accept_steps'] for row in rows], marker='o', label=loss)
axis.set(xlabel='step', ylabel='accepted steps', ylim=(0, items.depth), title=f'of {items.depth - 1} drafted steps')
axis.legend()
plt.show()

# %% [markdown]
# ## The same lists in fewer calls
# Without a draft, an identifier of L codes takes L calls of the target. With one, all steps that the draft got right are verified in one
# call: a step is right if the K prefixes that the target keeps are among the N that the draft kept. Here all is computed in float32. In
# bfloat16, the default on accelerators, a call on more tokens rounds otherwise, and items whose scores are close may change places.

# %%
# Accelerators round the factors of float32 products to fewer bits unless they are told not to.
jax.config.update('jax_default_matmul_precision', 'highest')
lm = jaxlm.load(runs / 'recommend-target', dtype='float32')
drafts = {loss: jaxlm.load(runs / f'recommend-draft-{loss}', dtype='float32') for loss in losses}
trie = items.trie()
known, truth = histories.examples(TEST)
known, truth = known[:64], truth[:64]
prompts = [items.prompt(history) for history in known]
k = 5 if QUICK else 10
plain = decoders.atspeed.recommend(lm, None, trie, prompts, k=k)
calls = {}
for loss in losses:
  for beam in (k, 2 * k, 4 * k):
    out = decoders.atspeed.recommend(lm, drafts[loss], trie, prompts, k=k, beam=beam)
    assert out.items == plain.items
    np.testing.assert_allclose(out.scores, plain.scores, atol=1e-3)
    calls[loss, beam] = np.array(out.stats['target_calls'])
    print(f'{loss:10} N={beam:<3} {calls[loss, beam].mean():.2f} target calls instead of {items.depth}')

# %%
figure, axis = plt.subplots(figsize=(6, 3), layout='constrained')
beams = [beam for loss, beam in calls if loss == losses[0]]
for loss in losses:
  axis.plot(beams, [calls[loss, beam].mean() for beam in beams], marker='o', label=loss)
axis.axhline(items.depth, color='black', linestyle='--', label='without a draft')
axis.set(
  xlabel='beams of the draft, N', ylabel='target calls', ylim=(0, items.depth + 0.5), title=f'lists of {k} items'
)
axis.legend()
plt.show()

# %% [markdown]
# ## A list by title
# `exclude` leaves out what a user has seen. `trie.allowed` restricts a search to some items, such as those in stock; it has the same
# shape, so nothing is compiled again.

# %%
user = max(range(len(known)), key=lambda u: len(set(plain.items[u][:k]) & set(truth[u])))
print('history:', ', '.join(items.titles[i] for i in known[user][-5:]))
print('next:   ', ', '.join(items.titles[i] for i in truth[user]))
best = drafts['atspeed-s']
out = decoders.atspeed.recommend(lm, best, trie, [prompts[user]], k=k, exclude=[known[user]])
for i, score in zip(out.items[0], out.item_scores[0]):
  print(f'{np.exp(score):7.2%}  {items.titles[i]}{"  <- was next" if i in truth[user] else ""}')

# %%
stock = np.random.default_rng(0).choice(len(items), len(items) // 4, replace=False)
out = decoders.atspeed.recommend(lm, best, trie.allowed(stock), [prompts[user]], k=k)
assert set(out.items[0]) <= set(stock.tolist())
print('in stock:', ', '.join(items.titles[i] for i in out.items[0][:5]))

# %% [markdown]
# ## Lists that are drawn
# `verify='relaxed_exact'` gives lists of stochastic beam search, whose items are drawn without replacement by the target's probabilities.
# `verify='relaxed'` is the paper's rule, which is near that law. Lists of other seeds differ, and `seed` makes them repeatable.

# %%
for rule in ('relaxed', 'relaxed_exact'):
  out = decoders.atspeed.recommend(lm, best, trie, prompts, k=k, verify=rule, seed=1)
  again = decoders.atspeed.recommend(lm, best, trie, prompts, k=k, verify=rule, seed=1)
  assert out.items == again.items
  shared = np.mean([len(set(a) & set(b)) / k for a, b in zip(out.items, plain.items)])
  print(f'{rule:14} {np.mean(out.stats["target_calls"]):.2f} target calls, {shared:.0%} of the items of the best lists')

# %% [markdown]
# ## Your own items
# A log of users, items and times is all that is needed: `python -m trainers.recommend ids --data.source log.csv --data.items items.jsonl`.
# [docs/recommendation.md](../docs/recommendation.md) has all options, and [docs/benchmarks.md](../docs/benchmarks.md) what we measured on
# films.
