"""Command line: python -m jaxlm.analysis.evaluate MODEL SPEC ... The functions are in jaxlm.evaluation."""

from jaxlm import console
from jaxlm.evaluation.command import run

if __name__ == '__main__':
  with console.command():
    run()
