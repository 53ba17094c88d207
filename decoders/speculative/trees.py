"""Drafted trees, and the rules that accept their tokens.

A tree is a chain of tokens with leaves beside it. One call of the target verifies it. Node 0 is the last token chosen, nodes
1 .. D are the chain, each the child of the one before. The M leaves come next; their parents are nodes 0 .. D - 1. So the
accepted path is a first part of the chain and at most one leaf. N = 1 + D + M.

A token is accepted by one of two rules, both lossless (https://arxiv.org/abs/2410.06916, https://arxiv.org/abs/2211.17192):
  match      the target chooses a token at every node, with the noise that plain decoding has at that position; a child is
             accepted if it is that token. In greedy decoding there is no noise. The output is the same as plain decoding's,
             token for token.
  residual   a child x drawn from q is accepted with probability min(1, p(x) / q(x)); otherwise p becomes (p - q)+ / sum, x is
             removed from q, and the next child is tried. The output has the distribution of plain decoding, and more tokens are
             accepted than with `match`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from flax import struct
import jax
import jax.numpy as jnp

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int

Rule = Literal['match', 'residual']
NOWHERE = 1 << 30  # The parent of a leaf that does not exist.


@struct.dataclass
class Tree:
  """Drafted tokens of each row."""

  chain: jax.Array  # [B, D] int32
  length: jax.Array  # [B] int32: number of tokens in the chain
  leaves: jax.Array  # [B, M] int32, sorted by parent; leaves of one parent in the order in which they were drawn
  parents: jax.Array  # [B, M] int32: nodes 0 .. D - 1; NOWHERE for leaves that do not exist, which come last
  odds: jax.Array | None = None  # [B, D, V] float32: each node's children were drawn from these; None: not drawn

  def cut(self, depth: int, leaves: int) -> 'Tree':
    """Returns the tree with the first `depth` tokens of the chain and the first `leaves` leaves."""
    odds = None if self.odds is None else self.odds[:, :depth]
    return Tree(self.chain[:, :depth], self.length, self.leaves[:, :leaves], self.parents[:, :leaves], odds)


@struct.dataclass
class Accepted:
  """A path through a tree. It keeps `count` nodes after node 0 and gives count + 1 new tokens; the last one is the target's."""

  path: jax.Array  # [B, D + 1] int32: nodes, the first one 0
  tokens: jax.Array  # [B, D + 1] int32: the token after each of them
  count: jax.Array  # [B] int32


def nodes(tree: Tree, last_B):
  """Returns (tokens [B, N], depths [B, N], which nodes each one sees [B, N, N]: its ancestors and itself)."""
  (B, D), M = tree.chain.shape, tree.leaves.shape[1]
  tokens_BN = jnp.concatenate([last_B[:, None], tree.chain, tree.leaves], axis=1)
  on_chain_1C = jnp.arange(D + 1)[None]
  there_BM = tree.parents != NOWHERE
  deepest_BN = jnp.concatenate(
    [jnp.broadcast_to(on_chain_1C, (B, D + 1)), jnp.where(there_BM, tree.parents, -1)], axis=1
  )
  depth_BN = deepest_BN.at[:, D + 1 :].add(1)
  chain_BNC = on_chain_1C[:, None] <= deepest_BN[:, :, None]
  itself_NM = jnp.arange(1 + D + M)[:, None] == jnp.arange(D + 1, 1 + D + M)[None]
  seen_BNN = jnp.concatenate([chain_BNC, jnp.broadcast_to(itself_NM, (B, *itself_NM.shape))], axis=2)
  return tokens_BN, depth_BN, seen_BNN


def match(tree: Tree, targets: Int[Array, 'B N']) -> Accepted:
  """Accepts the nodes whose token is the one that the target chose after their parent; `targets`: that choice for each node."""
  D = tree.chain.shape[1]
  hit_BD = (tree.chain == targets[:, :D]) & (jnp.arange(D)[None] < tree.length[:, None])
  along_B = jnp.cumprod(hit_BD, axis=1).sum(axis=1)
  wanted_B1 = jnp.take_along_axis(targets, along_B[:, None], axis=1)
  hit_BM = (tree.parents == along_B[:, None]) & (tree.leaves == wanted_B1)
  return along(tree, along_B, hit_BM, targets)


def along(tree: Tree, along_B, hit_BM, tokens_BN) -> Accepted:
  """Returns the path of `along_B` chain nodes, and one leaf more if `hit_BM` marks one. `tokens_BN`: the token after each node."""
  D, M = tree.chain.shape[1], tree.leaves.shape[1]
  index_1P = jnp.arange(D + 1)[None]
  path_BP, count_B = jnp.broadcast_to(index_1P, (len(along_B), D + 1)), along_B
  if M:
    leaf_B1 = D + 1 + jnp.argmax(hit_BM, axis=1)[:, None]
    any_B = hit_BM.any(axis=1)
    path_BP = jnp.where((index_1P == along_B[:, None] + 1) & any_B[:, None], leaf_B1, path_BP)
    count_B = count_B + any_B
  return Accepted(path_BP.astype(jnp.int32), jnp.take_along_axis(tokens_BN, path_BP, axis=1), count_B.astype(jnp.int32))


