"""python -m decoders.translate MODEL --text "..."; the function of the same name is in decoders.translation.translator."""

from decoders.translation.command import run
from jaxlm import console

if __name__ == '__main__':
  with console.command():
    run()
