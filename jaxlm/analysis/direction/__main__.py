"""python -m jaxlm.analysis.direction score|select|report ...; its functions are in jaxlm.analysis.direction.scores."""

from jaxlm.analysis.direction.command import run

if __name__ == '__main__':
  run()
