"""Token losses of a language model in both directions, the ids before and after a text, and a digest of the weights."""

from collections.abc import Sequence
import functools
import hashlib
import json
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import caches, losses
from jaxlm import config as configs
from jaxlm.analysis.direction.rows import Ends, Nll, Rows
from jaxlm.config import ModelConfig
from jaxlm.data import directions
from jaxlm.language_model import LanguageModel
from jaxlm.models import functions


def token_losses(
  lm: LanguageModel,
  reverse_lm: LanguageModel | None = None,
  devices: Sequence[jax.Device] | None = None,
  only: Literal['forward', 'reverse'] | None = None,
) -> Nll:
  """Returns a function that computes the losses of rows with `lm`, and of reversed rows with `reverse_lm` if it is given.

  Rows are split over the devices (None: all local ones); parameters are replicated. One program computes both directions.
  With `only`, `lm` computes this direction alone, and the losses returned for the other direction are meaningless.

  Raises:
    ValueError: a prefix LM, or a model that is not causal: its tokens see the tokens that they should predict.
  """
  models = [lm] if reverse_lm is None else [lm, reverse_lm]
  for m in models:
    m.config.check_causal('A loss token by token')
  if prefixes := [m.config.prefix for m in models if m.config.prefix]:
    raise ValueError(f'A prefix LM (prefix={prefixes[0]}) sees its first tokens at once: it cannot be scored with.')
  mesh = jax.sharding.Mesh(np.array(jax.local_devices() if devices is None else devices), ('data',))
  params = jax.device_put([m.params for m in models], jax.NamedSharding(mesh, jax.P()))
  rows = jax.NamedSharding(mesh, jax.P('data'))

  def nll(forward: Rows, reverse: Rows):
    if only is not None:
      some = jax.device_put(forward if only == 'forward' else reverse, rows)
      return (_single(params[0], some, config=lm.config),) * 2
    return _both(params, *jax.device_put((forward, reverse), rows), models=tuple(m.config for m in models))

  return nll


@functools.partial(jax.jit, static_argnames='models')
def _both(params: list, forward: Any, reverse: Any, *, models: tuple[ModelConfig, ...]):
  if len(models) == 2:
    return tuple(_one(*of) for of in zip(params, (forward, reverse), models))
  # The directions run one after the other: memory holds the activations of one, and its program is compiled once.
  both = jax.tree.map(lambda a, b: jnp.stack([a, b]), forward, reverse)
  return tuple(jax.lax.map(lambda rows: _one(params[0], rows, models[0]), both))


def _one(params, rows, config: ModelConfig):
  """Returns -log p of rows['targets'], float32 [B, T]."""
  cache = caches.Sequence(rows['segments'])
  hidden_BTD, _ = functions.hidden(params, config, rows['tokens'], rows['positions'], cache)
  matrix_DV = functions.output_matrix(params, config)
  return losses.token_nll(hidden_BTD, matrix_DV, rows['targets'], softcap=config.logit_softcap)


_single = jax.jit(_one, static_argnames='config')


def ends(
  lm: LanguageModel, reverse_lm: LanguageModel | None = None, bos_id: int | None = None, eos_id: int | None = None
) -> Ends:
  """Returns the ids before and after a text: BOS and EOS of the tokenizer, or `bos_id` and `eos_id`, and direction signals.

  If only one of BOS and EOS exists, it is used for both.

  Raises:
    ValueError: neither BOS nor EOS exists.
  """
  bos = getattr(lm.tokenizer, 'bos_id', None) if bos_id is None else bos_id
  eos = getattr(lm.tokenizer, 'eos_id', None) if eos_id is None else eos_id
  bos, eos = (eos if bos is None else bos), (bos if eos is None else eos)
  if bos is None:
    raise ValueError(
      'Scoring needs a token that stands before a text and one after it; the model has neither BOS nor EOS'
      + ('' if lm.tokenizer is not None else ', for it has no tokenizer: give bos_id and eos_id')
      + '.'
    )
  begins = lambda c, way: tuple(directions.head(way, c.direction_signal, bos, c.vocab_size))
  return Ends(begins(lm.config, 'forward'), begins((reverse_lm or lm).config, 'reverse'), eos)


def doubt(lm: LanguageModel, reverse_lm: LanguageModel | None = None) -> str:
  """Returns the reason why the two losses may not be comparable, or '' if there is none."""
  of = lm.config.direction
  if reverse_lm is None and of != 'both':
    return (
      f'The model was trained on {of} text only, according to its config: the difference of its losses shows how '
      'unfamiliar the other direction is, not which direction suits a text. Use a model trained on both, or two models.'
    )
  if reverse_lm is not None and (of == 'reverse' or reverse_lm.config.direction == 'forward'):
    return (
      f'--model was trained on {of} text and --reverse-model on {reverse_lm.config.direction} text, according to their configs; '
      'expected forward and reverse (or both).'
    )
  return ''


def digest(lm: LanguageModel) -> str:
  """Returns a digest of a model's config and of a sample of every parameter; any training changes it."""
  hashed = hashlib.sha256(json.dumps(configs.computing_fields(lm.config), sort_keys=True).encode())
  for path, x in jax.tree_util.tree_leaves_with_path(lm.params):
    hashed.update(f'{jax.tree_util.keystr(path)} {x.shape} {x.dtype}'.encode())
    hashed.update(np.asarray(jnp.ravel(x)[:: max(1, x.size // 1024)]).tobytes())
  return hashed.hexdigest()[:16]
