"""Makes an optax optimizer and its learning rate schedule from an OptimizerConfig.

The learning rate at step s = 0, 1, ... of S steps, with W warm-up steps, peak p, floor f = p * min_lr_ratio, u = (s - W) / (S - W):

  s < W         p s / W
  constant      p
  linear        f + (p - f) (1 - u)
  cosine        f + (p - f) (1 + cos(pi u)) / 2
  wsd           p, then linear to f over the last `decay_fraction` of all steps
  inverse_sqrt  p sqrt(max(W, 1) / max(s, 1))         https://arxiv.org/abs/1706.03762
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxlm.models.parameters import kind_of
from trainers.config import OptimizerConfig


class Optimizer(NamedTuple):
  """The gradient transformation, and the learning rate as a function of the step, for the logs."""

  tx: optax.GradientTransformation
  schedule: optax.Schedule


def make_schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
  """Returns the learning rate as a function of the step (see the module's docstring)."""
  c, peak, floor = config, config.learning_rate, config.learning_rate * config.min_lr_ratio
  rest, warm = max(1, steps - c.warmup_steps), max(1, c.warmup_steps)
  decay = max(1, min(rest, round(steps * c.decay_fraction)))
  after = {
    'constant': lambda: optax.constant_schedule(peak),
    'linear': lambda: optax.linear_schedule(peak, floor, rest),
    'cosine': lambda: optax.cosine_decay_schedule(peak, rest, alpha=c.min_lr_ratio),
    'wsd': lambda: optax.linear_schedule(peak, floor, decay, transition_begin=rest - decay),
    'inverse_sqrt': lambda: lambda after_warmup: peak * jnp.sqrt(warm / jnp.maximum(after_warmup + c.warmup_steps, 1)),
  }[c.schedule]()
  if not c.warmup_steps:
    return after
  return optax.join_schedules([optax.linear_schedule(0.0, peak, c.warmup_steps), after], [c.warmup_steps])


def decay_mask(config: OptimizerConfig, params: Any) -> Any:
  """Returns a tree of booleans: which parameters weight decay shrinks."""

  def decays(path, _) -> bool:
    names = [str(getattr(k, 'key', k)) for k in path]
    # A parameter of a caller's model that the table does not know counts as a matrix.
    return (kind_of(names) or 'matrix') not in config.decay_exempt

  return jax.tree_util.tree_map_with_path(decays, params)


Factors = Sequence[tuple[str, float]]
"""Ends of the paths of parameters, such as 'cross/o/kernel', with their learning rates divided by that of all other parameters."""


def with_factors(tx: optax.GradientTransformation, factors: Factors) -> optax.GradientTransformation:
  """Returns `tx` with the updates of some parameters multiplied. The state is that of `tx`, so a resumed run may have other factors."""

  def factor(path) -> float:
    name = '/'.join(str(getattr(k, 'key', k)) for k in path)
    return next((factor for end, factor in factors if f'/{name}'.endswith(f'/{end}')), 1.0)

  def update(grads, state, params=None):
    updates, state = tx.update(grads, state, params)
    return jax.tree_util.tree_map_with_path(lambda path, x: x * factor(path), updates), state

  return optax.GradientTransformation(tx.init, update) if factors else tx


def make_optimizer(config: OptimizerConfig, steps: int, factors: Factors = ()) -> Optimizer:
  """Returns AdamW with global-norm clipping before it, for a run of `steps` steps."""
  schedule = make_schedule(config, steps)
  adamw = optax.adamw(
    schedule,
    b1=config.beta1,
    b2=config.beta2,
    eps=config.eps,
    weight_decay=config.weight_decay,
    mask=lambda params: decay_mask(config, params),
  )
  # Without clipping the chain has an identity in its place, so that a resumed run may switch clipping on or off.
  clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
  return Optimizer(with_factors(optax.chain(clip, adamw), factors), schedule)
