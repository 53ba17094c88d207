"""LanguageModel (config, parameters and tokenizer), and how it is loaded and saved."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
import re
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from jaxlm.config import ModelConfig
from jaxlm.errors import CheckpointError, DataError
from jaxlm.io import FROM_FILES
from jaxlm.models.transformer import Transformer
from jaxlm.seq2seq_config import Seq2SeqConfig
from jaxlm.translation_model import Seq2SeqModel

if TYPE_CHECKING:
  from jaxtyping import Array, Float, Int

DTYPES = ('float32', 'bfloat16', 'float16')
KINDS = (
  'a run directory of ours (config.json and checkpoints/), a Hugging Face directory (config.json and *.safetensors), '
  'a .gguf file, a fetched name, or a Hub id ORG/NAME'
)


@dataclasses.dataclass(frozen=True)
class LanguageModel:
  """A decoder-only transformer with its parameters and, when it has one, its tokenizer."""

  config: ModelConfig
  params: Any
  tokenizer: Any = None

  def __repr__(self) -> str:
    c, size = self.config, sum(x.size for x in jax.tree.leaves(self.params))
    tokenizer = 'no tokenizer' if self.tokenizer is None else type(self.tokenizer).__name__
    return (
      f'LanguageModel({c.num_layers} layers x {c.model_dim}, {size / 1e6:.1f} M parameters, vocabulary {c.vocab_size}, '
      f'{c.dtype}, {tokenizer})'
    )


@functools.partial(jax.jit, static_argnames='config')
def _forward(params, tokens, *, config):
  return Transformer(config).apply({'params': params}, tokens)[0]


def forward(lm: LanguageModel, tokens: Int[Array, 'B T']) -> Float[Array, 'B T V']:
  """Returns the float32 logits of a full forward pass, compiled once per shape. Pad shorter rows on the right, with any id."""
  return _forward(lm.params, jnp.asarray(tokens), config=lm.config)


def load(
  path: str | Path, dtype: str | None = None, mesh: jax.sharding.Mesh | None = None, *, tokenizer: Any = FROM_FILES
) -> LanguageModel:
  """Returns a model from a run directory, a Hugging Face directory, a .gguf file, a fetched name or a Hub id.

  A run directory gives the type of model that its trainer makes (jaxlm.models.registry), a Marian directory (OPUS-MT) a
  Seq2SeqModel; all others give a LanguageModel.

  Loading needs host memory for the parameters and one block of a tensor.

  Args:
    path: see above; a local path is tried before a name.
    dtype: dtype of parameters and computation; None: float32 on a CPU, bfloat16 on an accelerator.
    mesh: devices over which each tensor is sharded as it is read (jaxlm.models.sharding); None: the default device.
    tokenizer: replaces the model's tokenizer, whose files are then not read; None: the model has no tokenizer.

  Raises:
    CheckpointError: the path does not exist, is not a model, is truncated, corrupt or pickled, belongs to a model family that
      is not supported, or does not fit its config or tokenizer. The message names the file, and the parameter or field.
    ValueError: an unknown dtype.
  """
  if dtype is None:
    dtype = 'float32' if jax.default_backend() == 'cpu' else 'bfloat16'
  if dtype not in DTYPES:
    raise ValueError(f'{dtype=} is not one of {", ".join(DTYPES)}, or None.')
  place = Path(path).expanduser()
  if not place.exists():
    place = _find(str(path))
  if not place.is_dir():
    return LanguageModel(*_load_file(place, dtype, mesh, tokenizer))
  return _load_directory(place, dtype, mesh, tokenizer)


def named_tokenizer(name: str | None) -> Any:
  """Returns what a command's --tokenizer means, as the `tokenizer` of `load`: None is the model's own, 'none' is none at all.

  Args:
    name: None, 'none', 'bytes' for the 259 ids of `ByteTokenizer`, or where a tokenizer lies: a folder, a tokenizer.json or a
      SentencePiece .model file.

  Raises:
    ValueError: nothing is there, or it holds no tokenizer; the message names it.
  """
  from jaxlm.data import tokenizers

  if name is None:
    return FROM_FILES
  if name == 'none':
    return None
  if name == 'bytes':
    return tokenizers.ByteTokenizer()
  path = Path(name).expanduser()
  if path.is_file():
    found = tokenizers.from_sentencepiece(path) if path.suffix == '.model' else tokenizers.from_directory(path.parent)
    found = found if path.suffix == '.model' or path.name == 'tokenizer.json' else None
  else:
    found = tokenizers.from_directory(path) if path.is_dir() else None
  if found is None:
    raise ValueError(
      f'tokenizer={name!r} holds no tokenizer: expected a folder with one, a tokenizer.json, a SentencePiece .model file, '
      "'bytes', or 'none'."
    )
  return found


def _load_directory(place: Path, dtype: str, mesh, tokenizer) -> Any:
  from jaxlm.io import huggingface

  config = place / huggingface.CONFIG
  files = sorted(p for p in place.iterdir() if p.is_file())
  if _is_run(place, files):
    from jaxlm.io import checkpoint

    load_tokenizer = None if tokenizer is FROM_FILES else lambda folder: tokenizer
    make = checkpoint.run_kind(place).result or LanguageModel
    return make(*checkpoint.load_run(place, dtype=dtype, mesh=mesh, load_tokenizer=load_tokenizer))
  if config.is_file():
    config, *parts = huggingface.load(place, dtype, mesh, tokenizer)
    return Seq2SeqModel(config, *parts) if isinstance(config, Seq2SeqConfig) else LanguageModel(config, *parts)
  if len(found := [p for p in files if p.suffix == '.gguf']) == 1:
    return LanguageModel(*_load_file(found[0], dtype, mesh, tokenizer))
  if found:
    raise CheckpointError(f'{place} holds {len(found)} GGUF files; name one of them: {", ".join(map(str, found))}.')
  if any(p.suffix == '.safetensors' for p in files):
    raise CheckpointError(f'{place} has weights but no {config.name}, which says what model they are of.')
  if pickled := [p for p in files if p.suffix in huggingface.PICKLES]:
    raise huggingface.refuse_pickle(pickled[0])
  raise CheckpointError(f'{place} is not a model. Expected {KINDS}.')


def _is_run(place: Path, files: list[Path]) -> bool:
  """Returns whether a directory is a run of jaxlm's trainers.

  A folder "checkpoints" or a field "model" alone does not prove it: other programs use these names too.
  """
  from jaxlm.io import huggingface

  config = place / huggingface.CONFIG
  if not config.is_file():
    return (place / 'checkpoints').is_dir() and not any(p.suffix in ('.gguf', '.safetensors') for p in files)
  fields = huggingface.read_json(config)
  return 'model_type' not in fields and isinstance(fields.get('model'), dict)


def _load_file(place: Path, dtype: str, mesh, tokenizer) -> tuple[ModelConfig, Any, Any]:
  from jaxlm.io import gguf, huggingface

  if place.suffix in huggingface.PICKLES:
    raise huggingface.refuse_pickle(place)
  if place.suffix == '.safetensors':
    raise CheckpointError(f'{place} holds weights only: load its directory, where config.json should be.')
  if place.suffix == '.gguf' or place.open('rb').read(4) == b'GGUF':
    return gguf.load(place, dtype, mesh, tokenizer)
  raise CheckpointError(f'{place} is not a model. Expected {KINDS}.')


def _find(name: str) -> Path:
  """Returns the local path of a fetched name or a Hub id. Raises CheckpointError that says what was tried."""
  import difflib

  from jaxlm.data import fetch

  names = fetch.models()
  if name in names:
    try:
      place = fetch.verified(name)
    except DataError as e:
      raise CheckpointError(str(e)) from e
    if place is not None:
      return place
    raise CheckpointError(f'{name!r} has not been fetched yet: python -m jaxlm.data.fetch {name}')
  # If the part before the slash is a local folder, the name is a mistyped path and not a Hub id.
  if re.fullmatch(r'[\w-][\w.-]*/[\w-][\w.-]*', name) and not Path(name.split('/')[0]).exists():
    return _from_hub(name)
  near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
  hint = f' Did you mean {near[0]!r}?' if near else ''
  raise CheckpointError(
    f'There is no model at {name!r}.{hint} Expected {KINDS}. Names that can be fetched: {", ".join(names)}.'
  )


def _from_hub(name: str) -> Path:
  try:
    import huggingface_hub
  except ImportError as e:
    raise CheckpointError(
      f'There is no model at {name!r}, and to try it as a Hub id needs huggingface_hub: pip install jaxlm[hub]. '
      f'Otherwise expected {KINDS}.'
    ) from e
  try:
    return Path(
      huggingface_hub.snapshot_download(
        name,
        allow_patterns=['*.json', '*.safetensors', '*.model', '*.jinja', 'merges.txt'],
        # Subfolders hold the weights in other formats; consolidated.safetensors is a second copy of them.
        ignore_patterns=['*/*', 'consolidated*.safetensors'],
      )
    )
  except Exception as e:  # Errors of the Hub client, of its HTTP library and of the operating system.
    raise CheckpointError(
      f'There is no model at {name!r} here, and as a Hub id it could not be had ({type(e).__name__}: {e}). '
      f'Expected {KINDS}.'
    ) from e


def save_huggingface(
  lm: LanguageModel, path: str | Path, *, max_shard_size: int | str = '5GB', overwrite: bool = False
) -> None:
  """Writes config.json, safetensors and tokenizer files into a directory that transformers and `load` can read.

  Parameters keep their dtype. Files that were in the directory before stay unchanged until everything is written.

  Args:
    path: directory; it is created if it does not exist.
    max_shard_size: weights larger than this are split into several files ('5GB', '200MB', or a number of bytes).
    overwrite: replaces a model that is already in the directory, its tokenizer included.

  Raises:
    ValueError: no model family can represent the config; the message names the fields.
    FileExistsError: the directory holds a model already and `overwrite` is False.
  """
  from jaxlm.io import huggingface

  huggingface.save(lm.config, lm.params, lm.tokenizer, path, max_shard_size=max_shard_size, overwrite=overwrite)
