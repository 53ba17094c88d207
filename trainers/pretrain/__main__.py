"""Command line: python -m trainers.pretrain [PRESET] ...; see the package's docstring."""

import functools

from jaxlm import console
from trainers import command_line, pretrain

if __name__ == '__main__':
  with console.command():
    command_line.run(
      functools.partial(pretrain.main, explicit=command_line.explicit_fields('model')),
      command_line.parse(
        pretrain.PRESETS, 'embedded', prog='python -m trainers.pretrain', description=pretrain.__doc__.split('\n')[0]
      ),
    )
