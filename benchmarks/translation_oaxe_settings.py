"""What the study of order-agnostic losses trains: the losses with their options, the models and their schedules, and the corpora."""

from collections.abc import Iterable, Sequence
import dataclasses
import itertools
from typing import Any, NamedTuple

from benchmarks.translation_corpora import Corpus, changed_fields, corpus, generated
from jaxlm.data import grammar, pair_batches, pair_tokenizers
from jaxlm.data.pair_corpus import PairCorpus
from jaxlm.data.pair_tokenizers import PairTokenizers
from jaxlm.seq2seq_config import Seq2SeqConfig
from trainers.config import OptimizerConfig
from trainers.translate.config import Loss, OrderConfig

PI = 0.15
"""Probability below which a token has no loss, that of the released recipe."""


@dataclasses.dataclass(frozen=True)
class Variant:
  """A loss and its options."""

  loss: Loss
  order: OrderConfig = OrderConfig()
  alone: bool = False
  """Trained from new parameters, with as many steps in all, instead of after cross-entropy."""

  @property
  def facts(self) -> list[Any]:
    default = dataclasses.asdict(OrderConfig())
    options = {k: v for k, v in dataclasses.asdict(self.order).items() if v != default[k]}
    return [self.loss, options, *(['alone'] if self.alone else [])]


def _phrases(n: int, mode: str = 'window') -> Variant:
  return Variant('ngram-oaxe', OrderConfig(pi=PI, ngram=n, ngram_mode=mode))


VARIANTS = {
  'CE': Variant('ce'),
  'AXE': Variant('axe'),
  'OaXE': Variant('oaxe', OrderConfig(pi=PI)),
  'OaXE, 2-grams': _phrases(2),
  'OaXE, 3-grams': _phrases(3),
  'OaXE, blocks of 2': _phrases(2, 'block'),
  'CTC': Variant('ctc', alone=True),
}
"""By the name that tables have."""
ABLATIONS = {
  'after CE, pi 0.15': VARIANTS['OaXE'],
  'after CE, pi 0': Variant('oaxe'),
  'after CE, pi 0.05': Variant('oaxe', OrderConfig(pi=0.05)),
  'after CE, pi 0.3': Variant('oaxe', OrderConfig(pi=0.3)),
  'CE and OaXE in one run': Variant('oaxe', OrderConfig(pi=PI, joint='linear'), alone=True),
  'without CE': Variant('oaxe', OrderConfig(pi=PI), alone=True),
}
"""Ways of training with OaXE."""


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
  def whole(self) -> Stage:
    """The training of models that do not go on from another one: as many steps as both stages have."""
    return Stage(self.first.steps + self.later.steps, self.first.learning_rate)

  @property
  def facts(self) -> dict[str, Any]:
    """What all models depend on."""
    names = [f.name for f in dataclasses.fields(self) if f.name not in ('model', 'first', 'later')]
    return {name: getattr(self, name) for name in names} | {'model': changed_fields(self.model)}


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
    found, tokenizer='words', first=Stage(3, 1e-3), later=Stage(2, 1e-3), model=model, tokens=512, buckets=1, pairs=300
  )


def study_corpus(name: str) -> Corpus:
  """Returns the corpus of that name: 'grammar', which is the generated language `short`, 'one order', which is the same without its coin,
  or 'libreoffice'."""
  if name == 'one order':
    return generated(dataclasses.replace(grammar.parse('grammar:short'), p_long=1.0))
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
