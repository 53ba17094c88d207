"""python -m decoders.classify RUN --text "..."; the function of the same name is in decoders.classification.classifier."""

from decoders.classification.command import run
from jaxlm import console

if __name__ == '__main__':
  with console.command():
    run()
