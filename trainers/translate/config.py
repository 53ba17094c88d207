"""Every setting of training a translation model, as plain data: no JAX here, so that a command shows its help at once."""

import dataclasses
import math
from typing import Literal

from jaxlm.config import check_choices
from jaxlm.seq2seq_config import Seq2SeqConfig
from trainers.config import ConfigError, TrainConfig


@dataclasses.dataclass(frozen=True)
class PairDataConfig:
  """Sentence pairs, their tokenizers, and how they are batched."""

  source: str = 'grammar'
  """Sentence pairs: 'grammar[:TASK]' (generated, with known translations), a .tsv, .jsonl or .parquet file, two aligned text files
  STEM.{en,de}, tfds:NAME, or a fetched name such as libreoffice:en-de."""
  valid_source: str = ''
  """Held-out pairs (empty: the held-out split of `source` where it has one, else a part of it)."""
  valid_fraction: float = 0.02
  """Part of the pairs that is held out where nothing else says which."""
  source_language: str = 'en'
  """Name of the source language, as files and fields have it."""
  target_language: str = 'de'
  """Name of the target language."""
  download: bool = False
  """Whether TFDS may download and prepare what is not there."""
  tokenizer: str = 'bpe'
  """How texts become tokens: 'bpe' or 'unigram' (SentencePiece models of the training pairs), 'words', 'bytes', or a folder that
  holds the tokenizers of another run."""
  vocab_size: int = 8000
  """Number of ids of a tokenizer that is trained."""
  joint: bool = True
  """One vocabulary for both languages. Without it each language has its own, and the model needs other embeddings than shared."""
  tokens: int = 4096
  """Budget of a batch over all devices: its rows times its longer side in tokens is at most this."""
  buckets: int = 6
  """Number of shapes that batches may have. More shapes have less padding and compile more programs."""
  max_length: int = 128
  """Tokens that a source or target may have, with EOS. Longer pairs are counted and left out."""
  row_multiple: int = 8
  """Rows of each batch are a multiple of this, and the number of devices must divide it."""
  seed: int = 0
  """Seed for the order of the pairs."""

  def __post_init__(self):
    for name in ('vocab_size', 'tokens', 'buckets', 'max_length', 'row_multiple'):
      if getattr(self, name) < 1:
        raise ConfigError(f'data.{name}={getattr(self, name)} must be at least 1.')
    if not 0 < self.valid_fraction < 1:
      raise ConfigError(f'data.valid_fraction={self.valid_fraction} must be between 0 and 1.')
    if self.tokens < self.max_length * self.row_multiple:
      raise ConfigError(
        f'data.tokens={self.tokens} has no room for data.row_multiple={self.row_multiple} pairs of '
        f'data.max_length={self.max_length} tokens, {self.max_length * self.row_multiple} in all.'
      )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """What is measured on held-out pairs besides the loss."""

  batches: int | None = 50
  """Held-out batches of the loss (none: all)."""
  sentences: int = 200
  """Held-out sources that are translated at each evaluation, for BLEU and chrF (0: none)."""
  beam_size: int = 1
  """Hypotheses of the beam search that translates them; 1 is greedy and the fastest."""
  length_penalty: float = 1.0
  """Scores are divided by the length to this power: larger values prefer longer translations."""
  show: int = 2
  """Translations that are shown at each evaluation."""

  def __post_init__(self):
    if self.batches is not None and self.batches < 1:
      raise ConfigError(f'eval.batches={self.batches} must be at least 1, or none for all.')
    for name in ('sentences', 'show'):
      if getattr(self, name) < 0:
        raise ConfigError(f'eval.{name}={getattr(self, name)} must not be negative.')
    if self.beam_size < 1:
      raise ConfigError(f'eval.beam_size={self.beam_size} must be at least 1.')


@dataclasses.dataclass(frozen=True)
class DistillConfig:
  """How the teacher of --distill-from translates the training sources, and where its translations are kept."""

  beam_size: int = 5
  """Hypotheses of the teacher's beam search; 1 is greedy and the fastest."""
  length_penalty: float = 1.0
  """Scores are divided by the length to this power: larger values prefer longer translations."""
  batch_size: int = 64
  """Sources translated together. Fewer take less memory."""
  dtype: Literal['float32', 'bfloat16', 'float16'] | None = None
  """Type of the teacher's parameters and computation (none: float32 on CPU, bfloat16 elsewhere)."""
  corpus: str | None = None
  """JSON Lines file of the training sources with their translations (none: distilled.jsonl in the run directory). A finished file
  of the same sources, teacher and settings is used as it is, so that several runs can share it."""

  def __post_init__(self):
    for name in ('beam_size', 'batch_size'):
      if getattr(self, name) < 1:
        raise ConfigError(f'distill.{name}={getattr(self, name)} must be at least 1.')
    if not math.isfinite(self.length_penalty):
      raise ConfigError(f'distill.length_penalty={self.length_penalty} must be a finite number.')
    if self.corpus is not None and not self.corpus.endswith('.jsonl'):
      raise ConfigError(f'distill.corpus={self.corpus!r} is a JSON Lines file: its name must end in .jsonl.')


@dataclasses.dataclass(frozen=True)
class TranslateConfig(TrainConfig):
  """Train an encoder-decoder on sentence pairs."""

  model: Seq2SeqConfig = Seq2SeqConfig()
  data: PairDataConfig = PairDataConfig()
  eval: EvalConfig = EvalConfig()
  distill_from: str | None = None
  """Teacher: a run directory of trainers.translate, or another encoder-decoder that `jaxlm.load` opens. The run trains on the
  training sources with the teacher's translations as targets; held-out pairs stay the real ones (none: train on the real targets)."""
  distill: DistillConfig = DistillConfig()
  label_smoothing: float = 0.1
  """Part of each training target that is shared out over the whole vocabulary (0: none). Evaluation does without."""

  def __post_init__(self):
    super().__post_init__()
    check_choices(self)
    if self.distill_from is None and self.distill != DistillConfig():
      raise ConfigError('The settings of --distill are for a teacher: name one with --distill-from.')
    if not 0 <= self.label_smoothing < 1:
      raise ConfigError(f'label_smoothing={self.label_smoothing} must be at least 0 and less than 1.')
    if self.data.max_length > self.model.max_length:
      raise ConfigError(
        f'data.max_length={self.data.max_length} is longer than the model: model.max_length={self.model.max_length}.'
      )
    if not self.data.joint and self.model.embeddings == 'shared':
      raise ConfigError("data.joint=False makes two vocabularies: model.embeddings must be 'tied' or 'separate'.")
