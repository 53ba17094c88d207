"""Loads and saves Hugging Face directories: config.json, safetensors (one file, or shards with an index), a tokenizer.

Only safetensors are read, because a pickle runs code when it is opened. jaxlm.io.families has the names of config fields and
tensors.
"""

from collections.abc import Mapping
import json
import os
from pathlib import Path
import re
import shutil
from typing import Any
import warnings

import numpy as np

from jaxlm.config import ModelConfig
from jaxlm.errors import CheckpointError
from jaxlm.io import FROM_FILES, bert, families, gemma_families, marian, safetensors_files, weights
from jaxlm.io.fields import Fields
from jaxlm.seq2seq_config import Seq2SeqConfig

CONFIG, WEIGHTS, INDEX = 'config.json', 'model.safetensors', 'model.safetensors.index.json'
PICKLES = ('.bin', '.pt', '.pth', '.ckpt', '.pkl', '.pickle', '.msgpack', '.h5')
_TOKENIZER_FILES = (
  *('tokenizer.json', 'tokenizer.model', 'tokenizer_bytes.json', 'tokenizer_config.json', 'chat_template.jinja'),
  *('special_tokens_map.json', 'added_tokens.json', 'vocab.json', 'merges.txt'),
  *('source.spm', 'target.spm', 'target_vocab.json'),
)
# Fields of jaxlm that no family has; transformers keeps and ignores them.
_OWN = ('direction', 'direction_signal')
_SECOND_COPY = 'consolidated'  # the same weights under Mistral's own names


def load(directory: Path, dtype: str, mesh: Any = None, tokenizer: Any = FROM_FILES) -> tuple[Any, Any, Any]:
  """Returns (config, params, tokenizer or None); the config is a ModelConfig or, of an encoder-decoder, a Seq2SeqConfig.

  Raises:
    CheckpointError: a part that cannot be read or does not fit.
  """
  from jaxlm.data import tokenizers

  fields = Fields(read_json(directory / CONFIG), directory / CONFIG)
  if fields.get('model_type') == marian.MODEL_TYPE:
    return marian.load(directory, fields, find_tensors(directory), dtype, mesh, tokenizer)
  if fields.get('model_type') == bert.MODEL_TYPE:
    return bert.load(directory, fields, find_tensors(directory), dtype, mesh, tokenizer)
  multimodal = gemma_families.is_multimodal(fields)
  fields = gemma_families.text_fields(fields) if multimodal else fields
  family = families.family_of(fields)
  config = family.config(fields)
  try:
    config = config.replace(**{name: fields.get(name, getattr(config, name)) for name in _OWN})
  except ValueError as e:
    raise CheckpointError(f'{fields.source}: {e}') from e
  tokenizer = weights.own_tokenizer(lambda: tokenizers.from_directory(directory), tokenizer, config, directory)
  tensors = find_tensors(directory)
  config, tensors = _our_names(family, config, _text_part(tensors, directory) if multimodal else tensors)
  params = weights.load(config, family.entries(config), tensors, dtype, mesh)
  return config.replace(dtype=dtype), params, tokenizer


def read_json(path: Path) -> dict[str, Any]:
  """Returns the object in a JSON file. Raises CheckpointError naming the file."""
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except OSError as e:
    raise CheckpointError(f'{path} cannot be read: {e.strerror or e}.') from e
  except (ValueError, RecursionError) as e:
    raise CheckpointError(f'{path} is not readable JSON ({e}). Download or copy it again.') from e
  if not isinstance(value, dict):
    raise CheckpointError(f'{path} holds a {type(value).__name__}, not an object.')
  return value


def find_tensors(directory: Path) -> dict[str, safetensors_files.Tensor]:
  """Returns the tensors of a directory by name, without reading data. Raises CheckpointError that names a missing or damaged file."""
  index = directory / INDEX
  if index.is_file():
    shards = read_json(index).get('weight_map')
    if not isinstance(shards, dict) or not shards:
      raise CheckpointError(f'{index} has no "weight_map". Download or copy it again.')
    for name, file in shards.items():
      # A name with a slash could point to a file outside of the directory.
      if not isinstance(file, str) or not file.endswith('.safetensors') or re.search(r'[/\\\0]', file):
        raise CheckpointError(
          f'{index} says that {name!r} lies in {file!r}; expected the name of a .safetensors file beside it.'
        )
    files = sorted(set(shards.values()))
  else:
    shards = {}
    found = (p for p in directory.glob('*.safetensors') if p.is_file() and not p.name.startswith(_SECOND_COPY))
    found = sorted(p.name for p in found)
    files = [WEIGHTS] if (directory / WEIGHTS).is_file() else found
  if not files:
    raise no_weights(directory)
  tensors = {}
  for file in files:
    if not (directory / file).is_file():
      raise CheckpointError(f'{directory / file} is missing, but {index.name} names it. Download or copy it again.')
    tensors |= safetensors_files.read_header(directory / file)
  if missing := [name for name in shards if name not in tensors]:
    raise CheckpointError(f'{directory / shards[missing[0]]} has no tensor {missing[0]!r}, but {index.name} says so.')
  return tensors


