"""python -m jaxlm.analysis.direction score|select|report ...; its functions are in jaxlm.analysis.direction_scores."""

from jaxlm.analysis.direction_command import run

if __name__ == '__main__':
  run()
