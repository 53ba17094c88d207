"""python -m trainers.translate [PRESET] ...; see the package's docstring."""

from jaxlm import console
from trainers import command_line, translate

if __name__ == '__main__':
  with console.command():
    command_line.run(
      translate.main,
      command_line.parse(
        translate.PRESETS, 'grammar', prog='python -m trainers.translate', description=translate.__doc__.split('\n')[0]
      ),
    )
