"""Trains generative recommenders in three stages: identifiers of items, a target that generates them, a draft that speeds it up.

  python -m trainers.recommend                                 all three on generated data; minutes on a CPU
  python -m trainers.recommend ids --data.source movielens-100k --run.directory runs/films-ids
  python -m trainers.recommend target --ids runs/films-ids --run.directory runs/films-target
  python -m trainers.recommend draft --target runs/films-target --run.directory runs/films-draft
  python -m trainers.recommend draft --loss.name atspeed-r     for relaxed verification
  python -m trainers.recommend sasrec                          SASRec, to compare with; its identifiers are those of preset ids-sasrec

Each stage has a run directory of its own. Without --target or --ids, the run of the stage before lies beside this one: runs/X-draft
needs runs/X-target and that one runs/X-ids, and what is missing is made first with the preset of the same name. So --run.directory is
the only flag to repeat; to use other data, make the identifiers first. Starting the same command again resumes. Recommend with python -m
decoders.recommend RUN --history ITEM ...
"""

# JAX is imported after the flags are read, so that --help is fast.

from trainers.recommend.config import BeamConfig as BeamConfig
from trainers.recommend.config import DraftConfig as DraftConfig
from trainers.recommend.config import EvalConfig as EvalConfig
from trainers.recommend.config import IdConfig as IdConfig
from trainers.recommend.config import IdsConfig as IdsConfig
from trainers.recommend.config import IdsRunConfig as IdsRunConfig
from trainers.recommend.config import LogConfig as LogConfig
from trainers.recommend.config import LossConfig as LossConfig
from trainers.recommend.config import ModelFlags as ModelFlags
from trainers.recommend.config import RowConfig as RowConfig
from trainers.recommend.config import SpeedConfig as SpeedConfig
from trainers.recommend.config import TargetConfig as TargetConfig
from trainers.recommend.presets import PRESETS as PRESETS
from trainers.recommend.train import main as main
