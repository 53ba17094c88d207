"""python -m decoders.generate MODEL --prompt "..."; the function of the same name is in decoders.plain."""

from decoders.command import run
from jaxlm import console

if __name__ == '__main__':
  with console.command():
    run()
