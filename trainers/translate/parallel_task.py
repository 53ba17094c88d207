"""The task of a model that predicts all target tokens at once (kinds nat and cmlm); see `trainers.translate.parallel_loss`."""

from collections.abc import Iterable
from typing import Any

import jax

from jaxlm.data import grammar, grammar_scores
from jaxlm.models import nat
from trainers.step import Context, Term
from trainers.translate.parallel_loss import parallel_terms
from trainers.translate.task import Translation


class ParallelTranslation(Translation):
  """Translation of sentence pairs, all tokens at once. `config` has the model's vocabulary, whose last id is the mask."""

  higher_is_better = (
    *Translation.higher_is_better, 'lcs_accuracy', 'phrase_integrity', 'max_probability', 'length_accuracy',
  )  # fmt: skip

  def __init__(self, config: Any, *args: Any):
    super().__init__(config, *args)
    self._knows_phrases = isinstance(self._language, grammar.Phrases)
    if self.sentences:
      phrases = ('lcs_accuracy', 'phrase_integrity') if self._knows_phrases else ()
      self.host_metrics = (*self.host_metrics, 'repetition_ratio', *phrases)

  def describe(self) -> str:
    return (
      f'{super().describe()}; of the held-out target tokens {self._repetition_of_targets():.1%} repeat the one before'
    )

  def _repetition_of_targets(self) -> float:
    """Returns the repetition ratio of the held-out targets, without their EOS, beside which that of translations is to be read."""
    corpus = self.held_out.corpus.target
    rows = [corpus.document(int(i))[:-1] for members in self.held_out.members for i in members]
    return sum(int((row[1:] == row[:-1]).sum()) for row in rows) / max(sum(map(len, rows)), 1)

  def init_params(self, key: jax.Array) -> Any:
    return nat.init_params(self.config.model, key)

  def loss(self, params: Any, batch: Any, context: Context) -> dict[str, Term]:
    return parallel_terms(params, batch, self.config, context)

  def decoding(self) -> dict[str, Any]:
    e = self.config.eval
    return {} if self.config.model.nat.upsampling else {'length_beam': e.length_beam, 'iterations': e.iterations}

  def decoding_metrics(self, outputs: list[Any]) -> dict[str, float]:
    total = lambda name: sum(out.stats[name] for out in outputs)
    return {'repetition_ratio': total('repeated_tokens') / max(total('tokens_before_dedup'), 1)}

  def scores(self, sources: Iterable[str], references: Iterable[str], found: list[str]) -> dict[str, float]:
    scores = super().scores(sources, references, found)
    if self._knows_phrases:
      pairs = list(zip(sources, found))
      scores['lcs_accuracy'] = sum(grammar_scores.lcs_accuracy(self._language, *pair) for pair in pairs) / len(pairs)
      intact, phrases = map(sum, zip(*(grammar_scores.intact_phrases(self._language, *pair) for pair in pairs)))
      scores['phrase_integrity'] = intact / max(phrases, 1)
    return scores
