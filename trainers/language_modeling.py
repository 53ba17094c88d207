"""The task of a decoder-only language model: predict the next token of a packed batch.

loss = -sum_bt mask_bt log p(targets_bt | tokens_b,<=t of the same document)
"""

from collections.abc import Callable, Iterable
from pathlib import Path
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import caches, losses
from jaxlm.analysis.sink_report import sink_sums
from jaxlm.config import ModelConfig
from jaxlm.data import corpus, packing, sources, tokenizers
from jaxlm.data.replaced import replace_tokens
from jaxlm.errors import DataError
from jaxlm.models.transformer import Transformer, init_params
from trainers.config import ConfigError
from trainers.loop import Batch, Task
from trainers.metrics import plot_sinks

# The attention-sink paper's metric is defined on sequences of this length; it falls as they grow.
SINK_TOKENS = 64


def next_token_loss(params: Any, batch: dict[str, jax.Array], config: ModelConfig) -> tuple[jax.Array, jax.Array]:
  """Returns (sum of the negative log-likelihoods of batch['targets'], sum of batch['mask']).

  batch: tokens, targets int32 [B, T] and mask float32 [B, T]; segments and positions int32 [B, T] where documents that
  share a row must not see each other.
  """
  model, variables = Transformer(config), {'params': params}
  cache = caches.Sequence(batch.get('segments'))
  hidden_BTD, _ = model.apply(variables, batch['tokens'], batch.get('positions'), cache, method='hidden')
  matrix_DV = model.apply(variables, method='output_matrix')
  return losses.chunked_cross_entropy(
    hidden_BTD, matrix_DV, batch['targets'], batch['mask'], softcap=config.logit_softcap
  )


def load_tokenizer(data: Any, run_directory: str | Path) -> Any:
  """Returns the tokenizer of a run: the one it already holds, the one that `data.tokenizer` names, or a new one."""
  if (held := Path(run_directory) / 'tokenizer').is_dir():
    if (found := tokenizers.from_directory(held)) is not None:
      return found
  if data.tokenizer == 'bytes':
    return tokenizers.ByteTokenizer()
  if data.tokenizer != 'train':
    path = Path(data.tokenizer).expanduser()
    found = tokenizers.from_sentencepiece(path) if path.is_file() else tokenizers.from_directory(path)
    if found is None:
      raise DataError(f'data.tokenizer={data.tokenizer!r} holds no tokenizer; it can be a folder, "train" or "bytes".')
    return found
  train, _ = sources.split(documents(data, data.source), data.valid_fraction)
  try:
    return tokenizers.train_sentencepiece(train, data.vocab_size)
  except ValueError as e:
    raise ConfigError(f'data.vocab_size={data.vocab_size} for a tokenizer of {data.source!r}: {e}') from e


def documents(data: Any, spec: str) -> sources.Source:
  return sources.documents(spec, field=data.field, download=data.download)


