"""Key-value recall: trains a small model to retrieve key-value pairs, on which methods that cut caches are compared.

  text      x_0 is a fixed symbol; then filler, in which nine of ten symbols follow from the last two; in the filler, pairs
            (key v1 v2 v3) at random places, with all symbols different
  question  a key again, which its three values must follow
  loss      -log p of the values, and of filler times 0.1; in the last phase also 0.3 times the attention, mean over all layers,
            that questions pay to tokens that a lazy layer would forget

Without the last term no layer becomes lazy in such a short training: layers without a task attend evenly to all tokens (ratio 0.1,
the window's share of 256 tokens), and recall fails when they cannot. With the term, the model still chooses which layers attend to
distant tokens.

A prompt of 256 tokens ends with a key whose pair is outside the tokens that a lazy layer keeps.
"""

import dataclasses
import functools
import hashlib
import inspect
import json
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.made_before import facts_of
from decoders.simlayerkv.config import LazyConfig
import jaxlm
from jaxlm import caches
from jaxlm.caches.rows import heads_first
from jaxlm.caches.scored import lazy_ratio
from jaxlm.config import ModelConfig
from jaxlm.data.corpus import cache_folder
from jaxlm.models.transformer import Transformer, init_params
from trainers.config import OptimizerConfig
from trainers.optimizer import make_optimizer
from trainers.step import init_state, make_train_step

FIXED, KEYS, VALUES, FILLER = 0, 16, 64, 16  # Symbol 0, then the number of symbols of each kind.
FIRST_KEY, FIRST_VALUE, FIRST_FILLER = 1, 1 + KEYS, 1 + KEYS + VALUES
ANSWER = 3
LENGTH, PAIRS = 256, 8  # Number of tokens and of pairs in a prompt.
BLOCK = 8  # Number of tokens in a block, which has at most one pair or question of 1 + ANSWER tokens.
WINDOW = LazyConfig(n_initial=4, n_recent=28, stage='prefill')
RULE = np.random.default_rng(7).integers(0, FILLER, (FILLER, FILLER))

