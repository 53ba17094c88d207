"""The configs of small runs of the trainer of drafts."""

import dataclasses

from trainers import command_line, glide
from trainers.config import MeshConfig

MODEL = (
  '--model.model-dim', '12', '--model.num-heads', '2', '--model.mlp-dim', '20', '--model.block', '3', '--model.dtype', 'float32'
)  # fmt: skip


def parse(*args):
  return command_line.parse(
    glide.PRESETS, 'embedded', prog='glide', description='Trains a draft.', args=args, prefix='glide-'
  )


def arguments(target, text, directory, *flags):
  """Returns the command line of a run of 8 steps."""
  data = '--data.source', str(text / 'train.jsonl'), '--data.valid-source', str(text / 'valid.jsonl')
  shape = '--data.batch-size', '8', '--data.length', '24', '--optimizer.warmup-steps', '2'
  run = (
    '--run.directory',
    str(directory),
    '--run.steps',
    '8',
    '--run.keep',
    '9',
    '--run.eval-every',
    '4',
    '--run.save-every',
    '2',
  )
  quiet = '--run.no-tensorboard', '--run.log-every', '1', '--eval.prompts', '0'
  return 'smoke', '--target', str(target), *MODEL, *data, *shape, *run, *quiet, *flags


def config(target, text, directory, *flags, mesh=MeshConfig()):
  return dataclasses.replace(parse(*arguments(target, text, directory, *flags)), mesh=mesh)
