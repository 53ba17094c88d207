"""PRESET and flags -> a config. Knows every dataclass field, and nothing of JAX."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import sys
from typing import TypeVar

import tyro

from jaxlm import errors
from trainers.config import ConfigError, TrainConfig

T = TypeVar('T', bound=TrainConfig)


def parse(
  presets: Mapping[str, tuple[str, T]], default: str, *, prog: str, description: str, args: Sequence[str] | None = None
) -> T:
  """Returns a preset's config with the flags applied; `run.directory` is runs/PRESET unless a flag says otherwise.

  Args:
    presets: name -> (what it is, config).
    default: preset of a command line that names none.
    prog: what the user typed, for the help.
    description: first line of the help.
    args: command line without the program; sys.argv when None.

  Exits with a message for an unknown preset or flag (suggesting the nearest) and for settings that cannot work together.
  """
  args = list(sys.argv[1:] if args is None else args)
  name = args.pop(0) if args and not args[0].startswith('-') else default
  if name not in presets:
    exit_with(str(errors.unknown('preset', name, presets)), code=2)
  config = presets[name][1]
  if config.run.directory is None:
    config = dataclasses.replace(config, run=dataclasses.replace(config.run, directory=f'runs/{name}'))
  listing = '\n'.join(f'  {n:<12} {text}{" (default)" if n == default else ""}' for n, (text, _) in presets.items())
  if any(a in ('-h', '--help') for a in args):
    print(f'{description}\n\nusage: {prog} [PRESET] [flags]\n\npresets:\n{listing}\n')
  try:
    return tyro.cli(
      type(config), default=config, args=args, prog=f'{prog} {name}', config=(tyro.conf.AvoidSubcommands,)
    )
  except ValueError as e:
    exit_with(str(e), code=2)


def exit_with(message: str, code: int = 1) -> None:
  print(f'error: {message}', file=sys.stderr)
  raise SystemExit(code)


def run(main: Callable[[T], object], config: T) -> None:
  """Calls main(config); what the user can mend is shown as one message, without a trace."""
  try:
    main(config)
  except (ConfigError, errors.DataError, errors.CheckpointError, errors.DivergedError) as e:
    exit_with(str(e))
