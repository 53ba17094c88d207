"""Helper that the plots of all analyses share."""


def wrapped(title: str, width: float) -> str:
  import textwrap

  return '\n'.join(textwrap.wrap(title, int(width)))
