"""Training that continues from a model (--start), with its architecture, its tokenizer and its parameters in float32.

The optimizer, the schedule with its warm-up and the data are new, and the direction may be. Ids that a direction signal adds get
embedding rows initialised like those of a new model. Once the run has a checkpoint, the model of --start is not read again.
"""

from collections.abc import Collection
import dataclasses
from pathlib import Path
from typing import Any

import jax

import jaxlm
from jaxlm import config as configs
from jaxlm.config import SIGNAL_IDS, ModelConfig
from jaxlm.data import corpus
from jaxlm.io import checkpoint
from jaxlm.models import sharding
from jaxlm.models.transformer import init_params
from trainers import distributed
from trainers.config import ConfigError
from trainers.pretrain import task as language_modeling

OURS = ('dtype', 'remat', *configs.HOW, 'dropout')
"""Fields of a ModelConfig that say how the model is computed or trained; the run's values are used, not those of --start."""


def begin(config: Any, directory: str | Path, explicit: Collection[str] = ()) -> tuple[Any, Any, Any]:
  """Returns (config with the model's architecture, its tokenizer, its parameters on the run's devices).

  The parameters are None for a run that has a checkpoint already.

  Args:
    config: a PretrainConfig with a `start`.
    directory: the run directory.
    explicit: fields of `config.model` that the user set; all other fields come from the model.

  Raises:
    ConfigError: a setting does not fit the model; the message shows both values.
    CheckpointError: the model cannot be loaded.
  """
  directory, signal, name = Path(directory), config.reverse.signal, config.start
  explicit = set(explicit) - {
    *OURS,
    'direction',
    'direction_signal',
  }  # The latter are those of --direction and --reverse.signal.
  new, params = not checkpoint.steps(directory / 'checkpoints'), None
  if new:
    mesh = distributed.make_layout(config.mesh).mesh
    lm = jaxlm.load(name, 'float32', mesh)
    theirs, tokenizer = lm.config, _tokenizer(config.data, lm, name)
    added = _added_ids(theirs, signal, name)
  else:
    theirs = configs.model_config(checkpoint.run_config(directory)['model'])
    tokenizer, added = language_modeling.load_tokenizer(config.data, directory), 0
    explicit.discard('vocab_size')  # It was checked when the run began, and a signal may have added ids since.
  model = _agreed(config.model, theirs, explicit, name)
  model = model.replace(vocab_size=theirs.vocab_size + added, direction=config.direction, direction_signal=signal)
  config = dataclasses.replace(config, model=model)
  config.check_lengths()
  if new:
    params = _grown(lm.params, theirs, model, config.run.seed, mesh)
  return config, tokenizer, params


def _agreed(ours: ModelConfig, theirs: ModelConfig, explicit: Collection[str], name: str) -> ModelConfig:
  """Returns the model's config with the run's values of OURS. Raises ConfigError if another explicit field differs."""
  taken = {field: getattr(ours, field) for field in OURS}
  for field in sorted(explicit):
    mine, other = getattr(ours, field), getattr(theirs, field)
    if mine == other:
      continue
    if field == 'max_length' and not _counts_length(theirs):
      taken[field] = mine
      continue
    raise ConfigError(f'model.{field}={mine!r} does not fit --start {name}, whose {field} is {other!r}: leave it out.')
  return theirs.replace(**taken)


def _counts_length(config: ModelConfig) -> bool:
  """Returns whether the parameters or the outputs of the model depend on its max_length."""
  stretched = config.position == 'rope' and config.rope.scaling != 'none' and not config.rope.original_length
  return config.position == 'learned' or config.attention_offset == 'neg_log_n' or stretched


def _tokenizer(data: Any, lm: jaxlm.LanguageModel, name: str) -> Any:
  """Returns the model's tokenizer; for a model without one, that of data.tokenizer. Raises ConfigError if the two differ."""
  if data.tokenizer == 'train':
    if lm.tokenizer is None:
      raise ConfigError(f"--start {name} has no tokenizer: name its own with --data.tokenizer, or 'bytes'.")
    return lm.tokenizer
  named = language_modeling.named_tokenizer(data)
  if lm.tokenizer is None:
    if named.vocab_size > lm.config.vocab_size:
      raise ConfigError(
        f'data.tokenizer={data.tokenizer!r} has {named.vocab_size} ids, --start {name} only {lm.config.vocab_size}.'
      )
    return named
  if corpus.tokenizer_fingerprint(named) != corpus.tokenizer_fingerprint(lm.tokenizer):
    raise ConfigError(
      f'data.tokenizer={data.tokenizer!r} ({named.vocab_size} ids) is not the tokenizer of --start {name} '
      f'({lm.tokenizer.vocab_size} ids), which the run must use: leave --data.tokenizer out.'
    )
  return lm.tokenizer


def _added_ids(theirs: ModelConfig, signal: str, name: str) -> int:
  """Returns how many ids a signal adds to the model. Raises ConfigError if the model has another signal."""
  if signal in ('none', theirs.direction_signal):
    return 0
  if theirs.direction_signal != 'none':
    raise ConfigError(
      f'reverse.signal={signal!r} does not fit --start {name}, whose signal is {theirs.direction_signal!r}.'
    )
  return SIGNAL_IDS[signal]


def _grown(params: Any, old: ModelConfig, new: ModelConfig, seed: int, mesh: jax.sharding.Mesh) -> Any:
  """Returns parameters for `new`: the given ones, with rows from `init_params` for ids that the vocabulary gained."""
  if new.vocab_size == old.vocab_size:
    return params
  leaves, structure = jax.tree.flatten(params)
  shapes = jax.tree.leaves(jax.eval_shape(lambda: init_params(new, jax.random.key(seed))))
  differ = [i for i, (x, y) in enumerate(zip(leaves, shapes, strict=True)) if x.shape != y.shape]

  def rows(key, given):
    fresh = jax.tree.leaves(init_params(new, key))
    return [fresh[i].at[tuple(map(slice, x.shape))].set(x) for i, x in zip(differ, given, strict=True)]

  where = jax.tree.leaves(sharding.tree_shardings(jax.tree.unflatten(structure, shapes), mesh))
  made = jax.jit(rows, out_shardings=[where[i] for i in differ])(jax.random.key(seed), [leaves[i] for i in differ])
  for i, x in zip(differ, made):
    leaves[i] = x
  return jax.tree.unflatten(structure, leaves)
