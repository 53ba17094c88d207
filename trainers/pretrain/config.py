"""Every setting of pretraining, as plain data: no JAX here, so that a command shows its help at once."""

import dataclasses
from typing import Literal

from jaxlm import errors
from jaxlm.config import Direction, DirectionSignal, ModelConfig, check_choices
from trainers.config import ConfigError, TrainConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Text, its tokenizer, and how it is cut into batches."""

  source: str = 'embedded'
  """'embedded' (text that ships with Python), files, folders or patterns (.txt .md .rst .jsonl .json .parquet, with commas
  between), or tfds:NAME[:SPLIT]."""
  valid_source: str | None = None
  """Held-out text (none: a part of `source`)."""
  valid_fraction: float = 0.05
  """Part of the documents that is held out when there is no valid_source."""
  field: str = 'text'
  """Where JSON, Parquet and TFDS examples keep their text."""
  download: bool = False
  """Whether TFDS may download and prepare what is not there."""
  tokenizer: str = 'train'
  """'train' (a SentencePiece model of the training text; with --start, the model's own), 'bytes', or a folder or .model file that
  holds a tokenizer."""
  vocab_size: int = 32000
  """Size of a tokenizer that is trained."""
  batch_size: int = 64
  """Rows per step, over all devices and hosts."""
  length: int = 1024
  """Tokens per row."""
  packing: Literal['documents', 'concat'] = 'documents'
  """documents: those that share a row do not see each other. concat: a row is one text, across document borders."""
  fraction: float = 1.0
  """Part of the training rows that is used, over and over if the steps ask for more."""
  replace: Literal['none', 'fixed', 'random'] = 'none'
  """Replace the tokens at `replace_positions` of every row, in training and held-out text: by one fixed token, or by a
  random one that stays the same for a row."""
  replace_positions: tuple[int, ...] = (1,)
  """Positions in a row, from 1."""
  replace_token: int = 1
  """Id of the fixed token."""
  seed: int = 0
  """Seed for the order of the rows."""

  def __post_init__(self):
    for name in ('vocab_size', 'batch_size', 'length'):
      if getattr(self, name) < 1:
        raise ConfigError(f'data.{name}={getattr(self, name)} must be at least 1.')
    if self.valid_source is None and not 0 < self.valid_fraction < 1:
      raise ConfigError(f'data.valid_fraction={self.valid_fraction} must be between 0 and 1.')
    if not 0 < self.fraction <= 1:
      raise ConfigError(f'data.fraction={self.fraction} must be within (0, 1].')
    if self.replace != 'none' and self.packing != 'concat':
      raise ConfigError(
        f"data.replace={self.replace!r} counts positions in rows: it needs data.packing='concat', not {self.packing!r}."
      )
    if self.replace != 'none' and (bad := [p for p in self.replace_positions if not 1 <= p <= self.length]):
      raise ConfigError(f'data.replace_positions: {bad[0]} is not within 1 .. data.length={self.length}.')


@dataclasses.dataclass(frozen=True)
class ReverseConfig:
  """Of --direction reverse and both: what is read in reverse, and what tells the model."""

  share: float = 0.5
  """both: probability that a document is read in reverse, drawn anew in each epoch."""
  pairing: Literal['independent', 'duplicate'] = 'independent'
  """both. independent: each document's direction is drawn. duplicate: each row occurs in both directions within an epoch, as two
  rows."""
  signal: DirectionSignal = 'none'
  """What tells the direction. none: nothing. token: one of two extra ids after BOS. bos: a BOS of its own for reverse texts."""

  def __post_init__(self):
    if not 0 <= self.share <= 1:
      raise ConfigError(f'reverse.share={self.share} must be within [0, 1].')
    if self.pairing == 'duplicate' and self.share != 0.5:
      raise ConfigError(
        f"reverse.share={self.share} is for reverse.pairing='independent': with 'duplicate' it is always a half."
      )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """What is looked at besides the training loss."""

  batches: int | None = 20
  """Held-out batches per evaluation (none: all), with --direction both in each direction."""
  sinks: bool = False
  """Measure attention sinks on the first 64 tokens of each held-out row: Sink_1 .. Sink_10, row mass, norm ratios."""
  prompts: tuple[str, ...] = ('The ', 'This function returns ', 'In general, ')
  """Continued at the end of the run."""
  sample_tokens: int = 48
  """Tokens of each continuation (0: no samples)."""
  samples: Literal['end', 'each'] = 'end'
  """When the prompts are continued: at the end of the run, or at each evaluation as well, which then also measures how much of a
  continuation repeats itself."""

  def __post_init__(self):
    check_choices(self)
    if self.batches is not None and self.batches < 1:
      raise ConfigError(f'eval.batches={self.batches} must be at least 1, or none for all.')
    if self.sample_tokens < 0:
      raise ConfigError(f'eval.sample_tokens={self.sample_tokens} must not be negative.')


@dataclasses.dataclass(frozen=True)
class PretrainConfig(TrainConfig):
  """Pretrain a decoder-only language model on text."""

  start: str | None = None
  """Train this model further: a run directory, a Hugging Face directory, a .gguf file, a fetched name or a Hub id. Architecture,
  parameters and tokenizer are its own; the optimizer and its warm-up begin anew. Of model.*, dtype, remat and dropout count,
  and max_length where nothing depends on it. (none: new parameters)"""
  model: ModelConfig = ModelConfig()
  data: DataConfig = DataConfig()
  eval: EvalConfig = EvalConfig()
  direction: Direction = 'forward'
  """Texts are read forward, from their end (reverse), or some so and some so (both). Other than forward, they begin with BOS and
  end with EOS."""
  reverse: ReverseConfig = ReverseConfig()
  label_smoothing: float = 0.0
  """Part of each training target that is shared out over the whole vocabulary (0: none). Evaluation does without."""

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.label_smoothing < 1:
      raise ConfigError(f'label_smoothing={self.label_smoothing} must be at least 0 and less than 1.')
    self._check_direction()
    if self.start is None:  # With it, the model is not known yet.
      self.check_lengths()
    if self.eval.sinks and self.data.length < 16:
      raise ConfigError(f'eval.sinks needs rows of at least 16 tokens, not data.length={self.data.length}.')

  def check_lengths(self):
    """Raises ConfigError if the model does not predict next tokens, or rows do not fit it."""
    if not self.model.causal:
      raise ConfigError(
        'model.causal=False lets tokens see the next ones, which pretraining has them predict: leave it out.'
      )
    if self.data.length > self.model.max_length:
      raise ConfigError(
        f'data.length={self.data.length} is longer than the model: model.max_length={self.model.max_length}.'
      )
    if self.model.prefix and self.data.packing != 'concat':
      raise ConfigError(f"model.prefix={self.model.prefix} needs data.packing='concat': one text per row.")
    if self.model.prefix > self.data.length:
      raise ConfigError(f'model.prefix={self.model.prefix} is longer than data.length={self.data.length}.')

  def _check_direction(self):
    d, default = self.direction, ReverseConfig()
    if d not in (known := Direction.__args__):
      raise errors.unknown('direction', d, known, ConfigError)
    for name, readers in (('share', ('both',)), ('pairing', ('both',)), ('signal', ('reverse', 'both'))):
      if (value := getattr(self.reverse, name)) != getattr(default, name) and d not in readers:
        raise ConfigError(
          f'reverse.{name}={value!r} is for direction={" or ".join(map(repr, readers))}, not for {d!r}.'
        )
    # `main` sets the model's own two fields, so they are either as they were or as they must be.
    for flag, name, value in (
      ('--direction', 'direction', d),
      ('--reverse.signal', 'direction_signal', self.reverse.signal),
    ):
      if (own := getattr(self.model, name)) not in (getattr(ModelConfig, name), value):
        raise ConfigError(f'model.{name}={own!r} does not fit {value!r}: it is set by {flag}.')
    if d != 'forward' and self.data.replace != 'none':
      raise ConfigError(f"data.replace={self.data.replace!r} needs direction='forward', not {d!r}.")
    if d != 'forward' and self.model.prefix:
      raise ConfigError(f"model.prefix={self.model.prefix} needs direction='forward', not {d!r}.")
