"""A model that is a table, read as `decoders.beam.reader.ModelReader` reads a transformer, random tries, and a slow search over them.

A text is the sum of whole numbers, one for each token at its position, and the logits behind it are a row of a table. So the model is a
random function of the whole text, and equal texts have equal logits, bit for bit, however they were read.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.caches import Branch
from jaxlm.data.item_trie import ItemTrie, TrieCapacity

ROWS, POSITIONS = 509, 12


@dataclasses.dataclass(frozen=True)
class TableReader:
  """See the module's docstring. Parameters: words [positions, V] and table [ROWS, V]."""

  def prompt(self, params, tokens, lengths, total):
    there_BP = jnp.arange(tokens.shape[1])[None] < lengths[:, None]
    words_BP = params['words'][jnp.arange(tokens.shape[1])[None], tokens]
    text_B1 = jnp.where(there_BP, words_BP, 0).sum(axis=1, keepdims=True)
    return text_B1, text_B1

  def branch(self, cache, size):
    zeros = (jnp.zeros((len(cache), size, 1, 1), cache.dtype),)
    return Branch(cache, zeros, zeros, jnp.zeros((len(cache), size), jnp.int32), jnp.int32(0), None)

  def read(self, params, tokens, positions, total, branch):
    words = params['words'][positions, tokens][:, :, None, None]
    put = lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, branch.at, 1)
    branch = branch.placed(positions).with_layer(0, put(branch.keys[0], words), put(branch.values[0], words))
    text_BT = jnp.where(branch.seen, branch.keys[0][:, None, :, 0, 0], 0).sum(axis=2) + branch.cache
    return text_BT[:, :, None], branch

  def prompt_and_tree(self, params, prompt, lengths, total, tokens, positions, seen):
    text_B1, cache = self.prompt(params, prompt, lengths, total)
    branch = self.branch(cache, tokens.shape[1]).replace(seen=seen)
    return text_B1, *self.read(params, tokens, positions, total, branch)

  def logits(self, params, states):
    return params['table'][states[..., 0].astype(jnp.int32) % ROWS]


def tables(seed: int, vocab_size: int, *, noise: float = 0.0, scale: float = 2.0) -> dict[str, np.ndarray]:
  """Returns parameters; `noise` changes the table, but not which texts share a row."""
  rng = np.random.default_rng(seed)
  words = rng.integers(0, 10_000, (POSITIONS, vocab_size)).astype(np.float32)
  table = scale * rng.standard_normal((ROWS, vocab_size)) + noise * rng.standard_normal((ROWS, vocab_size))
  return {'words': words, 'table': table.astype(np.float32)}


def random_codes(rng, items: int, depth: int, vocab_size: int) -> np.ndarray:
  """Returns identifiers. At each place there are between one and V tokens, so some tries have few first tokens, others are chains."""
  alphabets = [rng.choice(vocab_size, rng.integers(1, vocab_size + 1), replace=False) for _ in range(depth)]
  return np.stack([rng.choice(alphabet, items) for alphabet in alphabets], axis=1)


def stacked_tries(codes: list[np.ndarray], capacity: TrieCapacity) -> ItemTrie:
  """Returns tries as one pytree, for `jax.vmap`."""
  return jax.tree.map(lambda *x: np.stack(x), *[ItemTrie.from_ids(c, capacity=capacity) for c in codes])


def slow_search(params, codes: np.ndarray, history: list[int], width: int) -> list[tuple[float, tuple[int, ...]]]:
  """Returns (score, identifier) of the best `width` identifiers by beam search, best first."""
  words, ids = params['words'], {tuple(code) for code in codes.tolist()}
  text = sum(words[i, token] for i, token in enumerate(history))
  beams = [(np.float64(0), ())]
  for t in range(codes.shape[1]):
    found = []
    for score, path in beams:
      row = params['table'][int(text + sum(words[len(history) + i, token] for i, token in enumerate(path))) % ROWS]
      log_p = row.astype(np.float64) - np.logaddexp.reduce(row.astype(np.float64))
      found += [(score + log_p[v], (*path, v)) for v in sorted({c[t] for c in ids if c[:t] == path})]
    beams = sorted(found, key=lambda c: -c[0])[:width]
  return beams
