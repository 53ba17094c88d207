"""Trains a text classifier: EXAM, or one of its baselines.

  python -m trainers.classify                                   minutes on a CPU: which package does a docstring come from?
  python -m trainers.classify fasttext                          the same with a bag of words and pairs of words
  python -m trainers.classify --data.source r8                  what python -m jaxlm.data.fetch r8 brought
  python -m trainers.classify --data.source reviews.csv --data.text title body --data.labels stars
  python -m trainers.classify --data.source debtags             texts with several labels
  python -m trainers.classify lm --lm smollm2                   on the hidden states of a language model

Starting the same command again resumes. Label texts with python -m decoders.classify RUN --text "...". JAX is imported after the
flags are read, so that --help is fast.
"""

from trainers.classify.config import ClassDataConfig as ClassDataConfig
from trainers.classify.config import ClassifyConfig as ClassifyConfig
from trainers.classify.config import EvalConfig as EvalConfig
from trainers.classify.config import ModelFlags as ModelFlags
from trainers.classify.presets import PRESETS as PRESETS
from trainers.classify.train import main as main
