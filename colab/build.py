"""python -m colab.build [--check]: writes each NAME.ipynb from NAME.py, without outputs; --check only compares them."""

from pathlib import Path
import sys

HERE = Path(__file__).parent


def notebook(source: Path) -> str:
  """Returns the notebook of a percent-format source as text, which is the same every time."""
  import jupytext

  content = jupytext.read(source)
  for i, cell in enumerate(content.cells):
    cell['id'] = f'{source.stem}-{i}'
  content.metadata = {
    'accelerator': 'TPU',
    'colab': {'gpuType': 'V5E1', 'provenance': []},
    'kernelspec': {'display_name': 'Python 3', 'language': 'python', 'name': 'python3'},
    'language_info': {'name': 'python'},
  }
  return jupytext.writes(content, fmt='ipynb') + '\n'


def main(check: bool) -> int:
  stale = []
  for source in sorted(HERE.glob('*.py')):
    if source.stem in ('__init__', 'build'):
      continue
    target, text = source.with_suffix('.ipynb'), notebook(source)
    if not target.exists() or target.read_text() != text:
      stale.append(target.name)
      if not check:
        target.write_text(text)
  if stale:
    print('not made from their sources:' if check else 'written:', *stale)
  return int(check and bool(stale))


if __name__ == '__main__':
  sys.exit(main('--check' in sys.argv[1:]))
