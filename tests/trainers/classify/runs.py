"""The configs of small runs of the trainer of classifiers."""

import dataclasses

from trainers import classify, command_line
from trainers.config import MeshConfig

MODEL = '--model.dim', '8', '--model.max-length', '16'
BOTH = '--data.labels', 'label', 'tags', '--data.multilabel', 'tags'


def parse(*args):
  return command_line.parse(classify.PRESETS, 'docstrings', prog='classify', description='Classifies.', args=args)


def arguments(texts, directory, *flags, kind='csv'):
  """Returns the command line of a run of 8 steps."""
  name = lambda part: str(texts / f'{part}.{kind}')
  data = '--data.source', name('train'), '--data.valid-source', name('valid'), '--data.test-source', name('test')
  run = '--run.directory', str(directory), '--run.steps', '8', '--run.eval-every', '4', '--run.save-every', '4'
  quiet = '--run.no-tensorboard', '--run.log-every', '1', '--run.keep', '9', '--data.batch-size', '8'
  return 'tiny', *MODEL, *data, *run, *quiet, *flags


def config(texts, directory, *flags, kind='csv', mesh=MeshConfig()):
  return dataclasses.replace(parse(*arguments(texts, directory, *flags, kind=kind)), mesh=mesh)
