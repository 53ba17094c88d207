"""RQ-VAE: identifiers of items from a residual quantiser that is learned together with an encoder and a decoder.

  z = encoder(x);  r_0 = z;  c_l = nearest code of level l to r_l;  r_{l+1} = r_l - e_{l, c_l};  z^ = sum_l e_{l, c_l}
  loss = |x - decoder(z + sg(z^ - z))|^2 + sum_l |sg(r_l) - e_{l, c_l}|^2 + 0.25 |r_l - sg(e_{l, c_l})|^2

(https://arxiv.org/abs/2203.01941; identifiers as in TIGER, https://arxiv.org/abs/2305.05065, and LC-Rec, https://arxiv.org/abs/2311.09049,
whose settings we follow where nothing else is said). sg has no gradient. Codes begin with residual k-means of the untrained encoder's
outputs; codes that no item used for a while are set to outputs of random items; at the last level, Sinkhorn's algorithm spreads the items
of a batch evenly over the codes, so that fewer items share an identifier.

The training is one function of (vectors, config): it takes a minute at most, and the same command gives the same codes.
Letters: I items, D features, E width of z, C codes of a level, L levels.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxlm.data import semantic_ids
from jaxlm.data.semantic_ids import RqVaeConfig

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int


def init_params(config: RqVaeConfig, dim: int, sizes: tuple[int, ...], key: Array) -> Any:
  """Returns {'encoder', 'decoder': layers of {'w', 'b'}, 'codes': of each level [C, E]}."""
  widths = (dim, *config.hidden, config.width)
  keys = jax.random.split(key, 2 * len(widths))

  def layers(widths, keys):
    init = lambda key, a, b: {
      'w': jax.random.normal(key, (a, b), jnp.float32) * (2 / a) ** 0.5,
      'b': jnp.zeros(b, jnp.float32),
    }
    return [init(key, a, b) for key, a, b in zip(keys, widths, widths[1:])]

  codes = [jnp.zeros((size, config.width), jnp.float32) for size in sizes]
  return {
    'encoder': layers(widths, keys), 'decoder': layers(widths[::-1], keys[len(widths) :]), 'codes': codes
  }  # fmt: skip


def mlp(layers: Any, x: Float[Array, 'n D']) -> Float[Array, 'n E']:
  for i, layer in enumerate(layers):
    x = x @ layer['w'] + layer['b'][None]
    x = jax.nn.relu(x) if i < len(layers) - 1 else x
  return x


def sinkhorn(distances: Float[Array, 'n C'], temperature: float, iterations: int) -> Float[Array, 'n C']:
  """Returns weights whose rows sum to 1 / n and whose columns, nearly, to 1 / C, and that prefer small distances."""
  n, C = distances.shape
  log = -distances / jnp.maximum(jnp.max(distances), 1e-12) / temperature

  def once(log, _):
    log = log - jax.nn.logsumexp(log, axis=0, keepdims=True) - jnp.log(C)
    return log - jax.nn.logsumexp(log, axis=1, keepdims=True) - jnp.log(n), None

  return jnp.exp(jax.lax.scan(once, log, None, length=iterations)[0])


def squared_distances(r: Float[Array, 'n E'], codes: Float[Array, 'C E']) -> Float[Array, 'n C']:
  found = jnp.sum(r * r, axis=1)[:, None] - 2 * r @ codes.T + jnp.sum(codes * codes, axis=1)[None]
  return jnp.maximum(found, 0)


def quantise(
  config: RqVaeConfig, codes: list, z: Float[Array, 'n E'], balanced: bool
) -> tuple[Int[Array, 'n L'], list, list]:
  """Returns (code of each level, the residuals before each level, their codes' vectors). `balanced`: with Sinkhorn at the last level."""
  r, chosen, residuals, vectors = z, [], [], []
  for l, code in enumerate(codes):
    d = jax.lax.stop_gradient(squared_distances(r, code))
    if balanced and config.sinkhorn and l == len(codes) - 1:
      index = jnp.argmax(sinkhorn(d, config.sinkhorn, config.sinkhorn_iterations), axis=1)
    else:
      index = jnp.argmin(d, axis=1)
    chosen.append(index)
    residuals.append(r)
    vectors.append(code[index])
    r = r - vectors[-1]
  return jnp.stack(chosen, axis=1), residuals, vectors


def loss(config: RqVaeConfig, params: Any, x: Float[Array, 'n D']) -> tuple[Float[Array, ''], tuple]:
  """Returns (mean loss of some items, (their codes, their residuals before each level))."""
  z = mlp(params['encoder'], x)
  index, residuals, vectors = quantise(config, params['codes'], z, balanced=True)
  sg = jax.lax.stop_gradient
  straight = z + sg(sum(vectors) - z)
  mean = lambda a, b: jnp.mean(jnp.sum(jnp.square(a - b), axis=1))
  total = mean(mlp(params['decoder'], straight), x)
  # A level's residual depends on the vectors of the levels before, which learn from their own terms alone.
  rest = z
  for residual, vector in zip(residuals, vectors):
    total += mean(sg(residual), vector) + config.commitment * mean(rest, sg(vector))
    rest = rest - sg(vector)
  return total, (index, residuals)


@functools.partial(jax.jit, static_argnames='config')
def _train(params, x, key, *, config: RqVaeConfig):
  """Returns (trained parameters, the loss of each step)."""
  tx = optax.adam(config.learning_rate)
  n, sizes = min(config.batch_size, len(x)), [len(code) for code in params['codes']]

  def step(carry, i):
    params, opt_state, used = carry
    batch_key, reset_key = jax.random.split(jax.random.fold_in(key, i))
    batch = x[jax.random.choice(batch_key, len(x), (n,), replace=False)] if n < len(x) else x
    (value, (index, residuals)), grads = jax.value_and_grad(functools.partial(loss, config), has_aux=True)(
      params, batch
    )
    updates, opt_state = tx.update(grads, opt_state)
    params = optax.apply_updates(params, updates)
    used = [u.at[index[:, l]].add(1) for l, u in enumerate(used)]
    if config.reset_every:
      due = (i + 1) % config.reset_every == 0
      any_of = lambda key, count: jax.random.randint(key, (count,), 0, n, jnp.int32)
      fresh = lambda l, code: residuals[l][any_of(jax.random.fold_in(reset_key, l), len(code))]
      replaced = lambda l, code: jnp.where((due & (used[l] == 0))[:, None], fresh(l, code), code)
      params = params | {'codes': [replaced(l, code) for l, code in enumerate(params['codes'])]}
      used = [jnp.where(due, 0, u) for u in used]
    return (params, opt_state, used), value

  start = params, tx.init(params), [jnp.zeros(size, jnp.int32) for size in sizes]
  (params, _, _), losses = jax.lax.scan(step, start, jnp.arange(config.steps))
  return params, losses


def fit(
  vectors: Float[np.ndarray, 'I D'],
  sizes: tuple[int, ...] = (32, 32, 32),
  config: RqVaeConfig = RqVaeConfig(),
  seed: int = 0,
  say: Callable[[str], None] = lambda text: None,
) -> Int[np.ndarray, 'I L']:
  """Returns the codes of items, after the training of an RQ-VAE on their features.

  Features are scaled to mean 0 and a mean variance of 1. At the end, items that get the same codes are spread over the codes of the last
  level; `semantic_ids.unique` tells apart those that still share theirs.

  Raises:
    DataError: the features are not numbers.
  """
  semantic_ids.check_vectors(vectors)
  x = np.asarray(vectors, np.float32)
  x = jnp.asarray((x - x.mean(0)) / max(float(x.std()), 1e-12))
  init_key, key = jax.random.split(jax.random.key(seed))
  params = jax.jit(functools.partial(init_params, config, x.shape[1], sizes))(init_key)
  encode = jax.jit(lambda params: mlp(params['encoder'], x))
  _, centres = semantic_ids.residual_kmeans(np.asarray(encode(params)), sizes, seed, iterations=10)
  params = params | {'codes': [jnp.asarray(centre, jnp.float32) for centre in centres]}
  params, losses = _train(params, x, key, config=config)
  say(f'RQ-VAE: loss {float(losses[0]):.4g} at the first step, {float(losses[-1]):.4g} at the last of {config.steps:,}')
  index, residuals, _ = jax.jit(functools.partial(quantise, config, balanced=False))(params['codes'], encode(params))
  index = np.array(index, np.int32)
  return _spread(index, np.asarray(residuals[-1]), np.asarray(params['codes'][-1])) if config.sinkhorn else index


def _spread(index_IL, residual_IE, last_CE) -> np.ndarray:
  """Returns codes in which items with the same prefix have different codes at the last level as far as there are some.

  LC-Rec repeats Sinkhorn's algorithm on items that clash. At its low temperature that comes near to what is done here: of all pairs of
  an item and a free code, the nearest one is taken first.
  """
  of = semantic_ids.group(index_IL[:, :-1]) if index_IL.shape[1] > 1 else np.zeros(len(index_IL), int)
  whole = semantic_ids.group(index_IL)
  for number in np.unique(of[np.bincount(whole)[whole] > 1]):
    items = np.flatnonzero(of == number)
    d = semantic_ids.distances(residual_IE[items].astype(np.float64), last_CE.astype(np.float64))
    free_C = np.full(len(last_CE), -(-len(items) // len(last_CE)))
    waiting = set(range(len(items)))
    for place in np.argsort(d, axis=None, kind='stable').tolist():
      i, c = divmod(place, len(last_CE))
      if i in waiting and free_C[c]:
        index_IL[items[i], -1] = c
        free_C[c] -= 1
        waiting.remove(i)
  return index_IL.astype(np.int32)
