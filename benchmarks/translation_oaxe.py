"""python -m benchmarks.translation --study oaxe: what do order-agnostic losses change in models that predict all tokens at once?

grammar      cross-entropy, AXE, OaXE, OaXE of phrases and CTC on generated pairs whose translations are all known: valid translations,
             repetitions, confidence, intact phrases and BLEU, with error bars (https://arxiv.org/abs/2106.05093, 2210.03999)
ablations    OaXE with several pi, without cross-entropy before it and beside it; and both losses where the language has one order
libreoffice  cross-entropy and OaXE on LibreOffice's help (English to German), on real targets and on those of a teacher that writes
             token by token, and the speed of decoding beside this teacher
speed        speed of decoding with random models of the size of transformer-base
share        share of the assignment in a training step

Each part writes translation_oaxe_PART.json; grammar and libreoffice also draw a PNG. A model is trained once: its parameters and
translations are kept in the cache folder, so a run that was stopped goes on with the models that are missing. LibreOffice's help is
brought by `python -m jaxlm.data.fetch libreoffice`.
"""

import dataclasses
from typing import Any, Literal

from benchmarks import report

PARTS = ('grammar', 'ablations', 'libreoffice', 'speed', 'share')


@dataclasses.dataclass(frozen=True)
class Config:
  """Order-agnostic losses: what models say that were trained with them, and what the losses cost."""

  parts: tuple[Literal['grammar', 'ablations', 'libreoffice', 'speed', 'share'], ...] = PARTS
  seeds: int = 3
  """grammar: number of seeds. The other parts have one."""
  sentences: int = 500
  """Number of test sentences at most."""
  length_beam: int = 1
  """Target lengths that are tried for each source. With more, repetitive translations of a wrong length win, because their tokens are
  surer."""
  batches: tuple[int, ...] = (1, 32)
  """libreoffice, speed: sources translated together when speed is measured."""
  lengths: tuple[int, ...] = (64,)
  """share: target tokens of each sentence."""
  tokens: int = 2048
  """share: target tokens of a batch."""
  warm: int = 20
  """share: steps on the batch, after which the step is timed once more."""
  repeats: int = 5
  """Number of timed runs, of which the median counts."""
  tiny: bool = False
  """Train tiny models for three steps: a test of the code path, not of the papers."""

  def __post_init__(self):
    for name in ('seeds', 'sentences', 'length_beam', 'tokens', 'repeats'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}={getattr(self, name)} must be at least 1.')


def main(config: Config) -> None:
  for part in config.parts:
    parts = {'grammar': grammar, 'ablations': ablations, 'libreoffice': libreoffice, 'speed': speed, 'share': share}
    parts[part](config)


def grammar(config: Config) -> None:
  """Writes the measures of each loss on generated pairs."""
  from benchmarks import translation_oaxe_figures as figures
  from benchmarks import translation_oaxe_models as models
  from benchmarks import translation_oaxe_scores as scores
  from benchmarks import translation_oaxe_settings as settings

  corpus = settings.study_corpus('grammar')
  data = settings.prepared(settings.setting('grammar', config.tiny), corpus, config.sentences)
  found: scores.Found = {name: [] for name in settings.VARIANTS}
  for seed in range(config.seeds):  # The first seed of every loss comes before the second of any.
    for name in found:
      found[name].append(models.measured(data, settings.VARIANTS[name], seed, config.length_beam))
  tokens = [data.tokenizers.target.encode(target) for _, target in data.test]
  scored = scores.Scores(data.test, found, corpus.language)
  rows = [
    *scores.rows('grammar', scored, found),
    scores.perfect_row('grammar', data.test, corpus.language),
    scores.reference_row('grammar', data.test, tokens, corpus.language),
  ]
  checks = scores.said(scores.grammar_checks(scored))
  path = report.write('translation_oaxe_grammar', rows, checks=checks, **_about(config, data))
  figures.grammar(path)


