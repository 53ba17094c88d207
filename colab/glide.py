# %% [markdown]
# # A draft that reads its target's cache
# A small draft model proposes tokens, and one call of the large model, its target, verifies them: the text is the same, in fewer calls.
# A draft of GliDe ([arXiv 2402.02082](https://arxiv.org/abs/2402.02082)) attends to the keys and values that the target has in its
# cache anyway, so that it knows more than its size suggests. CaPE verifies more candidates where the draft is unsure. This notebook
# trains a target and two drafts, one of which does not read the cache, and compares them (minutes on a CPU).

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
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import decoders
from decoders.glide import PAPER_BINS, GlideDecoding, Stream
import jaxlm
from jaxlm.data import embedded
from jaxlm.models import glide_training
from trainers import glide, pretrain

# QUICK trains for a few steps: every cell runs, but the numbers mean nothing.
QUICK = bool(os.environ.get('QUICK'))
print(jax.__version__, jax.devices(), 'QUICK' if QUICK else '')
runs = Path(os.environ.get('RUN_DIRECTORY', 'runs/notebook'))

# %% [markdown]
# ## A target
# A model of bytes, trained on text that ships with Python. Any language model that `jaxlm.load` opens could be the target. Running a
# cell that trains again resumes its run, or finds it complete.


