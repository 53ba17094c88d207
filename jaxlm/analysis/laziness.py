"""python -m jaxlm.analysis.laziness MODEL ...; the function of the same name is in jaxlm.analysis.lazy.report."""

from jaxlm import console
from jaxlm.analysis.lazy.command import run

if __name__ == '__main__':
  with console.command():
    run()
