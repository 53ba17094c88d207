"""The task of a translation model: predict each target token from the source and the target tokens before it.

loss = -sum_bt mask_bt log p(targets_bt | source_b, tokens_b,<=t), with label smoothing in training
"""

from collections.abc import Callable, Iterable
import itertools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxlm import errors, losses
from jaxlm.data import grammar, pair_batches, pair_tokenizers, pairs
from jaxlm.models import seq2seq
from jaxlm.seq2seq_config import Seq2SeqConfig
from jaxlm.translation_model import Seq2SeqModel
from trainers import place_in_data, run_directory
from trainers.config import ConfigError
from trainers.step import Context
from trainers.task import Batch, Task

AT_ONCE = 64  # Sources that are translated between two looks for a signal.


def pairs_of(data: Any) -> tuple[pairs.Pairs, pairs.Pairs]:
  """Returns the training and the held-out pairs that a config names. Raises DataError if there are none."""
  return pairs.train_and_valid(
    data.source, data.source_language, data.target_language, valid=data.valid_source,
    valid_fraction=data.valid_fraction, download=data.download,
  )  # fmt: skip


def load_tokenizers(data: Any, train: pairs.Pairs, directory: str | Path) -> pair_tokenizers.PairTokenizers:
  """Returns the tokenizers of a run: those that it holds, those of the folder that `data.tokenizer` names, or new ones."""
  if (held := Path(directory) / 'tokenizer').is_dir():
    return pair_tokenizers.load(held)
  if data.tokenizer not in pair_tokenizers.KINDS:
    return pair_tokenizers.load(Path(data.tokenizer).expanduser())
  try:
    return pair_tokenizers.train(train, kind=data.tokenizer, vocab_size=data.vocab_size, joint=data.joint)
  except errors.DataError:  # The pairs cannot be read, whatever the size of the vocabulary.
    raise
  except ValueError as e:
    raise ConfigError(f'data.vocab_size={data.vocab_size} for a tokenizer of {data.source!r}: {e}') from e


def translation_loss(
  params: Any,
  batch: dict[str, jax.Array],
  config: Seq2SeqConfig,
  key: jax.Array | None = None,
  *,
  label_smoothing: float = 0.0,
) -> tuple[jax.Array, jax.Array]:
  """Returns (sum of the negative log-likelihoods of batch['targets'], sum of batch['mask']).

  Args:
    batch: source int32 and source_mask bool [B, S]; tokens and targets int32, mask float32 [B, T].
    key: random key for dropout; None drops nothing.
    label_smoothing: see `jaxlm.losses.cross_entropy`.
  """
  lengths_B = jnp.sum(batch['source_mask'], axis=1, dtype=jnp.int32)
  keys = (None, None) if key is None else jax.random.split(key)
  encoded_BSD = seq2seq.encode(params, config, batch['source'], lengths_B, keys[0])
  memory = seq2seq.memory(params, config, encoded_BSD, lengths_B)
  hidden_BTD, _ = seq2seq.hidden(params, config, batch['tokens'], memory, key=keys[1])
  return token_loss(params, config, hidden_BTD, batch['targets'], batch['mask'], label_smoothing)


def token_loss(params, config: Seq2SeqConfig, hidden_BTD, targets_BT, mask_BT, label_smoothing: float):
  """Returns (sum of the negative log-likelihoods of the targets, sum of the mask) of decoder states."""
  targets, options = (targets_BT, mask_BT), dict(label_smoothing=label_smoothing)
  if config.output_bias:
    return losses.cross_entropy(seq2seq.logits(params, config, hidden_BTD), *targets, **options)
  return losses.chunked_cross_entropy(hidden_BTD, seq2seq.output_matrix(params, config), *targets, **options)


