"""All settings of the trainer of GliDe drafts as plain data. This file does not import JAX, so that a command shows its help at once."""

import dataclasses
import math
from typing import Literal

import tyro

from jaxlm import errors
from jaxlm.config import check_choices
from jaxlm.glide_config import GlideConfig, Target
from trainers.config import ConfigError, TrainConfig


@dataclasses.dataclass(frozen=True)
class DraftFlags(GlideConfig):
  """GlideConfig without flags for the target's shape, because --target names the target."""

  target: tyro.conf.Suppress[Target] = Target()


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """Text in the target's tokens, and how it is cut into batches."""

  source: str = 'embedded'
  """Training text, and the source of prompts for --self-generate: 'embedded' (text that ships with Python), files, folders or patterns
  separated by commas (.txt .md .rst .jsonl .json .parquet), or tfds:NAME[:SPLIT]."""
  valid_source: str | None = None
  """Held-out text, given like source (none: a part of source)."""
  valid_fraction: float = 0.05
  """Share of the documents that is held out if there is no valid_source; with --self-generate also the share of the generated texts."""
  field: str = 'text'
  """Name of the field that holds the text in JSON, Parquet and TFDS examples."""
  download: bool = False
  """Let TFDS download and prepare a data set that is not on this machine."""
  batch_size: int = 64
  """Number of rows per step, over all devices and hosts."""
  length: int = 1024
  """Number of tokens per row. A row of text may cross document borders; a self-generated text has a row of its own."""
  fraction: float = 1.0
  """Share of the training rows that is used; the rows are repeated if the run has more steps."""
  seed: int = 0
  """Seed for the order of the rows and for the places of their blocks."""

  def __post_init__(self):
    for name in ('batch_size', 'length'):
      if getattr(self, name) < 1:
        raise ConfigError(f'data.{name}={getattr(self, name)} must be at least 1.')
    if not 0 < self.valid_fraction < 1:
      raise ConfigError(f'data.valid_fraction={self.valid_fraction} must be between 0 and 1.')
    if not 0 < self.fraction <= 1:
      raise ConfigError(f'data.fraction={self.fraction} must be within (0, 1].')
    errors.check_seed('data.seed', self.seed)


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
  """For --self-generate: how the target continues prompts, and where its texts are kept."""

  prompt_tokens: int = 32
  """Number of tokens of each prompt, a piece of the training text; with chat, the largest number of tokens of a message."""
  chat: bool = False
  """Put each prompt, the beginning of a document, through the target's chat template as a user's message. For targets that answer. If
  there are fewer documents than prompts, later pieces of them are messages too."""
  temperature: float = 0.0
  """0: the target's likeliest tokens, for drafts of greedy decoding. 1: samples of its distribution."""
  batch_size: int = 32
  """Number of texts that are generated together. Fewer need less memory."""
  seed: int = 0
  """Seed for the choice of prompts and for sampling."""
  file: str | None = None
  """JSON Lines file of the texts (none: self-generated.jsonl in the run directory). A finished file of the same target, prompts and
  settings is used as it is, so that several runs can share it."""

  def __post_init__(self):
    for name in ('prompt_tokens', 'batch_size'):
      if getattr(self, name) < 1:
        raise ConfigError(f'generation.{name}={getattr(self, name)} must be at least 1.')
    if not 0 <= self.temperature < math.inf:
      raise ConfigError(f'generation.temperature={self.temperature} must be 0 (greedy) or a positive number.')
    errors.check_seed('generation.seed', self.seed)
    if self.file is not None and not self.file.endswith('.jsonl'):
      raise ConfigError(f'generation.file={self.file!r} is a JSON Lines file: its name must end in .jsonl.')


