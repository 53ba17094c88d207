"""Parses a trainer's command line, PRESET and flags, into a config. This file does not import JAX."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import sys
from typing import TypeVar

import tyro

from jaxlm import errors
from trainers.config import ConfigError, TrainConfig

T = TypeVar('T', bound=TrainConfig)

FROM_ANOTHER_RUN = {'--distill-from': 'distilled', '--start': 'continued'}
"""Flags that name another run, which may lie in runs/PRESET -> end of the default run directory."""


def parse(
  presets: Mapping[str, tuple[str, T]],
  default: str,
  *,
  prog: str,
  description: str,
  args: Sequence[str] | None = None,
  prefix: str = '',
) -> T:
  """Returns a preset's config with the flags applied. Without a flag, `run.directory` is runs/PRESET; a run that needs another run
  has a directory of its own, see `FROM_ANOTHER_RUN`. With a `prefix`, it is runs/PREFIXPRESET, for trainers whose presets are named
  like those of another trainer.

  Args:
    presets: name -> (description, config).
    default: the preset if the command line names none.
    prog: the command as the user types it, for the help.
    description: first line of the help.
    args: command line without the program (None: sys.argv).

  Exits with a message for an unknown preset or flag (it suggests the nearest) and for settings that cannot work together.
  """
  args = list(sys.argv[1:] if args is None else args)
  name = args.pop(0) if args and not args[0].startswith('-') else default
  if name not in presets:
    exit_with(str(errors.unknown('preset', name, presets)), code=2)
  config = presets[name][1]
  if config.run.directory is None:
    given = {a.split('=')[0].replace('_', '-') for a in args}
    place = next(
      (f'runs/{prefix}{name}-{end}' for flag, end in FROM_ANOTHER_RUN.items() if flag in given), f'runs/{prefix}{name}'
    )
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, directory=place))
  listing = '\n'.join(f'  {n:<12} {text}{" (default)" if n == default else ""}' for n, (text, _) in presets.items())
  if any(a in ('-h', '--help') for a in args):
    print(f'{description}\n\nusage: {prog} [PRESET] [flags]\n\npresets:\n{listing}\n')
  try:
    return tyro.cli(
      type(config), default=config, args=args, prog=f'{prog} {name}', config=(tyro.conf.AvoidSubcommands,)
    )
  except ValueError as e:
    exit_with(str(e), code=2)


def explicit_fields(section: str, args: Sequence[str] | None = None) -> frozenset[str]:
  """Returns the fields of a section that flags set: {rope, qkv_bias} for --model.rope.theta and --model.no-qkv-bias."""
  args = sys.argv[1:] if args is None else args
  flags = [a.removeprefix(f'--{section}.') for a in args if a.startswith(f'--{section}.')]
  return frozenset(a.split('=')[0].split('.')[0].replace('-', '_').removeprefix('no_') for a in flags)


def exit_with(message: str, code: int = 1) -> None:
  print(f'error: {message}', file=sys.stderr)
  raise SystemExit(code)


def run(main: Callable[[T], object], config: T) -> None:
  """Calls main(config). Errors that the user can fix are shown as one message, without a traceback."""
  try:
    main(config)
  except (ConfigError, errors.DataError, errors.CheckpointError, errors.DivergedError) as e:
    exit_with(str(e))
