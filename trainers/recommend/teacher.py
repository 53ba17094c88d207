"""Opens the target of a draft."""

from typing import Any

import jaxlm
from jaxlm.data.catalogue import Catalogue
from jaxlm.errors import CheckpointError
from jaxlm.io import checkpoint
from jaxlm.language_model import LanguageModel
from trainers.config import ConfigError
from trainers.recommend.config import DraftConfig


def load(config: DraftConfig, mesh: Any = None) -> LanguageModel:
  """Returns the target. `mesh`: devices over which its parameters are sharded as they are read; None: the default device.

  Raises:
    CheckpointError: it cannot be loaded.
    ConfigError: it is no recommender.
  """
  try:
    lm = jaxlm.load(config.target, config.target_dtype, mesh)
  except CheckpointError as e:
    raise CheckpointError(f'--target {config.target}: {e}') from e
  if not isinstance(lm, LanguageModel) or not isinstance(lm.tokenizer, Catalogue):
    raise ConfigError(
      f'--target {config.target} is no run of a recommender: train one with python -m trainers.recommend target.'
    )
  return lm


def ids_of(target: str) -> str:
  """Returns the run of stage ids with which a target was trained. Raises ConfigError if its config does not say."""
  found = checkpoint.run_config(target).get('ids')
  if not isinstance(found, str):
    raise ConfigError(f'--target {target} does not say which run of stage ids it was trained with: pass --ids.')
  return found
