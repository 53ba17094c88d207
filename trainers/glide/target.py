"""Opens the target of a draft. A run that names none trains a small one first, with a preset of trainers.pretrain."""

import dataclasses
from pathlib import Path
from typing import Any

import jaxlm
from jaxlm.data.corpus import tokenizer_fingerprint
from jaxlm.errors import CheckpointError, unknown
from jaxlm.glide_config import GlideConfig, Target
from jaxlm.io import checkpoint
from jaxlm.language_model import LanguageModel
from trainers import pretrain
from trainers.config import ConfigError
from trainers.glide.config import GlideTrainConfig


def named(config: GlideTrainConfig, directory: str | Path) -> GlideTrainConfig:
  """Returns the config with the name of its target. Without one, the target is trained first, or its training is resumed.

  Raises:
    ConfigError: `target_preset` is not a preset of trainers.pretrain.
    CheckpointError, DivergedError, trainers.loop.Stopped: as trainers.pretrain.main.
  """
  if config.target is not None:
    return config
  if config.target_preset not in pretrain.PRESETS:
    raise unknown('target_preset', config.target_preset, pretrain.PRESETS, ConfigError)
  place = Path(f'{directory}-target')
  preset = pretrain.PRESETS[config.target_preset][1]
  if checkpoint.steps(place / 'checkpoints')[-1:] != [preset.run.steps]:
    print(
      f'No --target is given: training a small one in {place} (python -m trainers.pretrain {config.target_preset}).'
    )
    pretrain.main(dataclasses.replace(preset, run=dataclasses.replace(preset.run, directory=str(place))))
  return dataclasses.replace(config, target=str(place))


def load(config: GlideTrainConfig, directory: str | Path, mesh: Any = None) -> LanguageModel:
  """Returns the target. `mesh`: devices over which its parameters are sharded as they are read; None: the default device.

  Raises:
    CheckpointError: it cannot be loaded.
    ConfigError: it is not a language model that continues texts, or it has no tokenizer.
  """
  name = config.target
  try:
    lm = jaxlm.load(name, config.target_dtype, mesh)
  except CheckpointError as e:
    hint = ''
    if (Path(directory) / 'config.json').exists():
      before = checkpoint.run_config(directory).get('target')
      hint = f' The run in {directory} was begun with the target {before}; if it has moved, pass --target with its new place.'
    raise CheckpointError(f'--target {name}: {e}{hint}') from e
  if not isinstance(lm, LanguageModel):
    raise ConfigError(f'--target {name} is a {type(lm).__name__}; a draft needs a decoder-only language model.')
  c = lm.config
  if not c.causal or c.prefix or c.direction == 'reverse':
    raise ConfigError(
      f'--target {name} has causal={c.causal}, prefix={c.prefix} and direction={c.direction!r}; a draft needs a model that reads '
      'texts forward, and whose tokens see only earlier ones.'
    )
  if c.direction_signal != 'none':
    raise ConfigError(
      f'--target {name} marks the direction of a text with direction_signal={c.direction_signal!r}, which the training of drafts does not '
      'know; a draft needs a model without it.'
    )
  if lm.tokenizer is None:
    raise ConfigError(
      f'--target {name} has no tokenizer, which a draft shares: put its tokenizer files into that folder.'
    )
  if config.data.length > c.max_length:
    raise ConfigError(f'data.length={config.data.length} is longer than --target {name} reads: {c.max_length} tokens.')
  return lm


def draft_config(config: GlideTrainConfig, lm: LanguageModel) -> GlideConfig:
  """Returns the draft's config with its target. Raises ConfigError if the draft does not fit it."""
  fields = {field.name: getattr(config.model, field.name) for field in dataclasses.fields(GlideConfig)}
  target = Target(config.target, lm.config, tokenizer_fingerprint(lm.tokenizer))
  try:
    return GlideConfig(**fields | {'target': target})
  except ValueError as e:
    raise ConfigError(f'The draft does not fit --target {config.target}: {e}') from e
