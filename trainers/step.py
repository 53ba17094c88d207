"""One train step, written once, for one device, as sums.

  loss = sum_n factor_n total_n / weight_n;   params += update(grad(loss))

`loss_fn(params, batch, context)` returns the sums of each part n of the loss over the rows it is given. They are added over
micro-batches and devices before they are divided, so that any number of devices and of micro-batches with uneven padding gives the
same number. The step knows nothing about devices except an axis name.
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
  """All that changes in training; with the seed it is all that a resumed run needs."""

  step: jax.Array  # [], int32: steps done
  params: Any
  opt_state: optax.OptState
  ema: Any = None  # moving average of params, or None


@struct.dataclass
class Context:
  """What a loss may read besides the parameters and the batch."""

  step: jax.Array  # [], int32: steps done before this one
  key: jax.Array | None = None  # a function of (seed, step, device, micro-batch); None in evaluation
  frozen: Any = ()  # arrays that are not trained, such as the parameters of a teacher


class Term(NamedTuple):
  """One part of a loss: factor * total / weight."""

  total: jax.Array  # [], a sum over the rows of the batch
  weight: jax.Array  # [], the sum of what each summand counts
  factor: float | jax.Array | None = (
    1.0  # the same for every row; it may depend on the step. None: reported, not trained on
  )


def init_state(params: Any, tx: optax.GradientTransformation, *, ema: bool = False) -> TrainState:
  # The copy keeps the two trees' buffers apart: a step donates both.
  average = jax.tree.map(jnp.copy, params) if ema else None
  return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), average)


def terms(found: Any) -> dict[str, Term]:
  """Returns what a loss function returned as named terms: a dictionary of them, or the pair (total, weight) of the only one.

  Raises:
    ValueError: one of several terms is named 'loss', which is the name of their sum, or none of them is trained on.
  """
  named = found if isinstance(found, dict) else {'loss': Term(*found)}
  if len(named) > 1 and 'loss' in named:
    raise ValueError(f"The terms {', '.join(named)} of a loss: 'loss' is the name of their sum; call it otherwise.")
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

  The metrics are scalars: 'loss'; the mean of each term where there are several; 'grad_norm' and 'param_norm'; 'learning_rate'; and
  under the name `unit` the weight of the first term.

  Args:
    loss_fn: (params, batch, Context) -> {name: Term}, or (total, weight) where there is one term only.
    tx: optimizer; its updates are added to the parameters.
    schedule: learning rate by step, for the metrics only.
    seed: of the keys.
    accumulate: micro-batches that each device's rows are split into; must divide them.
    ema_decay: of the moving average; 0 keeps none.
    unit: what the weight of the first term counts.
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
    """Returns sums(batch, context), added over micro-batches of the batch."""
    if accumulate == 1:
      return sums(batch, context)
    # Every accumulate-th row, so that rows split over a mesh stay where they are.
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
      # The gradient of a mean needs its weight, so weights are summed first. XLA drops what they do not need of the forward pass.
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
  """pmaps a step over local devices: step(state, batch, frozen=()), with state and frozen arrays replicated, and a batch of
  [devices, B, ...]. The state keeps its own shape and is donated."""

  def step(state, batch, frozen):
    with flash.on_each_device():
      return train_step(state, batch, *frozen, axis_name=axis_name)

  # Frozen arrays go in as a tuple: where all arguments together have as many leaves as there are axes, jax 0.10 takes each axis
  # for that of one leaf.
  mapped = jax.pmap(step, axis_name=axis_name, in_axes=(None, 0, (None,)), out_axes=None, donate_argnums=0)

  def on_devices(state, batch, frozen=()):
    return mapped(state, batch, (frozen,))

  return on_devices
