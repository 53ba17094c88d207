# %% [markdown]
# # jaxlm quickstart
# Train a small language model on text that ships with Python, load a pretrained one, generate from both.

# %%
# Installs without touching the jax that matches this machine's TPU; safe to run again.
import importlib.util
import subprocess
import sys

REPOSITORY = ''  # 'git+https://...' of your copy; not needed where jaxlm is installed already
if importlib.util.find_spec('jaxlm') is None:
  assert REPOSITORY, 'Write where your copy of jaxlm is into REPOSITORY above.'
  subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', f'jaxlm @ {REPOSITORY}'], check=True)

# %%
import json
import os
from pathlib import Path

import jax
import matplotlib.pyplot as plt

import decoders
import jaxlm
from trainers import pretrain

# QUICK finishes on a CPU in under a minute; without it the model is larger and reads longer.
QUICK = bool(os.environ.get('QUICK')) or jax.default_backend() == 'cpu'
print(jax.__version__, jax.devices(), 'QUICK' if QUICK else '')

# %% [markdown]
# ## Train
# A preset is a value; any field can be replaced. Running this cell again resumes, or finds the run complete.

# %%
from dataclasses import replace

run = Path(os.environ.get('RUN_DIRECTORY', 'runs/quickstart'))
_, config = pretrain.PRESETS['smoke' if QUICK else 'embedded']
config = replace(config, run=replace(config.run, directory=str(run), steps=300 if QUICK else 1000, eval_every=50))
_ = pretrain.main(config)

# %%
logged = [json.loads(line) for line in (run / 'metrics.jsonl').read_text().splitlines()]
figure, axis = plt.subplots(figsize=(6, 3))
for name, label in (('loss', 'training'), ('valid/loss', 'held out')):
  points = [(row['step'], row[name]) for row in logged if name in row]
  axis.plot(*zip(*points), marker='.', label=label)
axis.set(xlabel='step', ylabel='loss (nats per token)')
axis.legend()
plt.show()

# %% [markdown]
# ## Generate
# `jaxlm.load` reads the run that was just written; it would read a Hugging Face directory or a `.gguf` file the same way.

# %%
lm = jaxlm.load(run)
sampling = decoders.Sampling(temperature=0.8, top_k=40)
prompts = ['Return ', 'The ']
out = decoders.generate(lm, prompts, max_new_tokens=32, sampling=sampling, seed=0)
for prompt, text in zip(prompts, out.text):
  print(repr(prompt + text))
print(out.stats)

# %% [markdown]
# ## A pretrained model
# SmolLM2-135M-Instruct, 30 layers; about 93 MB to fetch, once. Without a network this cell says so and the notebook goes on.

# %%
from jaxlm.data import fetch

try:
  smollm2 = fetch.locate('smollm2') if QUICK else fetch.fetch('smollm2')
except (OSError, ValueError) as error:
  smollm2 = None
  print(error)
if smollm2 is not None:
  lm = jaxlm.load(smollm2)
  out = decoders.generate(lm, [lm.tokenizer.chat('Why is the sky blue?')], max_new_tokens=24 if QUICK else 128)
  print(out.text[0])
  print(f'{out.stats["tokens_per_second"]:.1f} tokens/s')