def no_weights(directory: Path) -> CheckpointError:
  """Returns the error for a directory without safetensors."""
  pickled = sorted(p.name for p in directory.iterdir() if p.suffix in PICKLES)
  if pickled:
    return refuse_pickle(directory / pickled[0])
  only = ' consolidated.safetensors has names of its own, which are not read.' if _consolidated(directory) else ''
  return CheckpointError(f'{directory} has a {CONFIG} but no weights: expected {WEIGHTS}, or shards and {INDEX}.{only}')


def _consolidated(directory: Path) -> bool:
  return any(directory.glob(f'{_SECOND_COPY}*.safetensors'))


def refuse_pickle(path: Path) -> CheckpointError:
  return CheckpointError(
    f'{path} is not read: pickled weights run whatever code they contain. Weights are read from safetensors, GGUF and '
    'our own runs. Most models have a model.safetensors too; or convert it where you trust the file: '
    'transformers.AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR).'
  )


def _text_part(tensors: Mapping[str, safetensors_files.Tensor], directory: Path) -> dict[str, safetensors_files.Tensor]:
  """Returns the tensors of a multimodal model's text model by that model's own names, and warns of the rest."""
  found, others = gemma_families.text_tensors(tensors)
  if others:
    warnings.warn(
      f'{directory}: the text model is read; {len(others)} tensors of the image encoder are left out ({others[0]!r} ...).',
      stacklevel=2,
    )
  return found


def _our_names(
  family: families.Family, config: ModelConfig, tensors: Mapping[str, safetensors_files.Tensor]
) -> tuple[ModelConfig, dict[str, safetensors_files.Tensor]]:
  """Returns (config, tensors) with variants of tensor names replaced by the family's standard names."""
  based = any(name.startswith(family.base) for name in tensors)
  ignored = [name for name in tensors if family.ignores(name, based)]
  if ignored:
    more = f' and {len(ignored) - 1} more' if len(ignored) > 1 else ''
    file = tensors[ignored[0]].file
    warnings.warn(
      f'{file}: {ignored[0]!r}{more} left out: {family.model_type} models have no use for it.', stacklevel=2
    )
  tensors = {name: tensor for name, tensor in tensors.items() if name not in set(ignored)}
  if not based:  # saved from the model without its output layer
    tensors = {name if name == family.head else family.base + name: tensor for name, tensor in tensors.items()}
  embed = family.base + family.table['embed/embedding'][0]
  if config.tied_embeddings and family.head in tensors:
    # A file may have both tensors although embeddings are tied. If they differ, they are not tied; if equal, one is dropped.
    if embed in tensors and not _equal(tensors[embed], tensors[family.head]):
      return config.replace(tied_embeddings=False), tensors
    head = tensors.pop(family.head)
    tensors.setdefault(embed, head)
  return config, tensors


