"""GliDe's loop strategy and public functions: `generate` for one call, and `Stream` for many requests that share the guard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from decoders.glide import cape
from decoders.glide.config import GlideDecoding
from decoders.glide.drafter import GlideDrafter
from decoders.output import Output
from decoders.plain import generate as generate_plain
from decoders.speculative import trees
from decoders.speculative.guard import Account
from decoders.speculative.guarded import GuardedLoop
from decoders.speculative.prompt_lookup import PromptLookup
from jaxlm.glide_model import GlideDraft
from jaxlm.language_model import LanguageModel


class GlideLoop(GuardedLoop):
  """The loop of one request; see `decoders.speculative.guarded.GuardedLoop`."""

  def __init__(
    self, drafter: GlideDrafter, account: Account, rule: trees.Rule, sampling: bool, lookup: PromptLookup | None
  ):
    self.glide = drafter
    super().__init__(drafter, account, rule, sampling, lookup)

  def clear(self) -> None:
    super().clear()
    self.drafted_at, self.accepted_at = np.zeros((2, self.glide.policy.max_draft), int)

  def begin(self, clock, lm, prompts, state, plan):
    self.glide.check_cache(state.cache)
    return super().begin(clock, lm, prompts, state, plan)

  def finished(self, rows_R: np.ndarray, state: Any) -> None:
    super().finished(rows_R, state)
    memory = state.memory if self.lookup is None else state.memory[1]
    self.drafted_at += np.asarray(memory.drafted_at).sum(axis=0)
    self.accepted_at += np.asarray(memory.accepted_at).sum(axis=0)

  def stats(self) -> dict[str, Any]:
    share = (self.accepted_at / np.maximum(self.drafted_at, 1)).tolist()
    counts = {'drafted_at': self.drafted_at.tolist(), 'accepted_at': self.accepted_at.tolist()}
    return super().stats() | counts | {'acceptance_by_position': share}


class Stream:
  """A stream of requests to one model, which share one draft and the measurements of the guard.

  Attributes:
    account: the guard's measurements; see `decoders.speculative.guard.Account`.

  Raises:
    ValueError: more tokens are drafted than a draft of the kind parallel was trained for.
  """

  def __init__(self, lm: LanguageModel, draft: GlideDraft, glide: GlideDecoding = GlideDecoding()):
    self.lm, self.glide = lm, glide
    self.drafter = GlideDrafter.of(draft, cape.policy(glide))
    self.account = Account(glide.guard)

  def generate(
    self,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 64,
    rule: trees.Rule = 'match',
    lookup: PromptLookup | None = None,
    **options,
  ) -> Output:
    """Continues each prompt. In addition to the statistics of speculative decoding, `stats` has lists with a number for each position of
    a chain: `drafted_at`, the rounds that drafted a token there, `accepted_at`, those in which a token was accepted there, and
    `acceptance_by_position`, their ratio.

    Args:
      prompts, max_new_tokens, options: as for `decoders.generate`.
      rule: as for `decoders.speculative.generate`.
      lookup: drafts before the draft model, which drafts for rows in which it finds nothing (None: the draft model drafts alone).

    Raises:
      ValueError: as `decoders.generate`; the draft was trained for another target, a tree is larger than the context or the cache, or
        the cache lacks tokens of a layer that the draft reads.
    """
    sampling = 'sampling' in options and options['sampling'].temperature > 0
    loop = GlideLoop(self.drafter, self.account, rule, sampling, lookup)
    return generate_plain(self.lm, prompts, max_new_tokens=max_new_tokens, loop=loop, **options)


def generate(
  lm: LanguageModel,
  draft: GlideDraft,
  prompts: Sequence[str] | Sequence[Sequence[int]],
  *,
  max_new_tokens: int = 64,
  glide: GlideDecoding = GlideDecoding(),
  **options,
) -> Output:
  """Continues each prompt as `decoders.generate` does, in fewer calls of the model.

  Args:
    draft: what `jaxlm.load` returns for a run of trainers.glide.
    others: see `Stream`, which serves several calls better: the guard keeps its measurements.
  """
  return Stream(lm, draft, glide).generate(prompts, max_new_tokens=max_new_tokens, **options)
