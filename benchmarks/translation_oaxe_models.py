"""Models of the study of order-agnostic losses: each is trained once, and its parameters and translations are kept in the cache folder.

A model that predicts all tokens at once is first trained with cross-entropy; each loss then goes on from there, with a new optimizer
and as many further steps as the others, cross-entropy too. CTC has another decoder and begins anew, with as many steps in all.
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import functools
import itertools
import json
from types import ModuleType
from typing import Any, NamedTuple

from flax import traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from safetensors import numpy as safetensors
import tqdm

from benchmarks.translation_corpora import Corpus, corpus, generated, kept, kept_path, write_whole
import decoders
from jaxlm.data import grammar, pair_batches, pair_tokenizers
from jaxlm.data.pair_corpus import PairCorpus
from jaxlm.data.pair_tokenizers import PairTokenizers
from jaxlm.models import nat, seq2seq
from jaxlm.seq2seq_config import NatConfig, Seq2SeqConfig
from jaxlm.translation_model import Seq2SeqModel
from trainers.config import OptimizerConfig, RunConfig
from trainers.optimizer import make_optimizer
from trainers.step import Context, init_state, make_train_step
from trainers.translate.config import Loss, OrderConfig, PairDataConfig, TranslateConfig
from trainers.translate.parallel_loss import parallel_terms
from trainers.translate.task import translation_loss

PI = 0.15
"""Probability below which a token has no loss, that of the released recipe."""


@dataclasses.dataclass(frozen=True)
class Variant:
  """A loss that is trained after cross-entropy."""

  loss: Loss
  order: OrderConfig = OrderConfig()

  @property
  def facts(self) -> list[Any]:
    default = dataclasses.asdict(OrderConfig())
    return [self.loss, {k: v for k, v in dataclasses.asdict(self.order).items() if v != default[k]}]


def _phrases(n: int, mode: str = 'window') -> Variant:
  return Variant('ngram-oaxe', OrderConfig(pi=PI, ngram=n, ngram_mode=mode))


VARIANTS = {
  'CE': Variant('ce'),
  'AXE': Variant('axe'),
  'OaXE': Variant('oaxe', OrderConfig(pi=PI)),
  'OaXE, 2-grams': _phrases(2),
  'OaXE, 3-grams': _phrases(3),
  'OaXE, blocks of 2': _phrases(2, 'block'),
  'CTC': Variant('ctc'),
}
"""By the name that tables have."""


class Stage(NamedTuple):
  """A training with a learning rate that rises in the first twentieth of the steps and then falls as a cosine does."""

  steps: int
  learning_rate: float

  @property
  def schedule(self) -> OptimizerConfig:
    return OptimizerConfig(
      learning_rate=self.learning_rate, schedule='cosine', warmup_steps=max(1, self.steps // 20), beta2=0.98, eps=1e-9,
      weight_decay=0.0,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Setting:
  """How the models of one corpus are trained."""

  model: Seq2SeqConfig
  first: Stage
  """Cross-entropy, from new parameters."""
  later: Stage
  """Each of the losses, from there on."""
  tokens: int
  buckets: int
  tokenizer: str = 'words'
  vocab_size: int = 4000
  pairs: int = 20_000
  """Number of training pairs that are used at most."""
  label_smoothing: float = 0.1

  @property
  def facts(self) -> dict[str, Any]:
    """What all models depend on. A field that a later version adds to the model's config changes nothing at its default."""
    default = dataclasses.asdict(Seq2SeqConfig())
    model = {k: v for k, v in dataclasses.asdict(self.model).items() if v != default[k]}
    names = [f.name for f in dataclasses.fields(self) if f.name not in ('model', 'first', 'later')]
    return {**{name: getattr(self, name) for name in names}, 'model': model}


def _model(dim: int, max_length: int) -> Seq2SeqConfig:
  return Seq2SeqConfig(
    kind='nat', encoder_layers=2, decoder_layers=2, model_dim=dim, num_heads=4, mlp_dim=2 * dim, max_length=max_length,
    position='learned', dtype='float32',
  )  # fmt: skip


SETTINGS = {
  'grammar': Setting(_model(64, 48), Stage(1000, 4e-3), Stage(300, 1e-3), tokens=1024, buckets=1),
  'libreoffice': Setting(
    _model(128, 32),
    Stage(800, 3e-3),
    Stage(200, 5e-4),
    tokens=1024,
    buckets=1,
    tokenizer='bpe',
    vocab_size=2000,
    pairs=15_000,
  ),
}


def setting(name: str, tiny: bool = False) -> Setting:
  """Returns the setting of a corpus, or one of seconds that tests the code path and whose models learn nothing."""
  found = SETTINGS[name]
  if not tiny:
    return found
  model = found.model.replace(encoder_layers=1, decoder_layers=1, model_dim=16, num_heads=2, mlp_dim=16)
  return dataclasses.replace(
    found, first=Stage(3, 1e-3), later=Stage(2, 1e-3), model=model, tokens=512, buckets=1, pairs=300
  )