@dataclasses.dataclass(frozen=True)
class DistillConfig:
  """How much the draft learns from the target's distribution besides the tokens of the data."""

  weight: float = 0.0
  """Share w of the distillation in the loss, (1 - w) * cross-entropy + w * divergence (0: none, as in the paper; 1: nothing else)."""
  divergence: Literal['kl', 'tv'] = 'kl'
  """Distance to the target's distribution. kl: Kullback-Leibler divergence. tv: total variation, the probability that sampling rejects
  a drafted token; it learns slowly from new parameters, so begin with kl and go on with --start."""
  temperature: float = 1.0
  """Temperature of both distributions, best that of the sampling for which the draft is meant."""
  prompts: bool = False
  """Learn from the target's distribution in the prompts of --self-generate too, which the target did not write."""

  def __post_init__(self):
    check_choices(self)
    if not 0 <= self.weight <= 1:
      raise ConfigError(f'distill.weight={self.weight} must be within [0, 1].')
    if not 0 < self.temperature < math.inf:
      raise ConfigError(f'distill.temperature={self.temperature} must be a positive number.')


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """What is measured on held-out text besides the loss."""

  batches: int | None = 10
  """Number of held-out batches per evaluation (none: all)."""
  prompts: int = 8
  """Number of held-out prompts that the target continues greedily with this draft, for the accepted length (0: none)."""
  prompt_tokens: int = 32
  """Number of tokens of each of these prompts; with generation.chat, the largest number of tokens of a message."""
  new_tokens: int = 64
  """Number of tokens that are generated after each prompt."""

  def __post_init__(self):
    if self.batches is not None and self.batches < 1:
      raise ConfigError(f'eval.batches={self.batches} must be at least 1, or none for all.')
    if self.prompts < 0:
      raise ConfigError(f'eval.prompts={self.prompts} must not be negative.')
    for name in ('prompt_tokens', 'new_tokens'):
      if getattr(self, name) < 1:
        raise ConfigError(f'eval.{name}={getattr(self, name)} must be at least 1.')


@dataclasses.dataclass(frozen=True)
class GlideTrainConfig(TrainConfig):
  """Train a GliDe draft model for a frozen target."""

  target: str | None = None
  """Target model: a run directory, a Hugging Face directory, a .gguf file, a fetched name or a Hub id (none: a small language model,
  which is trained first, in the folder of the run directory's name with -target)."""
  target_preset: str = 'embedded'
  """Without a target: preset of trainers.pretrain with which it is trained."""
  target_dtype: Literal['float32', 'bfloat16', 'float16'] | None = None
  """Type of the target's parameters and computation (none: float32 on CPU, bfloat16 elsewhere). It should be that of decoding."""
  model: GlideConfig = DraftFlags()
  data: TextConfig = TextConfig()
  self_generate: int = 0
  """Number of texts that the target writes itself, as training data instead of the text (0: train on the text)."""
  generation: GenerationConfig = GenerationConfig()
  distill: DistillConfig = DistillConfig()
  keep_outputs: str | None = None
  """Folder that keeps what the target computes for the rows of the text, so that the target runs once for each row, and not in each
  step: for more than one pass over a small text. Several runs may name one folder. A row takes 2 bytes for each number in the keys
  and values of the layers that the draft reads, and in the states of the last layer (none: nothing is kept)."""
  cross_learning_rate: float = 0.1
  """Learning rate of the cross-attention's output matrices, divided by optimizer.learning_rate. What the cross-attention reads is much
  larger than the states of the draft, so that with 1 short trainings end worse than without cross-attention."""
  eval: EvalConfig = EvalConfig()

  def __post_init__(self):
    super().__post_init__()
    check_choices(self)
    if not 0 <= self.cross_learning_rate < math.inf:
      raise ConfigError(f'cross_learning_rate={self.cross_learning_rate} must be a number and not negative.')
    if self.self_generate < 0:
      raise ConfigError(f'self_generate={self.self_generate} must not be negative.')
    if self.self_generate == 1:
      raise ConfigError(
        'self_generate=1 leaves no text for training: at least one text is held out, so ask for 2 or more.'
      )
    if self.self_generate and self.generation.prompt_tokens > self.data.length:
      raise ConfigError(
        f'generation.prompt_tokens={self.generation.prompt_tokens} leaves no room for new tokens in data.length={self.data.length}.'
      )
