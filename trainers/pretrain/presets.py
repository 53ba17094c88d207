"""Presets of pretraining: small settings, and those of papers."""

from jaxlm.config import ModelConfig
from trainers.config import OptimizerConfig, RunConfig
from trainers.pretrain.config import DataConfig, EvalConfig, PretrainConfig


def _heads(n: int, head_dim: int, kv: int | None = None) -> dict[str, int]:
  return dict(num_heads=n, num_kv_heads=kv or n, head_dim=head_dim)


def _sink(num_layers: int, dim: int, heads: int, mlp_dim: int, *, steps: int = 20_000, remat: str = 'none'):
  """Returns the attention-sink paper's setting (10 x 768 in the paper) with the constant learning rate of its code."""
  shape = dict(num_layers=num_layers, model_dim=dim, **_heads(heads, dim // heads), mlp_dim=mlp_dim)
  return PretrainConfig(
    model=ModelConfig(**shape, max_length=2048, vocab_size=50432, remat=remat),
    # In the paper, rows cross document borders, and so does attention.
    data=DataConfig(vocab_size=50432, batch_size=512, length=2048, packing='concat'),
    optimizer=OptimizerConfig(),
    run=RunConfig(steps=steps, eval_every=1000, save_every=1000, seed=3406),
    eval=EvalConfig(batches=50, sinks=True),
  )


PRESETS = {
  'embedded': (
    'A small Llama on text that ships with Python; about three minutes on a laptop CPU.',
    PretrainConfig(
      model=ModelConfig(
        num_layers=4, model_dim=192, **_heads(6, 32), mlp_dim=512, max_length=256, vocab_size=4096, dtype='float32'
      ),
      data=DataConfig(vocab_size=4096, batch_size=8, length=128),
      optimizer=OptimizerConfig(learning_rate=2e-3, schedule='cosine', warmup_steps=40),
      run=RunConfig(steps=600, eval_every=150, save_every=150),
    ),
  ),
  'smoke': (
    'Two tiny layers on bytes; seconds on a CPU.',
    PretrainConfig(
      model=ModelConfig(
        num_layers=2, model_dim=32, **_heads(2, 16), mlp_dim=64, max_length=64, vocab_size=260, dtype='float32'
      ),
      data=DataConfig(tokenizer='bytes', vocab_size=260, batch_size=8, length=32),
      optimizer=OptimizerConfig(learning_rate=5e-3, warmup_steps=4),
      run=RunConfig(steps=20, log_every=2, eval_every=10, save_every=10),
      eval=EvalConfig(batches=2, sample_tokens=16),
    ),
  ),
  'sink-mini': (
    'A small version of the attention-sink paper: 2 layers x 128 on bytes; minutes on a CPU.',
    PretrainConfig(
      model=ModelConfig(
        num_layers=2, model_dim=128, **_heads(4, 32), mlp_dim=256, max_length=256, vocab_size=260, dtype='float32'
      ),
      data=DataConfig(tokenizer='bytes', vocab_size=260, batch_size=16, length=128, packing='concat'),
      optimizer=OptimizerConfig(learning_rate=2e-3),
      run=RunConfig(steps=500, eval_every=100, save_every=100, seed=3406),
      eval=EvalConfig(batches=5, sinks=True),
    ),
  ),
  'sink-1m': ('Attention-sink paper, debugging size: 2 layers x 256.', _sink(2, 256, 8, 512)),
  'sink-10m': ("Attention-sink paper, between the paper's sizes: 4 layers x 512.", _sink(4, 512, 8, 1024)),
  'sink-60m': (
    'Attention-sink paper: 10 layers x 768, 20,000 steps of a million tokens, constant learning rate.',
    _sink(10, 768, 8, 1536),
  ),
  'sink-1b': (
    'Attention-sink paper: 22 layers x 2048, 40,000 steps.',
    _sink(22, 2048, 16, 5632, steps=40_000, remat='dots'),
  ),
  'llama-135m': (
    'The shape of SmolLM2-135M (grouped queries, tied embeddings), cosine schedule.',
    PretrainConfig(
      model=ModelConfig(
        num_layers=30,
        model_dim=576,
        **_heads(9, 64, kv=3),
        mlp_dim=1536,
        max_length=2048,
        vocab_size=49152,
        tied_embeddings=True,
      ),
      data=DataConfig(vocab_size=49152, batch_size=256, length=2048),
      optimizer=OptimizerConfig(learning_rate=3e-3, schedule='cosine', warmup_steps=1000),
      run=RunConfig(steps=20_000, eval_every=1000, save_every=1000),
    ),
  ),
}
