"""Drafting with a smaller model of the same vocabulary, as in https://arxiv.org/abs/2211.17192.

Its cache has every token but the last two; these are read at the start of a round, whatever was accepted before.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import numpy as np

from decoders import prompts as prompt_lib
from decoders.plain import prefill
from decoders.sampling import ranked, warped
from decoders.speculative import SpeculativeState, own_key
from decoders.trees import Rule, chain_of
from jaxlm.config import ModelConfig
from jaxlm.language_model import LanguageModel
from jaxlm.models.transformer import Transformer


@struct.dataclass
class Memory:
  params: Any
  cache: Any  # FullCache of the draft model


@dataclasses.dataclass(frozen=True)
class DraftModel:
  """A drafter; see `decoders.speculative.Drafter`.

  Raises:
    ValueError: when it begins, if the draft model has another vocabulary, another tokenizer or a shorter context.
  """

  config: ModelConfig
  params: Callable[[], Any] = dataclasses.field(compare=False)
  """Returns the draft model's parameters, which are no part of the value."""
  max_draft: int = 5
  threshold: float = 0.4
  """Drafting stops after a token less probable than this."""

  @classmethod
  def of(cls, draft: LanguageModel, **settings) -> 'DraftModel':
    return cls(draft.config, lambda: draft.params, **settings)

  @property
  def buckets(self) -> tuple[tuple[int, int], ...]:
    return tuple((d, 0) for d in sorted({1, self.max_draft}))

  def begin(self, clock, lm: LanguageModel, prompts, state) -> Memory:
    if lm.config.vocab_size != self.config.vocab_size:
      raise ValueError(
        f'The draft model has {self.config.vocab_size} tokens and the model {lm.config.vocab_size}: they must share a vocabulary.'
      )
    padded = prompt_lib.pad(prompts, self.config.max_length)
    most = int(np.asarray(state.total).max()) + self.max_draft + 1
    if most - self.max_draft - 1 > self.config.max_length:
      raise ValueError(
        f'Texts of {most} tokens are longer than the {self.config.max_length} that the draft model reads.'
      )
    args = self.params(), jnp.asarray(padded.tokens), jnp.asarray(padded.lengths), state.total
    capacity = max(prompt_lib.bucket(most), padded.tokens.shape[1])
    _, cache = clock.run('prefill', prefill, *args, config=self.config, capacity=capacity, wrap=None)
    # Its own arrays, since a state is given away.
    return Memory(jax.tree.map(jnp.copy, self.params()), cache)

  def propose(self, params, state: SpeculativeState, values: dict, rule: Rule, config: ModelConfig, idle_R=None):
    memory, R, D = state.memory, len(state.last), self.max_draft
    drawn, model = rule == 'residual' and 'temperature' in values, Transformer(self.config)
    idle_R = state.done if idle_R is None else state.done | idle_R
    before_R1 = jnp.take_along_axis(state.text, jnp.maximum(state.position - 1, 0)[:, None], axis=1)
    zeros = {'chain': jnp.zeros((R, D), jnp.int32)}
    if drawn:
      zeros['odds'] = jnp.zeros((R, D, config.vocab_size), jnp.float32)

    def read(tokens_RT, position_R, cache):
      positions_RT = position_R[:, None] + jnp.arange(tokens_RT.shape[1])[None]
      logits_RTV, cache = model.apply({'params': memory.params}, tokens_RT, positions_RT, cache, state.total)
      return logits_RTV[:, -1], cache

    def step(s):
      t = s['t']
      noise = jax.vmap(own_key if drawn else jax.random.fold_in)(state.keys, state.position + t + 1)
      next_R = jnp.argmax(ranked(s['logits'], noise, state.seen, values), axis=-1).astype(jnp.int32)
      logit_R = jnp.take_along_axis(s['logits'], next_R[:, None], axis=1)[:, 0]
      sure_R = jnp.exp(logit_R - jax.nn.logsumexp(s['logits'], axis=-1))
      put = lambda x, new: jax.lax.dynamic_update_index_in_dim(x, new, t, 1)
      new = {'chain': put(s['chain'], next_R)}
      if drawn:
        new['odds'] = put(s['odds'], jax.nn.softmax(warped(s['logits'], state.seen, values), axis=-1))
      logits_RV, cache = read(next_R[:, None], state.position + t + 1, s['cache'])
      length_R = jnp.where(s['on'], t + 1, s['length'])
      on_R = s['on'] & (sure_R >= self.threshold)
      return {'t': t + 1, 'logits': logits_RV, 'cache': cache, 'on': on_R, 'length': length_R, **new}

    logits_RV, cache = read(jnp.concatenate([before_R1, state.last[:, None]], axis=1), state.position - 1, memory.cache)
    begin = {
      't': jnp.int32(0),
      'logits': logits_RV,
      'cache': cache,
      'on': ~idle_R,
      'length': jnp.zeros(R, jnp.int32),
      **zeros,
    }
    s = jax.lax.while_loop(lambda s: (s['t'] < D) & jnp.any(s['on']), step, begin)
    return dataclasses.replace(chain_of(s['chain'], s['length']), odds=s.get('odds')), memory.replace(cache=s['cache'])

  def learn(self, memory, drafted_R, accepted_R):
    return memory
