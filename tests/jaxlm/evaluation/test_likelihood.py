"""Likelihoods of continuations are those of whole forward passes, whatever they are batched with."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxlm import analysis
from jaxlm.config import RopeConfig
from jaxlm.data import tokenizers
from jaxlm.evaluation import likelihood
from jaxlm.language_model import LanguageModel, forward
from jaxlm.lengths import bucket
from tests.models import TINY, tiny_model

SHAPES = ((1, 1), (5, 2), (30, 9), (3, 20), (12, 1), (60, 4), (2, 40))  # tokens of context and continuation


def pairs(shapes=SHAPES, seed=0):
  random = np.random.default_rng(seed)
  return [tuple(random.integers(0, TINY.vocab_size, n).tolist() for n in shape) for shape in shapes]


def by_hand(lm, context, continuation):
  """Each pair alone, all logits at once."""
  ids = jnp.asarray([context + continuation])
  logits = np.asarray(forward(lm, ids[:, :-1])[0], np.float64)[len(context) - 1 :]
  log_p = logits[np.arange(len(continuation)), continuation] - np.logaddexp.reduce(logits, axis=-1)
  return float(log_p.sum()), bool((logits.argmax(-1) == continuation).all())


@pytest.mark.parametrize(
  'config',
  [
    TINY,
    *(
      pytest.param(config, marks=pytest.mark.slow)
      for config in (
        TINY.replace(tied_embeddings=True, logit_softcap=2.0, attention='sigmoid'),
        TINY.replace(rope=RopeConfig(scaling='dynamic', factor=2.0, original_length=8)),
      )
    ),
  ],
  ids=['softmax', 'sigmoid, softcap', 'dynamic rope'],
)
def test_they_are_those_of_each_pair_alone(config, monkeypatch):
  lm = tiny_model(config)
  found = {}
  for batch_size in (3, 16):
    found[batch_size] = likelihood.likelihoods(lm, pairs(), batch_size=batch_size, devices=jax.local_devices()[:1])
  monkeypatch.setattr(likelihood, 'slice_logits', lambda: 200)
  jax.clear_caches()
  found['sliced, four devices'] = likelihood.likelihoods(lm, pairs(), batch_size=3)
  for one in found.values():
    for (log_p, greedy), pair in zip(one, pairs(), strict=True):
      assert log_p == pytest.approx(by_hand(lm, *pair)[0], rel=1e-4) and greedy == by_hand(lm, *pair)[1]


def test_pairs_that_differ_in_their_last_token_only_are_read_once(monkeypatch):
  lm, (context, after), read = tiny_model(), pairs()[2], []
  alike = [(context, [*after, last]) for last in (3, 4, 5)]
  alike += [([*context, after[0]], [*after[1:], 6]), (context, [7]), (context, [8]), (context, [7])]
  padded = likelihood._padded
  monkeypatch.setattr(likelihood, '_padded', lambda rows, *args: read.extend(rows) or padded(rows, *args))
  done = []
  found = likelihood.likelihoods(lm, alike, progress=done.append)
  assert len(read) == 3 and sum(done) == 7  # The fourth reads the same and scores less of it.
  for (log_p, greedy), pair in zip(found, alike, strict=True):
    assert (log_p, greedy) == (pytest.approx(by_hand(lm, *pair)[0], rel=1e-4), by_hand(lm, *pair)[1])


def test_greedy_continuations_are_known():
  lm, (context, _) = tiny_model(), pairs()[1]
  ids = list(context)
  for _ in range(4):
    ids.append(int(forward(lm, [ids])[0, -1].argmax()))
  after = ids[len(context) :]
  wrong = [*after[:-1], (after[-1] + 1) % TINY.vocab_size]
  early = [(after[0] + 1) % TINY.vocab_size, *after[1:]]
  found = likelihood.likelihoods(lm, [(context, x) for x in (after, wrong, early)])
  assert [x.greedy for x in found] == [True, False, False]


def test_a_long_context_loses_its_beginning_and_few_shapes_are_compiled():
  lm = tiny_model()
  context, continuation = pairs([(100, 5)])[0]
  (found,) = likelihood.likelihoods(lm, [(context, continuation)], max_length=32)
  assert found.log_p == pytest.approx(by_hand(lm, context[-28:], continuation)[0], rel=1e-4)
  likelihood._batch.clear_cache()
  likelihood.likelihoods(lm, pairs([(n, 1 + n % 3) for n in range(1, 60)]), batch_size=4)
  assert likelihood._batch._cache_size() <= 2 * len({bucket(n) for n in range(1, 64)})


def test_what_cannot_be_scored_is_refused():
  lm = tiny_model()
  for given, message in (
    (([], [1]), 'Pair 0 has an empty context'),
    (([1], []), 'Pair 0 has an empty continuation'),
    (([1], [2] * 65), 'continuation of pair 0 has 65 tokens; a row has 64'),
    (([1], [50]), 'token id 50; the vocabulary has ids 0 to 49'),
  ):
    with pytest.raises(ValueError, match=message):
      likelihood.likelihoods(lm, [given])
  with pytest.raises(ValueError, match='A prefix LM .prefix=3. sees what pair 0, with 2 ids before'):
    likelihood.likelihoods(tiny_model(TINY.replace(prefix=3)), [([1, 2], [3])])
  with pytest.raises(ValueError, match='max_length=65'):
    likelihood.likelihoods(lm, [([1], [2])], max_length=65)


def test_texts_are_split_as_lm_evaluation_harness_splits_them():
  tokenizer = tokenizers.ByteTokenizer()
  make = lambda **c: LanguageModel(TINY.replace(vocab_size=261, **c), None, tokenizer)
  lm = make()
  assert likelihood.encode_pair(lm, 'ab ', 'c') == ([97, 98], [32, 99])
  assert likelihood.encode_pair(lm, '', 'c') == likelihood.encode_pair(lm, '', '<bos>c', special=True) == ([256], [99])
  assert likelihood.encode_pair(lm, ' ', 'c') == ([256], [32, 99])
  both = make(direction='both', direction_signal='token')
  assert likelihood.encode_pair(both, 'a', 'c') == ([256, 259, 97], [99])
  assert likelihood.encode_pair(both, '', 'c') == ([256, 259], [99])
  tokenizer.adds_bos = True
  assert likelihood.encode(lm, 'ab') == likelihood.encode(lm, '<bos>ab', special=True) == [256, 97, 98]
  with pytest.raises(ValueError, match='has no token of its own'):
    likelihood.encode_pair(lm, 'a', '')
  with pytest.raises(ValueError, match="direction='reverse'"):
    likelihood.lead(make(direction='reverse'))
  with pytest.raises(ValueError, match='no tokenizer'):
    analysis.likelihoods(lm, []) or likelihood.lead(tiny_model())
