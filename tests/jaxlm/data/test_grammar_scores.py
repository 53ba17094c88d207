"""Scores of texts that are nearly translations, against slow searches through all translations."""

import itertools

import pytest

from jaxlm.data import grammar, grammar_scores
from jaxlm.data.grammar import CERTAIN, Phrases

LANGUAGE = Phrases(nouns=10, verbs=5, adjectives=5, adverbs=5, p_idiom=0.5, longest=8)


def lcs(a, b):
  """Returns the length of the longest common subsequence, by trying all subsequences of b."""
  found = 0
  for keep in itertools.product((False, True), repeat=len(b)):
    rest = iter(a)
    chosen = [word for word, kept in zip(b, keep) if kept]
    found = max(found, len(chosen) if all(word in rest for word in chosen) else 0)
  return found


def test_lcs_accuracy_is_that_of_the_nearest_translation():
  monotone = Phrases(nouns=10, verbs=5, adjectives=5, adverbs=5, longest=6, **CERTAIN | {'p_long': 0.5})
  for source, target in itertools.islice(monotone, 12):
    words = target.split()
    for text in (target, ' '.join(words[::-1]), ' '.join(words[1:] + words[:1]), ' '.join(words[:2] * 2), ''):
      expected = max(lcs(text.split(), y.split()) / len(y.split()) for y in monotone.targets(source))
      assert grammar_scores.lcs_accuracy(monotone, source, text) == pytest.approx(expected)


def test_every_translation_has_all_its_phrases_and_lcs_accuracy_1():
  idioms = 0
  for source, target in itertools.islice(LANGUAGE, 40):
    idioms += len(LANGUAGE.idioms(source))
    intact, phrases = grammar_scores.intact_phrases(LANGUAGE, source, target)
    assert intact == phrases and grammar_scores.lcs_accuracy(LANGUAGE, source, target) == 1
    assert grammar_scores.intact_phrases(LANGUAGE, source, '') == (0, phrases)
  assert idioms > 10


def test_a_phrase_that_is_broken_or_turned_round_is_not_intact():
  language = Phrases(determiners=1, synonyms=0.0, **CERTAIN | {'p_idiom': 1.0, 'p_opt': 0.5})
  source = 'd0 j1 n1 v1'
  longest = max(language.targets(source), key=len)
  determiner, adjective, a, b, c, verb = longest.split()
  assert language.idioms(source) == [[a, b, c]]
  count = lambda *words: grammar_scores.intact_phrases(language, source, ' '.join(words))
  assert count(determiner, adjective, a, b, c, verb) == count(verb, determiner, adjective, a, b, c) == (2, 2)
  assert count(adjective, a, b, c, verb) == (2, 2)  # The determiner may be left out.
  assert count(adjective, verb, a, b, c) == (1, 2) and count(adjective, a, c, b, verb) == count(a, verb, b, c) == (0, 2)


def test_a_source_of_another_language_is_refused():
  with pytest.raises(ValueError, match='is not a sentence of this grammar'):
    grammar_scores.lcs_accuracy(grammar.parse('grammar'), 'x y', 'z')