class Translation(Task):
  """Translation of sentence pairs. `config` is a TranslateConfig whose model has the tokenizers' vocabulary and ids."""

  trainer = 'translate'
  kept = ('data.tokenizer', 'data.vocab_size', 'data.joint')
  higher_is_better = ('bleu', 'chrf', 'valid_share')

  def __init__(self, config: Any, tokenizers: pair_tokenizers.PairTokenizers, train: pairs.Pairs, valid: pairs.Pairs):
    self.config, self.tokenizers = config, tokenizers
    data = config.data
    corpora = [pair_batches.tokenize_pairs(part, tokenizers) for part in (train, valid)]
    self.batches = pair_batches.make_pair_batches(
      corpora[0], tokenizers, tokens=data.tokens, buckets=data.buckets, seed=data.seed, max_length=data.max_length,
      devices=data.row_multiple,
    )  # fmt: skip
    self.held_out = pair_batches.eval_pair_batches(
      corpora[1], tokenizers, self.batches.shapes, max_batches=config.eval.batches
    )
    empty = sum(counts.empty for part in (train, valid) if (counts := part.known_counts) is not None)
    self._empty = f' {empty:,} pairs have an empty side and are left out.' if empty else ''
    self.batch_size = self.batches.batch_size
    self.sentences = list(itertools.islice(valid, config.eval.sentences))
    # The held-out pairs of a generated language, which knows all translations of a source.
    self._language = grammar.parse(valid.name) if valid.name.split(':')[0] == 'grammar' else None
    self.host_metrics = () if not self.sentences else ('bleu', 'chrf', *(('valid_share',) if self._language else ()))
    self.best_metric = 'bleu' if self.sentences else 'loss'

  def describe(self) -> str:
    long = self.held_out.dropped
    return (
      f'Data: {self.batches.describe()}{self._empty}\n'
      f'Held out: {self.held_out.pairs:,} pairs; vocabulary {self.config.model.vocab_size:,}'
      + (f'. {long:,} held-out pairs are longer than the training batches and left out.' if long else '')
    )

  def data_notes(self, step: int) -> dict[str, Any]:
    return {'texts': self._texts()}

  def _texts(self) -> dict[str, dict[str, Any]]:
    corpora = {'training': self.batches.corpus, 'held-out': self.held_out.corpus}
    size = lambda corpus: len(corpus.source) + len(corpus.target)
    digest = lambda corpus: f'{corpus.source.digest} {corpus.target.digest}'
    return {name: {'tokens': size(corpus), 'digest': digest(corpus)} for name, corpus in corpora.items()}

  def resume(self, step: int, notes: dict[str, Any], before: dict[str, Any]) -> list[str]:
    said = place_in_data.changes(notes, self._texts())
    ours, data = self.config.data, before.get('data', {})
    changed = [
      name
      for name in ('tokens', 'buckets', 'max_length', 'row_multiple', 'seed')
      if data.get(name) != getattr(ours, name)
    ]
    if changed:
      said.append(
        f'The batches are others than before ({", ".join(changed)}): the run goes on with batch {step} of the new ones.'
      )
    return said

  def init_params(self, key: jax.Array) -> Any:
    return seq2seq.init_params(self.config.model, key)

  def loss(self, params: Any, batch: Any, context: Context) -> tuple:
    smoothing = 0.0 if context.key is None else self.config.label_smoothing
    return translation_loss(params, batch, self.config.model, context.key, label_smoothing=smoothing)

  def batch(self, step: int, rows: slice) -> Batch:
    return self.batches.batch(step, rows)

  def eval_batches(self, rows: slice) -> Iterable[Batch]:
    return (self.held_out.batch(i, rows) for i in range(len(self.held_out)))

  def evaluate_on_host(
    self, params: Any, frozen: Any, stop: Callable[[], bool], say: Callable[[str], None]
  ) -> dict[str, float] | None:
    import decoders

    e, found, outputs = self.config.eval, [], []
    if not self.sentences:
      return {}
    model = Seq2SeqModel(self.config.model, params, self.tokenizers)
    sources, references = zip(*self.sentences)
    for start in range(0, len(sources), AT_ONCE):
      if stop():
        return None
      out = decoders.translate(model, sources[start : start + AT_ONCE], batch_size=AT_ONCE, **self.decoding())
      found += out.text
      outputs.append(out)
    for source, reference, text in list(zip(sources, references, found))[: e.show]:
      say(f'  {source}\n  -> {text}\n  reference: {reference}')
    return self.scores(sources, references, found) | self.decoding_metrics(outputs)

  def decoding(self) -> dict[str, Any]:
    """Returns the options of `decoders.translate` for held-out sources."""
    return {'beam_size': self.config.eval.beam_size, 'length_penalty': self.config.eval.length_penalty}

  def decoding_metrics(self, outputs: list[Any]) -> dict[str, float]:
    """Returns further metrics of what `decoders.translate` returned."""
    return {}

  def scores(self, sources: Iterable[str], references: Iterable[str], found: list[str]) -> dict[str, float]:
    """Returns corpus BLEU and chrF as sacreBLEU computes them and, of a generated language, the share of valid translations."""
    import sacrebleu

    scores = {
      'bleu': sacrebleu.corpus_bleu(found, [list(references)]).score,
      'chrf': sacrebleu.corpus_chrf(found, [list(references)]).score,
    }
    if self._language is not None:
      valid = [self._language.is_valid(source, text) for source, text in zip(sources, found)]
      scores['valid_share'] = sum(valid) / len(valid)
    return scores

  def save_assets(self, directory: Path) -> None:
    run_directory.save_once(directory / 'tokenizer', self.tokenizers.save)

  def finish(self, directory: Path, say: Callable[[str], None]) -> None:
    if self.sentences:
      import sacrebleu

      bleu, chrf = sacrebleu.BLEU(), sacrebleu.CHRF()
      (
        bleu.corpus_score(['a'], [['a']]),
        chrf.corpus_score(['a'], [['a']]),
      )  # A signature is known after the first score.
      say(f'BLEU: {bleu.get_signature()}; chrF: {chrf.get_signature()}')
      say(f'Translate with it: python -m decoders.translate {directory} --text "{self.sentences[0][0]}"')
    say(f'Checkpoints, metrics.jsonl, loss.png and TensorBoard events: {directory}')
