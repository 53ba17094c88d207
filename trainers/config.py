"""Settings that all trainers share, as plain data. This file does not import JAX, so that a command shows its help at once."""

import dataclasses
import math
from typing import Literal

from jaxlm import errors
from jaxlm.config import check_choices


class ConfigError(ValueError):
  """Settings that cannot work together, or not on these devices; the message says which ones would work."""


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """AdamW with warm-up, a schedule and clipping; the defaults are those of the attention-sink paper."""

  learning_rate: float = 4e-4
  """Highest learning rate of the schedule. Large models need a lower one."""
  schedule: Literal['cosine', 'constant', 'linear', 'wsd', 'inverse_sqrt'] = 'constant'
  """Learning rate after the warm-up. cosine and linear: it decays until the last step. constant: it does not change. wsd: constant,
  then a linear decay. inverse_sqrt: proportional to 1 / sqrt(step), as for translation models."""
  warmup_steps: int = 100
  """Number of first steps in which the learning rate rises linearly from 0."""
  decay_fraction: float = 0.1
  """wsd: share of all steps that the final decay takes."""
  min_lr_ratio: float = 0.1
  """cosine, linear, wsd: learning rate of the last step, divided by the highest one."""
  beta1: float = 0.9
  """Decay per step of Adam's moving average of the gradients."""
  beta2: float = 0.95
  """Decay per step of Adam's moving average of the squared gradients. Small batches need a value nearer to 1."""
  eps: float = 1e-8
  """Added to the root of the average squared gradient, by which Adam divides."""
  weight_decay: float = 0.1
  """Each step multiplies parameters by 1 - learning_rate * weight_decay (decoupled weight decay)."""
  decay_exempt: tuple[Literal['norm', 'bias', 'embedding'], ...] = ()
  """Kinds of parameters without weight decay; the paper decays all of them."""
  clip_norm: float = 1.0
  """Largest global norm of the gradients; larger gradients are scaled down to it (0: no clipping)."""

  def __post_init__(self):
    check_choices(self)
    for name in ('learning_rate', 'weight_decay', 'clip_norm', 'warmup_steps'):
      # A negative norm would reverse gradient descent. The comparison is also false for NaN.
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
  """Number of devices over which parameters, gradients and optimizer state are split; they also split the batch. Raise it if a
  model does not fit in the memory of one device."""
  tensor: int = 1
  """Number of devices over which heads, MLP width and vocabulary are split; they compute the same rows of the batch."""

  def __post_init__(self):
    if self.fsdp < 1 or self.tensor < 1:
      raise ValueError(f'{self.fsdp=} and {self.tensor=} must be at least 1.')


@dataclasses.dataclass(frozen=True)
class DistributedConfig:
  """Training on several hosts. Start the same command on each of them."""

  initialize: bool = False
  """Find the other hosts from the environment: on TPU pods, with SLURM and with Open MPI."""
  coordinator: str | None = None
  """Address of process 0 as host:port, if the environment does not give it."""
  num_processes: int | None = None
  """Number of processes that train together, if the environment does not give it."""
  process_id: int | None = None
  """Number of this process, 0 to num_processes - 1, if the environment does not give it."""

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
  """Run directory (none: runs/PRESET). Starting the same command again resumes the run in it."""
  steps: int = 1000
  """Total number of optimizer steps."""
  accumulate: int = 1
  """Number of micro-batches per step. More: less memory, with the same result."""
  ema_decay: float = 0.0
  """Decay of a moving average of the parameters, ema = decay * ema + (1 - decay) * params (0: no average). The average is what is
  evaluated, and loaded from checkpoints."""
  log_every: int = 10
  """Number of steps between lines of metrics.jsonl."""
  eval_every: int = 200
  """Number of steps between evaluations (0: only at the end)."""
  save_every: int = 200
  """Number of steps between checkpoints (0: only at the end)."""
  keep: int = 2
  """Number of newest checkpoints to keep, besides the best one and those that average_last needs."""
  best_metric: str | None = None
  """Held-out metric by which the best checkpoint is chosen, which is kept (none: the trainer's default, often the loss)."""
  best_mode: Literal['auto', 'min', 'max'] = 'auto'
  """Whether the smallest or the largest value of that metric is the best (auto: the trainer knows its metrics)."""
  patience: int = 0
  """Number of evaluations in a row without a new best one after which the run ends early (0: never)."""
  average_last: int = 0
  """Number of last checkpoints whose parameters are averaged at the end, as for translation models (0: no average). The average is
  loaded instead of the last checkpoint. Checkpoints between those of save_every do not count."""
  seed: int = 0
  """Seed for the parameters and for all random numbers in the loss."""
  profile: int = 0
  """Number of steps, after the first few, whose trace is written to RUN/profile for TensorBoard or Perfetto (0: none)."""
  tensorboard: bool = True
  """Write TensorBoard events into the run directory."""
  wandb: str | None = None
  """Weights & Biases project to which metrics are also logged (none: no logging there)."""

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
  """The part of a trainer's config that the loop reads. Trainers add settings of their model and data."""

  start: str | None = None
  """Directory of a run of the same trainer and model whose parameters the new run starts with (none: new parameters). The optimizer
  and its warm-up start anew."""
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
