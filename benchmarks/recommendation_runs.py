"""The models of the study of recommendation: runs of trainers.recommend in the cache folder, trained once."""

import dataclasses
from pathlib import Path
from typing import Any

import jaxlm
from jaxlm.data.corpus import cache_folder
from jaxlm.language_model import LanguageModel
from trainers import recommend
from trainers.recommend.config import RESULTS

VERSION = 2
"""Raise it when runs of before no longer count."""
DATA = {
  'made-small': dict(source='made-small'),
  'movielens-100k': dict(source='movielens-100k', split='leave-one-out', least_rating=4.0, min_user=5, min_item=5),
}


LONGER = {'movielens-100k': 4}
"""How many times as long targets and SASRec are trained: histories of films are long, and their codes say less about what comes next."""


def folder(config: Any, name: str, seed: int) -> Path:
  size = 'tiny' if config.tiny else str(config.steps)
  return cache_folder() / 'trained' / f'recommendation-{VERSION}' / f'{name}-{size}-{seed}'


def _preset(name: str) -> Any:
  return recommend.PRESETS[name][1]


def ids(config: Any, name: str, seed: int, preset: str = 'ids') -> Path:
  """Returns a run of stage ids."""
  place, base = folder(config, name, seed) / preset, _preset('ids-tiny' if config.tiny and preset == 'ids' else preset)
  source = {'source': 'made-tiny'} if config.tiny else DATA[name]
  data = dataclasses.replace(base.data, seed=seed if source['source'].startswith('made') else 0, **source)
  recommend.main(dataclasses.replace(base, data=data, run=recommend.IdsRunConfig(str(place))))
  return place


def _trained(config: Any, base: Any, place: Path, seed: int, longer: int = 1, **changes: Any) -> Path:
  """Returns a finished run of a preset, with a seed and `longer` times the number of steps."""
  steps = longer * (4 if config.tiny else config.steps)
  every = max(1, steps // 4)
  optimizer = dataclasses.replace(base.optimizer, warmup_steps=min(base.optimizer.warmup_steps, steps))
  run = dataclasses.replace(
    base.run, directory=str(place), steps=steps, eval_every=every, save_every=every, seed=seed, tensorboard=False
  )
  if not (place / RESULTS).exists():
    recommend.main(dataclasses.replace(base, optimizer=optimizer, run=run, **changes))
  return place


def target(config: Any, name: str, seed: int) -> LanguageModel:
  """Returns the target of a set and seed."""
  base, place = _preset('target-tiny' if config.tiny else 'target'), folder(config, name, seed) / 'target'
  return jaxlm.load(_trained(config, base, place, seed, LONGER.get(name, 1), ids=str(ids(config, name, seed))))


def sasrec(config: Any, name: str, seed: int) -> LanguageModel:
  """Returns SASRec on the same histories."""
  base, place = _preset('sasrec'), folder(config, name, seed) / 'sasrec'
  items = str(ids(config, name, seed, 'ids-sasrec'))
  return jaxlm.load(_trained(config, base, place, seed, LONGER.get(name, 1), ids=items))


def draft(config: Any, name: str, seed: int, loss: str) -> LanguageModel:
  """Returns the draft of a target that was trained with a loss. All drafts share the target's beams."""
  base, home = _preset('tiny' if config.tiny else 'draft'), folder(config, name, seed)
  losses = dataclasses.replace(base.loss, name=loss)
  beams = dataclasses.replace(base.beams, file=str(home / 'beams.jsonl'))
  place = home / f'draft-{loss}'
  return jaxlm.load(_trained(config, base, place, seed, target=str(home / 'target'), loss=losses, beams=beams))


def histories(config: Any, name: str, seed: int, preset: str = 'ids') -> Any:
  """Returns the catalogue and the histories of stage ids."""
  from trainers.recommend import ids as stage

  return stage.load(folder(config, name, seed) / preset)
