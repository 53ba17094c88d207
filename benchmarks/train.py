"""python -m benchmarks.train: tokens/s of a training step, compared with the same model in PyTorch, float32, same threads.

The step has all parts: forward, loss, backward, clipping, AdamW. Model FLOP utilisation counts 6 FLOPs per matrix parameter and
token and 12 L N H T per token for attention, divided by the speed of one large matrix product in the same process.
"""

import dataclasses
import os
import tempfile

import numpy as np
import tyro

from benchmarks import report
from jaxlm import console


@dataclasses.dataclass(frozen=True)
class Config:
  """A training step compared with PyTorch's."""

  layers: int = 8
  dim: int = 512
  mlp_dim: int = 1376
  heads: int = 8
  vocab: int = 32000
  batch: int = 4
  length: int = 256
  repeats: int = 5
  threads: int = len(os.sched_getaffinity(0))
  """Number of PyTorch's threads; XLA uses all cores of the process."""


def main(config: Config) -> None:
  report.require_peer()
  import jax
  import torch
  import transformers

  import jaxlm
  from trainers.config import OptimizerConfig
  from trainers.next_token import next_token_loss
  from trainers.optimizer import make_optimizer
  from trainers.step import init_state, make_train_step

  torch.set_num_threads(config.threads)
  torch.manual_seed(0)
  shape = transformers.LlamaConfig(
    vocab_size=config.vocab, num_hidden_layers=config.layers, hidden_size=config.dim, intermediate_size=config.mlp_dim,
    num_attention_heads=config.heads, max_position_embeddings=config.length, use_cache=False,
    bos_token_id=None, eos_token_id=None, pad_token_id=0,
  )  # fmt: skip
  peer = transformers.LlamaForCausalLM(shape).train()
  with tempfile.TemporaryDirectory() as folder:
    peer.save_pretrained(folder)
    lm = jaxlm.load(folder, dtype='float32')
  ids = np.random.default_rng(0).integers(0, config.vocab, (config.batch, config.length + 1)).astype(np.int32)

  optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-4, warmup_steps=0), steps=1000)
  step = jax.jit(make_train_step(lambda p, b, _: next_token_loss(p, b, lm.config), optimizer.tx), donate_argnums=0)
  batch = jax.device_put(
    {'tokens': ids[:, :-1], 'targets': ids[:, 1:], 'mask': np.ones((config.batch, config.length), np.float32)}
  )
  state, losses = init_state(lm.params, optimizer.tx), {'ours': [], 'torch': []}

  def ours():
    nonlocal state
    state, metrics = step(state, batch)
    losses['ours'].append(float(metrics['loss']))

  adamw = torch.optim.AdamW(peer.parameters(), lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True)
  tokens, targets = torch.tensor(ids[:, :-1]).long(), torch.tensor(ids[:, 1:]).long()

  def pytorch():
    adamw.zero_grad(set_to_none=True)
    logits = peer(tokens).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
    adamw.step()
    losses['torch'].append(float(loss.detach()))

  runs = report.in_turn(
    {
      'ours': lambda: report.seconds(ours),
      'torch': lambda: report.seconds(pytorch),
      'matmul': lambda: report.matmul_flops(repeats=3),
    },
    config.repeats,
  )
  drift = max(abs(a - b) for a, b in zip(losses['ours'], losses['torch']))
  if drift > 1e-2:
    raise SystemExit(f'The two are not training the same model: their losses differ by {drift:.3g}.')
  matrices = sum(x.size for x in jax.tree.leaves(lm.params)) - lm.params['embed']['embedding'].size
  attention = 12 * config.layers * config.dim * config.length
  per_step = config.batch * config.length
  flops = (6 * matrices + attention) * per_step
  peak = float(np.median(runs['matmul']))
  rows = []
  for name in ('ours', 'torch'):
    seconds = float(np.median(runs[name]))
    rows.append({
      'step': {'ours': 'jaxlm', 'torch': 'transformers + torch'}[name], 'tokens/s': per_step / seconds,
      'seconds': seconds, 'ratio': float(np.median(runs['torch'])) / seconds,
      'GFLOP/s': flops / seconds / 1e9, 'matmul GFLOP/s': peak / 1e9, 'MFU': flops / seconds / peak,
      'first loss': losses[name][0], 'last loss': losses[name][-1],
    })  # fmt: skip
  report.write('train', rows, config=dataclasses.asdict(config), largest_loss_difference=drift)


if __name__ == '__main__':
  with console.command():
    main(tyro.cli(Config))
