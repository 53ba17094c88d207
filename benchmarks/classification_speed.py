"""Training texts/s of EXAM here and in PyTorch: the same parameters, batch, loss and Adam, float32, in turn on the same threads."""

from collections.abc import Callable
import functools
import os
from typing import Any

import jax
import numpy as np

from benchmarks import report
from jaxlm.exam_config import Column, ExamConfig
from jaxlm.models import exam
from trainers.classify.loss import loss_terms
from trainers.config import OptimizerConfig
from trainers.optimizer import make_optimizer
from trainers.step import init_state, make_train_step

RATE = 1e-3
CONFIG = ExamConfig(dim=64, max_length=96, vocab_size=10_002, residual='sum', class_bias=True, output_bias=True)
SHAPES = {'R8': (8, 32), 'R52': (52, 32), 'one large batch': (52, 256)}
"""Name -> (classes, texts of a batch)."""


def batch_of(config: ExamConfig, texts: int) -> dict[str, np.ndarray]:
  """Returns random texts of Zipf's law and random lengths, with random labels."""
  rng = np.random.default_rng(0)
  tokens = 2 + rng.zipf(1.3, (texts, config.max_length)) % (config.vocab_size - 2)
  place, lengths = np.arange(config.max_length), rng.integers(5, config.words, (texts, 1))
  mask = (place >= config.padding_in_front) & (place < config.padding_in_front + lengths)
  labels = rng.integers(0, config.classes, texts).astype(np.int32)
  return {
    'tokens': np.where(mask, tokens, 0).astype(np.int32), 'mask': mask, 'labels_0': labels, 'weight': np.ones(texts, np.float32)
  }  # fmt: skip


def ours(config: ExamConfig, params: Any, batch: dict[str, np.ndarray]):
  """Returns a function that takes a step and returns the loss before it."""
  settings = OptimizerConfig(learning_rate=RATE, warmup_steps=0, beta2=0.999, weight_decay=0.0, clip_norm=0.0)
  tx = make_optimizer(settings, 1000).tx

  def loss(params, batch, context):
    return loss_terms(exam.logits(params, config, batch['tokens'], batch['mask']), batch, config, [None])

  step = jax.jit(make_train_step(loss, tx, unit='texts'), donate_argnums=0)
  held = [init_state(jax.tree.map(lambda x: x.copy(), params), tx), jax.device_put(batch)]

  def run() -> float:
    held[0], metrics = step(held[0], held[1])
    return float(metrics['loss'])

  return run


def pytorch(config: ExamConfig, params: Any, batch: dict[str, np.ndarray]):
  """Returns the same in PyTorch."""
  import torch

  names = {'/'.join(k.key for k in path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
  p = {name: torch.nn.Parameter(torch.tensor(np.array(x))) for name, x in names.items()}
  adam = torch.optim.Adam(p.values(), lr=RATE, fused=True)
  tokens, mask = torch.tensor(batch['tokens']).long(), torch.tensor(batch['mask'])
  labels, rho, D = torch.tensor(batch['labels_0']).long(), config.radius, config.dim
  n = config.positions

  def run() -> float:
    adam.zero_grad(set_to_none=True)
    words = torch.nn.functional.embedding(tokens, p['embed/embedding'])
    units = torch.nn.functional.embedding(tokens[:, rho : rho + n], p['units/embedding']).view(-1, n, config.region, D)
    # [B, n, D, R] -> [B, n, R, D]: a view of the windows, as no copy of them is needed.
    states = (units * words.unfold(1, config.region, 1).transpose(2, 3)).max(2).values
    scores = states @ p['class_table/kernel'].T + p['class_table/bias']
    scores = (scores * mask[:, rho : rho + n, None]).transpose(1, 2)
    hidden = torch.relu(scores @ p['mlp_in/kernel'] + p['mlp_in/bias'])
    logits = hidden @ p['mlp_out/kernel'] + p['mlp_out/bias'] + scores.sum(2)
    loss = torch.nn.functional.cross_entropy(logits, labels)
    loss.backward()
    adam.step()
    return float(loss.detach())

  return run


def rows(repeats: int, tiny: bool = False) -> list[dict[str, Any]]:
  """Returns the texts/s of both for each shape. Raises SystemExit if they do not train the same model."""
  report.require_peer()
  import torch

  torch.set_num_threads(len(os.sched_getaffinity(0)))
  found = []
  for name, (classes, texts) in SHAPES.items():
    config = CONFIG.replace(columns=(Column('label', classes),), **({'dim': 8, 'max_length': 20} if tiny else {}))
    params = jax.jit(functools.partial(exam.init_params, config))(jax.random.key(0))
    batch = batch_of(config, texts)
    both = {'jaxlm': ours(config, params, batch), 'torch': pytorch(config, params, batch)}
    losses: dict[str, list[float]] = {side: [] for side in both}
    timed = {side: functools.partial(_timed, run, losses[side]) for side, run in both.items()}
    taken = report.in_turn(timed, repeats)
    if (drift := float(np.max(np.abs(np.subtract(*losses.values()))))) > 0.02:
      raise SystemExit(f'The two are not training the same model: their losses differ by {drift:.3g}.')
    rate = {side: texts / float(np.median(seconds)) for side, seconds in taken.items()}
    ratios = np.array(taken['torch']) / np.array(taken['jaxlm'])
    found.append({
      'shape': name, 'classes': classes, 'batch': texts, 'jaxlm texts/s': rate['jaxlm'], 'torch texts/s': rate['torch'],
      'ratio': float(np.median(ratios)), 'largest loss difference': drift,
    })  # fmt: skip
  return found


def _timed(run: Callable[[], float], losses: list[float]) -> float:
  return report.seconds(lambda: losses.append(run()))


def checks(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """Returns whether training is at least as fast as in PyTorch for each shape."""
  return [
    {'statement': f"{row['shape']}: at least PyTorch's training texts/s", 'pass': row['ratio'] >= 1, 'measured': round(row['ratio'], 2)}
    for row in found
  ]  # fmt: skip
