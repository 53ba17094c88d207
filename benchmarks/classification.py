"""python -m benchmarks.classification: EXAM beside its encoder, fastText, linear models and MiniLM, on real texts.

sets   20 Newsgroups, Reuters R8 and R52, Debian's sections (one label) and debtags (several): scores with error bars, training time,
       prediction time and parameters
speed  training texts/s of the same model here and in PyTorch, in turn

The parts write classification.json, with a picture, and classification_speed.json. A system is trained once on each set and seed, so a
run that was stopped goes on with what is missing. The texts, and MiniLM, are brought by
`python -m jaxlm.data.fetch newsgroups r8 r52 debian-packages minilm`; the linear models are scikit-learn's.
"""

from collections.abc import Sequence
import dataclasses
from pathlib import Path
from typing import Any, Literal

import tyro

from benchmarks import report
from jaxlm import console

SMALL = ('r8', 'r52')
SETS = ('r8', 'r52', 'newsgroups', 'debian-sections', 'debtags')


@dataclasses.dataclass(frozen=True)
class Config:
  """EXAM and other classifiers on the same texts."""

  parts: tuple[Literal['sets', 'speed'], ...] = ('sets', 'speed')
  sets: tuple[Literal['r8', 'r52', 'newsgroups', 'debian-sections', 'debtags'], ...] = SETS
  systems: tuple[str, ...] = (
    'EXAM', 'EXAM, no residual', 'encoder alone', 'fastText', 'TF-IDF, linear', 'MiniLM, logistic regression', 'EXAM on MiniLM',
  )  # fmt: skip
  """Which systems; 'GRU' can be added."""
  seeds: int = 3
  """Number of seeds of all that is trained here on the small sets, r8 and r52."""
  large_seeds: int = 1
  """The same on the other sets."""
  only_kept: bool = False
  """Train nothing: write what was measured before."""
  texts: int = 6000
  """Number of training texts at most that are taken of Debian's sets."""
  tests: int = 2000
  """Number of held-out texts, and of test texts, at most of Debian's sets."""
  repeats: int = 15
  """speed: number of timed steps of each."""
  tiny: bool = False
  """Three steps of training: a test of the code path."""

  def __post_init__(self):
    for name in ('seeds', 'large_seeds', 'texts', 'tests', 'repeats'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}={getattr(self, name)} must be at least 1.')


def main(config: Config) -> None:
  for part in config.parts:
    {'sets': sets, 'speed': speed}[part](config)


def sets(config: Config) -> None:
  """Writes the scores of all systems on all sets."""
  from benchmarks import classification_models as models
  from benchmarks.classification_texts import open_set

  unknown = set(config.systems) - set(models.SYSTEMS)
  if unknown:
    raise SystemExit(f'Unknown systems {", ".join(sorted(unknown))}; there are {", ".join(models.SYSTEMS)}.')
  opened = [open_set(name, config.texts, config.tests) for name in config.sets]
  found: dict[tuple[str, str], list[dict[str, Any]]] = {}
  for seed in range(
    max(config.seeds, config.large_seeds)
  ):  # The first seed of every system comes before the second of any.
    for texts in opened:
      for system in config.systems:
        if seed < (1 if system in models.LINEAR else config.seeds if texts.name in SMALL else config.large_seeds):
          run = models.measured(texts, system, seed, tiny=config.tiny, train=not config.only_kept)
          found.setdefault((texts.name, system), []).extend([run] if run else [])
  rows = [models.summary(t, s, found[t.name, s]) for t in opened for s in config.systems if found[t.name, s]]
  sizes = {t.name: {part: len(texts) for part, texts in t.texts.items()} | {'labels': len(t.names)} for t in opened}
  metrics = {texts.name: models.main_metric(texts) for texts in opened}
  runs = {
    f'{name}, {system}': [round(100 * run['metrics'][metrics[name]], 2) for run in several]
    for (name, system), several in found.items()
  }
  path = report.write(
    'classification', rows, checks=checks(rows), sizes=sizes, runs=runs, config=dataclasses.asdict(config)
  )
  draw(rows, path.with_suffix('.png'))


def speed(config: Config) -> None:
  """Writes training texts/s of the same model in JAX and in PyTorch."""
  from benchmarks import classification_speed

  rows = classification_speed.rows(config.repeats, config.tiny)
  report.write(
    'classification_speed', rows, checks=classification_speed.checks(rows), config=dataclasses.asdict(config)
  )


def checks(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns the aims as statements, what was measured in points with its standard error, and whether they hold."""
  of, verdicts = {(row['table'], row['system']): row for row in rows}, []
  score = lambda row: row['score %']
  error = lambda *some: float(sum(row['error'] ** 2 for row in some) ** 0.5)
  for name in dict.fromkeys(row['table'] for row in rows):
    exam, encoder, line = (of.get((name, system)) for system in ('EXAM', 'encoder alone', 'TF-IDF, linear'))
    if exam and encoder:
      gain = score(exam) - score(encoder)
      verdicts.append(verdict(f'{name}: EXAM at least its encoder alone', gain >= 0, gain, error(exam, encoder)))
    if exam and line:
      gain = score(exam) - score(line)
      verdicts.append(verdict(f'{name}: EXAM within 1 point of the linear model', gain >= -1, gain, error(exam, line)))
  return verdicts


def verdict(statement: str, holds: bool, measured: float, error: float) -> dict[str, Any]:
  result = {'statement': statement, 'pass': bool(holds), 'measured': round(measured, 2), 'error': round(error, 2)}
  print('PASS' if holds else 'MISS', statement, '--', result['measured'], '+-', result['error'])
  return result


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
  """Plots the scores of all systems on each set, with one standard error."""
  from matplotlib.figure import Figure  # Not pyplot: no global state, no display.

  names, systems = ([*dict.fromkeys(row[key] for row in rows)] for key in ('table', 'system'))
  figure = Figure(figsize=(2.4 * len(names) + 1.6, 3.4), layout='constrained')
  for axis, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names):
    there = [row for row in rows if row['table'] == name]
    at = [systems.index(row['system']) for row in there]
    scores, errors = ([row[key] for row in there] for key in ('score %', 'error'))
    axis.errorbar(at, scores, errors, fmt='none', ecolor='black', capsize=3)
    axis.scatter(at, scores, c=[f'C{i}' for i in at], zorder=3)
    axis.set_xticks(range(len(systems)), systems, rotation=60, ha='right', fontsize=8)
    axis.set_title(f'{name}, {there[0]["metric"].replace("_", " ")} %', fontsize=9)
    axis.set_xlim(-0.5, len(systems) - 0.5)
    axis.grid(alpha=0.3)
  figure.savefig(path, dpi=110)


if __name__ == '__main__':
  with console.command():
    main(tyro.cli(Config))
