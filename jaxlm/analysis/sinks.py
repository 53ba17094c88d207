"""python -m jaxlm.analysis.sinks MODEL ...; the function of the same name is in jaxlm.analysis.sink_report."""

from jaxlm import console
from jaxlm.analysis.sink_command import run

if __name__ == '__main__':
  with console.command():
    run()
