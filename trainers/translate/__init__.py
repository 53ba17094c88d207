"""Trains an encoder-decoder on sentence pairs, to translate.

  python -m trainers.translate                                             minutes on a CPU, on a generated language
  python -m trainers.translate iwslt --data.source 'train.{de,en}' --data.source-language de --data.target-language en
  python -m trainers.translate grammar --model.markov-order 4              a decoder that sees the last 4 target tokens
  python -m trainers.translate base --data.source libreoffice:en-de        what python -m jaxlm.data.fetch libreoffice brought
  python -m trainers.translate cmlm                                        a model that predicts all target tokens at once
  python -m trainers.translate oaxe --start runs/cmlm                      and goes on learning whatever the order of the tokens
  python -m trainers.translate --distill-from runs/grammar                 on a teacher's translations of the training sources

Starting the same command again resumes. No JAX is imported before the flags are read, so that --help is quick.
"""

from trainers.translate.config import DistillConfig as DistillConfig
from trainers.translate.config import EvalConfig as EvalConfig
from trainers.translate.config import OrderConfig as OrderConfig
from trainers.translate.config import PairDataConfig as PairDataConfig
from trainers.translate.config import TranslateConfig as TranslateConfig
from trainers.translate.presets import PRESETS as PRESETS
from trainers.translate.train import main as main
