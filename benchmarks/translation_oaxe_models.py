"""Models of the study of order-agnostic losses: each is trained once, and its parameters and translations are kept in the cache folder.

A model that predicts all tokens at once is first trained with cross-entropy; each loss then goes on from there, with a new optimizer
and as many further steps as the others, cross-entropy too. CTC has another decoder and begins anew, with as many steps in all.
"""

from collections.abc import Callable, Sequence
import functools
import json
from types import ModuleType
from typing import Any

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors
import tqdm

from benchmarks.made_before import kept, kept_path, write_whole
from benchmarks.translation_oaxe_settings import VARIANTS, Data, Stage, Variant, with_targets
import decoders
from jaxlm.data import pair_batches
from jaxlm.models import nat, seq2seq
from jaxlm.seq2seq_config import NatConfig, Seq2SeqConfig
from jaxlm.translation_model import Seq2SeqModel
from trainers.config import OptimizerConfig, RunConfig
from trainers.optimizer import make_optimizer
from trainers.step import Context, init_state, make_train_step
from trainers.translate.config import PairDataConfig, TranslateConfig
from trainers.translate.parallel_loss import parallel_terms
from trainers.translate.task import translation_loss


def teacher(data: Data, seed: int) -> Seq2SeqModel:
  """Returns a model of the same shape that writes token by token, trained with cross-entropy for as many steps as the others."""
  model = _with_ids(data, data.setting.model.replace(kind='autoregressive'), 0)
  loss, stage = _teacher_loss(model, data.setting.label_smoothing), data.setting.whole
  make = lambda: _fit(data, loss, _new(seq2seq, model, seed), stage, seed, 'teacher')
  params = _kept_params([*data.facts, 'teacher', *stage, seed], seq2seq.abstract_params(model), make)
  return Seq2SeqModel(model, params, data.tokenizers)


def base(data: Data, seed: int) -> Seq2SeqModel:
  """Returns the model that was trained with cross-entropy alone and that the losses go on from."""
  model, stage = _with_ids(data, data.setting.model, 1), data.setting.first
  return _trained(data, VARIANTS['CE'], model, lambda: _new(nat, model, seed), [], stage, seed)


def trained(data: Data, variant: Variant, seed: int) -> Seq2SeqModel:
  """Returns the model of a variant, which goes on from `base` unless it is trained alone."""
  model, setting = _with_ids(data, data.setting.model, 1), data.setting
  if variant.loss == 'ctc':
    model = model.replace(nat=NatConfig(upsampling=2))
  if variant.alone:
    return _trained(data, variant, model, lambda: _new(nat, model, seed), [], setting.whole, seed)
  return _trained(data, variant, model, lambda: base(data, seed).params, list(setting.first), setting.later, seed)


def _trained(
  data: Data, variant: Variant, model: Seq2SeqConfig, start: Callable[[], Any], before: list[Any], stage: Stage, seed: int
) -> Seq2SeqModel:  # fmt: skip
  """Returns the model that is trained from the parameters of `start`, whose own training was `before`."""
  loss = _parallel_loss(train_config(model, variant, data.setting.label_smoothing, stage.steps))
  make = lambda: _fit(data, loss, start(), stage, seed, json.dumps(variant.facts))
  params = _kept_params([*data.facts, *variant.facts, before, *stage, seed], nat.abstract_params(model), make)
  return Seq2SeqModel(model, params, data.tokenizers)


def _new(family: ModuleType, model: Seq2SeqConfig, seed: int) -> Any:
  return jax.jit(functools.partial(family.init_params, model))(jax.random.key(seed))


def _with_ids(data: Data, model: Seq2SeqConfig, more: int) -> Seq2SeqConfig:
  """Returns the model with the vocabulary of the data, and `more` ids after those of the tokenizer."""
  ids = data.tokenizers.target
  return model.replace(vocab_size=ids.vocab_size + more, start_id=ids.bos_id, eos_id=ids.eos_id, pad_id=ids.pad_id)


def train_config(model: Seq2SeqConfig, variant: Variant, label_smoothing: float, steps: int) -> TranslateConfig:
  """Returns the settings of the trainer's loss; those of its optimizer have no meaning."""
  return TranslateConfig(
    model=model, data=PairDataConfig(max_length=model.max_length, tokens=8 * model.max_length), loss=variant.loss, oaxe=variant.order,
    label_smoothing=label_smoothing, run=RunConfig(steps=steps), optimizer=OptimizerConfig(warmup_steps=0),
  )  # fmt: skip


@functools.cache
def _parallel_loss(config: TranslateConfig) -> Callable:
  return lambda params, batch, context: parallel_terms(params, batch, config, context)


@functools.cache
def _teacher_loss(model: Seq2SeqConfig, smoothing: float) -> Callable:
  return lambda params, batch, context: translation_loss(params, batch, model, context.key, label_smoothing=smoothing)


@functools.lru_cache(maxsize=8)
def _step(loss: Callable, stage: Stage) -> tuple[Callable, Any]:
  """Returns (the compiled step, the optimizer), the same for all seeds."""
  tx = make_optimizer(stage.schedule, stage.steps).tx
  return jax.jit(make_train_step(loss, tx), donate_argnums=0), tx


