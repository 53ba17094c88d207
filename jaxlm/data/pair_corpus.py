"""Tokenised sentence pairs: two token corpora of equally many documents, memory-mapped where the pairs come from files."""

from collections.abc import Iterable
import dataclasses
import functools
from pathlib import Path

import numpy as np

from jaxlm import errors
from jaxlm.data.corpus import TokenCorpus, tokenize
from jaxlm.data.pair_tokenizers import PairTokenizers


@dataclasses.dataclass(frozen=True)
class PairCorpus:
  """Pair i is document i of both corpora; each document ends in the EOS of its side."""

  source: TokenCorpus
  target: TokenCorpus
  tokenizers: PairTokenizers

  def __post_init__(self):
    if self.source.num_documents != self.target.num_documents:
      raise errors.DataError(
        f'The pairs have {self.source.num_documents} sources and {self.target.num_documents} targets: they changed while '
        'they were read. Read them again.'
      )
    if not self.source.num_documents:
      raise errors.DataError('There is no sentence pair left to tokenise.')

  def __len__(self) -> int:
    """Number of pairs."""
    return self.source.num_documents

  @functools.cached_property
  def lengths(self) -> np.ndarray:
    """Tokens of each source and target with its EOS, [pairs, 2] int32. A target with BOS for EOS is as long."""
    return np.stack([np.diff(side.offsets) for side in (self.source, self.target)], axis=1).astype(np.int32)


def tokenize_pairs(
  pairs: Iterable[tuple[str, str]],
  tokenizers: PairTokenizers,
  *,
  cache_dir: str | Path | None = None,
  progress: bool = True,
) -> PairCorpus:
  """Returns the tokens of sentence pairs: from the token cache where `pairs` is from `jaxlm.data.pairs`, else made in memory.

  Args:
    pairs: (source, target) texts, neither of them empty.
    cache_dir: default `corpus.cache_folder() / 'tokens'`.

  Raises:
    DataError: there are no pairs, or they cannot be read.
  """
  if hasattr(pairs, 'side'):
    sides = [
      tokenize(pairs.side(side), tokenizer, cache_dir, progress=progress)
      for side, tokenizer in enumerate((tokenizers.source, tokenizers.target))
    ]
    return PairCorpus(*sides, tokenizers)
  texts = list(pairs)
  sides = [
    TokenCorpus.from_documents(tokenizer.encode(pair[side], eos=True) for pair in texts)
    for side, tokenizer in enumerate((tokenizers.source, tokenizers.target))
  ]
  return PairCorpus(*sides, tokenizers)
