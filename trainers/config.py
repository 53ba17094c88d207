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
  schedule: Literal['cosine', 'constant', 'linear', 'wsd', 'inverse_sqrt'] = 'constant'
  """After the warm-up: cosine or linear decay to the last step, constant, constant and then a linear decay (wsd), or proportional
  to 1 / sqrt(step), as translation models are trained (inverse_sqrt)."""
  warmup_steps: int = 100
  """The learning rate rises linearly from 0 over these steps."""
  decay_fraction: float = 0.1
  """wsd: part of all steps that the final decay takes."""
  min_lr_ratio: float = 0.1
  """cosine, linear, wsd: the learning rate of the last step is this times the peak."""
  beta1: float = 0.9
  """Adam's decay of its average of the gradients, per step."""
  beta2: float = 0.95
  """Adam's decay of its average of the squared gradients, per step. Small batches need a value nearer to 1."""
  eps: float = 1e-8
  """Added to the root of the squared gradients that Adam divides by."""
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
  """How many processes train together, where the environment does not say."""
  process_id: int | None = None
  """Number of this process, 0 to num_processes - 1, where the environment does not say."""

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
  """Number of newest checkpoints to keep, besides the best one and those that average_last needs."""
  best_metric: str | None = None
  """Held-out metric by which checkpoints are compared: the best one is kept (none: the trainer's own choice, often the loss)."""
  best_mode: Literal['auto', 'min', 'max'] = 'auto'
  """Whether the smallest or the largest value of that metric is the best (auto: the trainer knows its metrics)."""
  patience: int = 0
  """End the run early after this many evaluations in a row without a new best one (0: never)."""
  average_last: int = 0
  """At the end, average the parameters of this many last checkpoints, as translation models do; the average is what is loaded
  (0: no average). Checkpoints between those of save_every do not count."""
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
    for name in ('eval_every', 'save_every', 'profile', 'patience', 'average_last'):
      if getattr(self, name) < 0:
        raise ValueError(f'{name}={getattr(self, name)} must not be negative.')
    check_choices(self)
    if self.average_last > 1 and not self.save_every:
      raise ValueError(
        f'run.average_last={self.average_last} needs checkpoints to average: set run.save_every above 0.'
      )
    if self.average_last and self.ema_decay:
      raise ValueError(
        f'run.average_last={self.average_last} and run.ema_decay={self.ema_decay} are two averages of the parameters: choose one.'
      )
    if self.patience and not self.eval_every:
      raise ValueError(f'run.patience={self.patience} counts evaluations: set run.eval_every above 0.')
    if not 0 <= self.ema_decay < 1:
      raise ValueError(f'{self.ema_decay=} must be within [0, 1).')
    if self.steps >= 2**31:
      raise ValueError(f'steps={self.steps} must be less than 2**31: they are counted in 32 bits.')
    errors.check_seed('run.seed', self.seed)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """The part of a trainer's config that the loop reads. Trainers add their model and their data."""

  start: str | None = None
  """Begin with the parameters of this run of the same trainer and the same model; the optimizer and its warm-up begin anew.
  (none: new parameters)"""
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
