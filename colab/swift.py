# %% [markdown]
# # A model that drafts for itself
# A language model that skips some of its sub-layers still predicts most of its own next tokens. SWIFT
# ([arXiv 2410.06916](https://arxiv.org/abs/2410.06916)) drafts tokens in this way and verifies several of them in one call of the
# whole model. It gives the same text in fewer calls, without training. This notebook shows which sub-layers a model can skip, lets
# SWIFT search for a set while it generates, and compares it with prompt lookup.

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
import os

import jax
import matplotlib.pyplot as plt
import numpy as np

import decoders
import jaxlm
from decoders.speculative import PromptLookup
from decoders.swift import SkipSet, Stream, SwiftConfig, matchness

# QUICK uses a small untrained model: every cell runs, but the results mean nothing.
QUICK = bool(os.environ.get('QUICK'))
print(jax.__version__, jax.devices(), 'QUICK' if QUICK else '')

# %% [markdown]
# ## A model and its own text

# %%
if QUICK:
  from jaxlm.config import ModelConfig
  from jaxlm.data.tokenizers import ByteTokenizer
  from jaxlm.models.transformer import init_params

  config = ModelConfig(
    vocab_size=259, num_layers=6, model_dim=64, num_heads=4, num_kv_heads=2, head_dim=16, mlp_dim=128, max_length=512, dtype='float32'
  )  # fmt: skip
  lm = jaxlm.LanguageModel(config, init_params(config, jax.random.key(0)), ByteTokenizer())
  questions, tokens = [lm.tokenizer.encode(q) for q in ('Why?', 'How?')], 40
else:
  from jaxlm.data import fetch

  lm, tokens = jaxlm.load(fetch.fetch('smollm2')), 128
  asked = [
    'Why is the sky blue?',
    'Write a Python function that reverses a string.',
    'Describe a walk in the rain.',
    'List ten animals.',
  ]
  questions = [lm.tokenizer.chat([{'role': 'user', 'content': q}]) for q in asked]
plain = decoders.generate(lm, questions, max_new_tokens=tokens, eos_id=None)
print(plain.text[0])

# %% [markdown]
# ## What can be skipped?
# Each sub-layer is skipped alone. The plot shows the share of the model's own tokens that it still predicts.

# %%
ids = questions[0] + plain.rows()[0]
layers = range(1, lm.config.num_layers - 1)
attention = matchness(lm, ids, [SkipSet(attention=(i,)) for i in layers], window=tokens - 1)
mlp = matchness(lm, ids, [SkipSet(mlp=(i,)) for i in layers], window=tokens - 1)
figure, axis = plt.subplots(figsize=(7, 3))
axis.plot(layers, attention, marker='.', label='without the attention of one layer')
axis.plot(layers, mlp, marker='.', label='without the MLP of one layer')
axis.set(xlabel='layer', ylabel='tokens still guessed', ylim=(0, 1.02))
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## Search while generating
# A stream continues its search from request to request. The guard is off in this notebook. It would soon switch such a small model
# to plain decoding, because the model needs nearly all of its sub-layers.

# %%
swift = SwiftConfig(skip_ratio=0.3 if QUICK else 0.15, max_draft=6, greedy_widths=(1, 1, 1, 1), guard=False)
stream = Stream(lm, swift)
for _ in range(1 if QUICK else 3):
  out = stream.generate(questions, max_new_tokens=tokens, eos_id=None)
  stats = out.stats
  # In bfloat16, reading several tokens at once rounds differently, which may change the choice between two nearly equal tokens.
  print(
    f'{np.mean(out.tokens == plain.tokens):.0%} of the tokens are the same; {stats["tokens_per_round"]:.2f} tokens a round, {stats["acceptance"]:.0%} of drafts accepted, matchness '
    f'{stats["matchness"]:.2f} with {stats["skip_ratio"]:.0%} skipped; {stats["searched_sets"]} sets in {stats["search_seconds"]:.1f} s'
  )
print('skipped:', stats['skipped'])
history = stream.search.history
figure, axis = plt.subplots(figsize=(7, 3))
axis.plot(
  [step.iterations for step in history],
  [max(step.scores) for step in history],
  '.',
  markersize=3,
  label='best of the sets scored',
)
axis.plot([step.iterations for step in history], [step.best_score for step in history], label='the set drafted with')
axis.set(xlabel='sets scored', ylabel='matchness', ylim=(0, 1.02))
axis.legend(fontsize=8)
plt.show()

# %% [markdown]
# ## Compared and combined with prompt lookup
# Prompt lookup drafts the tokens that followed an earlier occurrence of the last tokens. It costs almost nothing, and works well if a
# text repeats itself.

# %%
lookup = PromptLookup()
calls = {'plain': plain.stats['target_calls'], 'SWIFT': stats['target_calls']}
for name, run in {
  'prompt lookup': lambda: decoders.speculative.generate(
    lm, questions, drafter=lookup, max_new_tokens=tokens, eos_id=None
  ),
  'SWIFT after lookup': lambda: stream.generate(questions, lookup=lookup, max_new_tokens=tokens, eos_id=None),
}.items():
  out = run()
  print(f'{name}: {np.mean(out.tokens == plain.tokens):.0%} of the tokens are the same')
  calls[name] = out.stats['target_calls']
figure, axis = plt.subplots(figsize=(7, 2.4))
axis.barh(list(calls), list(calls.values()), color='#4c72b0')
axis.invert_yaxis()
axis.set(xlabel='calls of the whole model')
plt.show()