def study_corpus(name: str) -> Corpus:
  """Returns the corpus of that name: 'grammar', which is the generated language `short`, or 'libreoffice'."""
  if name == 'grammar':
    return generated(grammar.parse('grammar:short'))
  return corpus(name)


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
  """Tokenized training pairs, and the test pairs that are as short as they are."""

  corpus: Corpus
  setting: Setting
  tokenizers: PairTokenizers
  tokenized: PairCorpus
  train: Sequence[tuple[str, str]]
  test: Sequence[tuple[str, str]]
  facts: Any


def prepared(setting: Setting, corpus: Corpus, sentences: int) -> Data:
  """Returns the data of a corpus, with tokenizers of its training pairs and at most `sentences` test pairs."""
  train = list(itertools.islice(corpus.train(), setting.pairs))
  tokenizers = pair_tokenizers.train(train, kind=setting.tokenizer, vocab_size=setting.vocab_size)
  sides, most = (tokenizers.source, tokenizers.target), setting.model.max_length
  fits = lambda pair: all(len(side.encode(text)) < most for side, text in zip(sides, pair))
  test = list(itertools.islice(filter(fits, corpus.test()), sentences))
  train = list(filter(fits, train))
  return Data(
    corpus, setting, tokenizers, pair_batches.tokenize_pairs(train, tokenizers), train, test, [setting.facts, corpus.facts]
  )  # fmt: skip


def with_targets(data: Data, targets: Iterable[str], facts: Any) -> Data:
  """Returns the data with other training targets, made from what `facts` say; tokenizers and test pairs stay."""
  train = [(source, target) for (source, _), target in zip(data.train, targets) if target]
  tokenized = pair_batches.tokenize_pairs(train, data.tokenizers)
  return dataclasses.replace(data, train=train, tokenized=tokenized, facts=[*data.facts, facts])


def whole(setting: Setting) -> Stage:
  """Returns the training of models that do not go on from another one: as many steps as both stages have."""
  return Stage(setting.first.steps + setting.later.steps, setting.first.learning_rate)


def teacher(data: Data, seed: int) -> Seq2SeqModel:
  """Returns a model of the same shape that writes token by token, trained with cross-entropy for as many steps as the others."""
  model = _with_ids(data, data.setting.model.replace(kind='autoregressive'), 0)
  loss, stage = _teacher_loss(model, data.setting.label_smoothing), whole(data.setting)
  make = lambda: _fit(data, loss, _new(seq2seq, model, seed), stage, seed, 'teacher')
  params = _kept_params([*data.facts, 'teacher', *stage, seed], seq2seq.abstract_params(model), make)
  return Seq2SeqModel(model, params, data.tokenizers)


def base(data: Data, seed: int) -> Seq2SeqModel:
  """Returns the model that was trained with cross-entropy alone and that the losses go on from."""
  model, stage = _with_ids(data, data.setting.model, 1), data.setting.first
  return _trained(data, VARIANTS['CE'], model, lambda: _new(nat, model, seed), [], stage, seed)


def trained(data: Data, name: str, seed: int) -> Seq2SeqModel:
  """Returns the model of a variant, which goes on from `base`."""
  variant, model, setting = VARIANTS[name], _with_ids(data, data.setting.model, 1), data.setting
  if variant.loss == 'ctc':
    model = model.replace(nat=NatConfig(upsampling=2))
    return _trained(data, variant, model, lambda: _new(nat, model, seed), [], whole(setting), seed)
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
  facts = ['greedy teacher', *whole(data.setting), seed]
  make = lambda: decoders.translate(teacher, [source for source, _ in data.train], beam_size=1, batch_size=128).text
  return with_targets(data, kept('oaxe-distilled', [*data.facts, facts], make), facts)


# ---- what is measured of a model ----


def by_teacher(data: Data, teacher: Seq2SeqModel, seed: int) -> dict[str, Any]:
  """Returns `translated` for the teacher of that seed, which decodes greedily."""
  facts = [*data.facts, 'teacher', *whole(data.setting), seed, len(data.test)]
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


def measured(data: Data, name: str, seed: int, length_beam: int) -> dict[str, Any]:
  """Returns `translated` and `held_out_terms` of a variant, which is trained if that was not done before."""

  def make() -> dict[str, Any]:
    model = trained(data, name, seed)
    return translated(model, [source for source, _ in data.test], length_beam) | {'terms': held_out_terms(model, data)}

  stages = [*data.setting.first, *data.setting.later]
  return kept('oaxe-measured', [*data.facts, *VARIANTS[name].facts, stages, seed, length_beam, len(data.test)], make)
