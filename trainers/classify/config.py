"""All settings of the trainer of text classifiers as plain data. This file does not import JAX, so that a command shows its help at
once."""

import dataclasses
from typing import Literal

import tyro

from jaxlm.config import check_choices
from jaxlm.exam_config import Backbone, Column, ExamConfig
from trainers.config import ConfigError, TrainConfig


@dataclasses.dataclass(frozen=True)
class ModelFlags(ExamConfig):
  """ExamConfig without flags for what comes from the data and from --lm."""

  vocab_size: tyro.conf.Suppress[int] = 0
  columns: tyro.conf.Suppress[tuple[Column, ...]] = (Column(),)
  lm: tyro.conf.Suppress[Backbone] = Backbone()


@dataclasses.dataclass(frozen=True)
class ClassDataConfig:
  """Texts with labels, and their words."""

  source: str = 'docstrings'
  """Training texts: 'docstrings' (of Python's standard library), a fetched name (newsgroups, r8, r52, debian-sections, debtags),
  tfds:NAME, or files separated by commas (.csv .tsv .tab .jsonl .parquet)."""
  valid_source: str = ''
  """Held-out texts for selecting the best parameters, given like source (empty: the source's own, else a part of the training texts)."""
  test_source: str = ''
  """Test texts, which are measured once at the end (empty: the source's own, if it has some)."""
  valid_fraction: float = 0.1
  """Share of the training texts that is held out if nothing else says which."""
  text: tuple[str, ...] = ()
  """Columns that hold the text; several are joined (none: the column 'text')."""
  labels: tuple[str, ...] = ()
  """Columns that are predicted (none: the column 'label', 'labels', 'category' or 'class')."""
  multilabel: tuple[str, ...] = ()
  """Label columns whose texts may have several labels: a list in JSON, or labels with a separator in a table."""
  separator: str = '|'
  """What separates several labels in a table."""
  header: bool = True
  """Whether the first line of a table names its columns. Otherwise they are 0, 1, ..., and the label is column 0."""
  download: bool = False
  """Let TFDS download and prepare a data set that is not on this machine."""
  empty: Literal['error', 'skip'] = 'error'
  """What to do with a text without any word: stop and name it, or leave it out."""
  words: Literal['words', 'kim'] = 'words'
  """How texts are split into words. words: letters and digits of any script, and punctuation. kim: as in the code of the paper, for
  English."""
  min_texts: int = 2
  """Smallest number of training texts in which a word of the vocabulary occurs."""
  vocab_size: int | None = None
  """Largest number of words in the vocabulary (none: no limit). Fewer words need less memory."""
  batch_size: int = 16
  """Number of texts per step, over all devices and hosts."""
  seed: int = 0
  """Seed for the order of the texts."""

  def __post_init__(self):
    check_choices(self)
    for name in ('min_texts', 'batch_size'):
      if getattr(self, name) < 1:
        raise ConfigError(f'data.{name}={getattr(self, name)} must be at least 1.')
    if self.vocab_size is not None and self.vocab_size < 1:
      raise ConfigError(
        f'data.vocab_size={self.vocab_size} leaves no word: it must be at least 1, or none for no limit.'
      )
    if not 0 < self.valid_fraction < 1:
      raise ConfigError(f'data.valid_fraction={self.valid_fraction} must be between 0 and 1.')
    if not self.separator:
      raise ConfigError("data.separator='' must be at least one character.")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """How parameters are selected and measured."""

  batch_size: int = 64
  """Number of texts that are classified together. Fewer need less memory."""
  select: Literal['best', 'last'] = 'best'
  """Parameters that are measured on the test texts and loaded afterwards: those of the best evaluation on the held-out texts, or the
  last ones."""
  thresholds: Literal['one', 'each'] = 'one'
  """For several labels: choose on the held-out texts one probability from which labels are predicted, or one for each label. Each label
  needs many held-out texts for the latter."""

  def __post_init__(self):
    check_choices(self)
    if self.batch_size < 1:
      raise ConfigError(f'eval.batch_size={self.batch_size} must be at least 1.')


@dataclasses.dataclass(frozen=True)
class ClassifyConfig(TrainConfig):
  """Train a text classifier."""

  model: ExamConfig = ModelFlags()
  data: ClassDataConfig = ClassDataConfig()
  eval: EvalConfig = EvalConfig()
  lm: str | None = None
  """Language model whose hidden states represent the words, for model.encoder lm: a run directory, a Hugging Face directory, a .gguf file,
  a fetched name or a Hub id."""
  lm_dtype: Literal['float32', 'bfloat16', 'float16'] | None = None
  """Type of a frozen language model's parameters (none: float32 on CPU, bfloat16 elsewhere)."""
  lm_cache: int = 2000
  """Megabytes that the states of a frozen language model may take in the cache folder: if those of all texts fit, and the run reads each
  text at least once, they are computed before the first step, and runs on the same texts share them. 0: they are computed in each
  step."""
  class_weights: Literal['none', 'balanced'] = 'none'
  """Weights of the classes in the loss. balanced: inversely proportional to their numbers of training texts, so that rare classes count as
  much as frequent ones; for several labels, texts with a label count as much as those without it, at most 100 times."""

  def __post_init__(self):
    super().__post_init__()
    check_choices(self)
    if self.lm_cache < 0:
      raise ConfigError(f'lm_cache={self.lm_cache} must not be negative.')
    if self.lm is not None and self.model.encoder != 'lm':
      raise ConfigError(f"--lm {self.lm} needs model.encoder='lm', not {self.model.encoder!r}, which does not read it.")
