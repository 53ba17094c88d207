# %% [markdown]
# # Lazy layers
# Some layers of a language model look almost only at the first few tokens and at the latest ones. SimLayerKV
# ([arXiv 2410.13846](https://arxiv.org/abs/2410.13846)) finds them for the prompt at hand and keeps no more than that in
# their caches. This notebook measures how lazy the layers of a model are, cuts their caches, asks questions of a text that
# was read once, and quantises what is left.

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
import itertools
import os
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import decoders
import jaxlm
from decoders.simlayerkv import KiviConfig, LazyConfig, compress
from jaxlm.data import embedded

# QUICK takes a small model without training and a short text, which shows the way and no quality.
QUICK = bool(os.environ.get('QUICK'))
print(jax.__version__, jax.devices(), 'QUICK' if QUICK else '')

# %% [markdown]
# ## A model and a long text
# SmolLM2-135M reads up to 8192 tokens. The text ships with Python.

# %%
if QUICK:
  from jaxlm.config import ModelConfig
  from jaxlm.data.tokenizers import ByteTokenizer
  from jaxlm.models.transformer import init_params

  config = ModelConfig(
    vocab_size=259, num_layers=3, model_dim=64, num_heads=4, num_kv_heads=2, head_dim=32, mlp_dim=128, max_length=1024, dtype='float32'
  )  # fmt: skip
  lm = jaxlm.LanguageModel(config, init_params(config, jax.random.key(0)), ByteTokenizer())
else:
  from jaxlm.data import fetch

  lm = jaxlm.load(fetch.fetch('smollm2'))
length, recent = (600, 96) if QUICK else (4096, 508)
text = '\n'.join(itertools.islice(embedded.read(), 40))
ids = lm.tokenizer.encode(text[: 8 * length])[:length]

# %% [markdown]
# ## How lazy is each layer?
# The share of attention that the last tokens of the prompt pay to the first 4 and the latest tokens, and what it is for
# the tokens generated afterwards: a layer that is lazy stays so, and one decision per prompt is enough.

# %%
report = jaxlm.analysis.laziness(lm, np.array(ids), recent=recent, new_tokens=8 if QUICK else 32)
figure, axis = plt.subplots(figsize=(7, 3))
axis.plot(report.prompt[:, -1], marker='.', label="the prompt's last tokens")
axis.plot(report.new.mean(axis=1), marker='.', label='tokens generated after it')
axis.plot(report.sink, color='#999999', linestyle=':', label='attention to the first token')
axis.set(xlabel='layer', ylabel='share of attention', ylim=(0, 1.02))
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## Cut them
# Half of the layers keep everything, the others 4 + `recent` tokens; then the same with what remains in 4 bits.

# %%
lazy = LazyConfig(n_recent=recent, stage='prefill')
rows, cut = {}, {}
for name, config in {
  'full': lazy.replace(threshold=1.0),
  'half lazy': lazy,
  '4 bits': lazy.replace(threshold=1.0, quant=KiviConfig()),
  'half lazy, 4 bits': lazy.replace(quant=KiviConfig()),
  'all lazy': lazy.replace(n_full=0),
}.items():
  out = decoders.simlayerkv.generate(lm, [ids], max_new_tokens=24, lazy=config, prefill_chunk=1024)
  rows[name], cut[name] = out.stats['kv_bytes'] / 1e6, out.stats['lazy_layers'][0]
  print(f'{name:18} {rows[name]:7.1f} MB  {out.stats["tokens_per_second"]:6.1f} tokens/s  {out.text[0]!r:.70}')
print('half lazy cut these layers:', cut['half lazy'])

# %%
figure, axis = plt.subplots(figsize=(7, 2.4))
axis.barh(list(rows), list(rows.values()), color='#4c72b0')
axis.invert_yaxis()
axis.set(xlabel='MB of keys and values')
plt.show()

# %% [markdown]
# ## Read once, ask many
# A context is a text whose cache is cut. Questions leave it as it is; a reply makes a new one; it can be saved.

# %%
context = compress(lm, [ids], lazy=lazy.replace(quant=KiviConfig()), room=256, prefill_chunk=1024)
print(f'{context.nbytes / 1e6:.1f} MB, {context.stats["compression"]:.1f} times smaller')
out = context.ask(lm, ['\n\nIn short, this text is about', '\n\nThe first function described is'], max_new_tokens=24)
print(*out.text, sep='\n')

# %%
out, longer = context.reply(lm, ['\n\nThe most important point is'], max_new_tokens=24)
folder = Path(os.environ.get('RUN_DIRECTORY', 'runs/context'))
if not folder.exists():
  longer.save(folder)
again = decoders.simlayerkv.Context.load(folder, lm)
print(again.ask(lm, ['\n\nTherefore'], max_new_tokens=16).text[0])