def _fit(data: Data, loss: Callable, params: Any, stage: Stage, seed: int, name: str) -> Any:
  """Returns the parameters after training; the seed is of the order of the pairs."""
  step, tx = _step(loss, stage)
  s, steps = data.setting, stage.steps
  batches = pair_batches.make_pair_batches(
    data.tokenized,
    data.tokenizers,
    tokens=s.tokens,
    buckets=s.buckets,
    seed=seed,
    max_length=s.model.max_length,
    devices=8,
  )
  state = init_state(jax.tree.map(jnp.copy, params), tx)  # A copy: the step donates it.
  with tqdm.tqdm(total=steps, desc=f'{data.corpus.name} {name} {seed}', mininterval=20) as bar:
    for number in range(steps):
      state, metrics = step(state, batches.batch(number))
      if number % 50 == 49:  # Waits for the device, so that few batches are under way at a time.
        bar.set_postfix(loss=f'{float(metrics["loss"]):.3f}', refresh=False)
        bar.update(50)
  return state.params


def _kept_params(facts: Any, shapes: Any, make: Callable[[], Any]) -> Any:
  """Returns the parameters that `make` made of these facts, from the cache folder; if they are not there, makes them first."""
  path = kept_path('oaxe-params', facts, '.safetensors')
  if not path.exists():
    named = {'/'.join(k): np.asarray(v) for k, v in traverse_util.flatten_dict(make()).items()}
    write_whole(path, safetensors.save(named))
  held = safetensors.load(path.read_bytes())
  names = traverse_util.flatten_dict(shapes)
  return traverse_util.unflatten_dict({k: jnp.asarray(held['/'.join(k)]) for k in names})


def distilled(data: Data, teacher: Seq2SeqModel, seed: int) -> Data:
  """Returns the data with the translations of the teacher of that seed as training targets, decoded greedily."""
  facts = ['greedy teacher', *data.setting.whole, seed]
  make = lambda: decoders.translate(teacher, [source for source, _ in data.train], beam_size=1, batch_size=128).text
  return with_targets(data, kept('oaxe-distilled', [*data.facts, facts], make), facts)


# ---- what is measured of a model ----


def by_teacher(data: Data, teacher: Seq2SeqModel, seed: int) -> dict[str, Any]:
  """Returns `translated` for the teacher of that seed, which decodes greedily."""
  facts = [*data.facts, 'teacher', *data.setting.whole, seed, len(data.test)]
  return kept(
    'oaxe-measured', facts, lambda: translated(teacher, [source for source, _ in data.test], 0) | {'terms': {}}
  )


def translated(model: Seq2SeqModel, sources: Sequence[str], length_beam: int) -> dict[str, Any]:
  """Returns the translations of sources, and of each the tokens and those of them that are equal to the token before them.

  Both are counted before equal neighbours become one; with CTC, which merges them itself, they are counted afterwards. A model that
  writes token by token decodes greedily.
  """
  c = model.config
  if c.is_parallel and not c.nat.upsampling:
    out, before = (decoders.translate(model, sources, length_beam=length_beam, dedup=d) for d in (True, False))
  else:
    out = before = decoders.translate(model, sources, **({} if c.is_parallel else {'beam_size': 1}))
  rows = [row[:n][row[:n] != c.eos_id] for row, n in zip(before.tokens, before.lengths)]
  return {
    'texts': out.text, 'tokens': list(map(len, rows)), 'repeated': [int((r[1:] == r[:-1]).sum()) for r in rows],
  }  # fmt: skip


def held_out_terms(model: Seq2SeqModel, data: Data) -> dict[str, float]:
  """Returns the means of the loss's terms on the test pairs, whose length the decoder is told, without smoothing and truncation.

  ce and oaxe: nats per token in the reference's order, and in the order that the model likes best. Also max_probability,
  displacement and length_accuracy; of CTC its loss.
  """
  variant = VARIANTS['CTC'] if model.config.nat.upsampling else Variant('oaxe')
  sums = _held_out_sums(train_config(model.config, variant, 0.0, 1))
  s = data.setting
  shapes = pair_batches.make_pair_batches(
    data.tokenized, data.tokenizers, tokens=s.tokens, buckets=s.buckets, seed=0, max_length=s.model.max_length, devices=8
  ).shapes  # fmt: skip
  held_out = pair_batches.eval_pair_batches(
    pair_batches.tokenize_pairs(data.test, data.tokenizers), data.tokenizers, shapes
  )
  total: dict[str, np.ndarray] = {}
  for number in range(len(held_out)):
    for name, pair in sums(model.params, held_out.batch(number)).items():
      total[name] = total.get(name, np.zeros(2)) + np.array([float(x) for x in pair])
  return {name: float(x / max(w, 1e-9)) for name, (x, w) in total.items()}


@functools.lru_cache(maxsize=4)
def _held_out_sums(config: TranslateConfig) -> Callable:
  loss = _parallel_loss(config)

  @jax.jit
  def sums(params, batch):
    return {name: (term.total, term.weight) for name, term in loss(params, batch, Context(np.int32(0))).items()}

  return sums


def measured(data: Data, variant: Variant, seed: int, length_beam: int) -> dict[str, Any]:
  """Returns `translated` and `held_out_terms` of a variant, which is trained if that was not done before."""

  def make() -> dict[str, Any]:
    model = trained(data, variant, seed)
    return translated(model, [source for source, _ in data.test], length_beam) | {'terms': held_out_terms(model, data)}

  stages = [*data.setting.first, *data.setting.later]
  return kept('oaxe-measured', [*data.facts, *variant.facts, stages, seed, length_beam, len(data.test)], make)
