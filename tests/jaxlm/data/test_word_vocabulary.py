"""Texts are split into words as the two conventions say, and words are numbered by how many texts have them."""

import pytest

from jaxlm.data import word_vocabulary
from jaxlm.errors import DataError


@pytest.mark.parametrize(
  'kind, text, words',
  [
    ('kim', "It isn't Bob's, they've (NOT) 2.5€!", "it is n't bob 's , they 've ( not ) 2 . 5 !"),
    ('kim', 'Grüße `a`', 'gr e `a`'),
    ('words', "It isn't größer: 2.5€", "it isn ' t größer : 2 . 5 €"),
    ('words', '  \n', ''),
  ],
)
def test_words_of_a_text(kind, text, words):
  assert word_vocabulary.SPLITTERS[kind](text) == words.split()


def test_words_are_counted_once_for_each_text_and_equal_ones_are_sorted():
  texts = ['b b b a', 'a c', 'a b', 'd', 'e', 'e d']
  vocabulary = word_vocabulary.build(texts)
  assert vocabulary.words == ('<pad>', '<unk>', 'a', 'b', 'd', 'e') and vocabulary.vocab_size == 6
  assert vocabulary.encode('e a c A z') == [5, 2, 1, 2, 1]
  assert word_vocabulary.build(texts, min_texts=1, most=2).words[2:] == ('a', 'b')
  assert word_vocabulary.build(reversed(texts)) == vocabulary


def test_a_vocabulary_without_words_is_refused():
  with pytest.raises(DataError, match='the 2 training texts have 2 different words, and none is in at least 2 texts'):
    word_vocabulary.build(['a', 'b'])
  with pytest.raises(DataError, match='The vocabulary is empty'):
    word_vocabulary.build([])
