"""SWIFT's public functions: `generate` for one call, and `Stream` for many requests that share one search."""

from collections.abc import Sequence
import warnings

from decoders.fingerprint import fingerprint
from decoders.output import Output
from decoders.plain import generate as generate_plain
from decoders.speculative import trees
from decoders.speculative.guard import Account
from decoders.speculative.prompt_lookup import PromptLookup
from decoders.swift import sets as skip_sets
from decoders.swift.config import SwiftConfig
from decoders.swift.loop import Shared, SwiftLoop
from decoders.swift.measures import draft_bytes
from decoders.swift.search import Search
from jaxlm.errors import DataError
from jaxlm.language_model import LanguageModel


def generate(
  lm: LanguageModel,
  prompts: Sequence[str] | Sequence[Sequence[int]],
  *,
  max_new_tokens: int = 64,
  swift: SwiftConfig = SwiftConfig(),
  **options,
) -> Output:
  """Continues each prompt as `decoders.generate` does; for the arguments, and for several calls, see `Stream`."""
  return Stream(lm, swift).generate(prompts, max_new_tokens=max_new_tokens, **options)


class Stream:
  """A stream of requests to one model. The search for the set to skip continues from request to request.

  Attributes:
    search: the search and its results; see `decoders.swift.search_base.SearchBase`.
    account: the guard's measurements; see `decoders.speculative.guard.Account`.
    shared: the state that the loops of all requests share.

  Raises:
    ValueError: the model has fewer than 4 layers, the set cannot be skipped, or the file of sets is damaged or has a set of
      another model.
    OSError: the file of sets cannot be written.
  """

  def __init__(self, lm: LanguageModel, swift: SwiftConfig = SwiftConfig()):
    self.lm, self.swift = lm, swift
    costs, fixed = draft_bytes(lm)
    self.saved_as = None  # the key of the set in the file
    saved_set = saved_score = None
    if swift.sets is not None:
      self.saved_as = f'{fingerprint(lm)["checksum of weights"]:08x}/{swift.task}'
      if swift.skip is None and (saved := skip_sets.load(swift.sets, self.saved_as, lm.config.num_layers)) is not None:
        saved_set, saved_score = saved
    start = saved_set if swift.skip is None else swift.skip
    self.search = Search(swift, lm.config.num_layers, costs, start=start, fixed_cost=fixed)
    if saved_set is not None:
      self.search.stopped = 'loaded'
    if self.saved_as is not None and self.search.active:
      skip_sets.check_writable(swift.sets)
    self.account = Account(swift.guard)
    self.shared = Shared(swift, self.search, self.account, saved_score)

  def generate(
    self,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    *,
    max_new_tokens: int = 64,
    rule: trees.Rule = 'match',
    lookup: PromptLookup | None = None,
    **options,
  ) -> Output:
    """Continues each prompt.

    Args:
      prompts, max_new_tokens, options: as for `decoders.generate`.
      rule: as for `decoders.speculative.generate`.
      lookup: drafts before SWIFT; SWIFT drafts for rows in which it finds nothing (None: SWIFT drafts alone).

    Raises:
      ValueError: as `decoders.generate`.
    """
    loop = SwiftLoop(self, rule, 'sampling' in options and options['sampling'].temperature > 0, lookup)
    out = generate_plain(self.lm, prompts, max_new_tokens=max_new_tokens, loop=loop, **options)
    self.shared.generated += self.swift.context_window  # No window of the next request overlaps the last one's.
    return out

  @property
  def score(self) -> float | None:
    """Matchness of the set that drafts skip; None if it is not known."""
    return self.shared.score

  def ended(self) -> None:
    """Writes the set that a search has found to the file of sets, if there is one. A failure is only a warning."""
    if self.saved_as is not None:
      skip_set, score = self.search.best, self.search.best_score
      try:
        skip_sets.save(self.swift.sets, self.saved_as, skip_set, self.lm.config.num_layers, score=score)
      except (OSError, DataError) as e:
        warnings.warn(
          f'{skip_set}, which a search has found, could not be saved in {self.swift.sets}: {e}', stacklevel=2
        )
