"""Command line: python -m decoders.generate MODEL --prompt "...". The function `decoders.generate` is in decoders.plain."""

from decoders.command import run
from jaxlm import console

if __name__ == '__main__':
  with console.command():
    run()
