"""Time of a decode step and bytes of the decoder's state, by Markov order and length of the translation.

Models have random weights, sources 32 random tokens, and every translation the length that is asked for. Batches are equal. Orders and
lengths are timed in turn, so that changes of the machine's speed affect all of them.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import report
from benchmarks.translation_mat_models import named
from benchmarks.translation_mat_scores import verdict
import decoders
from jaxlm.models import seq2seq
from jaxlm.seq2seq_config import Seq2SeqConfig
from jaxlm.translation_model import Seq2SeqModel

BATCH, SOURCE = 16, 32
FLAT = 1.15
"""Times of steps that differ by less than this factor count as equal."""


def rows(orders: Sequence[int], lengths: Sequence[int], repeats: int, tiny: bool) -> list[dict[str, Any]]:
  """Returns a row for each order and length."""
  config = Seq2SeqConfig(
    vocab_size=2000, encoder_layers=2, decoder_layers=4, model_dim=256, num_heads=4, mlp_dim=512, max_length=max(*lengths, SOURCE + 1),
    dtype='float32',
  )  # fmt: skip
  if tiny:
    config = config.replace(vocab_size=50, encoder_layers=1, decoder_layers=1, model_dim=16, mlp_dim=16)
  params = {order: seq2seq.init_params(config.replace(markov_order=order), jax.random.key(0)) for order in orders}
  sources = np.random.default_rng(0).integers(3, config.vocab_size, (BATCH, SOURCE)).tolist()

  def run(order: int, length: int):
    model = Seq2SeqModel(config.replace(markov_order=order), params[order])
    options = dict(beam_size=1, max_new_tokens=length, min_new_tokens=length - 1, batch_size=BATCH)
    return lambda: decoders.translate(model, sources, **options).stats

  runs = {(order, length): run(order, length) for length in lengths for order in orders}
  timed = report.in_turn(runs, repeats)
  found = []
  for order in orders:
    for length in lengths:
      stats = timed[order, length]
      ms = [1000 * s['decode_seconds'] / s['steps'] for s in stats]
      found.append({
        'order': named(order), 'length': length, 'batch': BATCH, 'ms a step': float(np.median(ms)), 'ms lowest': min(ms),
        'ms highest': max(ms), 'tokens/s': float(np.median([s['tokens_per_second'] for s in stats])),
        'state kB': stats[0]['state_bytes'] / 1000,
      })  # fmt: skip
  return found


def checks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns whether time and state of each Markov order are the same at all lengths, and whether those of full history grow."""
  verdicts = []
  for order in dict.fromkeys(r['order'] for r in rows):
    some = sorted((r for r in rows if r['order'] == order), key=lambda r: r['length'])
    ends = f'{some[0]["length"]} to {some[-1]["length"]} tokens'
    state, time = (some[-1][key] / some[0][key] for key in ('state kB', 'ms a step'))
    if order == 'full':
      longer = some[-1]['length'] / some[0]['length']
      verdicts.append(
        verdict(f'full history: the state grows with the length, {ends}', state >= 0.9 * longer, f'{state:.2f} times')
      )
      verdicts.append(verdict(f'full history: a step takes longer, {ends}', time > FLAT, f'{time:.2f} times'))
    else:
      verdicts.append(verdict(f'order {order}: the state has one size, {ends}', state == 1, f'{state:.2f} times'))
      verdicts.append(
        verdict(f'order {order}: a step takes the same time, {ends}', 1 / FLAT < time < FLAT, f'{time:.2f} times')
      )
  for found in verdicts:
    print('PASS' if found['pass'] else 'MISS', found['statement'], '--', found['measured'])
  return verdicts
