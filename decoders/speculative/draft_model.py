"""Drafting with a smaller model of the same vocabulary, as in https://arxiv.org/abs/2211.17192.

Its cache is sure to hold every token but the last two: of a draft that was wholly accepted, the last token was never read. So
each round begins by reading the last two tokens.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from decoders import prompts as prompt_lib
from decoders.speculative.draft_loop import DraftPolicy, draft
from decoders.speculative.rounds import Drafter, SpeculativeState
from decoders.speculative.trees import Rule, Tree
from decoders.strategies import Plan, WholeMemory
from jaxlm.caches import FullCache
from jaxlm.config import ModelConfig
from jaxlm.language_model import LanguageModel
from jaxlm.lengths import bucket
from jaxlm.models.transformer import Transformer

PROBE = 'Two models, 1 text: naïve?'


@dataclasses.dataclass(frozen=True)
class DraftModel(Drafter):
  """A drafter; see `decoders.speculative.rounds.Drafter`.

  Raises:
    ValueError: max_draft below 1, or a threshold outside [0, 1]. When it is used: a draft model with another vocabulary or
      direction, or with a context shorter than the texts.
  """

  config: ModelConfig
  params: Callable[[], Any] = dataclasses.field(compare=False)
  """Returns the draft model's parameters. Drafters are compared without them."""
  max_draft: int = 5
  """Tokens drafted in a round at most."""
  threshold: float = 0.4
  """Drafting stops after a token less probable than this."""
  tokenizer: Any = dataclasses.field(default=None, compare=False)
  """The draft model's tokenizer, if it has one, so that another vocabulary of the same size is noticed."""

  def __post_init__(self):
    if self.max_draft < 1:
      raise ValueError(f'{self.max_draft=} must be at least 1.')
    if not 0 <= self.threshold <= 1:
      raise ValueError(f'{self.threshold=} must be in [0, 1].')

  @classmethod
  def of(cls, draft: LanguageModel, **settings) -> 'DraftModel':
    return cls(draft.config, lambda: draft.params, tokenizer=draft.tokenizer, **settings)

  @property
  def buckets(self) -> tuple[tuple[int, int], ...]:
    return tuple((d, 0) for d in sorted({1, self.max_draft}))

  @property
  def traced(self) -> 'DraftModel':
    return dataclasses.replace(self, params=None, tokenizer=None)

  def check(self, lm: LanguageModel, longest: int, drawn: bool) -> None:
    for name in ('direction', 'direction_signal'):
      if (theirs := getattr(self.config, name)) != (ours := getattr(lm.config, name)):
        raise ValueError(
          f'The draft model was trained with {name}={theirs!r} and the model with {ours!r}: they must agree.'
        )
    if lm.config.vocab_size != self.config.vocab_size:
      raise ValueError(
        f'The draft model has {self.config.vocab_size} tokens and the model {lm.config.vocab_size}: they must share a vocabulary.'
      )
    if self.tokenizer is not None and lm.tokenizer is not None:
      ours, theirs = lm.tokenizer.encode(PROBE), self.tokenizer.encode(PROBE)
      if ours != theirs:
        raise ValueError(
          f'The draft model reads {PROBE!r} as tokens {theirs}, the model as {ours}: they must share a vocabulary.'
        )
    if longest > self.config.max_length:
      raise ValueError(
        f'Texts of {longest} tokens are longer than the {self.config.max_length} that the draft model reads.'
      )

  def weights(self) -> Any:
    return self.params()

  def begin(self, clock, lm: LanguageModel, prompts, state, chunk=None) -> FullCache:
    """Returns the draft model's cache."""
    memory, most = WholeMemory(), int(np.asarray(state.total).max()) + self.max_draft + 1
    padded, capacity = prompt_lib.pad(prompts, self.config.max_length), max(bucket(most), state.text.shape[1])
    return memory.read(
      clock, LanguageModel(self.config, self.params()), padded, state.total, Plan(chunk, slots=capacity)
    )[1]

  def propose(
    self, params, draft_params, state: SpeculativeState, values: dict, rule: Rule, config: ModelConfig, idle_R=None
  ) -> tuple[Tree, FullCache]:
    model = Transformer(self.config)

    def step(tokens_RT, positions_RT, cache):
      logits_RTV, cache = model.apply({'params': draft_params}, tokens_RT, positions_RT, cache, state.total)
      return logits_RTV[:, -1], cache

    position_R2 = jnp.minimum(state.position[:, None] + jnp.array([[-1, 0]]), state.total[:, None] - 1)
    before_R1 = jnp.take_along_axis(state.text, jnp.maximum(state.position - 1, 0)[:, None], axis=1)
    latest_R2 = jnp.concatenate([before_R1, state.last[:, None]], axis=1)
    first_logits_RV, cache = step(latest_R2, position_R2, state.memory)
    policy = DraftPolicy(self.max_draft, self.threshold)
    return draft(step, cache, state, values, rule, policy, config.vocab_size, idle=idle_R, first_logits=first_logits_RV)