def residual(tree: Tree, probabilities: Float[Array, 'B N V'], keys: jax.Array, width: int) -> Accepted:
  """Accepts drawn nodes by the rule of the module's docstring.

  Args:
    probabilities: the target's after each node, as plain decoding would draw from them.
    keys: [B] random keys that nothing else uses.
    width: largest number of children of a node.
  """
  D = tree.chain.shape[1]

  def row(tree: Tree, p_NV, key):
    def try_one(p_V, q_V, x, here, u):
      """Returns (accepted, p and q for the next child)."""
      accepted = here & (u * q_V[x] < p_V[x])
      left_V = jnp.maximum(p_V - q_V, 0.0)
      mass = left_V.sum()
      # The mass is 0 only by rounding.
      rejected_V = jnp.where(mass > 0, left_V / jnp.where(mass > 0, mass, 1.0), p_V)
      rest_V = q_V.at[x].set(0.0)
      rest_V = rest_V / jnp.maximum(rest_V.sum(), jnp.finfo(jnp.float32).tiny)
      refused = here & ~accepted
      return accepted, jnp.where(refused, rejected_V, p_V), jnp.where(refused, rest_V, q_V)

    def step(carry):
      node, *_ = carry
      u_W = jax.random.uniform(jax.random.fold_in(key, node), (width,), jnp.float32)
      p_V, q_V = p_NV[node], tree.odds[jnp.minimum(node, D - 1)]
      x = tree.chain[jnp.minimum(node, D - 1)]
      accepted, p_V, q_V = try_one(p_V, q_V, x, node < tree.length, u_W[0])
      first, leaf = jnp.sum(tree.parents < node, dtype=jnp.int32), jnp.int32(-1)
      for w in range(min(width - 1, len(tree.leaves))):
        at = jnp.minimum(first + w, len(tree.leaves) - 1)
        here = ~accepted & (leaf < 0) & (first + w < len(tree.leaves)) & (tree.parents[at] == node)
        hit, p_V, q_V = try_one(p_V, q_V, tree.leaves[at], here, u_W[w + 1])
        leaf = jnp.where(hit, at, leaf)
      return node + accepted, accepted, leaf, p_V

    carry = jnp.int32(0), jnp.bool_(True), jnp.int32(-1), p_NV[0]
    node, _, leaf, left_V = jax.lax.while_loop(lambda carry: carry[1], step, carry)
    last_V = jnp.where(leaf >= 0, p_NV[D + 1 + leaf], left_V)
    # NOWHERE is the number of no node, so this noise is unused, and it does not depend on the depth of other rows' trees.
    final = jax.random.categorical(jax.random.fold_in(key, NOWHERE), jnp.log(last_V))
    return node, leaf, final.astype(jnp.int32)

  along_B, leaf_B, final_B = jax.vmap(row)(tree, probabilities, keys)
  hit_BM = jnp.arange(tree.leaves.shape[1])[None] == leaf_B[:, None]
  B, N = probabilities.shape[:2]
  accepted = along(tree, along_B, hit_BM, jnp.zeros((B, N), jnp.int32))
  # The token after a node is its child on the path; after the last node it is the token just drawn.
  own_BN = jnp.concatenate([jnp.zeros((B, 1), jnp.int32), tree.chain, tree.leaves], axis=1)
  child_BP = jnp.roll(jnp.take_along_axis(own_BN, accepted.path, axis=1), -1, axis=1)
  last_BP = jnp.arange(D + 1)[None] == accepted.count[:, None]
  return accepted.replace(tokens=jnp.where(last_BP, final_B[:, None], child_BP))


def chain_of(chain: Int[Array, 'B D'], length: Int[Array, ' B']) -> Tree:
  """Returns a tree without leaves."""
  none = jnp.zeros((len(chain), 0), jnp.int32)
  return Tree(chain, length, none, none)


def with_leaves(
  chain: Int[Array, 'B D'],
  length: Int[Array, ' B'],
  beside: Int[Array, 'B D W'],
  width: Int[Array, 'B D'],
  most: int,
  odds: Float[Array, 'B D V'] | None = None,
) -> Tree:
  """Returns a tree. Its leaves are the first `width` candidates beside each token of the chain, at most `most` in all."""
  B, D, W = beside.shape
  node_1D1, nth_11W = jnp.arange(D)[None, :, None], jnp.arange(W)[None, None]
  there_BDW = (nth_11W < width[:, :, None]) & (node_1D1 < length[:, None, None])
  parents_BL = jnp.where(there_BDW, node_1D1, NOWHERE).reshape(B, D * W)
  order_BM = jnp.argsort(parents_BL, axis=1, stable=True)[:, :most]
  take = lambda x: jnp.take_along_axis(x, order_BM, axis=1).astype(jnp.int32)
  return Tree(chain, length, take(beside.reshape(B, D * W)), take(parents_BL), odds)
