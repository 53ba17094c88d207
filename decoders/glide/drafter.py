"""GliDe's drafter: a small model that reads the target's cache (https://arxiv.org/abs/2402.02082).

A round begins by reading the tokens of the text that are new to the draft. The keys and values which the draft computed for drafted
tokens are not kept for accepted ones: they are read again, because they now see more of the target. So the draft may also lag behind,
after rounds in which something else drafted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from decoders import prompts as prompt_lib
from decoders.glide import cape
from decoders.glide.target_cache import check_cache, fewest_slots, narrowed
from decoders.programs import Clock
from decoders.speculative.draft_loop import DraftPolicy, draft
from decoders.speculative.draft_model import same_tokens
from decoders.speculative.rounds import Drafter, SpeculativeState
from decoders.speculative.trees import Rule, Tree
from jaxlm.caches import FullCache, LayeredCache, Slots
from jaxlm.config import ModelConfig
from jaxlm.glide_config import GlideConfig, check_target
from jaxlm.glide_model import GlideDraft
from jaxlm.language_model import LanguageModel
from jaxlm.lengths import bucket
from jaxlm.models import glide


@struct.dataclass
class Memory:
  """State of the drafter between rounds."""

  cache: Any  # the draft's own
  read: jax.Array  # [R] int32: tokens of the text that need not be read again
  drafted_at: jax.Array  # [R, D] int32: rounds whose chain had a token at each depth
  accepted_at: jax.Array  # [R, D] int32: those in which a token was accepted at this depth


@dataclasses.dataclass(frozen=True)
class GlideDrafter(Drafter):
  """Drafts with a GliDe draft; see `decoders.speculative.rounds.Drafter`.

  Raises:
    ValueError: `draft='parallel'` with more drafted tokens than the block of the training. When the drafter is used: the draft was
      trained for another target, more tokens are drafted than fit into the context or the cache, or the cache lacks tokens of a layer
      that the draft reads.
  """

  config: GlideConfig
  params: Callable[[], Any] = dataclasses.field(compare=False)
  """Returns the draft's parameters. They do not count when drafters are compared."""
  policy: DraftPolicy
  tokenizer: Any = dataclasses.field(default=None, compare=False)
  """The draft's tokenizer, if it has one; `check` compares it with the target's."""

  def __post_init__(self):
    if self.config.draft == 'parallel' and self.policy.max_draft > self.config.block:
      raise ValueError(
        f'max_draft={self.policy.max_draft}: this draft predicts blocks of {self.config.block} tokens in one call, and was not '
        'trained for longer ones. Lower max_draft.'
      )

  @classmethod
  def of(cls, draft: GlideDraft, policy: DraftPolicy) -> 'GlideDrafter':
    return cls(draft.config, lambda: draft.params, policy, draft.tokenizer)

  @property
  def buckets(self) -> tuple[tuple[int, int], ...]:
    return cape.sizes(self.policy)

  @property
  def most_beside(self) -> int:
    return self.policy.most_beside

  @property
  def traced(self) -> 'GlideDrafter':
    return dataclasses.replace(self, params=None, tokenizer=None)

  @property
  def predicted(self) -> int:
    """Number of tokens that the first call of a round predicts."""
    return self.policy.max_draft if self.config.draft == 'parallel' else 1

  @property
  def at_once(self) -> int:
    """Number of tokens that the draft reads at once: those of a usual round, and the mask tokens."""
    new = self.policy.max_draft + 1 + (self.config.eval_mask == 'paper')
    return new + self.predicted - 1

  def check(self, lm: LanguageModel, longest: int, drawn: bool) -> None:
    # One tokenizer has several fingerprints if its files were written by several programs, so the tokens are compared too.
    same = None not in (self.tokenizer, lm.tokenizer) and same_tokens(self.tokenizer, lm.tokenizer)
    check_target(self.config, dataclasses.replace(lm, tokenizer=None) if same else lm)
    if (depth := self.policy.max_draft + 1) > lm.config.max_length:
      raise ValueError(
        f'A tree of {depth} tokens in depth is larger than the context of the model, {lm.config.max_length} tokens: lower max_draft.'
      )

  def check_cache(self, cache: Any) -> None:
    """Raises ValueError if the draft cannot read this cache of the target, or if a whole path of a tree does not fit into it."""
    check_cache(self.config, cache, self.at_once)
    slots, depth = fewest_slots(cache), self.policy.max_draft + 1
    if slots is not None and depth > slots:
      raise ValueError(
        f'A tree of {depth} tokens in depth is larger than the cache, which has a layer of {slots} slots: lower max_draft.'
      )

  def weights(self) -> Any:
    return self.params()

  def begin(
    self,
    clock: Clock,
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    state: SpeculativeState,
    chunk: int | None = None,
  ) -> Memory:
    c, R, D = self.config, len(prompts), self.policy.max_draft
    self.check_cache(state.cache)
    padded = prompt_lib.pad(prompts, c.max_length)
    T, lengths_R = padded.tokens.shape[1], padded.lengths
    # With a window, the draft's predictions depend on this number of last tokens alone.
    width = min(T, c.num_layers * c.window) if c.window else T
    first_R = np.maximum(lengths_R - width, 0)
    chunk = min(chunk or width, width)
    # Rows end within the slots of `text`, so requests with equal slots share programs. The last chunk may end beyond its row.
    slots = state.text.shape[1] + bucket(self.at_once + D)
    own = self.own_cache(R, max(slots, -(-width // chunk) * chunk))
    for start in range(0, width, chunk):
      index_RT = (first_R + start)[:, None] + np.arange(chunk)[None]
      tokens_RT = np.take_along_axis(padded.tokens, np.minimum(index_RT, T - 1), axis=1)
      own = clock.run(
        'prefill', read_text, self.weights(), jnp.asarray(tokens_RT), jnp.asarray(first_R + start), jnp.asarray(lengths_R),
        own, state.cache, lm.params if c.embedding == 'target' else None, state.total, drafter=self.traced,
      )  # fmt: skip
    zeros = lambda: jnp.zeros((R, D), jnp.int32)
    return Memory(own, jnp.asarray(lengths_R), zeros(), zeros())

  def own_cache(self, rows: int, capacity: int) -> Any:
    """Returns an empty cache of the draft: with a window, one whose size does not depend on `capacity`."""
    c = self.config
    if not c.window:
      return FullCache.create(c.stack, rows, capacity)
    # Drafted tokens that are not accepted must not overwrite tokens that are still seen.
    ring = lambda: Slots.ring(c.stack, rows, recent=c.window + self.policy.max_draft).replace(recent=c.window)
    return LayeredCache(tuple(ring() for _ in range(c.num_layers)))

  def seen(self, positions: Any, verified: Any) -> jax.Array:
    """Returns how many of the target's tokens each token sees, if those before position `verified` [R] are in its cache."""
    verified_R1 = verified[:, None]
    if self.config.eval_mask == 'paper':
      return jnp.broadcast_to(verified_R1, positions.shape)
    return jnp.minimum(positions, verified_R1)

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
    c, memory, last_R, V = self.config, state.memory, state.position, config.vocab_size
    hidden = functools.partial(
      glide.hidden, c, draft_params, length=state.total, target_params=params if c.embedding == 'target' else None
    )
    logits = lambda states: glide.logits(c, draft_params, states, params)
    active_R = ~(state.done if idle_R is None else state.done | idle_R)
    width = glide.output_matrix(c, draft_params, params).shape[0]
    own, read_R, states_RPE = self.read_on(hidden, state, active_R, width)
    # Rounds without active rows, in which another drafter drafts, are spared the output layer.
    none = lambda states: jnp.zeros((*states.shape[:2], V), jnp.float32)
    first_RPV = jax.lax.cond(jnp.any(active_R), logits, none, states_RPE)
    memory = memory.replace(read=jnp.minimum(read_R, last_R) if c.eval_mask == 'paper' else read_R)

    if c.draft == 'parallel':
      step = lambda tokens_R1, positions_R1, depth: (
        jax.lax.dynamic_index_in_dim(first_RPV, jnp.minimum(depth, self.predicted - 1), 1, keepdims=False),
        depth + 1,
      )
      tree, _ = draft(
        step, jnp.int32(1), state, values, rule, self.policy, V, idle=idle_R, first_logits=first_RPV[:, 0]
      )
      return tree, memory.replace(cache=own)
    target = narrowed(c, state.cache, last_R, self.at_once)
    # In a ring, what an idle row would write takes the place of tokens that it has yet to read from.
    written = active_R[:, None] if c.window and c.num_layers > 1 else None

    def step(tokens_R1, positions_R1, own):
      states_R1E, own = hidden(
        tokens_R1, positions_R1, self.seen(positions_R1, last_R), own.with_valid(written), target
      )
      return logits(states_R1E[:, 0]), own.with_valid(None)

    tree, own = draft(step, own, state, values, rule, self.policy, V, idle=idle_R, first_logits=first_RPV[:, 0])
    return tree, memory.replace(cache=own)

  def read_on(
    self, hidden: Callable, state: SpeculativeState, active_R, width: int
  ) -> tuple[Any, jax.Array, jax.Array]:
    """Reads the text up to its last token, which the target has not read yet, and with draft='parallel' mask tokens after it.

    Returns (the draft's cache, the tokens of each row that it holds, the states [R, P, width] that predict the next P tokens).

    Args:
      hidden: `glide.hidden` without its arguments from `tokens` to `target`, and without `masked`.
      active_R: rows that must be read to their end. Others may lag behind; their states are meaningless.
    """
    c, last_R, P, W = self.config, state.position, self.predicted, self.at_once

    def read(carry):
      own, read_R, states_RPE = carry
      positions_RW = read_R[:, None] + jnp.arange(W)[None]
      tokens_RW = jnp.take_along_axis(state.text, jnp.minimum(positions_RW, state.text.shape[1] - 1), axis=1)
      real_RW = positions_RW <= last_R[:, None]
      end_R = last_R if c.eval_mask == 'paper' else jnp.minimum(read_R + W, last_R)
      target = narrowed(c, state.cache, end_R, W)
      new_RWE, own = hidden(
        tokens_RW, positions_RW, self.seen(positions_RW, last_R), own.with_valid(real_RW), target,
        masked=~real_RW if c.draft == 'parallel' else None,
      )  # fmt: skip
      at_R = last_R - read_R
      here_R = (at_R >= 0) & (at_R + P <= W)
      index_RP = jnp.clip(at_R, 0, W - P)[:, None] + jnp.arange(P)[None]
      predicted_RPE = jnp.take_along_axis(new_RWE, index_RP[:, :, None], axis=1)
      states_RPE = jnp.where(here_R[:, None, None], predicted_RPE, states_RPE)
      # If there was too little room for mask tokens after the last token, it is read once more. Rows at their end stay there.
      read_R = jnp.where(here_R, last_R + 1, jnp.maximum(read_R, jnp.minimum(read_R + W, last_R)))
      return own.with_valid(None), read_R, states_RPE

    lag = lambda carry: jnp.any(active_R & (carry[1] <= last_R))
    states_RPE = jnp.zeros((len(last_R), P, width), c.dtype)
    return jax.lax.while_loop(lag, read, (state.memory.cache, state.memory.read, states_RPE))

  def learn(self, memory: Memory, drafted_R, accepted_R) -> Memory:
    depth_1D = jnp.arange(self.policy.max_draft)[None]
    drafted_RD = depth_1D < drafted_R[:, None]
    accepted_RD = drafted_RD & (depth_1D < accepted_R[:, None])
    return memory.replace(drafted_at=memory.drafted_at + drafted_RD, accepted_at=memory.accepted_at + accepted_RD)


@functools.partial(jax.jit, static_argnames='drafter', donate_argnums=4)
def read_text(params, tokens_RT, start_R, lengths_R, own, target, target_params, total_R, *, drafter: GlideDrafter):
  """Returns the draft's cache extended by the prompts' tokens from `start` of each row on; `tokens` beyond `lengths` are padding."""
  c, T = drafter.config, tokens_RT.shape[1]
  positions_RT = start_R[:, None] + jnp.arange(T)[None]
  own = own.with_valid(positions_RT < lengths_R[:, None])
  # Only keys and values are needed, so XLA leaves out what comes after those of the last layer.
  _, own = glide.hidden(
    c, params, tokens_RT, positions_RT, drafter.seen(positions_RT, lengths_R), own, target, length=total_R, target_params=target_params
  )  # fmt: skip
  return own.with_valid(None)
