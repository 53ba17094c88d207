"""Labels and probabilities are those of the logits, and what words contribute adds up to the logits."""

import dataclasses

import jax
import numpy as np
import pytest

import decoders
from decoders.classification import classifier
from jaxlm.data.text_reader import padded
from jaxlm.errors import NotFiniteError
from jaxlm.language_model import LanguageModel
from jaxlm.models import exam
from tests.decoders.classification.models_made import CODE, CONFIG, LABELS, made
from tests.models import TINY, slow

TEXTS = ['a b c d e', 'h', 'c g g zzz a b d f e h a b c d e f', 'b a']
VARIANTS = {
  'paper': CONFIG,
  'code': CODE,
  'gru': CONFIG.replace(encoder='gru', side='left', mask='none', output_bias=True),
  'region embedding': CONFIG.replace(aggregator='sum', class_bias=True),
  'fastText': CONFIG.replace(encoder='ngrams', ngrams=3, buckets=20, aggregator='mean', class_bias=True),
  'gru, last': CONFIG.replace(encoder='gru', aggregator='last'),
}


logits = jax.jit(exam.logits, static_argnums=1)


def logits_of(model, texts):
  ids = [model.tokenizer.encode(text, model.config) for text in texts]
  tokens, mask = padded(ids, model.config)
  return np.asarray(logits(model.params, model.config, tokens, mask))


def test_probabilities_are_a_softmax_or_one_sigmoid_each():
  model = made(CODE)
  out = decoders.classify(model, TEXTS, top=3)
  logits = logits_of(model, TEXTS)
  topic = np.exp(logits[:, :4]) / np.exp(logits[:, :4]).sum(1, keepdims=True)
  tags = 1 / (1 + np.exp(-logits[:, 4:]))
  for column, p, labels in zip(out.columns.values(), (topic, tags), LABELS):
    order = np.argsort(-p, axis=1)[:, :3]
    np.testing.assert_allclose(column.probabilities, np.take_along_axis(p, order, axis=1), rtol=1e-5)
    assert column.labels == [[labels[c] for c in row] for row in order] and column.contributions is None
  assert out.predicted == [row[:1] for row in out.labels] and out.labels is out.columns['topic'].labels
  found = [{LABELS[1][c] for c in np.flatnonzero(row >= 0.5)} for row in tags]
  assert [set(row) for row in out.columns['tags'].predicted] == found and any(found)


def test_a_text_has_the_labels_that_it_has_alone():
  model = made()
  together = decoders.classify(model, TEXTS, batch_size=3)
  for i, text in enumerate(TEXTS):
    alone = decoders.classify(model, [text])
    assert alone.labels[0] == together.labels[i]
    np.testing.assert_allclose(alone.probabilities[0], together.probabilities[i], rtol=1e-5)


def test_thresholds_decide_what_is_predicted():
  model = made()
  p = decoders.classify(model, TEXTS, top=3).columns['tags']
  reader = dataclasses.replace(model.tokenizer, thresholds={'tags': np.array([0.0, 2.0, 0.0])})
  found = decoders.classify(dataclasses.replace(model, tokenizer=reader), TEXTS).columns['tags'].predicted
  assert found == [[label for label in row if label != 'q'] for row in p.labels]


@pytest.mark.parametrize('name', ['paper', 'code', 'fastText', *slow('gru', 'region embedding', 'gru, last')])
def test_contributions_add_up_to_the_logits(name):
  model = made(VARIANTS[name])
  out, logits = decoders.classify(model, TEXTS, top=2, explain=True), logits_of(model, TEXTS)
  first = 0
  for column, labels in zip(out.columns.values(), LABELS):
    for i, found in enumerate(column.contributions):
      classes = [first + labels.index(label) for label in column.labels[i]]
      assert found.labels == column.labels[i] and found.words == model.tokenizer.pieces(TEXTS[i], model.config)
      assert found.scores.shape == found.interaction.shape == (2, len(found.words))
      np.testing.assert_allclose(found.scores.sum(1) + found.rest, logits[i, classes], atol=1e-5)
      np.testing.assert_allclose(found.logits, logits[i, classes], atol=1e-5)
      if name in ('region embedding', 'gru, last', 'fastText') and len(found.words) < 9:
        np.testing.assert_allclose(found.rest, 0, atol=1e-5)
    first += len(labels)


def test_contributions_belong_to_their_words():
  """The contribution of a word in a bag of words is its score when it stands alone, divided by the number of words."""
  model = made(CONFIG.replace(encoder='ngrams', ngrams=1, aggregator='mean'))
  text = 'c a h'
  whole = decoders.classify(model, [text], top=4, explain=True).contributions[0]
  for j, word in enumerate(text.split()):
    alone = decoders.classify(model, [word], top=4, explain=True).contributions[0]
    for i, label in enumerate(whole.labels):
      np.testing.assert_allclose(whole.scores[i, j], alone.logits[alone.labels.index(label)] / 3, rtol=1e-4)
  region = made(CODE)
  changed = decoders.classify(region, ['a b c d e f g', 'a b c d e f h'], top=4, explain=True).contributions
  order = [changed[1].labels.index(label) for label in changed[0].labels]
  # Regions reach three words, so the interaction scores of the first three words are the same.
  np.testing.assert_allclose(changed[0].interaction[:, :3], changed[1].interaction[order, :3], atol=1e-5)
  assert not np.allclose(changed[0].interaction[:, 3], changed[1].interaction[order, 3])


@pytest.mark.parametrize(
  'texts, options, message',
  [
    ('abc', {}, '`texts` is a list of texts'),
    ([], {}, '`texts` is empty'),
    (['a', ' \n'], {}, r"Text 1 is empty: ' \\n' has no word"),
    (['a', 3], {}, 'Text 1 is int; expected a string'),
    (['a'], {'top': 0}, 'top=0 and batch_size=None must be at least 1'),
  ],
)
def test_bad_texts_are_named(texts, options, message):
  with pytest.raises(ValueError, match=message):
    decoders.classify(made(), texts, **options)


def test_what_is_no_classifier_is_refused_and_so_are_logits_that_are_not_numbers():
  with pytest.raises(ValueError, match=r'needs a text classifier \(TextClassifier\), not a LanguageModel'):
    decoders.classify(LanguageModel(TINY, {}), ['a'])
  model = made()
  with pytest.raises(ValueError, match='has no words and labels'):
    decoders.classify(dataclasses.replace(model, tokenizer=None), ['a'])
  table = np.array(model.params['class_table']['kernel'])
  table[0, 0] = np.nan
  table = jax.device_put(table)
  broken = dataclasses.replace(model, params=model.params | {'class_table': {'kernel': table}})
  with pytest.raises(NotFiniteError, match='Text 0: its logits are not finite'):
    decoders.classify(broken, ['a b', 'c'])


def test_scores_of_ngrams_are_shared_by_their_words():
  config = CONFIG.replace(encoder='ngrams', ngrams=2, max_length=4, front=1)
  scores = np.arange(1, 8, dtype=np.float32)[None]  # Words at the places 0 to 3, then pairs at 0 to 2.
  found = classifier.by_word(config, scores, 3)
  np.testing.assert_allclose(found, [[2 + 6 / 2, 3 + 6 / 2 + 7 / 2, 4 + 7 / 2]])
