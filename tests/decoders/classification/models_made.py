"""A small classifier with words and labels, for the tests of labelling."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxlm.data.text_reader import TextReader
from jaxlm.data.word_vocabulary import WordVocabulary
from jaxlm.exam_config import Column, ExamConfig
from jaxlm.models import exam
from jaxlm.text_classifier import TextClassifier

WORDS = WordVocabulary('words', ('<pad>', '<unk>', *'abcdefgh'))
COLUMNS = (Column('topic', 4), Column('tags', 3, True))
LABELS = (('w', 'x', 'y', 'z'), ('p', 'q', '<r>'))
CONFIG = ExamConfig(vocab_size=10, columns=COLUMNS, dim=6, max_length=14)
CODE = CONFIG.replace(front=4, residual='sum', class_bias=True, output_bias=True, mask='before')


@functools.cache
def made(config: ExamConfig = CONFIG) -> TextClassifier:
  params = exam.abstract_params(config)
  rng = np.random.default_rng(2)
  params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape) / 2, jnp.float32), params)
  return TextClassifier(config, params, TextReader(WORDS, COLUMNS, LABELS))
