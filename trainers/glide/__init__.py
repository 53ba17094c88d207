"""Trains a GliDe draft: a small model that reads the keys and values of a frozen target, for speculative decoding.

  python -m trainers.glide                                      minutes on a CPU: a small target first, then its draft
  python -m trainers.glide smollm2 --target smollm2             a draft of what python -m jaxlm.data.fetch smollm2 brought
  python -m trainers.glide --target runs/embedded --self-generate 500      learns from texts that the target writes itself
  python -m trainers.glide --target runs/embedded --distill.weight 0.5     learns from the target's distribution as well
  python -m trainers.glide --target runs/embedded --model.no-cross         the same draft without the target's keys and values

Starting the same command again resumes. Use the draft with python -m decoders.generate TARGET --decoder glide --draft RUN. JAX is
imported after the flags are read, so that --help is fast.
"""

from trainers.glide.config import DistillConfig as DistillConfig
from trainers.glide.config import EvalConfig as EvalConfig
from trainers.glide.config import GenerationConfig as GenerationConfig
from trainers.glide.config import GlideTrainConfig as GlideTrainConfig
from trainers.glide.config import TextConfig as TextConfig
from trainers.glide.presets import PRESETS as PRESETS
from trainers.glide.train import main as main
