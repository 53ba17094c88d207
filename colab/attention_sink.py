# %% [markdown]
# # When does an attention sink appear?
# Softmax weights sum to 1 at every position, so a head that needs no token puts its weight on the first token: the attention sink.
# Sigmoid weights need not sum to 1. In this notebook both learn the same task; then it measures sinks in a pretrained model.
# It follows [When Attention Sink Emerges in Language Models](https://arxiv.org/abs/2410.10781).

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
import jax.numpy as jnp
import matplotlib.pyplot as plt

from benchmarks import gated_retrieval as task
import jaxlm
from jaxlm.analysis import inputs, sinks
from jaxlm.language_model import LanguageModel
from trainers.optimizer import make_optimizer
from trainers.step import init_state, make_train_step

QUICK = bool(os.environ.get('QUICK'))
PIECES, STEPS = (4, 50) if QUICK else (16, 50)
print(jax.__version__, jax.devices(), 'QUICK' if QUICK else '')

# %% [markdown]
# ## The task
# At a trigger the answer is a vector that depends on the previous token; at other positions it is 0. The first token is always the
# same.

# %%
tokens, answers = task.retrieval_batch(jax.random.key(0), 2)
print(tokens[0])
print('triggers at', jnp.flatnonzero(jnp.abs(answers[0]).sum(-1)))


# %% [markdown]
# ## Train both, and measure the sink every 50 steps
# `attention` is one field of the model's config. `sinks` returns Sink_1, from the weights and from the paper's proxy (for operations
# that do not normalise), and the mass of a row, which is needed to interpret them.


# %%
def curve(operation: str, seed: int = 0):
  config = task.MODEL.replace(attention=operation)
  tx = make_optimizer(task.OPTIMIZER, PIECES * STEPS).tx
  step = make_train_step(lambda params, batch, _: task.squared_error(config, params, *batch), tx)
  data = jax.random.key(seed + 1)

  @jax.jit
  def advance(state):
    body = lambda state, _: step(state, task.retrieval_batch(jax.random.fold_in(data, state.step)))
    state, metrics = jax.lax.scan(body, state, length=STEPS)
    return state, metrics['loss'][-1]

  state = init_state(task.init(config, jax.random.key(seed)), tx)
  held_out, _ = task.held_out(seed, 'fixed')
  points = []
  for _ in range(PIECES):
    state, loss = advance(state)
    report = sinks(LanguageModel(config, state.params['transformer'], None), held_out, batch_size=100)
    points.append((int(state.step), float(loss), 100 * float(report.sink_proxy[0, 0])))
  return points, report


curves = {operation: curve(operation) for operation in ('softmax', 'sigmoid')}
for operation, (points, report) in curves.items():
  print(f'{operation}: loss {points[-1][1]:.1e}, Sink_1 {points[-1][2]:.0f} %, row mass {report.row_mass.mean():.2f}')

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.2), layout='constrained')
for operation, (points, report) in curves.items():
  steps, losses, sink = zip(*points)
  left.semilogy(steps, losses, marker='.', label=operation)
  middle.plot(steps, sink, marker='.', label=operation)
  right.plot(range(1, 65), report.alpha_proxy[0].max(axis=0), marker='.', markersize=3, label=operation)
left.set(xlabel='step', ylabel='squared error', title='Both learn the task')
middle.set(xlabel='step', ylabel='Sink_1 (% of heads)', ylim=(-4, 104), title='One grows a sink')
right.set(
  xlabel='position', ylabel='mean attention (proxy)', ylim=(0, 1), title='Where the weight goes: strongest head'
)
middle.legend()
plt.show()

# %% [markdown]
# ## A pretrained model
# Which heads of SmolLM2-135M put their weight on the first token? The texts are beginnings of documents. The model is about 93 MB,
# and is downloaded once.

# %%
from jaxlm.data import fetch

try:
  smollm2 = fetch.locate('smollm2') if QUICK else fetch.fetch('smollm2')
except (OSError, ValueError) as error:
  smollm2 = None
  print(error)
if smollm2 is not None:
  lm = jaxlm.load(smollm2)
  sequences = 2 if QUICK else 32
  reports = {
    kind: sinks(lm, inputs(kind, lm=lm, batch=sequences, length=64)) for kind in ('natural', 'random', 'repeated')
  }
  for kind, report in reports.items():
    print(f'{kind}: Sink_1 {100 * report.sink_raw[0, 0]:.1f} %')
  figure, (left, right) = plt.subplots(1, 2, figsize=(9, 5), layout='constrained')
  image = left.imshow(reports['natural'].alpha[:, :, 0], vmin=0, vmax=1, cmap='magma', aspect='auto')
  left.set(xlabel='head', ylabel='layer', title='mean attention to token 1')
  figure.colorbar(image, ax=left)
  right.semilogy(reports['natural'].hidden_norm_ratio, marker='.')
  right.set(xlabel='layer', ylabel='hidden norm, token 1 / others', title='massive activations')
  plt.show()
