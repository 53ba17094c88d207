"""python -m benchmarks.generate: speed of greedy decoding compared with transformers' `generate`, with the same weights and tokens.

Decoding reads every weight once per step, so its speed is also shown as memory bandwidth, beside that of one large matrix-vector
product in the same process. If llama-cpp-python is installed, llama.cpp decodes the models that have a GGUF file too: with their
weights in float32, as jaxlm and transformers do, and as they are in the file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
import tempfile
import time

import numpy as np
import tyro

from benchmarks import generate_llama_cpp, report
from jaxlm import console

FLOAT32 = 'llama.cpp float32'
LLAMA_CPP = FLOAT32, 'llama.cpp file'
LLAMA_CPP_RATIOS = 'ratio to llama.cpp float32', 'same as llama.cpp'


@dataclasses.dataclass(frozen=True)
class Config:
  """Greedy decoding compared with transformers."""

  models: tuple[str, ...] = ('small', 'smollm2')
  """small: 8 Llama layers x 512, vocabulary 32000, random; smollm2: SmolLM2-135M-Instruct."""
  batches: tuple[int, ...] = (1, 8)
  prompt_tokens: int = 128
  new_tokens: int = 128
  repeats: int = 5
  threads: int = len(os.sched_getaffinity(0))
  """Number of PyTorch's and llama.cpp's threads; XLA uses all cores of the process."""


def main(config: Config) -> None:
  report.require_peer()
  import jax
  import torch

  import decoders

  torch.set_num_threads(config.threads)
  rows = []
  if not (installed := generate_llama_cpp.available()):
    print('llama.cpp is not measured: llama-cpp-python is not installed.', flush=True)
  for name in config.models:
    lm, peer, gguf = models(name)
    weights = sum(x.nbytes for x in jax.tree.leaves(lm.params))
    if not lm.config.tied_embeddings:  # the input embedding is looked up, not read
      weights -= lm.params['embed']['embedding'].nbytes
    for batch in config.batches:
      prompts = np.random.default_rng(0).integers(10, lm.config.vocab_size, (batch, config.prompt_tokens))
      inputs = torch.tensor(prompts)

      def transformers(new_tokens, peer=peer, inputs=inputs):
        start = time.perf_counter()
        with torch.inference_mode():
          out = peer.generate(
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=new_tokens,
            min_new_tokens=new_tokens,
            do_sample=False,
          )
        return time.perf_counter() - start, out[:, inputs.shape[1] :].numpy()

      def ours(lm=lm, prompts=prompts):
        out = decoders.generate(lm, prompts.tolist(), max_new_tokens=config.new_tokens, eos_id=None)
        return out.stats['prefill_seconds'], out.stats['decode_seconds'], out.tokens

      with llama_cpp(gguf, prompts, config) as others:
        runs = report.in_turn(
          {
            'ours': ours,
            'first': lambda: transformers(1),
            'whole': lambda: transformers(config.new_tokens),
            'bandwidth': lambda: report.matvec_bandwidth(repeats=3),
            **others,
          },
          config.repeats,
        )
      median = lambda values: float(np.median(list(values)))
      decoded = batch * (config.new_tokens - 1)
      peer_prefill = median(t for t, _ in runs['first'])
      peer_decode = median(t for t, _ in runs['whole']) - peer_prefill
      our_decode = median(d for _, d, _ in runs['ours'])
      bandwidth = median(runs['bandwidth'])
      reached = weights * (config.new_tokens - 1) / our_decode / 1e9
      decoding = {label: median(run.decode for run in runs[label]) for label in others}
      speeds = {label: decoded / seconds for label, seconds in decoding.items()}
      same = lambda tokens, own=runs['ours'][0][2]: float(np.mean(own == tokens))
      row = {} if not installed else dict.fromkeys((*[f'{x} tok/s' for x in LLAMA_CPP], *LLAMA_CPP_RATIOS), '')
      if others:
        row = {f'{label} tok/s': speed for label, speed in speeds.items()}
        row |= zip(LLAMA_CPP_RATIOS, (decoding[FLOAT32] / our_decode, same(runs[FLOAT32][0].tokens)))
      rows.append({
        'model': name, 'batch': batch,
        'jaxlm tok/s': decoded / our_decode, 'transformers tok/s': decoded / peer_decode, 'ratio': peer_decode / our_decode,
        'prefill s': median(p for p, _, _ in runs['ours']), 'transformers prefill s': peer_prefill,
        'GB/s': reached, 'matvec GB/s': bandwidth, 'of matvec': reached / bandwidth,
        'same tokens': same(runs['whole'][0][1]),
        **row,
      })  # fmt: skip
      print(report.table(rows), flush=True)
  report.write('generate', rows, config=dataclasses.asdict(config))


@contextlib.contextmanager
def llama_cpp(gguf: Path | None, prompts: np.ndarray, config: Config):
  """Gives functions that decode the prompts with llama.cpp, by label; none without a GGUF file or without the package."""
  if gguf is None or not generate_llama_cpp.available():
    yield {}
    return
  B, T = prompts.shape
  with tempfile.TemporaryDirectory() as folder:
    files = dict(zip(LLAMA_CPP, (generate_llama_cpp.unquantised(gguf, Path(folder) / 'float32.gguf'), gguf)))
    load = lambda path: generate_llama_cpp.Model(path, batch=B, length=T + config.new_tokens, threads=config.threads)
    loaded = {label: load(path) for label, path in files.items()}
    try:
      yield {label: lambda m=m: m.generate(prompts, config.new_tokens) for label, m in loaded.items()}
    finally:
      for model in loaded.values():
        model.close()


def models(name: str):
  """Returns (our model, transformers' model, GGUF file or None) with the same float32 weights; those of the file may be quantised."""
  import torch
  import transformers

  import jaxlm

  gguf = None
  with tempfile.TemporaryDirectory() as folder:
    if name == 'small':
      torch.manual_seed(0)
      shape = transformers.LlamaConfig(
        vocab_size=32000, num_hidden_layers=8, hidden_size=512, intermediate_size=1376, num_attention_heads=8,
        max_position_embeddings=1024, bos_token_id=None, eos_token_id=None, pad_token_id=0,
      )  # fmt: skip
      # Larger weights than by default, so that the most likely token is well ahead of the next one.
      shape.initializer_range = 0.05
      transformers.LlamaForCausalLM(shape).save_pretrained(folder)
      lm = jaxlm.load(folder, dtype='float32')
    elif name == 'smollm2':
      from jaxlm.data import fetch

      place = fetch.fetch('smollm2')
      gguf = place if place.is_file() else next(place.glob('*.gguf'))
      lm = jaxlm.load(gguf, dtype='float32')
      jaxlm.save_huggingface(lm, Path(folder) / 'hf')
      folder = Path(folder) / 'hf'
    else:
      raise SystemExit(f'Unknown model {name!r}; known: small, smollm2.')
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return lm, peer, gguf


if __name__ == '__main__':
  with console.command():
    main(tyro.cli(Config))
