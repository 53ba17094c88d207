"""Beam search over a transformer-base encoder-decoder with random weights: the time of a step, by width.

No hypothesis ends before the last step, so that all searches have the same steps.
"""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.accelerator.record import Case
from benchmarks.accelerator.setting import Setting
from benchmarks.accelerator.timing import Compiled, seconds
from decoders.beam.config import BeamConfig
from decoders.translation import programs as translation
from jaxlm.models import seq2seq


def cases(setting: Setting) -> Iterator[Case]:
  c, B, room = setting.translated, setting.sources, setting.source_tokens
  made = jax.jit(lambda key: jax.tree.map(lambda x: x.astype(c.dtype), seq2seq.init_params(c, key)))
  params = jax.block_until_ready(made(jax.random.key(0)))
  source_BS = jax.random.randint(jax.random.key(1), (B, room), 3, c.vocab_size)
  memory = translation.encode(params, source_BS, jnp.full(B, room), config=c)
  rest = jnp.full(B, room), jnp.float32(1.0), jnp.int32(room)  # Limits, length penalty, fewest tokens.

  def lower(width: int):
    beams = BeamConfig(width, (c.eos_id,), (c.pad_id,))
    return translation.beam.lower(params, memory, *rest, config=c, beams=beams, room=room)

  programs = Compiled({width: lambda width=width: lower(width) for width in setting.widths})
  programs.wait()
  for width in setting.widths:
    labels = {'batch': B, 'width': width, 'tokens': room}
    yield Case(
      'beam search, transformer-base', labels, lambda w=width: searched(programs[w], (params, memory, *rest), setting)
    )


def searched(program, arguments: tuple, setting: Setting) -> dict[str, Any]:
  found = program(*arguments)
  steps = int(found.steps)
  taken = seconds(lambda: program(*arguments), setting.min_seconds, setting.repeats)
  finite = bool(jnp.isfinite(found.scores).all() & found.finite.all())
  right = finite and steps == setting.source_tokens
  return {'ms a step': 1e3 * taken / steps, 'sentences/s': setting.sources / taken, 'steps': steps, 'right': right}
