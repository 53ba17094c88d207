"""What every trainer can be told, as plain data: no JAX here, so that command lines can show their help at once."""

import dataclasses
import math
from typing import Literal

from jaxlm import errors
from jaxlm.config import check_choices


class ConfigError(ValueError):
  """Settings that cannot work together, or not on these devices; the message says which would."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW with warm-up, a schedule and clipping; the defaults are the attention-sink paper's."""

  learning_rate: float = 4e-4
  """Peak of the schedule."""
  schedule: Literal['cosine', 'constant', 'linear', 'wsd'] = 'constant'
  """After the warm-up: cosine or linear decay to the last step, constant, or constant and then a linear decay (wsd)."""
  warmup_steps: int = 100
  """The learning rate rises linearly from 0 over these steps."""
  decay_fraction: float = 0.1
  """wsd: part of all steps that the final decay takes."""
  min_lr_ratio: float = 0.1
  """The decaying schedules end at this times the peak."""
  beta1: float = 0.9
  beta2: float = 0.95
  eps: float = 1e-8
  weight_decay: float = 0.1
  """Decoupled: parameters shrink by learning_rate * weight_decay per step."""
  decay_exempt: tuple[Literal['norm', 'bias', 'embedding'], ...] = ()
  """Parameters without weight decay; the paper decays all of them."""
  clip_norm: float = 1.0
  """Gradients are scaled down to this global norm (0: never)."""

  def __post_init__(self):
    check_choices(self)
    for name in ('learning_rate', 'weight_decay', 'clip_norm', 'warmup_steps'):
      # A negative norm would turn gradient descent round. Written so that what is not a number is refused as well.
      if not 0 <= getattr(self, name) < math.inf:
        raise ValueError(f'optimizer.{name}={getattr(self, name)} must be a number and not negative.')
    if not 0 < self.eps < math.inf:
      raise ValueError(
        f'optimizer.eps={self.eps} must be a positive number: Adam divides by it where gradients are zero.'
      )
    for name in ('decay_fraction', 'min_lr_ratio'):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f'{name}={getattr(self, name)} must be within [0, 1].')
    for name in ('beta1', 'beta2'):
      if not 0 <= getattr(self, name) < 1:
        raise ValueError(f'{name}={getattr(self, name)} must be within [0, 1).')


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """How the devices share the work. With fsdp = tensor = 1 every device holds the whole model and a part of the batch."""

  fsdp: int = 1
  """Parameters, gradients and optimizer state are split over this many devices, which also split the batch."""
  tensor: int = 1
  """Heads, MLP width and vocabulary are split over this many devices, which share their rows of the batch."""

  def __post_init__(self):
    if self.fsdp < 1 or self.tensor < 1:
      raise ValueError(f'{self.fsdp=} and {self.tensor=} must be at least 1.')


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
  """Training on several hosts. Start the same command on each of them."""

  initialize: bool = False
  """Find the other hosts by what the environment says: TPU pods, SLURM, Open MPI."""
  coordinator: str | None = None
  """Address of process 0, host:port, where the environment does not say."""
  num_processes: int | None = None
  process_id: int | None = None

  def __post_init__(self):
    explicit = (self.coordinator, self.num_processes, self.process_id)
    if any(x is not None for x in explicit) and None in explicit:
      raise ValueError(
        f'Explicit hosts need all three of {self.coordinator=}, {self.num_processes=}, {self.process_id=}.'
      )
    if self.process_id is not None and not 0 <= self.process_id < self.num_processes:
      raise ValueError(f'{self.process_id=} is not within 0 .. {self.num_processes=} - 1.')


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """How long to train, what to write and where."""

  directory: str | None = None
  """Run directory (none: runs/PRESET). Starting the same command again resumes what is there."""
  steps: int = 1000
  """Optimizer steps in total."""
  accumulate: int = 1
  """Micro-batches per step; the same result as the whole batch at once, in less memory."""
  ema_decay: float = 0.0
  """Keep a moving average of the parameters, ema = decay * ema + (1 - decay) * params (0: none). It is what is evaluated
  and loaded."""
  log_every: int = 10
  """Steps between lines of metrics.jsonl."""
  eval_every: int = 200
  """Steps between evaluations (0: only at the end)."""
  save_every: int = 200
  """Steps between checkpoints (0: only at the end)."""
  keep: int = 2
  """Newest checkpoints to keep, besides the best by evaluation loss."""
  seed: int = 0
  """Seed for the parameters and for everything random in the loss."""
  profile: int = 0
  """Trace this many steps after the first few into RUN/profile, for TensorBoard or Perfetto (0: none)."""
  tensorboard: bool = True
  """Write TensorBoard events into the run directory."""
  wandb: str | None = None
  """Log to this Weights & Biases project as well."""

  def __post_init__(self):
    for name in ('steps', 'accumulate', 'log_every', 'keep'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}={getattr(self, name)} must be at least 1.')
    for name in ('eval_every', 'save_every', 'profile'):
      if getattr(self, name) < 0:
        raise ValueError(f'{name}={getattr(self, name)} must not be negative.')
    if not 0 <= self.ema_decay < 1:
      raise ValueError(f'{self.ema_decay=} must be within [0, 1).')
    if self.steps >= 2**31:
      raise ValueError(f'steps={self.steps} must be less than 2**31: they are counted in 32 bits.')
    errors.check_seed('run.seed', self.seed)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The part of a trainer's config that the loop reads. Trainers add their model and their data."""

  optimizer: OptimizerConfig = OptimizerConfig()
  mesh: MeshConfig = MeshConfig()
  distributed: DistributedConfig = DistributedConfig()
  run: RunConfig = RunConfig()

  def __post_init__(self):
    if self.optimizer.warmup_steps > self.run.steps:
      raise ValueError(
        f'optimizer.warmup_steps={self.optimizer.warmup_steps} is more than run.steps={self.run.steps}: '
        'the learning rate would never reach its peak.'
      )
