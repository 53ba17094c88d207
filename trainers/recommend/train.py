"""Runs one stage from its config, and before it the stages that it needs. JAX is imported when `main` is called."""

import dataclasses
from pathlib import Path
from typing import Any

from trainers.config import ConfigError
from trainers.recommend.config import RESULTS, DraftConfig, IdsConfig, TargetConfig

STAGES = {'ids': IdsConfig, 'target': TargetConfig, 'draft': DraftConfig}


def main(config: IdsConfig | TargetConfig | DraftConfig) -> Any:
  """Runs a stage, or resumes it in config.run.directory. Returns the last TrainState, or the Catalogue of stage ids.

  Raises:
    ConfigError, DataError, CheckpointError, DivergedError: see their messages.
    trainers.loop.Stopped: a signal stopped the run after it was saved.
  """
  stage = next(name for name, kind in STAGES.items() if isinstance(config, kind))
  directory = config.run.directory or f'runs/recommend-{stage}'
  config = dataclasses.replace(config, run=dataclasses.replace(config.run, directory=directory))
  if isinstance(config, IdsConfig):
    from trainers.recommend import ids

    return ids.make(config)
  from trainers import distributed, run_directory

  distributed.initialize(config.distributed)
  run_directory.check_start(directory, config.start)
  return _draft(config) if isinstance(config, DraftConfig) else _target(config)


def neighbour(directory: str | Path, stage: str) -> Path:
  """Returns the run directory of another stage beside this one: runs/x-draft -> runs/x-target, runs/x -> runs/x-target."""
  directory = Path(directory)
  parts = directory.name.split('-')
  last = max((i for i, part in enumerate(parts) if part in STAGES), default=None)
  if last is None:
    return directory.with_name(f'{directory.name}-{stage}')
  return directory.with_name('-'.join([*parts[:last], stage, *parts[last + 1 :]]))


def _before(config: Any, stage: str) -> str:
  """Returns the run of the stage before this one, which is made or resumed if it is not named.

  Raises:
    ConfigError: there is no such preset.
  """
  from jaxlm import errors
  from trainers.recommend.presets import PRESETS

  if (named := getattr(config, stage)) is not None:
    return named
  kind, preset = STAGES[stage], getattr(config, f'{stage}_preset')
  presets = {name: found for name, (_, found) in PRESETS.items() if isinstance(found, kind)}
  if preset not in presets:
    raise errors.unknown(f'{stage}_preset', preset, presets, ConfigError)
  place = neighbour(config.run.directory, stage)
  # A finished run may have been made with other settings than those of the preset: it is used as it is.
  if (place / ('tokenizer' if stage == 'ids' else RESULTS)).exists():
    print(f'No --{stage} is given: using {place}.')
    return str(place)
  print(f'No --{stage} is given: using {place} (python -m trainers.recommend {preset} --run.directory {place}).')
  found = presets[preset]
  main(dataclasses.replace(found, run=dataclasses.replace(found.run, directory=str(place))))
  return str(place)


def _is_new(config: TargetConfig | DraftConfig) -> bool:
  from jaxlm.io import checkpoint

  return not checkpoint.steps(Path(config.run.directory) / 'checkpoints')


def _check_depth(config: TargetConfig, depth: int) -> None:
  """Raises ConfigError if a new run of a preset for single items, which is SASRec, gets identifiers of several tokens."""
  from trainers.recommend.presets import PRESETS

  preset = PRESETS.get(config.ids_preset, ('', None))[1]
  if isinstance(preset, IdsConfig) and preset.ids.method == 'items' and depth > 1 and _is_new(config):
    raise ConfigError(
      f'--ids {config.ids} has identifiers of {depth} tokens, and this preset is for one token per item. Make such identifiers of the same '
      f'data: python -m trainers.recommend {config.ids_preset} --run.directory RUN, with the --data flags of {config.ids}. Then pass --ids RUN.'
    )


def _check_start(config: TargetConfig | DraftConfig, items: Any, ids_run: str) -> None:
  """Raises DataError if a new run would begin with the parameters of a run (--start) that has other identifiers."""
  from jaxlm.data import catalogue
  from jaxlm.io import checkpoint
  from trainers.recommend import target_task

  if config.start is None or not _is_new(config):
    return
  if checkpoint.run_config(config.start).get('trainer') == target_task.TRAINER:  # `trainers.start` refuses others.
    theirs = catalogue.load(Path(config.start) / 'tokenizer')
    theirs.check_same(items, f'--start {config.start}', f'--ids {ids_run}')


def _target(config: TargetConfig):
  from trainers import loop
  from trainers.recommend import ids, target_task

  config = dataclasses.replace(config, ids=_before(config, 'ids'))
  data = ids.load(config.ids)
  _check_depth(config, data.catalogue.depth)
  _check_start(config, data.catalogue, config.ids)
  config = dataclasses.replace(config, model=ids.fitted(config.model, data.catalogue))
  return loop.fit(target_task.NextItem(config, data), config)


def _draft(config: DraftConfig):
  from trainers import distributed, loop
  from trainers.recommend import beams, draft_task, ids, teacher

  config = dataclasses.replace(config, target=_before(config, 'target'))
  layout = distributed.make_layout(config.mesh)
  lm = teacher.load(config, layout.mesh)
  place = config.ids or teacher.ids_of(config.target)
  data = ids.load(place)
  lm.tokenizer.check_same(data.catalogue, f'--target {config.target}', f'--ids {place}')
  _check_start(config, data.catalogue, place)
  config = dataclasses.replace(config, model=ids.fitted(config.model, data.catalogue))
  rows = draft_task.rows_of(config, data)
  written = beams.of(config, lm, data.catalogue, rows, layout)
  return loop.fit(draft_task.Draft(config, lm, data, rows, written), config)
