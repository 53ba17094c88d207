"""The same training steps and decoding in PyTorch and transformers, if they are installed, in a separate process.

In one process, PyTorch and JAX would both keep the device memory that they have once used.
"""

from collections.abc import Callable, Iterator
import gc
import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np

from benchmarks.accelerator import chip
from benchmarks.accelerator.record import Case, failure
from benchmarks.accelerator.setting import ACCELERATOR, TINY, Setting, Training
from benchmarks.accelerator.timing import seconds
from benchmarks.accelerator.training import measured
from jaxlm.config import ModelConfig

NAME = 'PyTorch and transformers'
LONGEST = 120.0
"""Seconds after which the other process is ended."""


def cases(setting: Setting) -> Iterator[Case]:
  if missing := [name for name in ('torch', 'transformers') if importlib.util.find_spec(name) is None]:
    yield Case('training step', {'attention': NAME}, lambda: {'skipped': f'not installed: {", ".join(missing)}'})
    return
  command = [
    sys.executable,
    '-m',
    'benchmarks.accelerator.peers',
    str(chip.peak(setting)),
    'tiny' if setting.tiny else 'full',
  ]
  # On the host, JAX leaves the device to PyTorch; it only counts parameters there.
  with subprocess.Popen(
    command, stdout=subprocess.PIPE, text=True, env={**os.environ, 'JAX_PLATFORMS': 'cpu'}
  ) as process:
    for line in process.stdout:
      if line.startswith('{'):
        row = json.loads(line)
        yield Case(row.pop('table'), row.pop('labels'), lambda row=row: row)
  if process.returncode:
    raise RuntimeError(f'The process of PyTorch ended with code {process.returncode}.')


def main(peak: float, setting: Setting) -> None:
  """Prints a line of JSON for each measurement."""
  timer = threading.Timer(LONGEST, lambda: os._exit(1))
  timer.daemon = True
  timer.start()

  def report(table: str, labels: dict[str, Any], run: Callable[[], dict[str, Any]]) -> None:
    try:
      row = run()
    except Exception as error:  # Such as out of memory; the next measurement still runs.
      row = failure(error)
    print(json.dumps({'table': table, 'labels': labels, **row}), flush=True)
    free()

  for size, training in setting.trained.items():
    report(
      'training step', {'model': size, 'attention': f'softmax, {NAME}'}, lambda t=training: train(t, peak, setting)
    )
  for batch in setting.batches:
    labels = {'batch': batch, 'context': setting.middle_context, 'cache': f'full, {NAME}'}
    report('decoding', labels, lambda b=batch: decode(setting, b, setting.middle_context))


def device() -> str:
  import torch

  return 'cuda' if torch.cuda.is_available() else 'cpu'


def free() -> None:
  import torch

  gc.collect()
  if device() == 'cuda':
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def wait() -> None:
  import torch

  if device() == 'cuda':
    torch.cuda.synchronize()


def train(training: Training, peak: float, setting: Setting) -> dict[str, Any]:
  """Times a training step with bfloat16 autocast, fused AdamW and PyTorch's flash attention, without torch.compile."""
  import torch
  import transformers

  model = llama(training.model, 'float32').train()
  adamw = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, fused=True)
  tokens = torch.randint(0, training.model.vocab_size, (training.batch, training.length), device=device())
  targets, losses = tokens.roll(-1, 1), []

  def step() -> None:
    adamw.zero_grad(set_to_none=True)
    with torch.autocast(device(), torch.bfloat16):
      logits = model(tokens).logits
    loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    adamw.step()
    losses.append(loss.detach())
    wait()

  taken = seconds(step, setting.min_seconds, setting.repeats)
  steps = {'steps': len(losses), 'first loss': float(losses[0]), 'last loss': float(losses[-1])}
  row = measured(training, taken, peak) | steps
  if device() == 'cuda':
    row['peak GB'] = torch.cuda.max_memory_allocated() / 1e9
  return row | {'versions': f'torch {torch.__version__}, transformers {transformers.__version__}'}


def decode(setting: Setting, batch: int, context: int) -> dict[str, Any]:
  """Times greedy decoding steps in eager mode over a DynamicCache of random numbers."""
  import torch
  import transformers

  c, model, taken = setting.decoded, llama(setting.decoded, 'bfloat16').eval(), []
  cache, shape = transformers.DynamicCache(), (batch, c.num_kv_heads, context, c.head_dim)
  draw = lambda: torch.randn(shape, device=device(), dtype=torch.bfloat16)
  for i in range(c.num_layers):
    cache.update(draw(), draw(), i)
  token = torch.ones((batch, 1), dtype=torch.long, device=device())
  with torch.inference_mode():
    for step in range(setting.new_tokens):
      wait()
      start = time.perf_counter()
      at = torch.full((batch, 1), context + step, device=device())
      token = model(token, past_key_values=cache, position_ids=at).logits[:, -1:].argmax(-1)
      wait()
      taken.append(time.perf_counter() - start)
  step = float(np.median(taken[len(taken) // 4 :]))
  return {'ms a step': 1e3 * step, 'tokens/s': batch / step}


def llama(config: ModelConfig, dtype: str):
  """Returns transformers' Llama of the same shape with random parameters."""
  import torch
  import transformers

  shape = transformers.LlamaConfig(
    vocab_size=config.vocab_size, num_hidden_layers=config.num_layers, hidden_size=config.model_dim,
    intermediate_size=config.mlp_dim, num_attention_heads=config.num_heads, num_key_value_heads=config.num_kv_heads,
    head_dim=config.head_dim, max_position_embeddings=config.max_length, tie_word_embeddings=True,
    bos_token_id=None, eos_token_id=None, pad_token_id=0, attn_implementation='sdpa',
  )  # fmt: skip
  with torch.device(device()):
    return transformers.LlamaForCausalLM(shape).to(getattr(torch, dtype))


if __name__ == '__main__':
  main(float(sys.argv[1]), TINY if sys.argv[2] == 'tiny' else ACCELERATOR)
