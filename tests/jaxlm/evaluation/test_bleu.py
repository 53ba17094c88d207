"""BLEU of summed counts is sacreBLEU's BLEU of the corpus, and its bootstrap sees a real difference."""

import numpy as np
import pytest
import sacrebleu

from jaxlm.evaluation import bleu, bootstrap

WORDS = 'the cat , a dog sat on my mat . and ran'.split()


def corpus(n, change, seed=0):
  """Returns (translations, references): each word of a reference is another one with probability `change`."""
  rng = np.random.default_rng(seed)
  references = [list(rng.choice(WORDS, rng.integers(1, 14))) for _ in range(n)]
  translations = [[str(rng.choice(WORDS)) if rng.random() < change else w for w in r] for r in references]
  shorter = [t[: rng.integers(1, len(t) + 1)] if rng.random() < 0.2 else t for t in translations]
  return [' '.join(t) for t in shorter], [' '.join(r) for r in references]


@pytest.mark.parametrize('n, change', [(40, 0.0), (40, 0.3), (3, 0.9), (2, 1.0), (1, 0.8)])
def test_bleu_of_the_sums_is_that_of_sacrebleu(n, change):
  for seed in range(12):
    translations, references = corpus(n, change, seed)
    expected = sacrebleu.corpus_bleu(translations, [references]).score
    found = bleu.bleu(bleu.counts(translations, references).sum(axis=0))
    assert found == pytest.approx(expected, abs=1e-9)


def test_a_paired_bootstrap_of_bleu_holds_the_difference():
  good, references = corpus(200, 0.1)
  worse, _ = corpus(200, 0.2)
  ours, theirs = bleu.counts(good, references), bleu.counts(worse, references)
  found = bootstrap.paired_statistic(ours, theirs, bleu.bleu, resamples=300)
  expected = sacrebleu.corpus_bleu(good, [references]).score - sacrebleu.corpus_bleu(worse, [references]).score
  assert found.value == pytest.approx(expected) and 0 < found.low < found.value < found.high and found.items == 200
  same = bootstrap.paired_statistic(ours, ours, bleu.bleu, resamples=20)
  assert (same.value, same.low, same.high) == (0, 0, 0)


def test_lists_of_different_lengths_are_refused():
  with pytest.raises(ValueError, match='one for each'):
    bleu.counts(['a'], ['a', 'b'])
  with pytest.raises(ValueError, match='same items'):
    bootstrap.paired_statistic(np.ones((2, 3)), np.ones((3, 3)), bleu.bleu)