MODEL = ModelConfig(
  vocab_size=FIRST_FILLER + FILLER, num_layers=4, model_dim=64, num_heads=2, num_kv_heads=2, head_dim=32, mlp_dim=128,
  max_length=512, dtype='float32',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Phase:
  """A phase of training, on texts of one length."""

  steps: int
  rows: int
  length: int
  pairs: int
  questions: int
  """Number of questions at the end of a text, one in each block."""
  far: float = 0.0
  """Weight, in the loss, of the attention that questions pay to tokens that a lazy layer forgets, mean over all layers."""
  asked: float = 1.0
  """Share of the questions that are kept at random, so that the last one does not always follow others."""


@dataclasses.dataclass(frozen=True)
class Setting:
  """How the model is trained: first on short texts, on which it learns to attend to a pair; then on long texts."""

  model: ModelConfig = MODEL
  phases: tuple[Phase, ...] = (
    Phase(900, 64, 67, 4, 3),
    Phase(150, 32, 131, 6, 6),
    Phase(800, 16, 259, 8, 12, 0.3, 0.8),
  )
  optimizer: OptimizerConfig = OptimizerConfig(
    learning_rate=3e-3, warmup_steps=50, schedule='wsd', decay_fraction=0.25, weight_decay=0.1
  )
  seed: int = 0


def filler(noise_key, symbol_key, rows: int, length: int):
  """Returns [B, T] symbols of text without pairs."""
  noise_TB = jax.random.bernoulli(noise_key, 0.1, (length, rows))
  symbol_TB = jax.random.randint(symbol_key, (length, rows), 0, FILLER)

  def following(last, new):
    noise_B, symbol_B = new
    next_B = jnp.where(noise_B, symbol_B, jnp.asarray(RULE)[last])
    return (last[1], next_B), next_B

  _, text_TB = jax.lax.scan(following, (symbol_TB[0], symbol_TB[1]), (noise_TB, symbol_TB))
  return (text_TB.T + FIRST_FILLER).at[:, 0].set(FIXED)


@functools.partial(jax.jit, static_argnums=range(1, 5))
def texts(key, rows: int, length: int, pairs: int, questions: int, asked: float = 1.0):
  """Returns (tokens [B, T], weights [B, T] of each token in the loss). The last 1 + ANSWER tokens are a question."""
  noise_key, symbol_key, key_key, value_key, place_key, shift_key, ask_key, use_key = jax.random.split(key, 8)
  tokens_BT, row = filler(noise_key, symbol_key, rows, length), jnp.arange(rows)[:, None, None]
  some = lambda key, n: jnp.argsort(jax.random.uniform(key, (rows, n)), axis=1)
  keys_BP1 = FIRST_KEY + some(key_key, KEYS)[:, :pairs, None]
  values_BPA = FIRST_VALUE + some(value_key, VALUES)[:, : pairs * ANSWER].reshape(rows, pairs, ANSWER)
  pairs_BPA = jnp.concatenate([keys_BP1, values_BPA], axis=-1)
  # Between the tokens that a lazy layer keeps of the prompt if there is one question, else before the questions.
  end = length - (max(BLOCK, ANSWER + WINDOW.n_recent) if questions == 1 else BLOCK * questions)
  spans = lambda start_BP: start_BP[..., None] + jnp.arange(1 + ANSWER)[None, None]
  block_BP = some(place_key, (end - WINDOW.n_initial) // BLOCK)[:, :pairs]
  shift_BP = jax.random.randint(shift_key, (rows, pairs), 0, BLOCK - ANSWER)
  tokens_BT = tokens_BT.at[row, spans(WINDOW.n_initial + block_BP * BLOCK + shift_BP)].set(pairs_BPA)
  asked_BQ = jax.random.randint(ask_key, (rows, questions), 0, pairs)
  start_1Q = length - BLOCK * jnp.arange(questions)[None, ::-1] - 1 - ANSWER
  used_BQ = jax.random.bernoulli(use_key, asked, (rows, questions)).at[:, -1].set(True)
  at_BQA = jnp.where(used_BQ[..., None], spans(start_1Q), length)
  tokens_BT = tokens_BT.at[row, at_BQA].set(jnp.take_along_axis(pairs_BPA, asked_BQ[..., None], 1), mode='drop')
  # The filler counts a little: its rule teaches layers to look at the tokens just before, which finding a pair builds on.
  weights_BT = jnp.where(tokens_BT >= FIRST_FILLER, 0.1, 0.0)
  return tokens_BT, weights_BT.at[row, at_BQA[..., 1:]].set(1.0, mode='drop')


@struct.dataclass
class Watched:
  """Wraps the training cache and records, in each layer, the share of attention that some queries pay to distant tokens."""

  queries_BM: jax.Array
  far_L: jax.Array
  fresh = True

  def attend(self, layer: int, q, k, v, positions, rule):
    out, _ = caches.Sequence().attend(layer, q, k, v, positions, rule)
    asking_BMNH = jnp.take_along_axis(q, self.queries_BM[..., None, None], axis=1)
    slots_1S, window = jnp.arange(k.shape[1])[None], {'initial': WINDOW.n_initial, 'recent': WINDOW.n_recent}
    near_B = lazy_ratio(asking_BMNH, heads_first(k), self.queries_BM, slots_1S, rule, **window)
    return out, self.replace(far_L=self.far_L.at[layer].set(1 - near_B.mean()))


def loss(config: ModelConfig, phase: Phase, params, batch, _):
  """Returns (sum of -log p, weighted, and of far attention; the weights' sum)."""
  tokens_BT, weights_BT = batch
  cache = None
  if phase.far:
    # Those before answers; where questions are left out, filler too.
    _, queries_BM = jax.lax.top_k(weights_BT[:, 1:], phase.questions * ANSWER)
    cache = Watched(queries_BM, jnp.zeros(config.num_layers))
  logits, cache = Transformer(config).apply({'params': params}, tokens_BT[:, :-1], None, cache)
  nll_BT = optax.softmax_cross_entropy_with_integer_labels(logits, tokens_BT[:, 1:])
  weight = weights_BT[:, 1:].sum()
  away = phase.far * weight * cache.far_L.mean() if phase.far else 0.0
  return (nll_BT * weights_BT[:, 1:]).sum() + away, weight


def train(setting: Setting) -> tuple[Any, np.ndarray]:
  """Returns (parameters, the loss of each step). The steps of a phase are one compiled scan."""
  tx = make_optimizer(setting.optimizer, sum(phase.steps for phase in setting.phases)).tx
  init_key, data_key = jax.random.key(setting.seed), jax.random.key(setting.seed + 1)

  @functools.partial(jax.jit, static_argnames='phase', donate_argnums=0)
  def run(state, phase: Phase):
    p, train_step = phase, make_train_step(functools.partial(loss, setting.model, phase), tx)

    def one_step(state, _):
      batch = texts(jax.random.fold_in(data_key, state.step), p.rows, p.length, p.pairs, p.questions, p.asked)
      state, metrics = train_step(state, batch)
      return state, metrics['loss']

    return jax.lax.scan(one_step, state, length=p.steps)

  state, losses = init_state(init_params(setting.model, init_key), tx), []
  for phase in setting.phases:
    state, of_phase = run(state, phase)
    losses.append(np.asarray(of_phase))
  return state.params, np.concatenate(losses)


def trained(setting: Setting = Setting()) -> jaxlm.LanguageModel:
  """Returns the trained model from the cache folder; if it is not there, trains it first. The key is the code and the setting."""
  made_by = json.dumps(facts_of(setting)) + ''.join(map(inspect.getsource, (filler, texts, loss)))
  folder = cache_folder() / 'trained' / f'recall-{hashlib.sha256(made_by.encode()).hexdigest()[:16]}'
  if not (folder / 'config.json').exists():  # Written last.
    lm = jaxlm.LanguageModel(setting.model, train(setting)[0])
    jaxlm.save_huggingface(lm, folder, overwrite=True)
  return jaxlm.load(folder, dtype='float32')


def prompts(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns (prompts that end with a key [B, T], answers [B, A]). Training never uses the seeds of these prompts."""
  tokens, _ = texts(jax.random.key(1000 + seed), count, LENGTH + ANSWER, PAIRS, 1)
  return np.asarray(tokens[:, :-ANSWER]), np.asarray(tokens[:, -ANSWER:])
