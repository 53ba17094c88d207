"""python -m benchmarks.translation --study mat: how much target history does translation need? Models of several Markov orders.

orders     BLEU by order on generated pairs and on LibreOffice's help (English to German), and by sentence length, with paired
           bootstrap intervals of the difference to full history (https://arxiv.org/abs/2402.02084)
agreement  tasks with a known need of history: accuracy of the word that has to agree, by order and mode
speed      time of a decode step and bytes of the decoder's state, by order and length

Each part writes translation_mat_PART.json and .png. A model is trained once: its translations or accuracies are kept in the cache
folder, so a run that was stopped goes on with the models that are missing. LibreOffice's help is brought by
`python -m jaxlm.data.fetch libreoffice`.
"""

import dataclasses
from typing import Any, Literal

from benchmarks import report
from jaxlm.seq2seq_config import MarkovMode

PARTS = ('orders', 'agreement', 'speed')


@dataclasses.dataclass(frozen=True)
class Config:
  """Quality, agreement and speed of translation by Markov order."""

  parts: tuple[Literal['orders', 'agreement', 'speed'], ...] = PARTS
  corpora: tuple[Literal['grammar', 'libreoffice'], ...] = ('grammar', 'libreoffice')
  """orders: sentence pairs to train on."""
  orders: tuple[int, ...] = (0, 4, 1, 8, 2, 64, 3, 5)
  """orders: Markov orders in the order in which they are trained. 0 is full history, which the others are compared with. 64 is longer
  than any sentence, so what it lacks of full history is due to the mode and not to the order."""
  mode: MarkovMode = 'transparent'
  """orders: how the order is kept."""
  seeds: int = 3
  """orders: number of seeds on the grammar. LibreOffice's help has one."""
  beam_size: int = 1
  """orders: hypotheses of the beam search; 1 is greedy decoding."""
  sentences: int = 2000
  """orders: number of test sentences at most."""
  train: bool = True
  """orders: train the models that are missing. Without it, only orders whose models are all there are reported."""
  distances: tuple[int, ...] = (1, 2, 4, 6)
  """agreement: words between a class and the word that has to agree with it."""
  modes: tuple[MarkovMode, ...] = ('transparent', 'naive')
  """agreement: how the order is kept."""
  lengths: tuple[int, ...] = (32, 128, 512)
  """speed: tokens of each translation."""
  speed_orders: tuple[int, ...] = (4, 16, 0)
  """speed: Markov orders; 0 is full history."""
  repeats: int = 5
  """speed: number of timed runs of each order and length, of which the median counts."""
  tiny: bool = False
  """Train tiny models for three steps: a test of the code path, not of the paper."""

  def __post_init__(self):
    if 0 not in self.orders:
      raise ValueError(f'orders={self.orders} needs 0, full history, which the other orders are compared with.')


def main(config: Config) -> None:
  for part in config.parts:
    {'orders': orders, 'agreement': agreement, 'speed': speed}[part](config)


def orders(config: Config) -> None:
  """Writes BLEU by order and by sentence length for each corpus."""
  from benchmarks import translation_corpora as corpora
  from benchmarks import translation_mat_figures as figures
  from benchmarks import translation_mat_models as models
  from benchmarks import translation_mat_scores as scores

  tables: dict[str, list[dict[str, Any]]] = {'orders': [], 'quartiles': [], 'slopes': []}
  settings = {}
  for name in config.corpora:
    setting, corpus = models.setting(name, config.tiny), corpora.corpus(name)
    pairs = models.held_out(setting, corpus, config.sentences)
    sources = [source for source, _ in pairs]
    seeds, found = range(config.seeds if corpus.language else 1), {order: [] for order in config.orders}
    for seed in seeds:  # The first seed of every order comes before the second of any.
      for order in config.orders:
        text = models.translations(
          setting, corpus, order, config.mode, seed, config.beam_size, sources, train_missing=config.train
        )
        found[order] += [] if text is None else [text]
    complete = {order: texts for order, texts in found.items() if len(texts) == len(seeds)}
    if 0 in complete:
      is_valid = corpus.language and corpus.language.is_valid
      for table, rows in scores.scored(name, pairs, complete, is_valid).items():
        tables[table] += rows
      settings[name] = {'sentences': len(pairs), 'training pairs': setting.pairs, 'seeds': len(seeds), **dataclasses.asdict(setting)}  # fmt: skip
  if not tables['orders']:
    raise ValueError('No corpus has all models of full history: run without --no-train.')
  verdicts = scores.checks(tables)
  path = report.write(
    'translation_mat_orders',
    tables.pop('orders'),
    **tables,
    checks=verdicts,
    settings=settings,
    config=dataclasses.asdict(config),
  )
  figures.orders(path)


def agreement(config: Config) -> None:
  """Writes the accuracy of agreeing words by distance, order and mode, and in clauses by sentence length."""
  from benchmarks import translation_mat_agreement as study
  from benchmarks import translation_mat_figures as figures

  rows = study.rows(config.distances, config.modes, config.tiny)
  clauses = study.clause_rows(config.modes[0], config.tiny)
  path = report.write(
    'translation_mat_agreement',
    rows,
    clauses=clauses,
    checks=study.checks(rows, clauses),
    config=dataclasses.asdict(config),
  )
  figures.agreement(path)


def speed(config: Config) -> None:
  """Writes the time of a decode step and the bytes of the decoder's state, by order and length."""
  from benchmarks import translation_mat_figures as figures
  from benchmarks import translation_mat_speed as study

  rows = study.rows(config.speed_orders, config.lengths, config.repeats, config.tiny)
  path = report.write('translation_mat_speed', rows, checks=study.checks(rows), config=dataclasses.asdict(config))
  figures.speed(path)