def ablations(config: Config) -> None:
  """Writes the measures of OaXE trained in several ways, and of both losses on a language of one order."""
  from benchmarks import translation_oaxe_models as models
  from benchmarks import translation_oaxe_scores as scores
  from benchmarks import translation_oaxe_settings as settings

  tables = {'grammar': settings.ABLATIONS, 'one order': {name: settings.VARIANTS[name] for name in ('CE', 'OaXE')}}
  rows, checks = [], []
  for name, variants in tables.items():
    corpus = settings.study_corpus(name)
    data = settings.prepared(settings.setting('grammar', config.tiny), corpus, config.sentences)
    found = {model: [models.measured(data, v, 0, config.length_beam)] for model, v in variants.items()}
    scored = scores.Scores(data.test, found, corpus.language)
    reference = next(iter(found))
    rows += [{'table': name} | row for row in scores.rows(name, scored, found, reference)]
    if name == 'one order':
      checks = scores.said(scores.one_order_checks(scored))
  report.write('translation_oaxe_ablations', rows, checks=checks, **_about(config, data))


def libreoffice(config: Config) -> None:
  """Writes the measures of cross-entropy and OaXE on real text, raw and distilled, and the speed of decoding."""
  from benchmarks import translation_oaxe_figures as figures
  from benchmarks import translation_oaxe_models as models
  from benchmarks import translation_oaxe_scores as scores
  from benchmarks import translation_oaxe_settings as settings
  from benchmarks import translation_oaxe_speed

  raw = settings.prepared(
    settings.setting('libreoffice', config.tiny), settings.study_corpus('libreoffice'), config.sentences
  )
  teacher = models.teacher(raw, 0)
  sources = [source for source, _ in raw.test]
  found: scores.Found = {'teacher, greedy': [models.by_teacher(raw, teacher, 0)]}
  distilled = models.distilled(raw, teacher, 0)
  for name in ('CE', 'OaXE'):
    for kind, data in (('raw', raw), ('distilled', distilled)):
      found[f'{name}, {kind}'] = [models.measured(data, settings.VARIANTS[name], 0, config.length_beam)]
  scored = scores.Scores(raw.test, found, None)
  tokens = [raw.tokenizers.target.encode(target) for _, target in raw.test]
  rows = [
    *scores.rows('libreoffice', scored, found, 'CE, raw'),
    scores.reference_row('libreoffice', raw.test, tokens, None),
  ]
  timed = translation_oaxe_speed.rows(
    models.trained(distilled, settings.VARIANTS['OaXE'], 0),
    teacher,
    sources[:128],
    config.batches,
    (1, 5),
    config.repeats,
  )
  checks = scores.said(scores.real_text_checks(scored) + translation_oaxe_speed.checks(timed))
  path = report.write('translation_oaxe_libreoffice', rows, speed=timed, checks=checks, **_about(config, raw))
  figures.libreoffice(path)


def speed(config: Config) -> None:
  """Writes the speed of one pass beside a greedy teacher of the same size."""
  from benchmarks import translation_oaxe_scores as scores
  from benchmarks import translation_oaxe_speed, translation_oaxe_speed_large

  student, teacher = translation_oaxe_speed_large.models(config.tiny)
  sources = translation_oaxe_speed_large.sources(max(config.batches), student.config.vocab_size)
  rows = translation_oaxe_speed.rows(
    student, teacher, sources, config.batches, (1, 5), config.repeats, translation_oaxe_speed_large.options()
  )
  checks = scores.said(translation_oaxe_speed.checks(rows))
  report.write('translation_oaxe_speed', rows, checks=checks, config=dataclasses.asdict(config))


def share(config: Config) -> None:
  """Writes the share of the assignment in a training step."""
  from benchmarks import translation_oaxe_scores as scores
  from benchmarks import translation_oaxe_share as study

  rows = study.rows(config.lengths, config.tokens, config.repeats, config.warm, config.tiny)
  report.write(
    'translation_oaxe_share', rows, checks=scores.said(study.checks(rows)), config=dataclasses.asdict(config)
  )


def _about(config: Config, data: Any) -> dict[str, Any]:
  """Returns what a file says of its setting."""
  setting = {'sentences': len(data.test), 'training pairs': len(data.train), **dataclasses.asdict(data.setting)}
  return {'setting': setting, 'config': dataclasses.asdict(config)}
