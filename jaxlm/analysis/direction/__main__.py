"""python -m jaxlm.analysis.direction score|select|report ...; its functions are in jaxlm.analysis.direction.scores."""

import sys

from jaxlm import console
from jaxlm.analysis.direction.command import run

if __name__ == '__main__':
  with console.command(cleans_up=sys.argv[1:2] == ['select']):  # It removes the half of a file that it has written.
    run()
