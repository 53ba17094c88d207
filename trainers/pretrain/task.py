"""The task of a decoder-only language model: predict the next token of a packed batch.

loss = -sum_bt mask_bt log p(targets_bt | tokens_b,<=t of the same document)
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm import losses
from jaxlm.analysis.sink.report import sink_sums
from jaxlm.config import SIGNAL_IDS
from jaxlm.data import corpus, directions, packing, sources, tokenizers
from jaxlm.data.replaced import replace_tokens
from jaxlm.errors import DataError
from jaxlm.io import checkpoint
from jaxlm.language_model import LanguageModel
from jaxlm.models.transformer import init_params
from trainers import place_in_data, run_directory, suggestion
from trainers.config import ConfigError
from trainers.loop import Batch, Task
from trainers.next_token import next_token_loss as next_token_loss
from trainers.pretrain import samples
from trainers.pretrain.plots import plot_sinks
from trainers.side import left_out
from trainers.step import Context

DIRECTIONS = ('forward', 'reverse')
# The attention-sink paper defines its metric on sequences of this length; it falls for longer ones.
SINK_TOKENS = 64


def load_tokenizer(data: Any, run_directory: str | Path) -> Any:
  """Returns the tokenizer of a run: the one in its directory, else the one that `data.tokenizer` names, or a new one."""
  if (held := Path(run_directory) / 'tokenizer').is_dir():
    if (found := tokenizers.from_directory(held)) is not None:
      return found
  if data.tokenizer != 'train':
    return named_tokenizer(data)
  train, _ = sources.split(documents(data, data.source), data.valid_fraction)
  try:
    return tokenizers.train_sentencepiece(train, data.vocab_size)
  except ValueError as e:
    raise ConfigError(f'data.vocab_size={data.vocab_size} for a tokenizer of {data.source!r}: {e}') from e


def named_tokenizer(data: Any) -> Any:
  """Returns the tokenizer that `data.tokenizer` names. Raises DataError if there is none."""
  if data.tokenizer == 'bytes':
    return tokenizers.ByteTokenizer()
  path = Path(data.tokenizer).expanduser()
  found = tokenizers.from_sentencepiece(path) if path.is_file() else tokenizers.from_directory(path)
  if found is None:
    raise DataError(f'data.tokenizer={data.tokenizer!r} holds no tokenizer; it can be a folder, "train" or "bytes".')
  return found


def documents(data: Any, spec: str) -> sources.Source:
  return sources.documents(spec, field=data.field, download=data.download)


def _reading(config: Any, tokenizer: Any) -> tuple[directions.Reading, directions.Headed]:
  """Returns (how documents are read, a tokenizer with the signal's ids). Raises ConfigError if the tokenizer has no EOS."""
  r = config.reverse
  try:
    # With `start`, the model's vocabulary may be larger than the tokenizer's.
    headed = directions.Headed(tokenizer, r.signal, config.model.vocab_size if config.start else None)
  except ValueError as e:
    raise ConfigError(f'direction={config.direction!r}: {e}') from e
  return directions.Reading(config.direction, headed.bos_id, headed.vocab_size, r.signal, r.share, r.pairing), headed


class LanguageModeling(Task):
  """Next-token prediction on a text source. `config` is a PretrainConfig whose model has the tokenizer's vocabulary.

  `params`: parameters, on the run's devices, with which a new run begins; None for new parameters.
  """

  trainer = 'pretrain'
  kept = ('data.tokenizer', 'data.vocab_size')

  def __init__(self, config: Any, tokenizer: Any, params: Any = None):
    self.config, self.tokenizer, self._given = config, tokenizer, params
    data = config.data
    self.batch_size = data.batch_size
    if data.valid_source is None:
      train, valid = sources.split(documents(data, data.source), data.valid_fraction)
    else:
      train, valid = documents(data, data.source), documents(data, data.valid_source)
    shape = dict(batch_size=data.batch_size, length=data.length, mode=data.packing)
    order, some = dict(seed=data.seed, fraction=data.fraction), dict(max_batches=config.eval.batches)
    if data.replace == 'fixed' and not 0 <= data.replace_token < tokenizer.vocab_size:
      raise ConfigError(f'data.replace_token={data.replace_token} is outside the vocabulary of {tokenizer.vocab_size}.')
    if config.direction == 'forward':
      self.batches = packing.make_batches(corpus.tokenize(train, tokenizer), **order, **shape)
      self.held_out = {'forward': packing.eval_batches(corpus.tokenize(valid, tokenizer), **some, **shape)}
    else:
      reading, headed = _reading(config, tokenizer)
      tokenize = lambda part: corpus.tokenize(part, headed, bos=True, eos=True)
      self.batches = directions.make_batches(tokenize(train), reading, **order, **shape)
      ways, held_out = DIRECTIONS if config.direction == 'both' else (config.direction,), tokenize(valid)
      self.held_out = {
        way: directions.eval_batches(held_out, reading, reverse=way == 'reverse', **some, **shape) for way in ways
      }
    size = tokenizer.vocab_size + SIGNAL_IDS[config.reverse.signal]
    self._bytes_V = np.array([len(tokenizer.token_bytes(i)) for i in range(size)], np.float32)

  def describe(self) -> str:
    b, held_out = self.batches, next(iter(self.held_out.values())).corpus
    few = ''
    if self.config.direction == 'both' and self.config.reverse.pairing == 'independent' and b.corpus.num_documents < 50:
      few = (
        '. There are few documents, and each is read in one direction for a whole epoch: split the text into more documents, '
        'or pass --reverse.pairing duplicate'
      )
    return (
      f'Data: {len(b.corpus):,} training tokens in {b.corpus.num_documents:,} documents, {b.steps_per_epoch:.1f} steps '
      f'per epoch; {len(held_out):,} held-out tokens; vocabulary {len(self._bytes_V):,}{few}'
    )

  def data_notes(self, step: int) -> dict[str, Any]:
    rows = {'rows': self.batches.rows_before(step), 'length': self.config.data.length}
    return {**rows, 'texts': place_in_data.describe(self.batches, self.held_out)}

  def resume(self, step: int, notes: dict[str, Any], before: dict[str, Any]) -> list[str]:
    texts = place_in_data.describe(self.batches, self.held_out)
    self.batches = place_in_data.resumed(self.batches, step, notes, before)
    return place_in_data.changes(notes, texts)

  def init_params(self, key: jax.Array) -> Any:
    return init_params(self.config.model, key)

  def given_params(self) -> Any:
    given, self._given = self._given, None  # They must not stay in memory beside the trained parameters.
    return given

  def loss(self, params: Any, batch: Any, context: Context) -> tuple:
    smoothing = 0.0 if context.key is None else self.config.label_smoothing
    return next_token_loss(params, batch, self.config.model, context.key, label_smoothing=smoothing)

  def _inputs(self, batch: Batch) -> Batch:
    data, prefix = self.config.data, self.config.model.prefix
    if data.packing != 'concat':
      return batch
    # A row is one text, so the causal mask is enough.
    batch = {k: v for k, v in batch.items() if k not in ('segments', 'positions')}
    if data.replace != 'none':
      token = data.replace_token if data.replace == 'fixed' else None
      batch = replace_tokens(batch, data.replace_positions, token=token, vocab_size=self.tokenizer.vocab_size)
    # All positions see the prefix, so its tokens are no targets. (In validation the paper's code forgets this.)
    if prefix:
      batch['mask'] = np.where(np.arange(data.length) >= prefix - 1, batch['mask'], 0).astype(np.float32)
    return batch

  def batch(self, step: int, rows: slice) -> Batch:
    return self._inputs(self.batches.batch(step, rows))

  def eval_batches(self, rows: slice) -> Iterable[Batch]:
    for way, batches in self.held_out.items():
      for i in range(len(batches)):
        batch = self._inputs(batches.batch(i, rows))
        if len(self.held_out) > 1:
          batch['reversed'] = np.full(len(batch['mask']), way == 'reverse', np.float32)
        yield batch

  def eval_sums(self, params: Any, batch: Any, context: Context) -> dict[str, jax.Array]:
    bytes_BT = jnp.asarray(self._bytes_V)[batch['targets']]
    loss_sum, weight = self.loss(params, batch, context)
    sums = {'loss': loss_sum, 'weight': weight, 'bytes': jnp.sum(bytes_BT * batch['mask'])}
    if 'reversed' in batch:  # All rows of a batch have the same direction.
      reverse = batch['reversed'][0]
      for way, part in zip(DIRECTIONS, (1 - reverse, reverse)):
        sums |= {f'loss_{way}': part * sums['loss'], f'weight_{way}': part * sums['weight']}
    if self.config.eval.sinks:
      real_B = jnp.any(batch['mask'] > 0, axis=1).astype(jnp.float32)
      sums['rows'] = real_B.sum()
      sums |= sink_sums(self.config.model, params, batch['tokens'][:, :SINK_TOKENS], real_B)
    return sums

  def eval_metrics(self, sums: dict[str, float]) -> dict[str, float]:
    loss = sums['loss'] / max(sums['weight'], 1e-8)
    bits = sums['loss'] / np.log(2) / max(sums['bytes'], 1e-8)
    by_way = {
      f'loss_{way}': sums[f'loss_{way}'] / max(sums[f'weight_{way}'], 1e-8)
      for way in DIRECTIONS
      if f'loss_{way}' in sums
    }
    sinks = {k: v / sums['rows'] for k, v in sums.items() if not k.startswith(('loss', 'weight', 'bytes', 'rows'))}
    numbers = {'loss': loss, 'perplexity': float(np.exp(min(loss, 100.0))), 'bits_per_byte': float(bits)}
    return {**numbers, **by_way, **sinks}

  @property
  def host_metrics(self) -> tuple[str, ...]:
    return ('repetition',) if self._samples_each_time() else ()

  def _samples_each_time(self) -> bool:
    e = self.config.eval
    return e.samples == 'each' and bool(e.prompts) and e.sample_tokens > 0 and jax.process_count() == 1

  def evaluate_on_host(
    self, params: Any, frozen: Any, stop: Callable[[], bool], say: Callable[[str], None]
  ) -> dict[str, float] | None:
    if not self._samples_each_time():
      return {}
    e, lm = self.config.eval, LanguageModel(self.config.model, params, self.tokenizer)
    shown, added = [], []
    for way in self.held_out:
      if stop():
        return None
      more = samples.continuations(lm, e.prompts, [way], e.sample_tokens)
      shown, added = shown + more[0], added + more[1]
    say('\n\n'.join(shown))
    return {'repetition': samples.repetition(added)}

  def headline(self, metrics: dict[str, float]) -> dict[str, float]:
    shown = (
      'loss',
      'loss_forward',
      'loss_reverse',
      'perplexity',
      'bits_per_byte',
      'sink_slot',
      'sink_1',
      'row_mass',
      'repetition',
    )
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
    run_directory.save_once(directory / 'tokenizer', self.tokenizer.save)

  def finish(self, directory: Path, say: Callable[[str], None]) -> None:
    with left_out('The plot of sinks', say):
      plot_sinks(directory)
    prompts = list(self.config.eval.prompts)
    if prompts and self.config.eval.sample_tokens and jax.process_count() == 1:
      with left_out('The samples', say):
        # The samples are from the saved run, so that they show the model that a user would load.
        lm = LanguageModel(*checkpoint.load_run(directory))
        say('\n\n'.join(samples.continuations(lm, prompts, self.held_out, self.config.eval.sample_tokens)[0]))
    say(f'Checkpoints, metrics.jsonl, loss.png and TensorBoard events: {directory}')
    with left_out('The next command', say):
      lm = LanguageModel(self.config.model, None, self.tokenizer)
      say(f'Generate from it: {suggestion.generate_command(directory, lm, prompts)}')
