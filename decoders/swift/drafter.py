"""SWIFT's drafter: the model itself, some of its sub-layers skipped, drafts until it is no longer sure.

After each drafted token its own probability says how many other candidates are verified beside it, and whether drafting
goes on. See https://arxiv.org/abs/2410.06916.
"""

import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp

from decoders.sampling import ranked, warped
from decoders.speculative.rounds import Drafter, SpeculativeState, own_key
from decoders.speculative.trees import Rule, Tree, with_leaves
from decoders.swift import skipping
from decoders.swift.sets import SkipSet
from jaxlm.caches.branch import Branch
from jaxlm.config import ModelConfig

DEPTHS = (1, 4, 10)  # Chains up to which trees are verified by programs of their own.


@struct.dataclass
class Memory:
  keep: jax.Array  # [2, L] bool, sub-layers that run
  threshold: jax.Array  # [R] float32
  smoothed: jax.Array  # [R] float32, share of drafted tokens that were accepted, of late


@dataclasses.dataclass(frozen=True)
class SkipDrafter(Drafter):
  """A drafter; see `decoders.speculative.rounds.Drafter`. Its fields are those of `SwiftConfig`."""

  start: SkipSet
  """Skipped at first; what is skipped later is in its memory, unless `how` is static."""
  how: skipping.How = 'cond'
  max_draft: int = 25
  threshold: float = 0.8
  adapt: bool = False
  width_bounds: tuple[float, ...] = (0.95, 0.8, 0.5)
  widths: tuple[int, ...] = (3, 5, 8, 10)

  @property
  def buckets(self) -> tuple[tuple[int, int], ...]:
    # All tokens of a chain but the last are at least as probable as the threshold, unless that moves.
    least = 0.0 if self.adapt else self.threshold
    before = max((w for b, w in zip((1.0, *self.width_bounds), self.widths) if b > least), default=self.widths[0])
    depths = [d for d in DEPTHS if d < self.max_draft] + [self.max_draft]
    return tuple((d, (d - 1) * (before - 1) + self.widths[-1] - 1) for d in depths)

  @property
  def most_beside(self) -> int:
    return self.widths[-1] - 1

  def begin(self, clock, lm, prompts, state, chunk=None) -> Memory:
    fill = lambda value: jnp.full(len(prompts), value, jnp.float32)
    return Memory(jnp.asarray(self.start.keep(lm.config.num_layers)), fill(self.threshold), fill(1.0))

  def propose(
    self,
    params: Any,
    draft_params: Any,
    state: SpeculativeState,
    values: dict,
    rule: Rule,
    config: ModelConfig,
    idle_R=None,
  ) -> tuple[Tree, Memory]:
    memory, R, D, W = state.memory, len(state.last), self.max_draft, min(self.widths[-1], config.vocab_size)
    room_R = state.tokens.shape[1] - state.lengths - 1  # One token of a round is the target's own.
    keep = self.start.keep(config.num_layers) if self.how == 'static' else memory.keep
    drawn = rule == 'residual' and 'temperature' in values
    branch = Branch.create(state.cache, config, R, D)
    idle_R = state.done if idle_R is None else state.done | idle_R
    ints = lambda *shape: jnp.zeros((R, D, *shape), jnp.int32)
    begin = {
      't': jnp.int32(0), 'last': state.last, 'on': ~idle_R & (room_R > 0), 'length': jnp.zeros(R, jnp.int32), 'top': ints(W), 'width': ints(),
      'keys': branch.keys, 'values': branch.values, 'positions': branch.positions,
    }  # fmt: skip
    if drawn:
      begin['odds'] = jnp.zeros((R, D, config.vocab_size), jnp.float32)

    def step(s):
      t, position_R = s['t'], state.position + s['t']
      seen_R1D = jnp.broadcast_to(jnp.arange(D)[None, None] <= t, (R, 1, D))
      here = branch.replace(keys=s['keys'], values=s['values'], positions=s['positions'], at=t, seen=seen_R1D)
      hidden_R1D, here = skipping.hidden(
        params, s['last'][:, None], position_R[:, None], here, state.total, keep, config, self.how
      )
      logits_RV = skipping.logits(params, hidden_R1D[:, 0], config)
      # The noise that the target will choose with is the best guess of its choice; but what is drawn needs noise of its own.
      noise = jax.vmap(own_key if drawn else jax.random.fold_in)(state.keys, position_R + 1)
      scores_RW, top_RW = jax.lax.top_k(ranked(logits_RV, noise, state.seen, values), W)
      first_R = top_RW[:, 0].astype(jnp.int32)
      logit_R = jnp.take_along_axis(logits_RV, top_RW[:, :1], axis=1)[:, 0]
      sure_R = jnp.exp(logit_R - jax.nn.logsumexp(logits_RV, axis=-1))
      # What a filter has dropped is no candidate.
      width_R = jnp.minimum(self.width(sure_R), jnp.isfinite(scores_RW).sum(axis=1))
      put = lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new.astype(x.dtype), t, 1)
      new = {
        't': t + 1, 'last': first_R, 'on': s['on'] & (sure_R >= memory.threshold) & (t + 1 < room_R), 'length': jnp.where(s['on'], t + 1, s['length']),
        'top': put(s['top'], top_RW), 'width': put(s['width'], width_R),
        'keys': here.keys, 'values': here.values, 'positions': here.positions,
      }  # fmt: skip
      if drawn:
        new['odds'] = put(s['odds'], jax.nn.softmax(warped(logits_RV, state.seen, values), axis=-1))
      return new

    s = jax.lax.while_loop(lambda s: (s['t'] < D) & jnp.any(s['on']), step, begin)
    most = self.buckets[-1][1]
    tree = with_leaves(s['top'][:, :, 0], s['length'], s['top'][:, :, 1:], s['width'] - 1, most, s.get('odds'))
    return tree, memory

  def width(self, sure_R):
    """Returns the candidates at a depth whose first one is so probable."""
    width_R = jnp.full(sure_R.shape, self.widths[-1])
    for bound, width in reversed(list(zip(self.width_bounds, self.widths))):
      width_R = jnp.where(sure_R > bound, width, width_R)
    return width_R

  def learn(self, memory: Memory, drafted_R, accepted_R) -> Memory:
    if not self.adapt:
      return memory
    some_R = drafted_R > 0
    share_R = accepted_R / jnp.maximum(drafted_R, 1)
    smoothed_R = jnp.where(some_R, 0.5 * memory.smoothed + 0.5 * share_R, memory.smoothed)
    to_R = jnp.where(smoothed_R < 0.9, memory.threshold + 0.01, memory.threshold - 0.01)
    moved_R = 0.9 * memory.threshold + 0.1 * to_R
    still_R = ~some_R | (drafted_R >= self.max_draft)
    return memory.replace(smoothed=smoothed_R, threshold=jnp.where(still_R, memory.threshold, moved_R))
