"""Trains small models on pages of text forward, in reverse or both ways, and further on selected pages."""

from collections.abc import Sequence
import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import tqdm

from jaxlm.analysis.direction.records import Score
from jaxlm.analysis.direction.scores import score_documents
from jaxlm.config import Direction, ModelConfig
from jaxlm.data import directions
from jaxlm.data.corpus import TokenCorpus
from jaxlm.language_model import LanguageModel
from jaxlm.models.transformer import init_params
from trainers.config import OptimizerConfig
from trainers.next_token import next_token_loss
from trainers.optimizer import make_optimizer
from trainers.step import init_state, make_train_step

MODEL = ModelConfig(
  num_layers=4, model_dim=192, num_heads=6, num_kv_heads=6, head_dim=32, mlp_dim=512, max_length=256, vocab_size=4096,
  dtype='float32',
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Setting:
  model: ModelConfig = MODEL
  rows: int = 16
  length: int = 128
  learning_rate: float = 2e-3
  continued: float = 0.1
  """Peak learning rate of further training, divided by that of the first training."""


def tokenized(texts: Sequence[str], tokenizer: Any) -> TokenCorpus:
  headed = directions.Headed(tokenizer)
  return TokenCorpus.from_documents([[headed.bos_id, *ids, headed.eos_id] for ids in headed.encode_batch(list(texts))])


def train(
  setting: Setting,
  corpus: TokenCorpus,
  tokenizer: Any,
  direction: Direction,
  steps: int,
  seed: int,
  start: Any = None,
  name: str = '',
) -> LanguageModel:
  """Trains on a corpus, from new parameters or from those of `start`, with a tenth of the learning rate."""
  model = setting.model.replace(vocab_size=tokenizer.vocab_size, direction=direction)
  reading = directions.Reading(direction, directions.bos_of(tokenizer), tokenizer.vocab_size)
  batches = directions.make_batches(corpus, reading, batch_size=setting.rows, length=setting.length, seed=seed)
  rate = setting.learning_rate * (1 if start is None else setting.continued)
  schedule = OptimizerConfig(learning_rate=rate, schedule='cosine', warmup_steps=max(1, steps // 20))
  tx = make_optimizer(schedule, steps).tx
  step = _train_step(model, schedule, steps)
  params = jax.jit(functools.partial(init_params, model))(jax.random.key(seed)) if start is None else start
  state = init_state(jax.tree.map(lambda x: x.copy(), params), tx)
  fields = ('tokens', 'targets', 'mask', 'segments', 'positions')
  losses = []
  with tqdm.tqdm(total=steps, desc=name or direction, mininterval=10) as bar:
    for number in range(steps):
      batch = batches.batch(number)
      state, metrics = step(state, {field: batch[field] for field in fields})
      losses.append(metrics['loss'])
      bar.update()
      if number % 20 == 19:
        bar.set_postfix(loss=f'{float(np.mean(losses[-20:])):.3f}', refresh=False)
  return LanguageModel(model, state.params, tokenizer)


@functools.lru_cache(maxsize=8)
def _train_step(model: ModelConfig, schedule: OptimizerConfig, steps: int):
  """Returns the compiled step, the same for all runs of one length."""
  loss = lambda params, batch, _: next_token_loss(params, batch, model)
  return jax.jit(make_train_step(loss, make_optimizer(schedule, steps).tx), donate_argnums=0)


def scored(lm: LanguageModel, texts: Sequence[str], **options) -> list[Score]:
  return list(score_documents(lm, texts, batch_size=16, **options))


def means(scores: Sequence[Score]) -> tuple[float, float]:
  """Returns (forward, reverse) loss per token."""
  tokens = sum(s.tokens for s in scores)
  return sum(s.nll_forward for s in scores) / tokens, sum(s.nll_reverse for s in scores) / tokens
