"""Command line: python -m jaxlm.analysis.sinks MODEL ... The function `sinks` is in jaxlm.analysis.sink.report."""

from jaxlm import console
from jaxlm.analysis.sink.command import run

if __name__ == '__main__':
  with console.command():
    run()
