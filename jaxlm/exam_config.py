"""Configuration of a text classifier. This file does not import JAX, so that a command shows its help at once."""

import dataclasses
from typing import Any, Literal

from jaxlm import config_fields
from jaxlm.config import ModelConfig, check_choices

PAD_ID, UNKNOWN_ID = 0, 1
"""Ids that every vocabulary of words has before its words."""
Encoder = Literal['word-context', 'context-word', 'gru', 'ngrams', 'lm']
Aggregator = Literal['mlp', 'sum', 'mean', 'last']


@dataclasses.dataclass(frozen=True)
class Column:
  """One label column: what is predicted of a text. The labels themselves are in the run's tokenizer folder.

  Attributes:
    name: name of the column in the data.
    classes: number of labels.
    multilabel: whether a text may have any number of the labels (sigmoid), or exactly one (softmax).
  """

  name: str = 'label'
  classes: int = 2
  multilabel: bool = False

  def __post_init__(self):
    if self.classes < 1:
      raise ValueError(f'The label column {self.name!r} has {self.classes} classes; at least 1 is needed.')


@dataclasses.dataclass(frozen=True)
class Backbone:
  """The language model whose hidden states represent the tokens (encoder='lm').

  Attributes:
    name: what `jaxlm.load` opens.
    digest: digest of its parameters when the classifier was trained; empty if they are trained with the classifier.
    model: its config.
  """

  name: str = ''
  digest: str = ''
  model: ModelConfig = ModelConfig()


