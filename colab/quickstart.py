# %% [markdown]
# # jaxlm quickstart
# This notebook trains a small language model on text that ships with Python, loads a pretrained one, and generates text with both.

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
import json
import os
from pathlib import Path

import jax
import matplotlib.pyplot as plt

import decoders
import jaxlm
from trainers import pretrain

# QUICK finishes on a CPU in under a minute; without it the model is larger and is trained for longer.
QUICK = bool(os.environ.get('QUICK')) or jax.default_backend() == 'cpu'
print(jax.__version__, jax.devices(), 'QUICK' if QUICK else '')

# %% [markdown]
# ## Train
# A preset is a config, and any of its fields can be replaced. Running this cell again resumes the run, or finds it complete.

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
# `jaxlm.load` loads the run that was just written. It also loads Hugging Face directories and `.gguf` files.

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
# SmolLM2-135M-Instruct has 30 layers. It is about 93 MB, and is downloaded once. Without a network this cell prints the error and the
# notebook continues.

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
