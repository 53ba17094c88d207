"""Writes selected documents as training data: JSONL that jaxlm.data.sources reads, and a manifest of the selection.

Texts are read again from the corpus, never all at once. They are written in random order or in the order of the corpus. They
are not sorted by score: training would then begin with the most extreme texts, an unintended curriculum.
"""

from collections.abc import Iterable, Iterator
import json
from pathlib import Path
from typing import Any

import numpy as np

from jaxlm import errors
from jaxlm.analysis.direction import files as direction_files
from jaxlm.analysis.direction.files import Scores
from jaxlm.data import dsir, selection, sources


def corpus_of(scores: Scores, corpus: str | None = None) -> sources.Source:
  """Returns the source that was scored, or the source `corpus` if it is given."""
  spec = scores.facts['corpus'] if corpus is None else corpus
  try:
    return sources.documents(spec, field=scores.facts['field'], document=scores.facts['document'])
  except errors.DataError as e:
    if corpus is not None:
      raise
    raise errors.DataError(f'{e} {scores.path} was made from it; name where it is now with --corpus.') from e


def pool(scores: Scores, weight: np.ndarray | None = None) -> selection.Pool:
  """Returns the scored documents to select from."""
  names = ('id', 'tokens', 'S', 'loss_forward', 'se', 'domain')
  return selection.Pool(**{name: scores.columns[name] for name in names}, weight=weight)


def dsir_weights(scores: Scores, source: sources.Source, target: Iterable[str], wanted: np.ndarray) -> np.ndarray:
  """Returns log importance weights [D], 0 where `wanted` [D] is false. The wanted documents are read twice."""
  weights = np.zeros(len(scores))
  if not wanted.any():
    return weights
  again = lambda: direction_files.texts(scores, sources.labelled(source), wanted)
  target_log_p, pool_log_p = dsir.log_probabilities(target), dsir.log_probabilities(text for _, text in again())
  weights[wanted] = list(dsir.log_weights((text for _, text in again()), target_log_p, pool_log_p))
  return weights


def write(
  path: str | Path, scores: Scores, texts: Iterable[tuple[int, str]], *, shuffle: bool = True, seed: int = 0
) -> None:
  """Writes one line {text, id, domain, S, loss_forward, loss_reverse, tokens} per text; the file appears when it is complete.

  Args:
    texts: pairs (row of `scores`, text), as `direction_files.texts` yields them.
  """
  path = Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  scratch, unshuffled = path.with_name(f'.{path.name}.part'), path.with_name(f'.{path.name}.unshuffled')
  try:
    with open(unshuffled if shuffle else scratch, 'wb') as file:
      ends = [0]
      for line in _lines(scores, texts):
        ends.append(ends[-1] + file.write(line))
    if shuffle:
      with open(unshuffled, 'rb') as file, open(scratch, 'wb') as out:
        for i in np.random.default_rng(seed).permutation(len(ends) - 1):
          file.seek(ends[i])
          out.write(file.read(ends[i + 1] - ends[i]))
    scratch.replace(path)
  finally:
    for left in (scratch, unshuffled):
      left.unlink(missing_ok=True)


def _lines(scores: Scores, texts: Iterable[tuple[int, str]]) -> Iterator[bytes]:
  for row, text in texts:
    line = {'text': text, 'id': int(scores.id[row]), 'domain': scores.domains[scores.domain[row]]}
    line |= {name: float(scores.columns[name][row]) for name in ('S', 'loss_forward', 'loss_reverse')}
    yield json.dumps({**line, 'tokens': int(scores.tokens[row])}, ensure_ascii=False).encode() + b'\n'


def manifest(scores: Scores, found: selection.Selection, options: dict[str, Any]) -> dict[str, Any]:
  """Returns the options and statistics of a selection, as plain data."""
  domains = {}
  for index, name in enumerate(scores.domains):
    here = scores.domain == index
    if (here & found.eligible).any():
      domains[name] = {'pool': _moments(scores, here & found.eligible), 'kept': _moments(scores, here & found.kept)}
  return {
    'scores': str(scores.path.resolve()),
    'scored': scores.facts,
    'options': options,
    'budget_tokens': found.budget,
    'pool': _moments(scores, found.eligible),
    'kept': _moments(scores, found.kept),
    'quantiles': found.quantiles,
    'domains': domains,
  }


def _moments(scores: Scores, rows: np.ndarray) -> dict[str, Any]:
  S, number = scores.S[rows], int(rows.sum())
  facts = {'documents': number, 'tokens': int(scores.tokens[rows].sum())}
  if number:
    facts |= {'S_mean': float(S.mean()), 'S_std': float(S.std()), 'S_min': float(S.min()), 'S_max': float(S.max())}
    facts['loss_forward_mean'] = float(scores.loss_forward[rows].mean())
  return facts
