"""One train step, written once, for one device, as sums.

  g = sum over micro-batches and devices of grad(loss_sum) / sum of weight;   params += update(g)

`loss_fn(params, batch, key) -> (loss_sum, weight)` or `(loss_sum, weight, extras)`; extras are further sums that are
reported divided by the weight. The division happens once, after the all-reduce, so that any number of devices and of
micro-batches with uneven padding gives the same number. The step knows nothing about devices except an axis name.
"""

from collections.abc import Callable
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

from jaxlm.attention import flash


@struct.dataclass
class TrainState:
  """All that changes in training; with the seed it is all that a resumed run needs."""

  step: jax.Array  # [], int32: steps done
  params: Any
  opt_state: optax.OptState
  ema: Any = None  # moving average of params, or None


def init_state(params: Any, tx: optax.GradientTransformation, *, ema: bool = False) -> TrainState:
  # The copy keeps the two trees' buffers apart: a step donates both.
  average = jax.tree.map(jnp.copy, params) if ema else None
  return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), average)


def make_train_step(
  loss_fn: Callable,
  tx: optax.GradientTransformation,
  *,
  schedule: optax.Schedule | None = None,
  seed: int = 0,
  accumulate: int = 1,
  ema_decay: float = 0.0,
) -> Callable:
  """Returns step(state, batch, axis_name=None) -> (state, metrics).

  Args:
    loss_fn: see the module's docstring. Its key is a function of (seed, step, device, micro-batch).
    tx: optimizer; its updates are added to the parameters.
    schedule: learning rate by step, for the metrics only.
    seed: of the keys.
    accumulate: micro-batches that each device's rows are split into; must divide them.
    ema_decay: of the moving average; 0 keeps none.
  """
  grad_fn = jax.value_and_grad(lambda *args: _with_extras(loss_fn(*args)), has_aux=True)

  def sums(params, batch, key):
    (loss_sum, (weight, extras)), grads = grad_fn(params, batch, key)
    return (loss_sum, weight, extras), grads

  def accumulated(params, batch, key):
    if accumulate == 1:
      return sums(params, batch, key)
    # Every accumulate-th row, so that rows split over a mesh stay where they are.
    split = lambda x: x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1)
    micro = jax.tree.map(split, batch)

    def add(total, xs):
      index, one = xs
      return jax.tree.map(jnp.add, total, sums(params, one, jax.random.fold_in(key, index))), None

    shapes = jax.eval_shape(sums, params, jax.tree.map(lambda x: x[0], micro), key)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, (jnp.arange(accumulate), micro))[0]

  def train_step(state: TrainState, batch, *, axis_name: str | None = None):
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    if axis_name is not None:
      key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    (loss_sum, weight, extras), grads = accumulated(state.params, batch, key)
    if axis_name is not None:
      loss_sum, weight, extras, grads = jax.lax.psum((loss_sum, weight, extras, grads), axis_name)
    mean = lambda x: x / jnp.maximum(weight, 1e-8)
    grads = jax.tree.map(lambda g: mean(g).astype(g.dtype), grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {
      'loss': mean(loss_sum),
      'grad_norm': optax.tree.norm(grads),
      'param_norm': optax.tree.norm(params),
      'tokens': weight,
      **{name: mean(x) for name, x in extras.items()},
    }
    if schedule is not None:
      metrics['learning_rate'] = jnp.asarray(schedule(state.step), jnp.float32)
    ema = state.ema
    if ema_decay:
      ema = jax.tree.map(lambda e, p: ema_decay * e + (1 - ema_decay) * p, ema, params)
    return TrainState(state.step + 1, params, opt_state, ema), metrics

  return train_step


def _with_extras(result):
  loss_sum, weight, extras = result if len(result) == 3 else (*result, {})
  return loss_sum, (weight, extras)


def data_parallel(train_step: Callable, axis_name: str = 'data') -> Callable:
  """pmaps a step over local devices. State is replicated and keeps its own shape; batch is [devices, B, ...]."""

  def step(state, batch):
    with flash.on_each_device():
      return train_step(state, batch, axis_name=axis_name)

  return jax.pmap(
    step,
    axis_name=axis_name,
    in_axes=(None, 0),
    out_axes=None,
    donate_argnums=0,
  )
