"""Command line: python -m jaxlm.analysis.laziness MODEL ... The function `laziness` is in jaxlm.analysis.lazy.report."""

from jaxlm import console
from jaxlm.analysis.lazy.command import run

if __name__ == '__main__':
  with console.command():
    run()
