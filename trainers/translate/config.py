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
  length_beam: int = 5
  """For models of kind nat or cmlm: number of target lengths, the likeliest ones, that are tried for each source."""
  iterations: int = 1
  """For models of kind cmlm: passes of the decoder; after the first, each predicts anew the least likely tokens."""
  show: int = 2
  """Translations that are shown at each evaluation."""

  def __post_init__(self):
    if self.batches is not None and self.batches < 1:
      raise ConfigError(f'eval.batches={self.batches} must be at least 1, or none for all.')
    for name in ('sentences', 'show'):
      if getattr(self, name) < 0:
        raise ConfigError(f'eval.{name}={getattr(self, name)} must not be negative.')
    for name in ('beam_size', 'length_beam', 'iterations'):
      if getattr(self, name) < 1:
        raise ConfigError(f'eval.{name}={getattr(self, name)} must be at least 1.')


Loss = Literal['ce', 'axe', 'oaxe', 'ngram-oaxe', 'ctc']


@dataclasses.dataclass(frozen=True)
class OrderConfig:
  """Losses that do not hold a model to one order of the target tokens."""

  pi: float = 0.0
  """oaxe, ngram-oaxe: tokens whose probability after the assignment is less than this have no loss (0: all have one). Evaluation
  does without."""
  base: Literal['e', '2'] = 'e'
  """Logarithm in which pi is compared. e: with the probability itself. 2: as in the released code, which compares -log2(pi) with nats,
  so that the limit is pi ** 1.44."""
  pin_eos: bool = False
  """The EOS keeps the last position, and only the tokens before it are assigned."""
  ngram: int = 2
  """ngram-oaxe: number of neighbouring tokens that keep their order."""
  ngram_mode: Literal['window', 'block'] = 'window'
  """ngram-oaxe. window: overlapping n-grams are assigned, so that a position may have several targets. block: n-grams on a grid are
  assigned, and each token is used once."""
  truncated: Literal['window', 'token'] = 'window'
  """ngram-oaxe: what pi leaves out. window: all tokens of an n-gram, by their mean probability. token: single tokens."""
  skip_penalty: float = 1.0
  """axe: factor of the cost of a target token that no position predicts. More: fewer tokens are skipped."""
  joint: Literal['none', 'exponential', 'linear', 'step'] = 'none'
  """How the weight of the cross-entropy in place goes from 1 to 0 while the weight of this loss goes from 0 to 1. none: the loss is
  trained alone, from a model that was trained with cross-entropy (--start)."""
  joint_until: float = 0.5
  """joint: share of run.steps after which the weight of the cross-entropy is 0."""
  joint_base: float = 1.01
  """joint=exponential: base c of the weight 1 - c ** (step - joint_until * steps). Nearer to 1: a slower change."""

  def __post_init__(self):
    check_choices(self)
    if not 0 <= self.pi < 1:
      raise ConfigError(f'oaxe.pi={self.pi} must be at least 0 and less than 1: it is a probability.')
    if self.ngram < 1:
      raise ConfigError(f'oaxe.ngram={self.ngram} must be at least 1.')
    if not 0 < self.joint_until <= 1:
      raise ConfigError(
        f'oaxe.joint_until={self.joint_until} must be above 0 and at most 1: it is a share of run.steps.'
      )
    if self.joint_base <= 1:
      raise ConfigError(f'oaxe.joint_base={self.joint_base} must be above 1.')
    if self.skip_penalty < 0:
      raise ConfigError(f'oaxe.skip_penalty={self.skip_penalty} must not be negative.')


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
  loss: Loss = 'ce'
  """What is minimised. ce: cross-entropy, of models of kind cmlm on random masks. For kinds nat and cmlm also axe (monotonic alignment),
  oaxe (best order of the target tokens) and ngram-oaxe (best order of its phrases), with all target tokens masked, and ctc for a
  decoder with model.nat.upsampling."""
  oaxe: OrderConfig = OrderConfig()
  distill_from: str | None = None
  """Teacher: a run directory of trainers.translate, or another encoder-decoder that `jaxlm.load` opens, which writes token by token. The
  run trains on the training sources with the teacher's translations as targets; held-out pairs stay the real ones (none: train on the
  real targets)."""
  distill: DistillConfig = DistillConfig()
  label_smoothing: float = 0.1
  """Part of each training target that is shared out over the whole vocabulary (0: none). Evaluation and the losses axe and ctc do
  without."""

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
    self._check_parallel()

  def _check_parallel(self):
    model, e = self.model, self.eval
    if not model.is_parallel and self.loss != 'ce':
      raise ConfigError(
        f"loss={self.loss!r} is for models that predict all tokens at once: model.kind must be 'nat' or 'cmlm', not {model.kind!r}."
      )
    if (self.loss == 'ctc') != bool(model.nat.upsampling):
      raise ConfigError(
        f"loss='ctc' and model.nat.upsampling need each other, but here loss={self.loss!r} and "
        f'model.nat.upsampling={model.nat.upsampling}; 3 positions for each source token are usual.'
      )
    if self.loss in ('ce', 'ctc') and self.oaxe != OrderConfig():
      raise ConfigError(f'The settings of --oaxe are for loss axe, oaxe or ngram-oaxe, not for loss={self.loss!r}.')
    if model.is_parallel and e.beam_size > 1:
      raise ConfigError(
        f'eval.beam_size={e.beam_size} is for models that write token by token: model.kind={model.kind!r} has eval.length_beam instead.'
      )
    if model.kind != 'cmlm' and e.iterations > 1:
      raise ConfigError(
        f"eval.iterations={e.iterations} needs model.kind='cmlm', which reads known tokens, not {model.kind!r}."
      )