class LanguageModeling(Task):
  """Next-token prediction on a text source. `config` is a PretrainConfig whose model has the tokenizer's vocabulary."""

  trainer = 'pretrain'

  def __init__(self, config: Any, tokenizer: Any):
    self.config, self.tokenizer = config, tokenizer
    data = config.data
    self.batch_size = data.batch_size
    if data.valid_source is None:
      train, valid = sources.split(documents(data, data.source), data.valid_fraction)
    else:
      train, valid = documents(data, data.source), documents(data, data.valid_source)
    shape = dict(batch_size=data.batch_size, length=data.length, mode=data.packing)
    self.batches = packing.make_batches(
      corpus.tokenize(train, tokenizer), seed=data.seed, fraction=data.fraction, **shape
    )
    if data.replace == 'fixed' and not 0 <= data.replace_token < tokenizer.vocab_size:
      raise ConfigError(f'data.replace_token={data.replace_token} is outside the vocabulary of {tokenizer.vocab_size}.')
    held_out = corpus.tokenize(valid, tokenizer)
    self.held_out = packing.eval_batches(held_out, max_batches=config.eval.batches, **shape)
    self._bytes_V = np.array([len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)], np.float32)

  def describe(self) -> str:
    b = self.batches
    return (
      f'Data: {len(b.corpus):,} training tokens in {b.corpus.num_documents:,} documents, {b.steps_per_epoch:.1f} steps '
      f'per epoch; {len(self.held_out.corpus):,} held-out tokens; vocabulary {self.tokenizer.vocab_size:,}'
    )

  def init_params(self, key: jax.Array) -> Any:
    return init_params(self.config.model, key)

  def loss(self, params: Any, batch: Any, key: jax.Array | None) -> tuple:
    return next_token_loss(params, batch, self.config.model)

  def _inputs(self, batch: Batch) -> Batch:
    data, prefix = self.config.data, self.config.model.prefix
    if data.packing != 'concat':
      return batch
    # One text per row: causality is all the mask there is.
    batch = {k: v for k, v in batch.items() if k not in ('segments', 'positions')}
    if data.replace != 'none':
      token = data.replace_token if data.replace == 'fixed' else None
      batch = replace_tokens(batch, data.replace_positions, token=token, vocab_size=self.tokenizer.vocab_size)
    if prefix:  # Tokens that every position sees are not to be predicted (the paper's code forgets this in validation).
      batch['mask'] = np.where(np.arange(data.length) >= prefix - 1, batch['mask'], 0).astype(np.float32)
    return batch

  def batch(self, step: int, rows: slice) -> Batch:
    return self._inputs(self.batches.batch(step, rows))

  def eval_batches(self, rows: slice) -> Iterable[Batch]:
    return (self._inputs(self.held_out.batch(i, rows)) for i in range(len(self.held_out)))

  def eval_sums(self, params: Any, batch: Any) -> dict[str, jax.Array]:
    bytes_BT = jnp.asarray(self._bytes_V)[batch['targets']]
    sums = {**super().eval_sums(params, batch), 'bytes': jnp.sum(bytes_BT * batch['mask'])}
    if self.config.eval.sinks:
      real_B = jnp.any(batch['mask'] > 0, axis=1).astype(jnp.float32)
      sums['rows'] = real_B.sum()
      sums |= sink_sums(self.config.model, params, batch['tokens'][:, :SINK_TOKENS], real_B)
    return sums

  def eval_metrics(self, sums: dict[str, float]) -> dict[str, float]:
    loss = sums['loss'] / max(sums['weight'], 1e-8)
    bits = sums['loss'] / np.log(2) / max(sums['bytes'], 1e-8)
    sinks = {k: v / sums['rows'] for k, v in sums.items() if k not in ('loss', 'weight', 'bytes', 'rows')}
    return {'loss': loss, 'perplexity': float(np.exp(min(loss, 100.0))), 'bits_per_byte': float(bits), **sinks}

  def headline(self, metrics: dict[str, float]) -> dict[str, float]:
    shown = ('loss', 'perplexity', 'bits_per_byte', 'sink_slot', 'sink_1', 'row_mass')
    return {name: metrics[name] for name in shown if name in metrics}

  def activation_bytes(self, rows: int) -> int:
    c, T = self.config.model, self.config.data.length
    size = 4 if c.dtype == 'float32' else 2
    heads = (2 * c.num_heads + 2 * c.num_kv_heads) * c.head_dim
    layer = T * (6 * c.model_dim + heads + 4 * c.mlp_dim) * size + c.num_heads * T * T * (4 + size)
    kept = c.num_layers * (T * c.model_dim * size) + layer if c.remat == 'full' else c.num_layers * layer
    logits = min(rows * T * c.vocab_size, losses.slice_logits()) * 4 * 2
    return rows * kept + logits

  def save_assets(self, directory: Path) -> None:
    final, scratch = directory / 'tokenizer', directory / '.tokenizer.tmp'
    if final.is_dir():
      return
    shutil.rmtree(scratch, ignore_errors=True)
    self.tokenizer.save(scratch)
    scratch.rename(final)  # There in full or not at all, whenever the process is killed.

  def finish(self, directory: Path, say: Callable[[str], None]) -> None:
    plot_sinks(directory)
    prompts = list(self.config.eval.prompts)
    if prompts and self.config.eval.sample_tokens and jax.process_count() == 1:
      say('\n\n'.join(f'{p!r} -> {text}' for p, text in zip(prompts, self.sample(directory, prompts), strict=True)))
    say(f'Checkpoints, metrics.jsonl, loss.png and TensorBoard events: {directory}')
    say(f'Generate from it: python -m decoders.generate {directory} --prompt "{prompts[0] if prompts else "Once"}"')

  def sample(self, directory: Path, prompts: list[str]) -> list[str]:
    """Returns continuations by the saved run, so that what is shown is what a user would load."""
    import decoders
    from jaxlm.io import checkpoint
    from jaxlm.language_model import LanguageModel

    lm = LanguageModel(*checkpoint.load_run(directory))
    sampling = decoders.Sampling(temperature=0.8, top_k=40)
    room = lm.config.max_length - max(len(lm.tokenizer.encode(p)) for p in prompts)
    n = min(self.config.eval.sample_tokens, room)
    return decoders.generate(lm, prompts, max_new_tokens=n, sampling=sampling, seed=0).text
