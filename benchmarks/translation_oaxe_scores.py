"""What translations by models with several losses say: valid ones, repetitions, intact phrases and BLEU, with error bars.

A measure is a ratio of sums over test sentences, or BLEU of sums of counts, and its value is the mean over seeds. Differences to another
model have a 95 % interval of the paired bootstrap over sentences, which does not cover the choice of seeds; so a model counts as better
only if the interval is on one side of 0 and each of its seeds is better than each seed of the other one.
"""

from collections.abc import Callable, Sequence
import random
from typing import Any, NamedTuple

import numpy as np

from benchmarks.translation_mat_scores import verdict
from jaxlm.data import grammar_scores
from jaxlm.data.grammar import Phrases
from jaxlm.evaluation.bleu import bleu, counts
from jaxlm.evaluation.bootstrap import Difference, paired_statistic

Pairs = Sequence[tuple[str, str]]
Found = dict[str, list[dict[str, Any]]]
"""Model -> what `translation_oaxe_models.measured` returned for each seed."""
TERMS = {
  'confidence': 'max_probability', 'NCM, in place': 'ce', 'NCM, best order': 'oaxe', 'displacement': 'displacement',
  'right length': 'length_accuracy',
}  # fmt: skip
"""Column of the table -> term of the loss on test pairs."""
POINTS, LESS_REPEATED, PAR = 10, 0.5, 1
"""Points of validity by which OaXE should beat cross-entropy, the share of repetitions that should at most be left, and the points
by which both may differ where a language has one order."""
FASTER = 5
"""One pass should be this many times as fast as the teacher with a batch of 1."""


class Measure(NamedTuple):
  """Sums over sentences that make a number."""

  columns: Callable[[Pairs, dict[str, Any]], np.ndarray]
  """(pairs, translations of one seed) -> [n, c]."""
  of_sums: Callable[[np.ndarray], np.ndarray]
  """Sums [..., c] -> values [...]."""


def percentage(sums: np.ndarray) -> np.ndarray:
  return 100 * sums[..., 0] / np.maximum(sums[..., 1], 1)


def measures(language: Phrases | None) -> dict[str, Measure]:
  """Returns the measures by name; those of validity and phrases need a language that knows its translations."""
  repeated = Measure(lambda pairs, found: np.stack([found['repeated'], found['tokens']], axis=1), percentage)
  by_name = {
    'repeated': repeated,
    'BLEU': Measure(lambda pairs, found: counts(found['texts'], [t for _, t in pairs]), bleu),
  }
  if language is None:
    return by_name

  def valid(pairs, found):
    return np.array([[language.is_valid(s, text), 1] for (s, _), text in zip(pairs, found['texts'])])

  def intact(pairs, found):
    return np.array([grammar_scores.intact_phrases(language, s, text) for (s, _), text in zip(pairs, found['texts'])])

  return {'valid': Measure(valid, percentage), **by_name, 'intact phrases': Measure(intact, percentage)}


class Scores:
  """The measures of some models on the same sentences."""

  def __init__(self, pairs: Pairs, found: Found, language: Phrases | None):
    self.measures = measures(language)
    # [n, seeds, c]
    self._columns = {
      name: {model: np.stack([m.columns(pairs, one) for one in seeds], axis=1) for model, seeds in found.items()}
      for name, m in self.measures.items()
    }

  def seeds(self, measure: str, model: str) -> list[float]:
    return self.measures[measure].of_sums(self._columns[measure][model].sum(axis=0)).tolist()

  def difference(self, measure: str, ours: str, theirs: str) -> Difference:
    """Returns the first model less the second, means over seeds."""
    a, b = (self._columns[measure][model] for model in (ours, theirs))
    one = self.measures[measure].of_sums
    mean = lambda sums: one(sums.reshape(*sums.shape[:-1], a.shape[1], -1)).mean(axis=-1)
    return paired_statistic(a.reshape(len(a), -1), b.reshape(len(b), -1), mean)

  def apart(self, measure: str, ours: str, theirs: str, sign: int) -> bool:
    """Returns whether our model has the larger (sign 1) or smaller (-1) value, with intervals and seeds apart."""
    d = self.difference(measure, ours, theirs)
    low = min(sign * d.low, sign * d.high)
    a, b = ([sign * value for value in self.seeds(measure, model)] for model in (ours, theirs))
    return low > 0 and min(a) > max(b)


def rows(corpus: str, scores: Scores, found: Found, reference: str = 'CE') -> list[dict[str, Any]]:
  """Returns a row for each model: means over seeds, the seeds, and the difference to `reference`."""
  table = []
  for model, seeds in found.items():
    row: dict[str, Any] = {'corpus': corpus, 'model': model}
    for measure in scores.measures:
      values = scores.seeds(measure, model)
      row |= {measure: float(np.mean(values)), f'{measure}, seeds': [round(value, 2) for value in values]}
      if model != reference and reference in found:
        d = scores.difference(measure, model, reference)
        row[f'{measure}, less {reference}'] = [round(x, 2) for x in (d.value, d.low, d.high)]
    for column, term in TERMS.items():
      if all(term in one['terms'] for one in seeds):
        row[column] = float(np.mean([one['terms'][term] for one in seeds]))
    table.append(row)
  return table


