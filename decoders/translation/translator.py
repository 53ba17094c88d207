"""The function that translates: it sorts the sources into batches, lets the programs decode them, and tells what happened."""

from collections.abc import Callable, Sequence
import math

import jax
import jax.numpy as jnp
import numpy as np

from decoders.beam.config import BeamConfig, EarlyStopping, check_early_stopping
from decoders.options import Sampling
from decoders.programs import Clock
from decoders.state import row_keys
from decoders.translation import parallel, programs
from decoders.translation import sources as source_lib
from decoders.translation.output import Translations, check_finite, texts
from jaxlm.errors import check_seed
from jaxlm.seq2seq_config import Seq2SeqConfig
from jaxlm.translation_model import Seq2SeqModel

BEAM_SIZE = 4
"""Hypotheses of a beam search, unless the user says otherwise."""


def translate(
  model: Seq2SeqModel,
  sources: Sequence[str] | Sequence[Sequence[int]],
  *,
  beam_size: int | None = None,
  length_penalty: float = 1.0,
  max_new_tokens: int | None = None,
  min_new_tokens: int = 0,
  num_return: int = 1,
  early_stopping: EarlyStopping = 'never',
  recombine: bool = False,
  sampling: Sampling | None = None,
  seed: int = 0,
  batch_size: int | None = None,
  progress: Callable[[int], object] | None = None,
  length_beam: int | None = None,
  iterations: int | None = None,
  dedup: bool | None = None,
) -> Translations:
  """Translates each source. A translation does not depend on the other sources, but for the rounding of sums.

  A model writes token by token, or predicts all tokens at once (kinds nat and cmlm of `jaxlm.seq2seq_config`); beam_size,
  length_penalty, min_new_tokens, early_stopping, recombine and sampling are for the former, length_beam, iterations and dedup for
  the latter. Rows of the latter hold no EOS, and their score is the mean log-probability of the predicted positions.

  Args:
    model: an encoder-decoder.
    sources: strings when the model has a tokenizer, or lists of token ids without EOS; they may differ in length.
    beam_size: hypotheses that run side by side for each source; 1 is greedy decoding, or sampling; None: 4.
    length_penalty: hypotheses are compared by sum of log-probabilities / length ** length_penalty, where the length counts the
      EOS, as in transformers. 0 compares sums, more favours long translations; it may be negative.
    max_new_tokens: most tokens to generate for each source, EOS included; None: twice the tokens of the source and 20 more, at
      most the model's max_length.
    min_new_tokens: fewest tokens before the EOS.
    num_return: translations of each source, the best first; at most beam_size, or length_beam.
    early_stopping: when the search of a source ends, once it has beam_size finished hypotheses. 'never': when no running one can
      still beat them, which is exact. False, the default of transformers: when none would if it ended now, which takes fewer
      steps. True: at once. A beam of 1 ends with its first EOS.
    recombine: of running hypotheses with the same last k ids only the best goes on, so that beams stay distinct; exact, and
      for models of exact Markov order k alone.
    sampling: how tokens are drawn with beam_size=1; None: the likeliest are taken.
    seed: for sampling; the same seed gives a source the same tokens at any batch size.
    batch_size: sources decoded together; None: 64.
    progress: called with the number of sources of each batch when it is translated.
    length_beam: target lengths, the likeliest ones, at which each source is decoded side by side; None: 5.
    iterations: passes of the decoder. After the first, each pass predicts anew the tokens with the lowest probabilities, fewer each
      time (mask-predict, for kind cmlm); None: 1.
    dedup: whether a run of equal tokens becomes one token; None: after a single pass, but not after several. Models with upsampling
      remove repetitions and blanks as CTC does.

  Raises:
    ValueError: a source that is empty, longer than the model reads or has ids outside the vocabulary; a number out of its range;
      sampling with a beam; recombination for a model whose order is not exact; a model that is no encoder-decoder; an option that
      the kind of model has no use for.
    NotFiniteError: for logits that are not numbers.
  """
  c = model.config
  if not isinstance(c, Seq2SeqConfig):
    raise ValueError(f'Translation needs an encoder-decoder (Seq2SeqModel), not a {type(model).__name__}.')
  options = {
    'beam_size': beam_size, 'length_penalty': length_penalty, 'min_new_tokens': min_new_tokens, 'early_stopping': early_stopping,
    'recombine': recombine, 'sampling': sampling, 'length_beam': length_beam, 'iterations': iterations, 'dedup': dedup,
  }  # fmt: skip
  parallel.check_options(c, options)
  beam_size = BEAM_SIZE if beam_size is None else beam_size
  values = {} if sampling is None else sampling.active
  check_seed('seed', seed)
  if beam_size < 1 or (batch_size is not None and batch_size < 1):
    raise ValueError(f'{beam_size=} and {batch_size=} must be at least 1.')
  if c.is_parallel:
    return parallel.translate(
      model, sources, length_beam=length_beam, iterations=iterations, dedup=dedup, max_new_tokens=max_new_tokens,
      num_return=num_return, batch_size=batch_size, progress=progress,
    )  # fmt: skip
  if not 1 <= num_return <= beam_size:
    raise ValueError(f'{num_return=} must be within 1 .. {beam_size=}: a beam has no further hypotheses.')
  if not math.isfinite(length_penalty):
    raise ValueError(f'{length_penalty=} must be a finite number.')
  if values and beam_size > 1:
    raise ValueError(f'{sampling} draws tokens, which needs beam_size=1, not {beam_size=}.')
  if recombine and not c.is_markov:
    raise ValueError(
      'recombine=True needs a model that predicts a token from exactly its last k tokens (markov_order=k with '
      f"markov_mode='transparent', 'split' or 'unroll'). This one has {c.markov_order=} and {c.markov_mode=}, so that "
      'hypotheses with the same last tokens have different futures: leave recombine off.'
    )
  check_early_stopping(early_stopping)
  ids = source_lib.encode(model, sources)
  limits_B = source_lib.limits(c, ids, max_new_tokens)
  if not 0 <= min_new_tokens < limits_B.min():
    raise ValueError(
      f'{min_new_tokens=} must be within 0 .. {int(limits_B.min()) - 1}: with the EOS a source may have '
      f'{int(limits_B.min())} tokens.'
    )
  # A beam of one ends with its first EOS: whatever runs beside it is a worse guess.
  beams = BeamConfig(
    beam_size, (c.eos_id,), (c.pad_id,), early_stopping if beam_size > 1 else True, c.markov_order if recombine else 0
  )
  keys_B, values = row_keys(seed, 0, len(ids)) if values else None, jax.tree.map(jnp.asarray, values)
  clock, steps, state_bytes, memory_bytes, recombined = Clock(), 0, 0, 0, 0
  tokens = np.full((len(ids), num_return, int(limits_B.max())), c.pad_id, np.int32)
  lengths, scores = np.zeros((len(ids), num_return), np.int32), np.zeros((len(ids), num_return), np.float32)
  for batch in source_lib.batches(c, ids, limits_B, batch_size or source_lib.BATCH_SIZE):
    B, room = len(batch.lengths), batch.room
    memory = clock.run(
      'encode', programs.encode, model.params, jnp.asarray(batch.tokens), jnp.asarray(batch.lengths), config=c
    )
    rules = (jnp.asarray(batch.limits), jnp.float32(length_penalty), jnp.int32(min_new_tokens))
    if values:
      keys = keys_B[batch.filled(np.arange(len(ids)))]
      found = clock.run('decode', programs.sample, model.params, memory, *rules, keys, values, config=c, room=room)
    else:
      found = clock.run('decode', programs.beam, model.params, memory, *rules, config=c, beams=beams, room=room)
    n = len(batch.rows)
    check_finite(model, batch.rows, np.asarray(found.finite)[:n])
    steps += int(found.steps)
    recombined += int(found.recombined[:n].sum())
    state_bytes = max(state_bytes, programs.state_bytes(c, B, room, beam_size))
    memory_bytes = max(memory_bytes, memory.nbytes)
    lengths[batch.rows] = found.lengths[:n, :num_return]
    scores[batch.rows] = found.scores[:n, :num_return]
    width = min(room, tokens.shape[2])
    tokens[batch.rows, :, :width] = found.tokens[:n, :num_return, :width]
    if progress is not None:
      progress(n)
  lengths[scores == -np.inf] = 0
  tokens = np.where(np.arange(tokens.shape[2]) < lengths[:, :, None], tokens, c.pad_id).astype(np.int32)
  new_tokens, decode_seconds = int(lengths[:, 0].sum()), clock.seconds['decode']
  stats = {
    'source_tokens': sum(map(len, ids)), 'new_tokens': new_tokens, 'steps': steps,
    'encode_seconds': clock.seconds['encode'], 'decode_seconds': decode_seconds, 'compile_seconds': clock.compile_seconds,
    'tokens_per_second': new_tokens / decode_seconds if decode_seconds else 0.0, 'state_bytes': state_bytes,
    'memory_bytes': memory_bytes, 'recombined': recombined,
  }  # fmt: skip
  flat = lambda x: x.reshape(-1, *x.shape[2:])
  tokens, lengths, scores = flat(tokens), flat(lengths), flat(scores)
  return Translations(tokens, lengths, texts(model, tokens, lengths), stats=stats, scores=scores)
