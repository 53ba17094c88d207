"""All settings of the trainer of recommenders as plain data. This file does not import JAX, so that a command shows its help at once."""

import dataclasses
import math
from typing import Literal

import tyro

from jaxlm import errors
from jaxlm.config import Direction, DirectionSignal, ModelConfig, check_choices
from jaxlm.data.semantic_ids import RqVaeConfig
from trainers.config import ConfigError, TrainConfig

RESULTS = 'recommendation.json'
"""File in a run directory with the metrics of a finished run."""
Loss = Literal['sft', 'word-kd', 'tvd-kd', 'seq-kd', 'seq-kd-released', 'atspeed-s', 'atspeed-s-clean', 'atspeed-r']
ON_BEAMS = ('seq-kd', 'seq-kd-released', 'atspeed-s', 'atspeed-s-clean', 'atspeed-r')
"""Losses that read the target's beams."""


@dataclasses.dataclass(frozen=True)
class LogConfig:
  """Which interactions of users with items are learned, and how they are split."""

  source: str = 'made-small'
  """Interactions: 'made-tiny', 'made-small' or 'made-medium' (generated: 200, 1,000 or 12,000 items), 'movielens-100k' (fetched),
  tfds:NAME, such as tfds:movielens/100k-ratings, or files separated by commas (.csv .tsv .jsonl .parquet, and .inter of RecBole)."""
  items: str = ''
  """Table of items with titles and other texts, given in the same way (empty: that of the source, if it has one)."""
  user: str = ''
  """Column of the users (empty: user_id, userId, user, reviewerID, ...)."""
  item: str = ''
  """Column of the items (empty: item_id, movieId, asin, ...)."""
  time: str = ''
  """Column of the times, as numbers or ISO dates (empty: timestamp, time, date, ...; if there is none, lines are in order of time)."""
  rating: str = ''
  """Column of the ratings for least_rating (empty: rating, overall, stars, ...)."""
  title: str = ''
  """Column of the items' titles (empty: title, name, ...)."""
  text: tuple[str, ...] = ()
  """Columns of the table of items that describe them besides the title (none: all columns with text)."""
  least_rating: float | None = None
  """Leave out interactions with a lower rating (none: all count)."""
  min_user: int = 0
  """Smallest number of interactions of a user; others are left out."""
  min_item: int = 0
  """Smallest number of interactions of an item; others are left out. With min_user, until all have enough."""
  missing: Literal['error', 'skip'] = 'error'
  """What to do with items of the log that the table of items, or the file of identifiers, does not have: stop and name them, or leave
  their interactions out."""
  split: Literal['time', 'leave-one-out'] = 'time'
  """time: two moments cut all interactions into training, validation and test, so that nothing of the future is learned. leave-one-out:
  the last item of each user is test, and the one before it validation."""
  valid_share: float = 0.1
  """For time: share of the interactions in validation."""
  test_share: float = 0.1
  """For time: share of the interactions in test."""
  download: bool = False
  """Let TFDS download and prepare a data set that is not on this machine."""
  seed: int = 0
  """Seed of generated data and of the order of the items."""

  def __post_init__(self):
    check_choices(self)
    for name in ('min_user', 'min_item'):
      if getattr(self, name) < 0:
        raise ConfigError(f'data.{name}={getattr(self, name)} must not be negative.')
    if not (self.valid_share > 0 and self.test_share > 0 and self.valid_share + self.test_share < 1):
      raise ConfigError(
        f'data.valid_share={self.valid_share} and data.test_share={self.test_share} must be positive and leave something for training.'
      )
    errors.check_seed('data.seed', self.seed)


