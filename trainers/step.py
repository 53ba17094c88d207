"""The train step of all trainers, written for one device and with sums instead of means.

  loss = sum_n factor_n total_n / weight_n;   params += update(grad(loss))

`loss_fn(params, batch, context)` returns the sums of each term n of the loss over the rows it is given. The sums are added over
micro-batches and devices before they are divided, so the result does not depend on the number of devices and micro-batches or on
uneven padding. The step knows nothing about devices except an axis name.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

from flax import struct
import jax
import jax.numpy as jnp
import optax

from jaxlm.attention import flash


@struct.dataclass
class TrainState:
  """Everything that changes in training. A resumed run needs only this state and the seed."""

  step: jax.Array  # [], int32: steps done
  params: Any
  opt_state: optax.OptState
  ema: Any = None  # moving average of params, or None


@struct.dataclass
class Context:
  """Inputs of a loss besides the parameters and the batch."""

  step: jax.Array  # [], int32: steps done before this one
  key: jax.Array | None = None  # a function of (seed, step, device, micro-batch); None in evaluation
  frozen: Any = ()  # arrays that are not trained, such as the parameters of a teacher


class Term(NamedTuple):
  """One part of a loss: factor * total / weight."""

  total: jax.Array  # [], a sum over the rows of the batch
  weight: jax.Array  # [], the sum of the rows' weights, such as the number of targets
  # The same for every row; it may depend on the step. None: the term is reported, but not trained on.
  factor: float | jax.Array | None = 1.0


def init_state(params: Any, tx: optax.GradientTransformation, *, ema: bool = False) -> TrainState:
  # A copy, because a step donates both trees, which must not share buffers.
  average = jax.tree.map(jnp.copy, params) if ema else None
  return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), average)


def terms(found: Any) -> dict[str, Term]:
  """Returns the result of a loss function, {name: Term} or the pair (total, weight) of a single term, as {name: Term}.

  Raises:
    ValueError: one of several terms is named 'loss', which is the name of their sum, or none of them is trained on.
  """
  named = found if isinstance(found, dict) else {'loss': Term(*found)}
  if len(named) > 1 and 'loss' in named:
    raise ValueError(f"The terms {', '.join(named)} of a loss: 'loss' is the name of their sum; choose another name.")
  if all(term.factor is None for term in named.values()):
    raise ValueError(f'No term of the loss ({", ".join(named)}) has a factor: there is nothing to train on.')
  return named


def mean(total: jax.Array, weight: jax.Array) -> jax.Array:
  return total / jnp.maximum(weight, 1e-8)


def make_train_step(
  loss_fn: Callable,
  tx: optax.GradientTransformation,
  *,
  schedule: optax.Schedule | None = None,
  seed: int = 0,
  accumulate: int = 1,
  ema_decay: float = 0.0,
  unit: str = 'tokens',
) -> Callable:
  """Returns step(state, batch, frozen=(), axis_name=None) -> (state, metrics).

  The metrics are scalars: 'loss'; the mean of each term if there are several; 'grad_norm' and 'param_norm'; 'learning_rate' if
  there is a schedule; and, under the name `unit`, the weight of the first term that is trained on.

  Args:
    loss_fn: (params, batch, Context) -> {name: Term}, or (total, weight) for a single term.
    tx: optimizer; its updates are added to the parameters.
    schedule: learning rate by step, for the metrics only.
    seed: seed of the random keys.
    accumulate: number of micro-batches into which each device's rows are split; must divide their number.
    ema_decay: decay of the moving average (0: no average).
    unit: unit in which that weight counts, such as 'tokens'.
  """

  def found(params, batch, context) -> dict[str, Term]:
    return terms(loss_fn(params, batch, context))

  def objective(params, batch, context, scales):
    """Returns (sum of the terms that are trained on, (total, weight) of each term)."""
    parts = found(params, batch, context)
    trained = [(name, term) for name, term in parts.items() if term.factor is not None]
    value = sum(term.total * (term.factor * scales.get(name, 1.0)) for name, term in trained)
    return value, {name: (term.total, term.weight) for name, term in parts.items()}

  def over_micro_batches(sums: Callable, batch, context):
    """Returns the sum of sums(micro_batch, context) over the micro-batches of the batch."""
    if accumulate == 1:
      return sums(batch, context)
    # A micro-batch has every accumulate-th row, so that rows split over a mesh stay on their devices.
    split = lambda x: x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]).swapaxes(0, 1)
    micro = jax.tree.map(split, batch)

    def add(total, xs):
      index, one = xs
      of_its_own = context.replace(key=jax.random.fold_in(context.key, index))
      return jax.tree.map(jnp.add, total, sums(one, of_its_own)), None

    shapes = jax.eval_shape(sums, jax.tree.map(lambda x: x[0], micro), context)
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    return jax.lax.scan(add, zeros, (jnp.arange(accumulate), micro))[0]

  def train_step(state: TrainState, batch, frozen=(), *, axis_name: str | None = None):
    key = jax.random.fold_in(jax.random.key(seed), state.step)
    if axis_name is not None:
      key = jax.random.fold_in(key, jax.lax.axis_index(axis_name))
    context = Context(state.step, key, frozen)
    over_devices = lambda x: x if axis_name is None else jax.lax.psum(x, axis_name)
    shapes = jax.eval_shape(found, state.params, batch, context)
    trained = [name for name, term in shapes.items() if term.factor is not None]
    first, scales = trained[0], {}
    if len(trained) > 1:
      # The gradient of a mean needs its weight, so weights are summed first. XLA removes the parts of this forward pass that
      # weights do not need.
      weigh = lambda batch, context: {
        n: t.weight for n, t in found(state.params, batch, context).items() if n in trained
      }
      weights = over_devices(over_micro_batches(weigh, batch, context))
      scales = {n: mean(jnp.maximum(weights[first], 1e-8), w) for n, w in weights.items() if n != first}
    gradient = jax.value_and_grad(functools.partial(objective, scales=scales), has_aux=True)
    sums = over_micro_batches(lambda *xs: gradient(state.params, *xs), batch, context)
    (value, parts), grads = over_devices(sums)
    weight = parts[first][1]
    grads = jax.tree.map(lambda g: mean(g, weight).astype(g.dtype), grads)
    updates, opt_state = tx.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {
      **{name: mean(*part) for name, part in parts.items()},
      'loss': mean(value, weight),
      'grad_norm': optax.tree.norm(grads),
      'param_norm': optax.tree.norm(params),
      unit: weight,
    }
    if schedule is not None:
      metrics['learning_rate'] = jnp.asarray(schedule(state.step), jnp.float32)
    ema = state.ema
    if ema_decay:
      ema = jax.tree.map(lambda e, p: ema_decay * e + (1 - ema_decay) * p, ema, params)
    return TrainState(state.step + 1, params, opt_state, ema), metrics

  return train_step


def data_parallel(train_step: Callable, axis_name: str = 'data') -> Callable:
  """Returns step(state, batch, frozen=()) with pmap over the local devices. State and frozen arrays are replicated, and batch
  arrays are [devices, B, ...]. The state has no device axis, and is donated."""

  def step(state, batch, frozen):
    with flash.on_each_device():
      return train_step(state, batch, *frozen, axis_name=axis_name)

  # Frozen arrays are passed in a tuple: if all arguments together have as many leaves as in_axes has entries, jax 0.10 takes the
  # entries for those of single leaves.
  mapped = jax.pmap(step, axis_name=axis_name, in_axes=(None, 0, (None,)), out_axes=None, donate_argnums=0)

  def on_devices(state, batch, frozen=()):
    return mapped(state, batch, (frozen,))

  return on_devices
