"""python -m jaxlm.analysis.sinks MODEL ...; the function of the same name is in jaxlm.analysis.sink.report."""

from jaxlm import console
from jaxlm.analysis.sink.command import run

if __name__ == '__main__':
  with console.command():
    run()
