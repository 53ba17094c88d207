"""Command line: python -m jaxlm.analysis.direction score|select|report ...

The functions for use from Python are in jaxlm.analysis.direction.scores.
"""

import sys

from jaxlm import console
from jaxlm.analysis.direction.command import run

if __name__ == '__main__':
  with console.command(cleans_up=sys.argv[1:2] == ['select']):  # `select` removes its unfinished files.
    run()
