"""python -m jaxlm.analysis.evaluate MODEL SPEC ...; its functions are in evaluate_scores and evaluate_choices."""

from jaxlm import console
from jaxlm.analysis.evaluate_command import run

if __name__ == '__main__':
  with console.command():
    run()
