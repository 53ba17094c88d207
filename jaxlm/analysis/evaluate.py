"""python -m jaxlm.analysis.evaluate MODEL SPEC ...; its functions are in jaxlm.evaluation."""

from jaxlm import console
from jaxlm.evaluation.command import run

if __name__ == '__main__':
  with console.command():
    run()
