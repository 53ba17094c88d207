"""Tables as text."""


def aligned(lines: list[list[str]]) -> str:
  widths = [max(map(len, column)) for column in zip(*lines)]
  return '\n'.join('  '.join(cell.rjust(w) for cell, w in zip(line, widths)) for line in lines)
