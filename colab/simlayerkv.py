# %% [markdown]
# # Lazy layers
# Some layers of a language model attend almost only to the first few tokens and to the latest ones. SimLayerKV
# ([arXiv 2410.13846](https://arxiv.org/abs/2410.13846)) finds these lazy layers for each prompt and keeps only those tokens in their
# caches. This notebook measures how lazy the layers of a model are, cuts and quantises their caches, and asks questions about a text
# that was read once.

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

# QUICK uses a small untrained model and a short text: every cell runs, but the results mean nothing.
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
# The plot shows the share of attention that goes to the first 4 and the latest tokens, for the last tokens of the prompt and for the
# tokens generated afterwards. A lazy layer stays lazy, so one decision per prompt is enough.

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
# ## Cut the lazy layers
# Half of the layers keep all tokens, the others 4 + `recent` tokens. Caches are also quantised to 4 bits.

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
# ## Read once, ask many times
# A context is a text with its cut cache. Questions do not change it, a reply makes a new context, and a context can be saved.

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
