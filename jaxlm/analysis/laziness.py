"""python -m jaxlm.analysis.laziness MODEL ...; the function of the same name is in jaxlm.analysis.laziness_report."""

from jaxlm import console
from jaxlm.analysis.laziness_command import run

if __name__ == '__main__':
  with console.command():
    run()