def perfect_row(corpus: str, pairs: Pairs, language: Phrases) -> dict[str, Any]:
  """Returns what a model reaches whose cross-entropy is the least possible: it knows the length, and the probability of each word at each
  position.

  Of words that are equally likely, as with two orders of the same probability, each position says a random one.
  """
  texts, nll, words, draw = [], 0.0, 0, random.Random(0)
  for source, target in pairs:
    of_target = target.split()
    marginals = language.marginals(source, len(of_target))
    texts.append(' '.join(_likeliest(choices, draw) for choices in marginals))
    nll -= sum(np.log(choices[word]) for choices, word in zip(marginals, of_target))
    words += len(of_target) + 1  # The end of the sentence is certain.
  found = _as_decoded([text.split() for text in texts])
  scores = Scores(pairs, {'perfect': [found]}, language)
  return {
    'corpus': corpus, 'model': 'perfect CE', **{m: scores.seeds(m, 'perfect')[0] for m in scores.measures}, 'NCM, in place': float(nll / words),
  }  # fmt: skip


def _likeliest(choices: dict[str, float], draw: random.Random) -> str:
  return max(choices, key=lambda word: (round(choices[word], 9), draw.random()))


def reference_row(
  corpus: str, pairs: Pairs, tokens: Sequence[Sequence[int]], language: Phrases | None
) -> dict[str, Any]:
  """Returns the measures of the references themselves, of which `tokens` are those of the tokenizer.

  Those of a generated language lose equal neighbours, as translations do: what the row lacks of 100 is what de-duplication costs.
  """
  found = {
    'texts': [target for _, target in pairs],
    'tokens': list(map(len, tokens)),
    'repeated': list(map(_repeated, tokens)),
  }
  if language is not None:
    found = _as_decoded([target.split() for _, target in pairs])
  scores = Scores(pairs, {'references': [found]}, language)
  return {'corpus': corpus, 'model': 'references', **{m: scores.seeds(m, 'references')[0] for m in scores.measures}}


def _as_decoded(rows: Sequence[Sequence[str]]) -> dict[str, Any]:
  """Returns what `translation_oaxe_models.translated` returns for these words: equal neighbours are counted, then they become one."""
  without = lambda row: [word for i, word in enumerate(row) if i == 0 or word != row[i - 1]]
  return {
    'texts': [' '.join(without(row)) for row in rows], 'tokens': list(map(len, rows)), 'repeated': list(map(_repeated, rows)),
  }  # fmt: skip


def _repeated(row: Sequence[Any]) -> int:
  return sum(a == b for a, b in zip(row, row[1:]))


def grammar_checks(scores: Scores) -> list[dict[str, Any]]:
  """Returns which of the aims hold on the generated grammar."""
  found = []

  def better(statement: str, measure: str, ours: str, theirs: str, sign: int) -> None:
    d = scores.difference(measure, ours, theirs)
    said = f'{d.value:+.1f} points ({d.low:+.1f} to {d.high:+.1f}); seeds {_seeds(scores, measure, ours, theirs)}'
    found.append(verdict(statement, scores.apart(measure, ours, theirs, sign), said))

  better('OaXE has more valid translations than cross-entropy, error bars apart', 'valid', 'OaXE', 'CE', 1)
  better('OaXE repeats fewer tokens than cross-entropy, error bars apart', 'repeated', 'OaXE', 'CE', -1)
  more = scores.difference('valid', 'OaXE', 'CE').value
  found.append(
    verdict(f'OaXE has at least {POINTS} points more valid translations', more >= POINTS, f'{more:+.1f} points')
  )
  left = np.mean(scores.seeds('repeated', 'OaXE')) / max(np.mean(scores.seeds('repeated', 'CE')), 1e-9)
  found.append(
    verdict('OaXE has at most half of the repetitions', bool(left <= LESS_REPEATED), f'{100 * left:.0f} % are left')
  )
  for name in ('OaXE, 2-grams', 'OaXE, 3-grams', 'OaXE, blocks of 2'):
    better(f'{name}: more intact phrases than OaXE, error bars apart', 'intact phrases', name, 'OaXE', 1)
  return found


def one_order_checks(scores: Scores) -> list[dict[str, Any]]:
  """Returns whether OaXE is as good as cross-entropy on a language of one order."""
  more = scores.difference('valid', 'OaXE', 'CE').value
  statement = f'one order: OaXE is within {PAR} point of valid translations of cross-entropy, or better'
  return [verdict(statement, more >= -PAR, f'{more:+.1f} points')]


def real_text_checks(scores: Scores) -> list[dict[str, Any]]:
  """Returns whether OaXE has a higher BLEU and fewer repetitions than cross-entropy on real text, with one seed of each."""
  found = []
  for kind in ('raw', 'distilled'):
    for measure, sign, words in (('BLEU', 1, 'a higher BLEU'), ('repeated', -1, 'fewer repeated tokens')):
      d = scores.difference(measure, f'OaXE, {kind}', f'CE, {kind}')
      holds = scores.apart(measure, f'OaXE, {kind}', f'CE, {kind}', sign)
      measured = f'{d.value:+.2f} ({d.low:+.2f} to {d.high:+.2f})'
      found.append(verdict(f'LibreOffice, {kind}: OaXE has {words} than cross-entropy', holds, measured))
  return found


def _seeds(scores: Scores, measure: str, *models: str) -> str:
  return ' against '.join(', '.join(f'{value:.1f}' for value in scores.seeds(measure, model)) for model in models)


def said(verdicts: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Prints the verdicts and returns them."""
  for one in verdicts:
    print('PASS' if one['pass'] else 'MISS', one['statement'], '--', one['measured'])
  return verdicts