@dataclasses.dataclass(frozen=True)
class IdConfig:
  """How items get their identifiers."""

  method: Literal['kmeans', 'rqvae', 'titles', 'items', 'file'] = 'kmeans'
  """kmeans: residual k-means of the items' features. rqvae: codes that an RQ-VAE learns. titles: the first words of the titles. items: one
  token for each item, as in SASRec. file: a JSON file {item id: [token, ...]}."""
  features: Literal['auto', 'vectors', 'words', 'lm'] = 'auto'
  """For kmeans and rqvae: what similar items share. vectors: those of generated data. words: the words of titles and texts. lm:
  embeddings of titles and texts by a language model. auto: vectors if there are some, else words."""
  lm: str = 'minilm'
  """For features lm: the model, best a sentence encoder such as all-MiniLM-L6-v2 (python -m jaxlm.data.fetch minilm)."""
  lm_tokens: int = 128
  """For features lm: number of tokens of a text that are read."""
  sizes: tuple[int, ...] = (32, 32, 32)
  """For kmeans and rqvae: number of codes of each level."""
  unique: bool = True
  """Add one more code to the identifiers if several items would share one. Otherwise such items are recommended together."""
  words: int = 6
  """For titles: largest number of words."""
  file: str = ''
  """For file: path of the JSON file."""
  history: int = 20
  """Largest number of items of a history that a recommender reads: the last ones."""
  seed: int = 0
  """Seed for kmeans and rqvae."""
  rqvae: RqVaeConfig = RqVaeConfig()

  def __post_init__(self):
    check_choices(self)
    for name in ('words', 'history', 'lm_tokens'):
      if getattr(self, name) < 1:
        raise ConfigError(f'ids.{name}={getattr(self, name)} must be at least 1.')
    if self.method in ('kmeans', 'rqvae') and (not self.sizes or min(self.sizes) < 1):
      raise ConfigError(f'ids.sizes={self.sizes} must be one or several numbers of codes, each at least 1.')
    if (self.method == 'file') != bool(self.file):
      raise ConfigError(f"ids.file={self.file!r} is for ids.method='file', which needs it; here it is {self.method!r}.")
    errors.check_seed('ids.seed', self.seed)


@dataclasses.dataclass(frozen=True)
class IdsRunConfig:
  """Where the identifiers are written."""

  directory: str | None = None
  """Run directory (none: runs/recommend-ids)."""


@dataclasses.dataclass(frozen=True)
class IdsConfig:
  """Read interactions, split them, and give each item an identifier."""

  data: LogConfig = LogConfig()
  ids: IdConfig = IdConfig()
  run: IdsRunConfig = IdsRunConfig()


@dataclasses.dataclass(frozen=True)
class ModelFlags(ModelConfig):
  """ModelConfig without flags for what comes from the identifiers."""

  vocab_size: tyro.conf.Suppress[int] = 32000
  max_length: tyro.conf.Suppress[int] = 1024
  causal: tyro.conf.Suppress[bool] = True
  direction: tyro.conf.Suppress[Direction] = 'forward'
  direction_signal: tyro.conf.Suppress[DirectionSignal] = 'none'


@dataclasses.dataclass(frozen=True)
class RowConfig:
  """How histories become batches."""

  batch_size: int = 64
  """Number of rows per step, over all devices and hosts. A row is a history and the next item."""
  predict: Literal['all', 'last'] = 'all'
  """Items of a row that are predicted. all: each of them, from the items before it. last: the last one alone, as in the authors' code,
  which learns more slowly."""
  seed: int = 0
  """Seed for the order of the rows."""

  def __post_init__(self):
    check_choices(self)
    if self.batch_size < 1:
      raise ConfigError(f'data.batch_size={self.batch_size} must be at least 1.')
    errors.check_seed('data.seed', self.seed)


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """How recommendations are measured, by beam search."""

  users: int | None = 256
  """Number of users whose lists are measured at each evaluation (none: all). The test at the end takes all."""
  k: int = 20
  """Length of the lists, and number of beams."""
  batch_size: int = 64
  """Number of users whose lists are searched together. Fewer need less memory."""

  def __post_init__(self):
    if self.users is not None and self.users < 1:
      raise ConfigError(f'eval.users={self.users} must be at least 1, or none for all.')
    for name in ('k', 'batch_size'):
      if getattr(self, name) < 1:
        raise ConfigError(f'eval.{name}={getattr(self, name)} must be at least 1.')


@dataclasses.dataclass(frozen=True)
class TargetConfig(TrainConfig):
  """Train a recommender: a language model that reads a history in identifiers and generates the next identifier."""

  ids: str | None = None
  """Run of stage ids, with the items and the histories (none: one is made first, see the help of the command)."""
  ids_preset: str = 'ids'
  """Without ids: preset with which they are made."""
  model: ModelConfig = ModelFlags()
  data: RowConfig = RowConfig()
  eval: EvalConfig = EvalConfig()


