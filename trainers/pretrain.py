"""Pretrains a decoder-only language model on text.

  python -m trainers.pretrain                                          minutes on a CPU, on text that ships with Python
  python -m trainers.pretrain sink-60m --data.source 'pile/*.jsonl' --model.attention sigmoid

Starting the same command again resumes. No JAX is imported before the flags are read, so that --help is quick.
"""

import dataclasses
from typing import Literal

from jaxlm.config import ModelConfig
from trainers import command_line
from trainers.config import ConfigError, OptimizerConfig, RunConfig, TrainConfig


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Text, its tokenizer, and how it is cut into batches."""

  source: str = 'embedded'
  """'embedded' (text that ships with Python), files, folders or patterns (.txt .md .rst .jsonl .json .parquet, with commas
  between), or tfds:NAME[:SPLIT]."""
  valid_source: str | None = None
  """Held-out text (none: a part of `source`)."""
  valid_fraction: float = 0.05
  """Part of the documents that is held out when there is no valid_source."""
  field: str = 'text'
  """Where JSON, Parquet and TFDS examples keep their text."""
  download: bool = False
  """Whether TFDS may download and prepare what is not there."""
  tokenizer: str = 'train'
  """'train' (a SentencePiece model of the training text), 'bytes', or a folder or .model file that holds a tokenizer."""
  vocab_size: int = 32000
  """Size of a tokenizer that is trained."""
  batch_size: int = 64
  """Rows per step, over all devices and hosts."""
  length: int = 1024
  """Tokens per row."""
  packing: Literal['documents', 'concat'] = 'documents'
  """documents: those that share a row do not see each other. concat: a row is one text, across document borders."""
  seed: int = 0
  """Of the order of the rows."""

  def __post_init__(self):
    for name in ('vocab_size', 'batch_size', 'length'):
      if getattr(self, name) < 1:
        raise ConfigError(f'data.{name}={getattr(self, name)} must be at least 1.')
    if self.valid_source is None and not 0 < self.valid_fraction < 1:
      raise ConfigError(f'data.valid_fraction={self.valid_fraction} must be between 0 and 1.')


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """What is looked at besides the training loss."""

  batches: int | None = 20
  """Held-out batches per evaluation (none: all)."""
  prompts: tuple[str, ...] = ('The ', 'This function returns ', 'In general, ')
  """Continued at the end of the run."""
  sample_tokens: int = 48
  """Tokens of each continuation (0: no samples)."""


@dataclasses.dataclass(frozen=True)
class PretrainConfig(TrainConfig):
  """Pretrain a decoder-only language model on text."""

  model: ModelConfig = ModelConfig()
  data: DataConfig = DataConfig()
  eval: EvalConfig = EvalConfig()

  def __post_init__(self):
    super().__post_init__()
    if self.data.length > self.model.max_length:
      raise ConfigError(
        f'data.length={self.data.length} is longer than the model: model.max_length={self.model.max_length}.'
      )


def _heads(n: int, head_dim: int, kv: int | None = None) -> dict[str, int]:
  return dict(num_heads=n, num_kv_heads=kv or n, head_dim=head_dim)


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
  'sink-60m': (
    'Attention-sink paper: 10 layers x 768, 20,000 steps of a million tokens, constant learning rate.',
    PretrainConfig(
      model=ModelConfig(num_layers=10, model_dim=768, **_heads(8, 96), mlp_dim=1536, max_length=2048, vocab_size=50432),
      # The paper's rows are cut across document borders, and attention crosses them.
      data=DataConfig(vocab_size=50432, batch_size=512, length=2048, packing='concat'),
      optimizer=OptimizerConfig(),
      run=RunConfig(steps=20_000, eval_every=1000, save_every=1000, seed=3406),
      eval=EvalConfig(batches=50),
    ),
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


def main(config: PretrainConfig):
  """Trains, or resumes, the run in config.run.directory; returns the last TrainState.

  Raises:
    ConfigError, DataError, CheckpointError, DivergedError: see their messages.
    trainers.loop.Stopped: a signal stopped the run, which is saved.
  """
  from trainers import distributed, language_modeling, loop

  distributed.initialize(config.distributed)
  directory = config.run.directory or 'runs/pretrain'
  config = dataclasses.replace(config, run=dataclasses.replace(config.run, directory=directory))
  tokenizer = language_modeling.load_tokenizer(config.data, directory)
  config = dataclasses.replace(config, model=config.model.replace(vocab_size=tokenizer.vocab_size))
  return loop.fit(language_modeling.LanguageModeling(config, tokenizer), config)


if __name__ == '__main__':
  command_line.run(
    main,
    command_line.parse(PRESETS, 'embedded', prog='python -m trainers.pretrain', description=__doc__.split('\n')[0]),
  )
