"""Sentence pairs of a small generated language, for tests of training."""

import itertools
from pathlib import Path

from jaxlm.data import grammar


def written_pairs(folder: Path, train: int = 160) -> Path:
  """Writes two files of pairs, translated word for word, into a folder; returns the folder."""
  for split, size in (('train', train), ('valid', 24)):
    language = grammar.Phrases(split=split, nouns=6, verbs=4, adjectives=2, adverbs=2, longest=6, **grammar.CERTAIN)
    lines = (f'{source}\t{target}\n' for source, target in itertools.islice(language, size))
    (folder / f'{split}.tsv').write_text(''.join(lines))
  return folder
