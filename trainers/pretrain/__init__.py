"""Pretrains a decoder-only language model on text.

  python -m trainers.pretrain                                          takes minutes on a CPU; the text ships with Python
  python -m trainers.pretrain sink-60m --data.source 'pile/*.jsonl' --model.attention sigmoid
  python -m trainers.pretrain --direction both                         texts are read forward and in reverse
  python -m trainers.pretrain --start runs/embedded --data.source selected.jsonl     trains a model further, here on the
                                                                       output of python -m jaxlm.analysis.direction select

Starting the same command again resumes the run. JAX is imported after the flags are read, so that --help is fast.
"""

from trainers.pretrain.config import DataConfig as DataConfig
from trainers.pretrain.config import EvalConfig as EvalConfig
from trainers.pretrain.config import PretrainConfig as PretrainConfig
from trainers.pretrain.config import ReverseConfig as ReverseConfig
from trainers.pretrain.presets import PRESETS as PRESETS
from trainers.pretrain.train import main as main
