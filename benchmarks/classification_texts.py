"""Texts of the study of classification: each set is written once into the cache folder, as files that all systems read.

newsgroups, r8 and r52 have their standard test texts. Debian's sets are large, so that some of their texts are taken: those whose
digest is lowest. Held-out texts choose steps and thresholds and are not trained on, by any system. Labels that no training text has
are left out.
"""

from collections.abc import Iterable
import dataclasses
import hashlib
import json
from pathlib import Path

import numpy as np

from benchmarks.made_before import write_whole
from jaxlm.data import labelled
from jaxlm.data.corpus import cache_folder

PARTS = ('train', 'valid', 'test')
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Setting:
  """What is trained on a set: number of positions of a text, and of steps."""

  length: int
  steps: int
  sampled: bool = False


SETTINGS = {
  'r8': Setting(96, 450),
  'r52': Setting(96, 900),
  'newsgroups': Setting(128, 900),
  'debian-sections': Setting(80, 600, True),
  'debtags': Setting(80, 600, True),
}


@dataclasses.dataclass(frozen=True)
class TextSet:
  """Texts and labels of the three parts, and the files that hold them.

  Attributes:
    name: of the set.
    files: part -> file.
    texts: part -> texts.
    labels: part -> of each text its labels.
    names: all labels, sorted.
    multilabel: whether a text may have several labels.
  """

  name: str
  files: dict[str, Path]
  texts: dict[str, list[str]]
  labels: dict[str, list[list[str]]]
  names: list[str]
  multilabel: bool

  @property
  def facts(self) -> list[str]:
    """What identifies the content."""
    return [self.name, *(hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in self.files.values())]

  def truth(self, part: str) -> np.ndarray:
    """Returns the labels as numbers [N], or bool [N, C] for several labels."""
    number = {name: i for i, name in enumerate(self.names)}
    if not self.multilabel:
      return np.array([number[labels[0]] for labels in self.labels[part]])
    found = np.zeros((len(self.labels[part]), len(number)), bool)
    for row, labels in zip(found, self.labels[part]):
      row[[number[label] for label in labels]] = True
    return found


def open_set(name: str, texts: int, tests: int) -> TextSet:
  """Returns a set.

  Args:
    name: a key of SETTINGS, a fetched name.
    texts: number of training texts at most, of a set that is sampled.
    tests: number of held-out texts and of test texts at most, of a set that is sampled.
  """
  setting = SETTINGS[name]
  limits = {'train': texts, 'valid': tests, 'test': tests} if setting.sampled else {}
  folder = cache_folder() / 'trained' / f'texts-{name}-{"-".join(map(str, limits.values()))}-{VERSION}'
  files = {part: folder / f'{part}.jsonl' for part in PARTS}
  if not all(path.is_file() for path in files.values()):
    _write(labelled.open_parts(name), files, limits)
  rows = {part: [json.loads(line) for line in path.read_text().splitlines()] for part, path in files.items()}
  first = rows['train'][0]
  return TextSet(
    name, files, {part: [row['text'] for row in rows[part]] for part in PARTS},
    {part: [_listed(row['labels']) for row in rows[part]] for part in PARTS},
    sorted({label for row in rows['train'] for label in _listed(row['labels'])}), isinstance(first['labels'], list),
  )  # fmt: skip


def _listed(labels: str | list[str]) -> list[str]:
  return labels if isinstance(labels, list) else [labels]


def _write(parts: labelled.Parts, files: dict[str, Path], limits: dict[str, int]) -> None:
  known: set[str] = set()
  for part, source in zip(PARTS, parts):
    rows = _lowest(((row.text, row.labels[0] or ()) for row in source), limits.get(part))
    if part == 'train':
      known = {label for _, labels in rows for label in labels}
    lines = []
    for text, labels in rows:
      kept = [label for label in labels if label in known]
      if kept:
        lines.append(json.dumps({'text': text, 'labels': kept if source.multilabel[0] else kept[0]}))
    write_whole(files[part], '\n'.join(lines).encode())


def _lowest(rows: Iterable[tuple], most: int | None) -> list[tuple]:
  """Returns the rows with text, or of these the `most` whose digests are lowest, in their order."""
  found = [row for row in rows if row[0]]
  if most is None or len(found) <= most:
    return found
  order = sorted(range(len(found)), key=lambda i: hashlib.sha256(found[i][0].encode()).digest())
  return [found[i] for i in sorted(order[:most])]