@dataclasses.dataclass(frozen=True)
class LossConfig:
  """How the draft is aligned with its target: (1 - alpha) * cross-entropy on the data + alpha * alignment."""

  name: Loss = 'atspeed-s'
  """sft: no alignment. word-kd, tvd-kd: KL divergence or total variation from the target's distribution on the data. seq-kd: cross-entropy
  on the target's beams. seq-kd-released: seq-kd as the authors' code computes it, where the label of the first code is the data's, not the
  beam's. atspeed-s: for strict verification. atspeed-s-clean: our variant of it. atspeed-r: for relaxed verification."""
  alpha: float = 0.5
  """Share of the alignment in the loss (for sft it is 0)."""
  tau: float | None = None
  """atspeed-s, atspeed-r: temperature of the compared distributions (none: 0.1 for s, 1 for r). Other losses have none and ignore it."""
  top_k: int = 20
  """atspeed-s, atspeed-s-clean: number of the draft's likeliest tokens that are compared. Other losses ignore it."""

  def __post_init__(self):
    check_choices(self)
    if not 0 <= self.alpha <= 1:
      raise ConfigError(f'loss.alpha={self.alpha} must be within [0, 1].')
    if self.tau is not None and not 0 < self.tau < math.inf:
      raise ConfigError(f'loss.tau={self.tau} must be a positive number, or none.')
    if self.top_k < 1:
      raise ConfigError(f'loss.top_k={self.top_k} must be at least 1.')


@dataclasses.dataclass(frozen=True)
class BeamConfig:
  """The target's own beams, on which most losses align the draft. They are searched once, before the training."""

  count: int = 20
  """Number of beams of each history."""
  examples: int | None = 4000
  """Number of histories: a random choice of all beginnings of the users' histories (none: all). A draft learns from these rows alone,
  also with a loss that reads no beams, so that drafts of different losses learn from the same data."""
  batch_size: int = 64
  """Number of histories that are searched together. Fewer need less memory."""
  seed: int = 0
  """Seed for the choice of histories."""
  file: str | None = None
  """JSON Lines file of the beams (none: beams.jsonl in the run directory). A finished file of the same target and histories is used as it
  is, so that several drafts can share it."""

  def __post_init__(self):
    for name in ('count', 'batch_size'):
      if getattr(self, name) < 1:
        raise ConfigError(f'beams.{name}={getattr(self, name)} must be at least 1.')
    if self.examples is not None and self.examples < 1:
      raise ConfigError(f'beams.examples={self.examples} must be at least 1, or none for all.')
    errors.check_seed('beams.seed', self.seed)
    if self.file is not None and not self.file.endswith('.jsonl'):
      raise ConfigError(f'beams.file={self.file!r} is a JSON Lines file: its name must end in .jsonl.')


@dataclasses.dataclass(frozen=True)
class SpeedConfig(EvalConfig):
  """How a draft is measured: by speculative beam search, which accepts a step if the target's prefixes are among the drafted ones."""

  users: int | None = 64
  """Number of users whose lists are searched at each evaluation (none: all)."""
  k: int = 10
  """Length of the lists, and number of beams of the target."""
  beam: int = 40
  """Number of beams of the draft."""
  gamma: int = 3
  """Number of steps that the draft runs ahead."""

  def __post_init__(self):
    super().__post_init__()
    if self.beam < self.k:
      raise ConfigError(f'eval.beam={self.beam} must be at least eval.k={self.k}.')
    if self.gamma < 1:
      raise ConfigError(f'eval.gamma={self.gamma} must be at least 1.')


@dataclasses.dataclass(frozen=True)
class DraftConfig(TrainConfig):
  """Train a small model that proposes the beams of a target."""

  target: str | None = None
  """Run of stage target (none: a target is trained first, see the help of the command)."""
  target_preset: str = 'target'
  """Without a target: preset with which it is trained."""
  target_dtype: Literal['float32', 'bfloat16', 'float16'] | None = None
  """Type of the target's parameters and computation (none: float32 on CPU, bfloat16 elsewhere). It should be that of decoding."""
  ids: str | None = None
  """Run of stage ids (none: the one that the target was trained with)."""
  model: ModelConfig = ModelFlags()
  data: RowConfig = RowConfig()
  loss: LossConfig = LossConfig()
  beams: BeamConfig = BeamConfig()
  eval: SpeedConfig = SpeedConfig()
