"""A language model's losses on held-out documents.

  loss = sum of -log p / targets,   perplexity = e^loss,   bits per byte = sum of -log_2 p / bytes of the text

Targets are a document's content and its EOS; each document, or each chunk of one that is longer than the model's context,
begins with BOS, as in jaxlm.analysis.direction.rows. Documents share rows and do not see each other. Bits per byte compare
models with different tokenizers.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import math
from typing import Any, Literal

import jax
import numpy as np

from jaxlm import errors
from jaxlm.analysis.direction import model as direction_model
from jaxlm.analysis.direction import scores as direction_scores
from jaxlm.evaluation.bootstrap import Difference, paired_difference
from jaxlm.language_model import LanguageModel

Way = Literal['forward', 'reverse']


@dataclasses.dataclass(frozen=True)
class Losses:
  """A model's losses on D documents.

  Attributes:
    tokens: [D] number of targets of each document.
    bytes: [D] size of each text in UTF-8.
    nll: direction -> [D] sum of -log p of each document, in nats.
  """

  tokens: np.ndarray
  bytes: np.ndarray
  nll: dict[Way, np.ndarray]

  def __repr__(self) -> str:
    losses = ', '.join(f'{way} {self.loss(way):.4f} nats a token' for way in self.nll)
    return f'Losses({losses}; {len(self.tokens)} documents, {self.tokens.sum()} tokens)'

  def loss(self, way: Way = 'forward') -> float:
    return float(self.nll[way].sum() / self.tokens.sum())

  def perplexity(self, way: Way = 'forward') -> float:
    return math.exp(min(self.loss(way), 700.0))

  def bits_per_byte(self, way: Way = 'forward') -> float:
    return float(self.nll[way].sum() / math.log(2) / self.bytes.sum())

  def difference(self, other: 'Losses', way: Way = 'forward', *, per: str = 'byte', **options: Any) -> Difference:
    """Returns the paired difference to another model's losses on the same documents.

    Args:
      per: 'byte' (in bits), or 'token' (in nats; only for models with the same tokenizer).
      options: keyword arguments of `paired_difference`.
    """
    if len(self.bytes) != len(other.bytes) or (self.bytes != other.bytes).any():
      raise ValueError('The two losses are not of the same documents.')
    if per == 'token':
      return paired_difference(self.nll[way], other.nll[way], self.tokens, other.tokens, **options)
    return paired_difference(self.nll[way] / math.log(2), other.nll[way] / math.log(2), self.bytes, **options)


def document_losses(
  lm: LanguageModel,
  documents: Iterable[str],
  *,
  direction: Literal['forward', 'reverse', 'both'] | None = None,
  batch_size: int = 16,
  max_length: int | None = None,
  devices: Sequence[jax.Device] | None = None,
  progress: Callable[[int], None] = lambda targets: None,
) -> Losses:
  """Returns a model's losses on texts. The texts are streamed.

  Args:
    direction: direction in which texts are read; it may differ from the one that the model was trained on. None: the model's
      direction, or forward for a model of both.
    batch_size: rows computed at the same time, rounded up to a multiple of the number of devices.
    max_length: tokens of a row; longer documents are split into chunks (None: the model's context).
    devices: devices that share the rows (None: all local ones).
    progress: called after each batch with its number of targets.

  Raises:
    ValueError: no documents, a model without a tokenizer or with neither BOS nor EOS, a prefix LM, a `max_length` beyond the
      model's context, or losses that are not finite.
  """
  if direction not in (None, 'forward', 'reverse', 'both'):
    raise errors.unknown('direction', direction, ('forward', 'reverse', 'both'))
  own = 'reverse' if lm.config.direction == 'reverse' else 'forward'
  ways = ('forward', 'reverse') if direction == 'both' else (direction or own,)
  devices = jax.local_devices() if devices is None else devices
  nll = direction_model.token_losses(lm, None, devices, only=None if len(ways) == 2 else ways[0])
  sizes: list[int] = []

  def counted() -> Iterator[str]:
    for text in documents:
      sizes.append(len(text.encode()))
      yield text

  windows = direction_scores.scored_windows(
    counted(), lm.tokenizer, nll, direction_model.ends(lm), lm.config.vocab_size,
    batch_size=direction_scores.rounded(batch_size, len(devices)),
    length=direction_scores.row_length(lm, None, max_length), progress=progress,
  )  # fmt: skip
  found = [(s.tokens, s.nll_forward, s.nll_reverse) for window in windows for s in window]
  if not found:
    raise ValueError('There are no documents to evaluate on.')
  tokens, forward, reverse = map(np.array, zip(*found))
  by_way = {'forward': forward, 'reverse': reverse}
  return Losses(tokens, np.array(sizes), {way: by_way[way] for way in ways})
