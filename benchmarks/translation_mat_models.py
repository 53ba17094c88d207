"""Corpora and small models for the study of Markov orders; what was trained and decoded once is kept in the cache folder."""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import itertools
import json
from typing import Any

import jax
import tqdm

from benchmarks.made_before import kept
from benchmarks.translation_corpora import Corpus, changed_fields, generated
import decoders
from jaxlm.data import pair_batches, pair_tokenizers
from jaxlm.data.markov_tasks import Agreement, Clauses
from jaxlm.models import seq2seq
from jaxlm.seq2seq_config import MarkovMode, Seq2SeqConfig
from jaxlm.translation_model import Seq2SeqModel
from trainers.config import OptimizerConfig
from trainers.optimizer import make_optimizer
from trainers.step import init_state, make_train_step
from trainers.translate.task import translation_loss


@dataclasses.dataclass(frozen=True)
class Setting:
  """How the models of one corpus are trained; they differ in the order, the mode and the seed."""

  steps: int
  model: Seq2SeqConfig
  tokens: int
  buckets: int
  learning_rate: float
  tokenizer: str = 'words'
  vocab_size: int = 4000
  pairs: int = 20_000
  """Number of training pairs that are used at most."""
  label_smoothing: float = 0.1

  @property
  def facts(self) -> dict[str, Any]:
    """What a trained model depends on."""
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)} | {'model': changed_fields(self.model)}

  @property
  def schedule(self) -> OptimizerConfig:
    return OptimizerConfig(
      learning_rate=self.learning_rate, schedule='cosine', warmup_steps=max(1, self.steps // 20), beta2=0.98, eps=1e-9,
      weight_decay=0.0,
    )  # fmt: skip


def _model(layers: int, dim: int, max_length: int, **more: Any) -> Seq2SeqConfig:
  return Seq2SeqConfig(
    encoder_layers=layers, decoder_layers=layers, model_dim=dim, num_heads=4, mlp_dim=2 * dim, max_length=max_length,
    dtype='float32', **more,
  )  # fmt: skip


SETTINGS = {
  'grammar': Setting(1200, _model(2, 64, 64), tokens=1024, buckets=3, learning_rate=4e-3),
  'libreoffice': Setting(
    1200, _model(2, 128, 64), tokens=2048, buckets=3, learning_rate=3e-3, tokenizer='bpe', vocab_size=2000, pairs=40_000
  ),
  'agreement': Setting(250, _model(2, 64, 64), tokens=1024, buckets=1, learning_rate=4e-3, pairs=8000),
  'clauses': Setting(600, _model(2, 64, 64), tokens=2048, buckets=2, learning_rate=4e-3, pairs=8000),
}  # fmt: skip


def setting(name: str, tiny: bool = False) -> Setting:
  """Returns the setting of a corpus, or one of seconds that tests the code path and whose models learn nothing."""
  found = SETTINGS[name]
  if not tiny:
    return found
  model = found.model.replace(encoder_layers=1, decoder_layers=1, model_dim=16, num_heads=2, mlp_dim=16)
  return dataclasses.replace(found, steps=3, model=model, tokens=1024, buckets=1, pairs=300)


def agreement(distance: int) -> Corpus:
  return generated(Agreement(words=30, distance=distance))


def clauses(shared: bool) -> Corpus:
  return generated(Clauses(words=30, shared=shared, most=5))


@functools.lru_cache(maxsize=4)
def _prepared(name: str, facts: str, setting: Setting, read: Callable) -> tuple[Any, Any]:
  """Returns (tokenizers, tokenized training pairs). `name` and `facts` are the corpus', for the cache of this function."""
  texts = list(itertools.islice(read(), setting.pairs))
  tokenizers = pair_tokenizers.train(texts, kind=setting.tokenizer, vocab_size=setting.vocab_size)
  return tokenizers, pair_batches.tokenize_pairs(texts, tokenizers)


def train(setting: Setting, corpus: Corpus, order: int, mode: MarkovMode, seed: int) -> Seq2SeqModel:
  """Returns a model of Markov order `order` (0: full history), trained on the corpus. The seed is of parameters and batches."""
  tokenizers, tokenized = _prepared(corpus.name, json.dumps(corpus.facts), setting, corpus.train)
  target = tokenizers.target
  model = setting.model.replace(
    vocab_size=target.vocab_size, start_id=target.bos_id, eos_id=target.eos_id, pad_id=target.pad_id, markov_order=order,
    markov_mode=mode,
  )  # fmt: skip
  batches = pair_batches.make_pair_batches(
    tokenized,
    tokenizers,
    tokens=setting.tokens,
    buckets=setting.buckets,
    seed=seed,
    max_length=model.max_length,
    devices=8,
  )
  step, tx = _train_step(model, setting.schedule, setting.steps, setting.label_smoothing)
  state = init_state(jax.jit(functools.partial(seq2seq.init_params, model))(jax.random.key(seed)), tx)
  with tqdm.tqdm(total=setting.steps, desc=f'{corpus.name} {named(order)} {mode} {seed}', mininterval=20) as bar:
    for number in range(setting.steps):
      state, metrics = step(state, batches.batch(number))
      if number % 50 == 49:  # Waits for the device, so that few batches are under way at a time.
        bar.set_postfix(loss=f'{float(metrics["loss"]):.3f}', refresh=False)
        bar.update(50)
  return Seq2SeqModel(model, state.params, tokenizers)


@functools.lru_cache(maxsize=16)
def _train_step(model: Seq2SeqConfig, schedule: OptimizerConfig, steps: int, smoothing: float):
  """Returns (the compiled step, the optimizer), the same for all seeds of an order."""
  loss = lambda params, batch, context: translation_loss(params, batch, model, context.key, label_smoothing=smoothing)
  tx = make_optimizer(schedule, steps).tx
  return jax.jit(make_train_step(loss, tx), donate_argnums=0), tx


def named(order: int) -> str:
  """Returns what tables call an order; 0 is full history."""
  return str(order) if order else 'full'


def held_out(setting: Setting, corpus: Corpus, sentences: int) -> list[tuple[str, str]]:
  """Returns the first test pairs that are as short as the training pairs, both sides with EOS within the model's length."""
  tokenizers, _ = _prepared(corpus.name, json.dumps(corpus.facts), setting, corpus.train)
  sides, most = (tokenizers.source, tokenizers.target), setting.model.max_length
  fits = lambda pair: all(len(side.encode(text)) < most for side, text in zip(sides, pair))
  return list(filter(fits, corpus.test()))[:sentences]


def translations(
  setting: Setting, corpus: Corpus, order: int, mode: MarkovMode, seed: int, beam_size: int, sources: Sequence[str],
  *, train_missing: bool,
) -> list[str] | None:  # fmt: skip
  """Returns the translations of test sources by the model of these settings, which is trained if that was not done before.

  None: it was not, and `train_missing` is false.
  """

  def make() -> list[str]:
    return decoders.translate(train(setting, corpus, order, mode, seed), sources, beam_size=beam_size).text

  facts = [setting.facts, corpus.facts, order, mode, seed, beam_size, len(sources)]
  return kept('markov-translations', facts, make if train_missing else None)