def _equal(a: safetensors_files.Tensor, b: safetensors_files.Tensor) -> bool:
  if a.shape != b.shape or len(a.shape) != 2:
    return False
  step = max(1, weights.BLOCK_BYTES // (4 * max(a.shape[1], 1)))
  spans = ((i, min(i + step, a.shape[0])) for i in range(0, a.shape[0], step))
  return all(np.array_equal(a.rows(*span), b.rows(*span)) for span in spans)


def save(
  config: ModelConfig | Seq2SeqConfig,
  params: Any,
  tokenizer: Any,
  directory: str | Path,
  *,
  max_shard_size: int | str = '5GB',
  overwrite: bool = False,
) -> None:
  """Writes a directory that transformers loads; see jaxlm.save_huggingface.

  All files are first written to a folder inside `directory` and then moved into place, config.json last. So an interrupted
  save leaves the old model, or a directory without config.json, which does not load.
  """
  directory = Path(directory).expanduser()
  ids = _token_ids(tokenizer)
  if isinstance(config, Seq2SeqConfig):
    own, names = marian.write_config(config), (marian.ARCHITECTURE, marian.MODEL_TYPE)
    pending, generation = (
      marian.pending(config, params),
      {name: own[name] for name in own if name.endswith('_id') or name == 'bad_words_ids'},
    )
  else:
    family = families.choose(config)
    own, names = {**family.write(config), **ids}, (family.architecture, family.model_type)
    own |= {name: getattr(config, name) for name in _OWN if config.direction != 'forward'}
    pending, generation = weights.pending(config, family.entries(config), params), {**ids, **_stops(tokenizer)}
  limit = parse_size(max_shard_size)
  ours = lambda: [p for n in (CONFIG, INDEX, 'model*.safetensors') for p in sorted(directory.glob(n))]
  if not overwrite and (found := ours()):
    raise _exists(found)
  directory.mkdir(parents=True, exist_ok=True)
  staging = directory / f'.saving-{os.getpid()}'
  shutil.rmtree(staging, ignore_errors=True)
  staging.mkdir()
  try:
    _write_weights(staging, pending, limit)
    if tokenizer is not None:
      tokenizer.save(staging)
    dtypes = {str(tensor.dtype) for tensor in pending}
    dtype = dtypes.pop() if len(dtypes) == 1 else 'float32'
    fields = {'architectures': [names[0]], 'model_type': names[1], 'dtype': dtype}
    fields |= {'torch_dtype': dtype, **own}  # dtype for transformers 5, torch_dtype for 4
    _write_json(staging / 'generation_config.json', generation)
    _write_json(staging / CONFIG, fields)
    new = sorted((p for p in staging.iterdir()), key=lambda p: p.name == CONFIG)
    if not overwrite and (found := [directory / p.name for p in new if (directory / p.name).exists()]):
      raise _exists(found)
    (directory / CONFIG).unlink(missing_ok=True)  # The directory does not load until all files are moved.
    # Old shards and tokenizer files are deleted; otherwise they would become part of the new model.
    for old in [*ours(), *(directory / name for name in _TOKENIZER_FILES)]:
      old.unlink(missing_ok=True)
    for path in new:
      os.replace(path, directory / path.name)
  finally:
    shutil.rmtree(staging, ignore_errors=True)


def parse_size(size: int | str) -> int:
  """Returns the number of bytes of a size such as 1000, '200MB', '5GB' or '2GiB'. Raises ValueError for other forms."""
  match = re.fullmatch(r'(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?', str(size).strip(), re.IGNORECASE)
  if not match or not float(match[1]):
    raise ValueError(f"max_shard_size={size!r} is not a size; write bytes, or '200MB', '5GB', '2GiB'.")
  base = 1024 if match[3] else 1000
  return int(float(match[1]) * base ** ' KMGT'.index(match[2].upper() or ' '))


def _write_weights(directory: Path, pending: list[safetensors_files.Pending], limit: int) -> None:
  shards: list[list[safetensors_files.Pending]] = [[]]
  for tensor in pending:
    if shards[-1] and sum(t.nbytes for t in shards[-1]) + tensor.nbytes > limit:
      shards.append([])
    shards[-1].append(tensor)
  if len(shards) == 1:
    return safetensors_files.write(directory / WEIGHTS, pending)
  index = {'metadata': {'total_size': sum(t.nbytes for t in pending)}, 'weight_map': {}}
  for i, shard in enumerate(shards):
    file = f'model-{i + 1:05d}-of-{len(shards):05d}.safetensors'
    safetensors_files.write(directory / file, shard)
    index['weight_map'] |= {tensor.name: file for tensor in shard}
  _write_json(directory / INDEX, index)


def _token_ids(tokenizer: Any) -> dict[str, int | None]:
  # Unknown ids are written as null, because a family's default ids may lie outside of this model's vocabulary.
  return {f'{name}_token_id': getattr(tokenizer, f'{name}_id', None) for name in ('bos', 'eos', 'pad')}


def _stops(tokenizer: Any) -> dict[str, Any]:
  stops = list(getattr(tokenizer, 'stop_ids', ()))
  return {'eos_token_id': stops} if len(stops) > 1 else {}


def _exists(found: list[Path]) -> FileExistsError:
  names = ', '.join(path.name for path in found)
  return FileExistsError(f'{found[0].parent} already holds {names}: pass overwrite=True, or another directory.')


def _write_json(path: Path, value: Any) -> None:
  path.write_text(json.dumps(value, indent=2) + '\n', encoding='utf-8')
