"""Command line: python -m trainers.glide [PRESET] ...; see the package's docstring."""

from jaxlm import console
from trainers import command_line, glide

if __name__ == '__main__':
  with console.command():
    command_line.run(
      glide.main,
      command_line.parse(
        glide.PRESETS,
        'embedded',
        prog='python -m trainers.glide',
        description=glide.__doc__.split('\n')[0],
        prefix='glide-',
      ),
    )
