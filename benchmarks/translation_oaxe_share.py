"""Share of the assignment in a training step with OaXE.

share = time of the assignments alone / time of the step. Costs of new parameters have no structure and are the hardest for the solver;
a trained model's are peaked at the tokens of the sentence.

As a check, three steps of the same model on the same batch are timed in turn: cross-entropy; OaXE; OaXE with the assignment replaced by
the identity, which leaves everything else of OaXE in place. The difference of the last two is noisier than the assignment is long.
"""

from collections.abc import Callable
import functools
import importlib
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import report
from benchmarks.assignment import token_costs, uniform_costs
from benchmarks.translation_mat_scores import verdict
from benchmarks.translation_oaxe_models import train_config
from benchmarks.translation_oaxe_settings import VARIANTS, Stage
from jaxlm.models import nat
from jaxlm.seq2seq_config import Seq2SeqConfig
from pallas_kernels import linear_assignment
from trainers.optimizer import make_optimizer
from trainers.step import init_state, make_train_step
from trainers.translate.parallel_loss import parallel_terms

SHARE, T = 0.10, 64
"""The assignment should take at most this share of a step with sentences of this many tokens."""


def model_of(tiny: bool) -> Seq2SeqConfig:
  """Returns the model of the preset `small`, 3 + 3 layers x 256, which predicts all tokens at once."""
  if tiny:
    return Seq2SeqConfig(kind='nat', vocab_size=50, encoder_layers=1, decoder_layers=1, model_dim=16, num_heads=2, mlp_dim=16, max_length=64, dtype='float32')  # fmt: skip
  return Seq2SeqConfig(
    kind='nat', vocab_size=8001, encoder_layers=3, decoder_layers=3, model_dim=256, num_heads=4, mlp_dim=1024, max_length=256,
    dtype='float32',
  )  # fmt: skip


def batch_of(model: Seq2SeqConfig, rows: int, length: int) -> dict[str, np.ndarray]:
  """Returns random sentences of one length, whose targets are their sources with another order of two halves for every second row."""
  draw = np.random.default_rng(0)
  source = np.minimum(3 + draw.zipf(1.3, (rows, length)), model.vocab_size - 2).astype(np.int32)
  targets = np.where(np.arange(rows)[:, None] % 2, np.roll(source, length // 2, axis=1), source)
  full = np.ones((rows, length))
  return {
    'source': source, 'source_mask': full.astype(bool), 'tokens': targets, 'targets': targets, 'mask': full.astype(np.float32),
  }  # fmt: skip


def identity(cost_BTT, sizes=None):
  return jnp.broadcast_to(jnp.arange(cost_BTT.shape[1], dtype=jnp.int32), cost_BTT.shape[:2])


def rows(lengths: tuple[int, ...], tokens: int, repeats: int, warm: int, tiny: bool) -> list[dict[str, Any]]:
  """Returns the times of steps with batches of about `tokens` target tokens, for new parameters and after `warm` steps."""
  model, found = model_of(tiny), []
  for length in lengths:
    batch = jax.device_put(batch_of(model, max(1, tokens // length), length))
    steps, tx = {}, make_optimizer(Stage(max(2, warm), 1e-3).schedule, max(2, warm)).tx
    for name, variant, solver in (
      ('CE', VARIANTS['CE'], None), ('OaXE', VARIANTS['OaXE'], None), ('identity', VARIANTS['OaXE'], identity)
    ):  # fmt: skip
      config = train_config(model, variant, 0.1, 1)
      loss = lambda params, batch, context, config=config: parallel_terms(params, batch, config, context)
      step = jax.jit(make_train_step(loss, tx))
      state = init_state(jax.jit(lambda key: nat.init_params(model, key))(jax.random.key(0)), tx)
      # The step is traced once, here. `jaxlm.losses.oaxe` as an attribute is the function of this name.
      module = importlib.import_module('jaxlm.losses.oaxe')
      with mock.patch.object(module, 'linear_assignment', solver or module.linear_assignment):
        steps[name] = step.lower(state, batch).compile()
    for trained in (False, True):
      if trained:
        for _ in range(warm):
          state, _ = steps['CE'](state, batch)
      draw, costs = np.random.default_rng(0), token_costs if trained else uniform_costs
      cost_BTT = jnp.asarray(np.stack([costs(draw, length) for _ in batch['targets']]), jnp.float32)
      runs = {name: functools.partial(_seconds, step, state, batch) for name, step in steps.items()}
      runs['assignment'] = functools.partial(_seconds, jax.jit(linear_assignment), cost_BTT)
      taken = report.in_turn(runs, repeats)
      ms = {name: 1000 * float(np.median(times)) for name, times in taken.items()}
      differences = [(a - b) / a for a, b in zip(taken['OaXE'], taken['identity'])]
      found.append({
        'T': length, 'batch': len(batch['targets']), 'parameters': f'after {warm} steps' if trained else 'new',
        **{f'{name} ms': value for name, value in ms.items()}, 'share': ms['assignment'] / ms['OaXE'],
        'by difference': float(np.median(differences)), 'lowest': min(differences), 'highest': max(differences),
        'OaXE / CE': ms['OaXE'] / ms['CE'],
      })  # fmt: skip
      print(report.table(found[-1:]).splitlines()[-1], flush=True)
  return found


def _seconds(program: Callable, *arguments: Any) -> float:
  return report.seconds(lambda: jax.block_until_ready(program(*arguments)))


def checks(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  return [
    verdict(
      f'the assignment takes at most {100 * SHARE:.0f} % of a step at T = {T}, parameters {row["parameters"]}',
      row['share'] <= SHARE,
      f'{100 * row["share"]:.1f} %',
    )
    for row in rows
    if row['T'] == T
  ]
