"""A transformer in float64, read as `decoders.beam.reader.ModelReader` reads ours, and written without jaxlm's layers.

Two layers of pre-norm attention and an MLP, learned positions, no biases. jaxlm's models compute logits in float32; in float64 the error of
rounding is so small that speculative and plain search can be held to equal lists in all cases.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.caches import Branch

LAYERS, DIM, HEADS, POSITIONS = 2, 32, 4, 48


def random_weights(seed: int, vocab_size: int, dim: int = DIM) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(seed)
  made = lambda *shape: rng.standard_normal(shape) * (2 / shape[-2]) ** 0.5
  return {
    'embed': rng.standard_normal((vocab_size, dim)), 'positions': 0.3 * rng.standard_normal((POSITIONS, dim)),
    'qkv': made(LAYERS, dim, 3 * dim), 'out': made(LAYERS, dim, dim), 'up': made(LAYERS, dim, 2 * dim), 'down': made(LAYERS, 2 * dim, dim),
    'head': 2 * made(dim, vocab_size),
  }  # fmt: skip


@dataclasses.dataclass(frozen=True)
class DoubleReader:
  """See the module's docstring. A cache is (keys, values of all layers [layers, B, P, heads, H], which of the P tokens are there)."""

  def prompt(self, params, tokens, lengths, total):
    P = tokens.shape[1]
    there_BP = jnp.arange(P)[None] < lengths[:, None]
    sees_BPP = there_BP[:, None] & (jnp.arange(P)[:, None] >= jnp.arange(P)[None])[None]
    kept = []

    def attend(layer, q, k, v):
      kept.append((k, v))
      return attention(q, k, v, sees_BPP)

    positions = jnp.broadcast_to(jnp.arange(P)[None], tokens.shape)
    states_BPD = blocks(params, tokens, positions, attend)
    keys, values = zip(*kept)
    return states_BPD[jnp.arange(len(tokens)), lengths - 1], (keys, values, there_BP)

  def branch(self, cache, size):
    (first, *_), _, there_BP = cache
    zeros = tuple(jnp.zeros((len(there_BP), size, *first.shape[2:]), first.dtype) for _ in range(LAYERS))
    return Branch(cache, zeros, zeros, jnp.zeros((len(there_BP), size), jnp.int32), jnp.int32(0), None)

  def read(self, params, tokens, positions, total, branch):
    keys, values, there_BP = branch.cache
    put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, branch.at, 1)
    branch = branch.placed(positions)
    prompt_BTP = jnp.broadcast_to(there_BP[:, None], (*tokens.shape, there_BP.shape[1]))
    sees_BTS = jnp.concatenate([prompt_BTP, branch.seen], axis=2)
    both = lambda x, y: jnp.concatenate([x, y], axis=1)

    def attend(layer, q, k, v):
      nonlocal branch
      branch = branch.with_layer(layer, put(branch.keys[layer], k), put(branch.values[layer], v))
      return attention(q, both(keys[layer], branch.keys[layer]), both(values[layer], branch.values[layer]), sees_BTS)

    return blocks(params, tokens, positions, attend), branch

  def prompt_and_tree(self, params, prompt, lengths, total, tokens, positions, seen):
    state_BD, cache = self.prompt(params, prompt, lengths, total)
    branch = self.branch(cache, tokens.shape[1]).replace(seen=seen)
    return state_BD, *self.read(params, tokens, positions, total, branch)

  def logits(self, params, states):
    return normed(states) @ params['head']


def blocks(params, tokens, positions, attend):
  x_BTD = params['embed'][tokens] + params['positions'][positions]
  B, T, D = x_BTD.shape
  for layer in range(LAYERS):
    qkv = (normed(x_BTD) @ params['qkv'][layer]).reshape(B, T, 3, HEADS, D // HEADS)
    mixed = attend(layer, *(qkv[:, :, i] for i in range(3)))
    x_BTD = x_BTD + mixed.reshape(B, T, D) @ params['out'][layer]
    x_BTD = x_BTD + jax.nn.gelu(normed(x_BTD) @ params['up'][layer]) @ params['down'][layer]
  return x_BTD


def attention(q, k, v, sees_BTS):
  scores = jnp.einsum('BTNH,BSNH->BNTS', q, k) / q.shape[-1] ** 0.5
  weights = jax.nn.softmax(jnp.where(sees_BTS[:, None], scores, -jnp.inf), axis=-1)
  return jnp.einsum('BNTS,BSNH->BTNH', weights, v)


def normed(x):
  return x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-9)