# %%
def briefly(config, steps, directory, **changes):
  """Returns a config with another number of steps, evaluated three times; a QUICK one has 6 steps."""
  steps = 6 if QUICK else steps
  run = replace(config.run, steps=steps, directory=str(runs / directory), eval_every=-(-steps // 3), save_every=steps)
  run = replace(run, log_every=25)
  return replace(config, run=run, optimizer=replace(config.optimizer, warmup_steps=steps // 10), **changes)


smoke = pretrain.PRESETS['smoke'][1]
shape = dict(num_layers=4, model_dim=128, num_heads=4, num_kv_heads=4, head_dim=32, mlp_dim=384, max_length=512)
_ = pretrain.main(
  briefly(smoke, 200, 'target', model=smoke.model.replace(**shape), data=replace(smoke.data, batch_size=8, length=128))
)

# %% [markdown]
# ## Two drafts
# In a shell: `python -m trainers.glide --target runs/notebook/target`, and the same with `--model.no-cross`. Both have one layer and
# learn the target's distribution. In training, a token sees what it will see when it is drafted: the target's keys and values before its
# block of four tokens. The trainer decodes held-out prompts at each evaluation, and counts the tokens of each call of the target.

# %%
base = glide.PRESETS['smoke'][1]
for name, cross in (('glide', True), ('vanilla', False)):
  config = briefly(
    base, 120, name,
    target=str(runs / 'target'),
    model=replace(base.model, model_dim=96, num_heads=3, mlp_dim=256, cross=cross),
    data=replace(base.data, batch_size=8, length=128),
    distill=glide.DistillConfig(weight=1.0),
    eval=glide.EvalConfig(batches=4, prompts=4, prompt_tokens=64, new_tokens=64),
  )  # fmt: skip
  _ = glide.main(config)

# %%
figure, axis = plt.subplots(figsize=(6, 3), layout='constrained')
for name, label in (('glide', 'reads the cache'), ('vanilla', 'does not read it')):
  rows = [json.loads(line) for line in (runs / name / 'metrics.jsonl').read_text().splitlines()]
  points = [(row['step'], row['valid/accepted_length']) for row in rows if 'valid/accepted_length' in row]
  axis.plot(*zip(*points), marker='o', label=label)
axis.set(xlabel='step', ylabel='tokens per round', title='What a call of the target gives')
axis.legend()
plt.show()

# %% [markdown]
# ## The same text in fewer calls
# `bins` is the number of candidates for each tenth of the draft's probability: 1 is a chain without CaPE, and `PAPER_BINS` are the
# paper's 8 to 2. On a CPU each verified token takes time, so that a tree pays off only where calls are slow for other reasons.

# %%
lm = jaxlm.load(runs / 'target')
drafts = {name: jaxlm.load(runs / name) for name in ('glide', 'vanilla')}
texts = [text for text in embedded.read() if len(text) > 2000][:: 40 if QUICK else 12][:6]
prompts = [lm.tokenizer.encode(text[1000:1200])[:100] for text in texts]
settings = dict(max_new_tokens=32 if QUICK else 128, eos_id=None)
plain = decoders.generate(lm, prompts, **settings)
print(plain.text[0], '\n')
found = {}
for name, draft in drafts.items():
  for kind, bins in (('chain', (1,)), ('CaPE', PAPER_BINS)):
    stream = Stream(lm, draft, GlideDecoding(bins=bins, guard=False))
    out = stream.generate(prompts, **settings)
    assert (out.tokens == plain.tokens).all()
    found[name, kind] = out.stats
    print(
      f'{name:8} {kind:6} {out.stats["tokens_per_round"]:.2f} tokens per round, {out.stats["verified"] / out.stats["rounds"]:.1f} '
      f'verified; accepted by position {np.round(out.stats["acceptance_by_position"], 2).tolist()}'
    )

# %% [markdown]
# ## Acceptance by confidence
# Drafting computes what training computes, so one pass over the finished texts gives the draft's probabilities at all places. A token
# that the draft is sure of is nearly always the target's. Where it is not, the target's token is often among the next candidates: those
# are what CaPE verifies.

# %%
tokens = np.concatenate([np.array(prompts), plain.tokens], axis=1)
first = len(prompts[0]) - 1


@jax.jit
def ranks_and_confidence(params, draft_params, tokens, phase):
  """Returns the rank of each next token among the draft's candidates, and the probability of the likeliest one."""
  config = drafts['glide'].config
  reads, _ = glide_training.target_reads(lm.config, params, tokens, config.target_layers)
  logits = glide_training.training_logits(config, draft_params, tokens, reads, phase, target_params=params)
  own = jnp.take_along_axis(logits[:, :-1], tokens[:, 1:, None], axis=-1)
  return jnp.sum(logits[:, :-1] > own, axis=-1), jax.nn.softmax(logits[:, :-1]).max(-1)


# All places of a token in a block.
blocks = range(drafts['glide'].config.block)
pairs = [
  ranks_and_confidence(lm.params, drafts['glide'].params, tokens, jnp.full(len(tokens), phase)) for phase in blocks
]
rank, confidence = (np.concatenate([np.asarray(x)[:, first:].ravel() for x in part]) for part in zip(*pairs))
tenth = np.minimum((10 * confidence).astype(int), 9)
share = lambda accepted: [accepted[tenth == i].mean() if (tenth == i).any() else np.nan for i in range(10)]
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout='constrained')
at = np.arange(10) / 10 + 0.05
left.bar(at, share(rank < np.array(PAPER_BINS)[tenth]), 0.09, label="among CaPE's candidates", color='#dd8452')
left.bar(at, share(rank == 0), 0.09, label='the likeliest token', color='#4c72b0')
left.set(
  xlabel="the draft's probability of its likeliest token", ylabel="share that is the target's token", ylim=(0, 1.02)
)
left.set_xlim(0, 1)
left.legend(fontsize=8, loc='lower right')
left.set_title('Acceptance')
right.bar(at, np.bincount(tenth, minlength=10) / len(tenth), 0.09, color='#8c8c8c')
right.set(xlabel="the draft's probability of its likeliest token", ylabel='share of the tokens', title='Confidence')
plt.show()

# %% [markdown]
# ## A draft of a real model
# `python -m trainers.glide smollm2` trains a draft of SmolLM2-135M on texts that the model writes itself, and `python -m
# decoders.generate smollm2 --chat "Why?" --decoder glide --draft RUN` decodes with it. [docs/glide.md](../docs/glide.md) has all
# options, and [docs/benchmarks.md](../docs/benchmarks.md) what `python -m benchmarks.speculative --parts glide` measured.
