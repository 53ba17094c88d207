"""Command line: python -m trainers.classify [PRESET] ...; see the package's docstring."""

from jaxlm import console
from trainers import classify, command_line

if __name__ == '__main__':
  with console.command():
    command_line.run(
      classify.main,
      command_line.parse(
        classify.PRESETS, 'docstrings', prog='python -m trainers.classify', description=classify.__doc__.split('\n')[0]
      ),
    )
