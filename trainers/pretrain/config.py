"""All settings of pretraining as plain data. This file does not import JAX, so that a command shows its help at once."""

import dataclasses
from typing import Literal

from jaxlm import errors
from jaxlm.config import Direction, DirectionSignal, ModelConfig, check_choices
from trainers.config import ConfigError, TrainConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Text, its tokenizer, and how it is cut into batches."""

  source: str = 'embedded'
  """Training text: 'embedded' (text that ships with Python), files, folders or patterns separated by commas (.txt .md .rst .jsonl
  .json .parquet), or tfds:NAME[:SPLIT]."""
  valid_source: str | None = None
  """Held-out text, given like source (none: a part of source)."""
  valid_fraction: float = 0.05
  """Share of the documents that is held out if there is no valid_source."""
  field: str = 'text'
  """Name of the field that holds the text in JSON, Parquet and TFDS examples."""
  download: bool = False
  """Let TFDS download and prepare a data set that is not on this machine."""
  tokenizer: str = 'train'
  """'train' (a new SentencePiece model of the training text, or with --start the tokenizer of that model), 'bytes', or a folder or
  .model file with a tokenizer."""
  vocab_size: int = 32000
  """Vocabulary size of a tokenizer that is trained."""
  batch_size: int = 64
  """Number of rows per step, over all devices and hosts."""
  length: int = 1024
  """Number of tokens per row."""
  packing: Literal['documents', 'concat'] = 'documents'
  """How documents fill rows. documents: documents that share a row do not attend to each other. concat: a row is one text, and
  attention crosses document borders."""
  fraction: float = 1.0
  """Share of the training rows that is used; the rows are repeated if the run has more steps."""
  replace: Literal['none', 'fixed', 'random'] = 'none'
  """Replace the tokens at replace_positions of every row, in training and held-out text. fixed: by replace_token. random: by a
  random token that stays the same for a row."""
  replace_positions: tuple[int, ...] = (1,)
  """Positions in a row whose tokens are replaced, counted from 1."""
  replace_token: int = 1
  """For replace fixed: id of the new token."""
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
  """For --direction reverse and both: which texts are read in reverse, and how the model is told the direction."""

  share: float = 0.5
  """For direction both: probability that a document is read in reverse, drawn anew in each epoch."""
  pairing: Literal['independent', 'duplicate'] = 'independent'
  """For direction both. independent: each document's direction is drawn at random. duplicate: each row occurs twice in an epoch,
  once in each direction."""
  signal: DirectionSignal = 'none'
  """How the model is told the direction of a text. none: it is not told. token: by one of two extra ids after BOS. bos: reverse
  texts start with a different BOS."""

  def __post_init__(self):
    if not 0 <= self.share <= 1:
      raise ConfigError(f'reverse.share={self.share} must be within [0, 1].')
    if self.pairing == 'duplicate' and self.share != 0.5:
      raise ConfigError(
        f"reverse.share={self.share} is for reverse.pairing='independent': with 'duplicate' it is always a half."
      )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """What is evaluated besides the training loss."""

  batches: int | None = 20
  """Number of held-out batches per evaluation, and per direction with --direction both (none: all)."""
  sinks: bool = False
  """Measure attention sinks on the first 64 tokens of each held-out row: Sink_1 .. Sink_10, row mass, norm ratios."""
  prompts: tuple[str, ...] = ('The ', 'This function returns ', 'In general, ')
  """Prompts that the model continues, as samples of its text."""
  sample_tokens: int = 48
  """Number of tokens in each continuation (0: no samples)."""
  samples: Literal['end', 'each'] = 'end'
  """When the prompts are continued. end: at the end of the run. each: also at each evaluation, which then measures how much of the
  continuations is repetition."""

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
  """Model to train further: a run directory, a Hugging Face directory, a .gguf file, a fetched name or a Hub id (none: new
  parameters). Architecture, parameters and tokenizer come from this model; the optimizer and its warm-up start anew. Of the flags
  model.*, only dtype, remat, implementation and dropout have an effect, and max_length if the model does not depend on it."""
  model: ModelConfig = ModelConfig()
  data: DataConfig = DataConfig()
  eval: EvalConfig = EvalConfig()
  direction: Direction = 'forward'
  """Direction in which texts are read. forward: from their beginning. reverse: from their end. both: some forward and some in
  reverse. With reverse and both, each text begins with BOS and ends with EOS."""
  reverse: ReverseConfig = ReverseConfig()
  label_smoothing: float = 0.0
  """Share of each training target that is spread over the whole vocabulary (0: none). Evaluation does not use it."""

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.label_smoothing < 1:
      raise ConfigError(f'label_smoothing={self.label_smoothing} must be at least 0 and less than 1.')
    self._check_direction()
    if self.start is None:  # The model of `start` is not known yet.
      self.check_lengths()
    if self.eval.sinks and self.data.length < 16:
      raise ConfigError(f'eval.sinks needs rows of at least 16 tokens, not data.length={self.data.length}.')

  def check_lengths(self):
    """Raises ConfigError if the model does not predict next tokens, or rows do not fit it."""
    if not self.model.causal:
      raise ConfigError('model.causal=False lets tokens see the next ones, which pretraining predicts: leave it out.')
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
    # `main` sets these two fields of the model, so each has either its default or the value of the flag.
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
