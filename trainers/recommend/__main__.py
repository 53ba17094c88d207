"""Command line: python -m trainers.recommend [PRESET] ...; see the package's docstring."""

from jaxlm import console
from trainers import command_line, recommend

if __name__ == '__main__':
  with console.command():
    command_line.run(
      recommend.main,
      command_line.parse(
        recommend.PRESETS,
        'draft',
        prog='python -m trainers.recommend',
        description=recommend.__doc__.rstrip(),
        prefix='recommend-',
      ),
    )
