"""The configs of small runs of the trainer of recommenders."""

from trainers import command_line, recommend

MODEL = (
  '--model.num-layers', '1', '--model.model-dim', '16', '--model.num-heads', '2', '--model.num-kv-heads', '2', '--model.head-dim',
  '8', '--model.mlp-dim', '20',
)  # fmt: skip
RUN = (
  '--run.steps', '6', '--run.keep', '9', '--run.eval-every', '3', '--run.save-every', '2', '--run.no-tensorboard',
  '--run.log-every', '1', '--data.batch-size', '8', '--optimizer.warmup-steps', '2', '--eval.users', '8', '--eval.batch-size', '8',
)  # fmt: skip


def parse(*args):
  return command_line.parse(
    recommend.PRESETS, 'draft', prog='recommend', description='Recommends.', args=args, prefix='recommend-'
  )


def ids(directory, *flags):
  return parse('ids-tiny', '--run.directory', str(directory), '--ids.history', '4', '--ids.sizes', '16', *flags)


def target(ids_run, directory, *flags):
  return parse('target-tiny', '--ids', str(ids_run), '--run.directory', str(directory), *MODEL, *RUN, *flags)


def draft(target_run, directory, *flags):
  small = '--beams.examples', '20', '--beams.count', '3', '--eval.k', '2', '--eval.beam', '4'
  return parse('tiny', '--target', str(target_run), '--run.directory', str(directory), *MODEL, *RUN, *small, *flags)
