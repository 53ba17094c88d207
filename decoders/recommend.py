"""python -m decoders.recommend RUN --history ITEM ...; the function that searches is decoders.atspeed.recommend."""

from decoders.recommendation.command import run
from jaxlm import console

if __name__ == '__main__':
  with console.command():
    run()