@dataclasses.dataclass(frozen=True)
class ExamConfig:
  """Shape of a text classifier. The defaults are the paper's model (EXAM) for texts with one label."""

  encoder: Encoder = 'word-context'
  """How each word is represented. word-context: region embedding, where the central word has a weight for each neighbour. context-word:
  region embedding, where each neighbour has a weight for the central word. gru: a recurrent network. ngrams: an embedding of each word
  and of each sequence of words, as in fastText. lm: the hidden states of a language model (--lm)."""
  vocab_size: int = 0
  """Number of words, with padding and unknown word. The trainer takes it from the data."""
  columns: tuple[Column, ...] = (Column(),)
  """Label columns that are predicted. The trainer takes them from the data."""
  dim: int = 128
  """Width of word and class vectors, and of the recurrent state. With encoder lm it is the width of the language model."""
  max_length: int = 256
  """Number of positions of a text, padding in front included. Longer texts are cut."""
  front: int = -1
  """Number of padding positions in front of each text (-1: the radius of the region, (region - 1) / 2, and 0 for other encoders; the
  released code has 4)."""
  side: Literal['right', 'left'] = 'right'
  """Side on which shorter texts are padded."""
  keep: Literal['first', 'last'] = 'first'
  """Which words of a text that is too long are kept."""
  region: int = 7
  """Number of words in a region, an odd number."""
  regions: tuple[int, ...] = ()
  """Numbers of words of further, smaller regions with the same centres. They share the weights of the largest one, and their
  representations lie side by side."""
  units: Literal['vector', 'scalar', 'none'] = 'vector'
  """Weight of a word for each place of its region. vector: one number for each entry of the word vectors. scalar: one number. none: no
  weight; the words of a region are only merged."""
  pooling: Literal['max', 'sum'] = 'max'
  """How the products of a region are merged."""
  gru_layers: int = 1
  """Number of recurrent layers."""
  embed_dim: int = 0
  """gru: width of the word embeddings (0: the same as dim)."""
  ngrams: int = 2
  """ngrams: longest sequence of words that has an embedding of its own."""
  buckets: int = 100_000
  """ngrams: number of embeddings that all sequences of two or more words share by their hash."""
  lm: Backbone = Backbone()
  """The language model of encoder lm. The trainer takes it from --lm."""
  train_lm: bool = False
  """lm: also train the language model; its parameters are then a part of the checkpoint. Otherwise it is frozen."""
  aggregator: Aggregator = 'mlp'
  """How the interaction scores of a class become its logit. mlp: a network that all classes share, which depends on the position (EXAM).
  sum: the sum over the words. mean: the mean over the words. last: the score of the last word."""
  hidden: int = 0
  """mlp: number of hidden units (0: twice the number of scores, as in the paper; the released code has 2 * max_length)."""
  residual: Literal['none', 'sum', 'mean'] = 'none'
  """mlp: add the sum or the mean of the scores to the logit. The released code adds the sum; the paper has none."""
  class_bias: bool = False
  """Add a learned number for each class to its interaction scores."""
  output_bias: bool = False
  """mlp: add a learned number to the output of the network."""
  mask: Literal['after', 'before', 'none'] = 'after'
  """Where padding is removed. after: its interaction scores are 0, so the amount of padding does not matter. before: its representation
  is 0, so its scores are the class bias, as in the released code. none: nowhere, as in the released code for many labels."""
  class_tile: int = 0
  """Compute this many classes at a time, to save memory with large label sets (0: all at once)."""
  dropout: float = 0.0
  """Share of the representation's entries that training sets to 0."""
  dtype: Literal['float32', 'bfloat16', 'float16'] = 'float32'
  """Computation dtype; parameters and logits stay float32 in training."""

  def __post_init__(self):
    check_choices(self)
    for name in ('dim', 'max_length', 'region', 'gru_layers', 'ngrams', 'buckets'):
      if getattr(self, name) < 1:
        raise ValueError(f'model.{name}={getattr(self, name)} must be at least 1.')
    for name in ('vocab_size', 'hidden', 'embed_dim', 'class_tile'):
      if getattr(self, name) < 0:
        raise ValueError(f'model.{name}={getattr(self, name)} must not be negative.')
    if self.front < -1:
      raise ValueError(f"model.front={self.front} must be at least 0, or -1 for the encoder's default.")
    if not 0 <= self.dropout < 1:
      raise ValueError(f'model.dropout={self.dropout} must be at least 0 and less than 1.')
    if self.region % 2 == 0:
      raise ValueError(
        f'model.region={self.region} must be odd: a region has equally many words before and after its centre.'
      )
    for size in self.regions:
      if size % 2 == 0 or not 0 < size < self.region or self.regions.count(size) > 1:
        raise ValueError(
          f'model.regions={self.regions} must be different odd numbers below model.region={self.region}, the largest region.'
        )
    if (self.regions or self.units != 'vector') and not self.is_region:
      raise ValueError(f'model.regions and model.units need a region embedding, not model.encoder={self.encoder!r}.')
    if self.units == 'none' and self.encoder == 'context-word':
      raise ValueError(
        "model.units='none' needs model.encoder='word-context': without weights, context-word sees no neighbour."
      )
    if self.positions < 1 or self.words < 1:
      raise ValueError(
        f'model.max_length={self.max_length} has no room for a word: model.front={self.padding_in_front} positions are padding, and a '
        f'region has {self.region} positions.'
      )
    if not self.columns:
      raise ValueError('model.columns is empty: a classifier predicts at least one label column.')
    names = [column.name for column in self.columns]
    if len(set(names)) < len(names):
      raise ValueError(f'The label columns {", ".join(names)} have the same name twice.')
    if self.aggregator != 'mlp' and self.residual != 'none':
      raise ValueError(
        f"model.residual={self.residual!r} needs model.aggregator='mlp', not {self.aggregator!r}, which is such a sum itself."
      )
    if self.aggregator == 'last' and self.encoder not in ('gru', 'lm'):
      raise ValueError(
        f"model.aggregator='last' needs an encoder whose last state has read the whole text (gru or lm), not {self.encoder!r}."
      )
    if self.encoder == 'lm' and (self.side == 'left' or self.padding_in_front):
      raise ValueError(
        f"model.side={self.side!r} and model.front={self.front} do not fit model.encoder='lm': a language model reads a text from "
        'position 0.'
      )

  @property
  def is_region(self) -> bool:
    """Whether words are represented by region embeddings."""
    return self.encoder in ('word-context', 'context-word')

  @property
  def radius(self) -> int:
    """Number of neighbours of a region's centre on each side."""
    return (self.region - 1) // 2 if self.is_region else 0

  @property
  def padding_in_front(self) -> int:
    """Number of padding positions in front of each text."""
    return self.radius if self.front < 0 else self.front

  @property
  def words(self) -> int:
    """Largest number of words of a text that the model reads."""
    return self.max_length - self.padding_in_front

  @property
  def positions(self) -> int:
    """Number of positions that have a representation, and so of scores of each class."""
    if self.encoder == 'ngrams':
      return sum(max(0, self.max_length - n) for n in range(self.ngrams))
    return self.max_length - 2 * self.radius

  @property
  def width(self) -> int:
    """Width of representations and class vectors."""
    return self.lm.model.model_dim if self.encoder == 'lm' else self.dim * (1 + len(self.regions))

  @property
  def hidden_units(self) -> int:
    """Number of hidden units of the network over the scores."""
    return self.hidden or 2 * self.positions

  @property
  def classes(self) -> int:
    """Number of classes of all label columns together."""
    return sum(column.classes for column in self.columns)

  @property
  def has_frozen_lm(self) -> bool:
    """Whether the parameters of a language model are needed besides those of the classifier."""
    return self.encoder == 'lm' and not self.train_lm

  def replace(self, **changes: Any) -> 'ExamConfig':
    return dataclasses.replace(self, **changes)


def exam_config(fields: dict[str, Any]) -> ExamConfig:
  """Returns the config that `jaxlm.config.to_dict` wrote. Raises ValueError as `jaxlm.config.model_config`."""
  return config_fields.read(ExamConfig, fields, 'model')
