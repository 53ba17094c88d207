"""The losses of one document, and the columns that store them."""

import dataclasses
import hashlib
import math

from jaxlm.analysis.direction.rows import Sums

COLUMNS = {
  'id': 'int64',
  'digest': 'string',
  'domain': 'string',
  'characters': 'int64',
  'tokens': 'int64',
  'nll_forward': 'float64',
  'nll_reverse': 'float64',
  'loss_forward': 'float64',
  'loss_reverse': 'float64',
  'S': 'float64',
  'se': 'float64',
}


@dataclasses.dataclass(frozen=True)
class Score:
  """One document's losses.

  Attributes:
    id: number of the document in the corpus, from 0.
    digest: hash of its text.
    domain: the file that it comes from, '' if unknown.
    characters: length of its text; 0 if it was given as ids.
    tokens: number of targets: content and EOS.
    sums: sums of its losses; None if it was too short to be scored.
  """

  id: int
  digest: str
  domain: str
  characters: int
  tokens: int
  sums: Sums | None

  @property
  def nll_forward(self) -> float:
    """Sum of -log p, in nats; this and all other losses are NaN if the document was not scored."""
    return self.sums.forward if self.sums else math.nan

  @property
  def nll_reverse(self) -> float:
    return self.sums.reverse if self.sums else math.nan

  @property
  def loss_forward(self) -> float:
    """Mean over the targets."""
    return self.nll_forward / self.tokens

  @property
  def loss_reverse(self) -> float:
    return self.nll_reverse / self.tokens

  @property
  def S(self) -> float:
    return self.loss_forward - self.loss_reverse

  @property
  def se(self) -> float:
    """Standard error of S under the assumption that the targets' differences are independent; NaN for a single target."""
    if not self.sums or self.tokens < 2:
      return math.nan
    variance = max(self.sums.square - self.tokens * self.S**2, 0.0) / (self.tokens - 1)
    return math.sqrt(variance / self.tokens)


def text_digest(text: str) -> str:
  return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
