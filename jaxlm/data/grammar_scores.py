"""How near a text is to the translations that the grammar of `jaxlm.data.grammar` knows, and what it keeps together.

LCS accuracy     = max over valid translations y of LCS(text, y) / |y|,   LCS: length of the longest common subsequence
phrase integrity = share of idioms and noun phrases whose words stand side by side, in order
"""

from collections.abc import Sequence

from jaxlm.data.grammar import Choice, Phrases


def _common(words: Sequence[str], pattern: Sequence[Choice]) -> int:
  """Returns the length of the longest common subsequence of words and a pattern, whose positions have several words."""
  row = [0] * (len(pattern) + 1)
  for word in words:
    before = row
    row = [0]
    for j, choices in enumerate(pattern):
      row.append(before[j] + 1 if word in choices else max(before[j + 1], row[j]))
  return row[-1]


def lcs_accuracy(language: Phrases, source: str, text: str) -> float:
  """Returns the LCS accuracy of a text, 1 for a valid translation. Raises ValueError for a source of another language."""
  words = text.split()
  return max(_common(words, pattern) / len(pattern) for pattern in language.patterns(source))


def intact_phrases(language: Phrases, source: str, text: str) -> tuple[int, int]:
  """Returns (number of phrases that are intact, number of phrases) of a text: idioms, and noun phrases of two words or more.

  A noun phrase with an optional determiner is intact with or without it. Raises ValueError for a source of another language.
  """
  words = text.split()

  def stands(pattern: Sequence[Choice]) -> bool:
    starts = range(len(words) - len(pattern) + 1)
    return any(all(word in choices for word, choices in zip(words[i:], pattern)) for i in starts)

  idioms = [[[{word: 1.0} for word in idiom]] for idiom in language.idioms(source)]
  phrases = [ways for ways in language.noun_phrases(source) if min(map(len, ways)) > 1]
  found = [any(map(stands, ways)) for ways in (*idioms, *phrases)]
  return sum(found), len(found)
