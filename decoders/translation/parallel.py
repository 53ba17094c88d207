"""Translation with models that predict all target tokens at once (kinds nat and cmlm): what `decoders.translate` does for these.

Each source is decoded at its likeliest lengths side by side, and the translation with the highest mean log-probability of its tokens is
the best. The positions of a batch are those of its longest candidate, which is known after encoding: hence two programs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from decoders.programs import Clock
from decoders.translation import mask_predict
from decoders.translation import sources as source_lib
from decoders.translation.output import Translations, check_finite, texts
from jaxlm.lengths import bucket
from jaxlm.seq2seq_config import Seq2SeqConfig
from jaxlm.translation_model import Seq2SeqModel

LENGTH_BEAM = 5
"""Lengths that are tried for each source, unless the user says otherwise."""
AUTOREGRESSIVE = {
  'beam_size': None, 'length_penalty': 1.0, 'min_new_tokens': 0, 'early_stopping': 'never', 'recombine': False, 'sampling': None,
}  # fmt: skip
PARALLEL = {'length_beam': None, 'iterations': None, 'dedup': None}
"""Options of `decoders.translate` for one kind of model alone, with the values that say nothing."""


def check_options(config: Seq2SeqConfig, options: Mapping[str, Any]) -> None:
  """Raises ValueError for an option that was given and is of another kind of model."""
  foreign = AUTOREGRESSIVE if config.is_parallel else PARALLEL
  given = [name for name, value in foreign.items() if options[name] != value]
  if not given:
    return
  name = given[0]
  if config.is_parallel:
    raise ValueError(
      f'{name}={options[name]!r} is for models that write token by token, and this one has {config.kind=}: it predicts all tokens '
      'at once. Use length_beam (number of target lengths that are tried), iterations and dedup instead.'
    )
  raise ValueError(
    f"{name}={options[name]!r} is for models that predict all tokens at once (kind 'nat' or 'cmlm'), and this one writes token by "
    'token. Use beam_size and length_penalty instead.'
  )


def translate(
  model: Seq2SeqModel,
  sources: Sequence[str] | Sequence[Sequence[int]],
  *,
  length_beam: int | None,
  iterations: int | None,
  dedup: bool | None,
  max_new_tokens: int | None,
  num_return: int,
  batch_size: int | None,
  progress: Callable[[int], object] | None,
) -> Translations:
  """Translates each source; the arguments and errors are those of `decoders.translate`."""
  c = model.config
  _check(c, length_beam, iterations, dedup, max_new_tokens)
  candidates = 1 if c.nat.upsampling else min(LENGTH_BEAM, c.max_length) if length_beam is None else length_beam
  iterations = 1 if iterations is None else iterations
  if not 1 <= num_return <= candidates:
    raise ValueError(
      f'{num_return=} must be within 1 .. {candidates}, the number of lengths that are tried (length_beam).'
    )
  dedup = iterations == 1 if dedup is None else dedup
  collapsed = 'ctc' if c.nat.upsampling else 'runs' if dedup else 'none'
  ids = source_lib.encode(model, sources)
  if c.nat.upsampling:
    limits_B = np.array([c.nat.upsampling * len(row) for row in ids], np.int32)
  else:
    limits_B = source_lib.limits(c, ids, max_new_tokens)

  clock, steps, memory_bytes, words, repeated = Clock(), 0, 0, 0, 0
  tokens = np.full((len(ids), num_return, int(limits_B.max())), c.pad_id, np.int32)
  lengths, scores = np.zeros((len(ids), num_return), np.int32), np.zeros((len(ids), num_return), np.float32)
  for batch in source_lib.batches(c, ids, limits_B, batch_size or source_lib.BATCH_SIZE):
    n = len(batch.rows)
    arrays = (jnp.asarray(x) for x in (batch.tokens, batch.lengths, batch.limits))
    encoded = clock.run('encode', mask_predict.encode, model.params, *arrays, config=c, candidates=candidates)
    room = min(bucket(int(np.asarray(encoded.lengths).max())), c.target_positions)
    found = clock.run(
      'decode', mask_predict.decode, model.params, encoded, jnp.int32(iterations), config=c, room=room, num_return=num_return,
      collapsed=collapsed,
    )  # fmt: skip
    check_finite(model, batch.rows, np.asarray(found.finite)[:n])
    steps += iterations
    memory_bytes = max(memory_bytes, encoded.memory.nbytes)
    words, repeated = words + int(found.words[:n].sum()), repeated + int(found.repeated[:n].sum())
    lengths[batch.rows], scores[batch.rows] = found.lengths[:n], found.scores[:n]
    width = min(room, tokens.shape[2])
    tokens[batch.rows, :, :width] = found.tokens[:n, :, :width]
    if progress is not None:
      progress(n)
  lengths[scores == -np.inf] = 0
  tokens[np.arange(tokens.shape[2]) >= lengths[:, :, None]] = c.pad_id
  new_tokens, seconds = int(lengths[:, 0].sum()), clock.seconds
  stats = {
    'source_tokens': sum(map(len, ids)), 'new_tokens': new_tokens, 'steps': steps, 'encode_seconds': seconds['encode'],
    'decode_seconds': seconds['decode'], 'compile_seconds': clock.compile_seconds,
    'tokens_per_second': new_tokens / seconds['decode'] if seconds['decode'] else 0.0, 'state_bytes': 0,
    'memory_bytes': memory_bytes, 'recombined': 0, 'tokens_before_dedup': words, 'repeated_tokens': repeated,
    'repetition_ratio': repeated / max(words, 1),
  }  # fmt: skip
  tokens, lengths, scores = tokens.reshape(-1, tokens.shape[2]), lengths.reshape(-1), scores.reshape(-1)
  return Translations(tokens, lengths, texts(model, tokens, lengths), stats=stats, scores=scores)


def _check(c: Seq2SeqConfig, length_beam, iterations, dedup, max_new_tokens) -> None:
  """Raises ValueError for numbers out of range, and for options that this model has no use for."""
  if c.nat.upsampling:
    given = {'length_beam': length_beam, 'dedup': dedup, 'max_new_tokens': max_new_tokens}
    for name, value in given.items():
      if value is not None:
        raise ValueError(
          f'{name}={value!r} is for models that predict a length: this one has {c.nat.upsampling} positions for each source token, '
          'whose repetitions and blanks are removed (CTC). Leave the option out.'
        )
  if length_beam is not None and not 1 <= length_beam <= c.max_length:
    raise ValueError(f'{length_beam=} must be within 1 .. {c.max_length}, the longest target that the model writes.')
  if iterations is not None and iterations < 1:
    raise ValueError(f'{iterations=} must be at least 1.')
  if iterations not in (None, 1) and c.kind != 'cmlm':
    raise ValueError(
      f"{iterations=} needs a model that reads known tokens between masks (kind='cmlm'), and this one has {c.kind=}: use iterations=1."
    )
