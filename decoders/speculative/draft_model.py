"""Drafting with a smaller model of the same vocabulary, as in https://arxiv.org/abs/2211.17192.

Models of one family may pad the vocabulary of one tokenizer to different sizes (Qwen2.5: 151665 tokens, padded to 151936 or
152064). Padding ids are never drafted; the target chooses tokens as it does in plain decoding.

The draft model's cache may lack the last two tokens: if a whole draft was accepted, the draft model has not read the last token
of that draft. So each round begins by reading the last two tokens.
"""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
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
_compared: dict[tuple[str, str], bool] = {}  # by the fingerprints of two tokenizers; see `same_tokens`


@dataclasses.dataclass(frozen=True)
class DraftModel(Drafter):
  """Drafts with a smaller model; see `decoders.speculative.rounds.Drafter`.

  Raises:
    ValueError: max_draft is below 1, or the threshold is outside [0, 1]. When the drafter is used: the draft model has another
      vocabulary (only the number of padding ids may differ), another direction, or a context shorter than the texts.
  """

  config: ModelConfig
  params: Callable[[], Any] = dataclasses.field(compare=False)
  """Returns the draft model's parameters. They do not count when drafters are compared."""
  max_draft: int = 5
  """Largest number of tokens drafted in a round."""
  threshold: float = 0.4
  """Drafting stops after a token less probable than this."""
  tokenizer: Any = dataclasses.field(default=None, compare=False)
  """The draft model's tokenizer, if it has one; `check` compares it with the target's."""
  most_ids: int | None = None
  """Ids from this number on are never drafted (None: no limit). `traced` sets it to the tokenizer's size."""

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
    most_ids = self.most_ids if self.tokenizer is None else self.tokenizer.vocab_size
    return dataclasses.replace(self, params=None, tokenizer=None, most_ids=most_ids)

  def check(self, lm: LanguageModel, longest: int, drawn: bool) -> None:
    for name in ('direction', 'direction_signal'):
      if (theirs := getattr(self.config, name)) != (ours := getattr(lm.config, name)):
        raise ValueError(
          f'The draft model was trained with {name}={theirs!r} and the model with {ours!r}: they must agree.'
        )
    if lm.config.vocab_size != self.config.vocab_size and not self._pads_the_vocabulary_of(lm):
      raise ValueError(
        f'The draft model has {self.config.vocab_size} tokens and the model {lm.config.vocab_size}: they must share a '
        'vocabulary. Different sizes work only if both have a tokenizer, and the tokenizers have the same tokens.'
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

  def _pads_the_vocabulary_of(self, lm: LanguageModel) -> bool:
    """Returns whether both models have the same tokens, so that their vocabularies differ in padding alone."""
    ours, theirs = lm.tokenizer, self.tokenizer
    if (
      ours is None or theirs is None or lm.config.direction_signal != 'none'
    ):  # Signals are the last ids of a vocabulary.
      return False
    return same_tokens(ours, theirs)

  def weights(self) -> Any:
    return self.params()

  def begin(self, clock, lm: LanguageModel, prompts, state, chunk=None) -> FullCache:
    """Returns the draft model's cache."""
    memory, most = WholeMemory(), int(np.asarray(state.total).max()) + self.max_draft + 1
    padded, capacity = prompt_lib.pad(prompts, self.config.max_length), max(bucket(most), state.text.shape[1])
    padded = dataclasses.replace(padded, tokens=np.minimum(padded.tokens, self.config.vocab_size - 1))
    return memory.read(
      clock, LanguageModel(self.config, self.params()), padded, state.total, Plan(chunk, slots=capacity)
    )[1]

  def _for_the_target(self, logits_RV, size: int) -> jax.Array:
    """Returns draft logits [R, size] in the target's vocabulary, -inf for ids that may not be drafted."""
    V = self.config.vocab_size
    if size == V:
      return logits_RV
    most = min(size, V, V if self.most_ids is None else self.most_ids)
    known_RV = logits_RV[:, :most]
    return jnp.pad(known_RV, ((0, 0), (0, size - most)), constant_values=-jnp.inf)

  def propose(
    self, params, draft_params, state: SpeculativeState, values: dict, rule: Rule, config: ModelConfig, idle_R=None
  ) -> tuple[Tree, FullCache]:
    model = Transformer(self.config)

    def step(tokens_RT, positions_RT, cache):
      # A padding id that only the target has is read as the last id of the draft model.
      tokens_RT = jnp.minimum(tokens_RT, self.config.vocab_size - 1)
      logits_RTV, cache = model.apply({'params': draft_params}, tokens_RT, positions_RT, cache, state.total)
      return self._for_the_target(logits_RTV[:, -1], config.vocab_size), cache

    position_R2 = jnp.minimum(state.position[:, None] + jnp.array([[-1, 0]]), state.total[:, None] - 1)
    before_R1 = jnp.take_along_axis(state.text, jnp.maximum(state.position - 1, 0)[:, None], axis=1)
    latest_R2 = jnp.concatenate([before_R1, state.last[:, None]], axis=1)
    first_logits_RV, cache = step(latest_R2, position_R2, state.memory)
    policy = DraftPolicy(self.max_draft, self.threshold)
    return draft(step, cache, state, values, rule, policy, config.vocab_size, idle=idle_R, first_logits=first_logits_RV)


def same_tokens(ours: Any, theirs: Any) -> bool:
  """Returns whether two tokenizers have the same tokens under the same ids."""
  prints = getattr(ours, 'fingerprint', None), getattr(theirs, 'fingerprint', '')
  if ours is theirs or prints[0] == prints[1]:
    return True
  if not all(prints):
    return _same_texts(ours, theirs)
  if prints not in _compared:  # Comparing all tokens takes longer than a short answer.
    _compared[prints] = _same_texts(ours, theirs)
  return _compared[prints]


def _same_texts(ours: Any, theirs: Any) -> bool:
  text = lambda tokenizer, id: tokenizer.decode([id], skip_special=False)
  return ours.vocab_size == theirs.vocab_size and all(
    text(ours, id) == text(theirs, id) for id in range(ours.vocab_size)
  )
