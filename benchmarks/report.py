"""Functions that all benchmarks share: the description of the machine, timing, tables and the JSON file.

python -m benchmarks.report FILE      prints the tables of a JSON file that a benchmark wrote
"""

from collections.abc import Callable, Sequence
import json
import os
from pathlib import Path
import platform
import sys
import time
from typing import Any

import numpy as np

RESULTS = Path(__file__).parent / 'results'


def machine() -> dict[str, Any]:
  """Returns a description of the machine: processor, cores, accelerator, versions."""
  import jax

  model = platform.processor()
  if (info := Path('/proc/cpuinfo')).exists():
    model = next(
      (line.split(': ')[1] for line in info.read_text().splitlines() if line.startswith('model name')), model
    )
  versions = {'python': platform.python_version(), 'jax': jax.__version__}
  try:
    import torch
    import transformers

    versions |= {'torch': torch.__version__, 'transformers': transformers.__version__}
  except ImportError:
    pass
  return {
    'cpu': model.strip(),
    'cores': len(os.sched_getaffinity(0)),
    'device': jax.devices()[0].device_kind,
    **versions,
  }


def seconds(run: Callable[[], Any]) -> float:
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def in_turn(runs: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[Any]]:
  """Calls the functions in turn, `repeats` times after one warm-up, so that changes in machine speed affect all of them."""
  for run in runs.values():
    run()
  results: dict[str, list[Any]] = {name: [] for name in runs}
  for _ in range(repeats):
    for name, run in runs.items():
      results[name].append(run())
  return results


def matvec_bandwidth(rows: int = 4096, columns: int = 16384, repeats: int = 15) -> float:
  """Returns the GB/s of multiplying a float32 matrix, far larger than the processor's caches, by a vector."""
  import jax
  import jax.numpy as jnp

  matrix, vector = jnp.ones((rows, columns)), jnp.ones((1, rows))
  multiply = jax.jit(jnp.matmul)
  taken = in_turn({'matvec': lambda: seconds(lambda: multiply(vector, matrix).block_until_ready())}, repeats)
  return matrix.nbytes / np.median(taken['matvec']) / 1e9


def matmul_flops(size: int = 2048, repeats: int = 7) -> float:
  """Returns floating-point operations per second of one large float32 matrix product."""
  import jax
  import jax.numpy as jnp

  matrix = jnp.ones((size, size))
  multiply = jax.jit(jnp.matmul)
  taken = in_turn({'matmul': lambda: seconds(lambda: multiply(matrix, matrix).block_until_ready())}, repeats)
  return 2 * size**3 / np.median(taken['matmul'])


def table(rows: Sequence[dict[str, Any]]) -> str:
  """Returns the rows as an aligned Markdown table."""
  show = lambda v: f'{v:.3g}' if isinstance(v, float) else str(v)
  columns = list(rows[0])
  cells = [columns, *[[show(row.get(c, '')) for c in columns] for row in rows]]
  widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]
  lines = ['| ' + ' | '.join(cell.ljust(w) for cell, w in zip(row, widths)) + ' |' for row in cells]
  return '\n'.join([lines[0], '|' + '|'.join('-' * (w + 2) for w in widths) + '|', *lines[1:]])


def tables(contents: dict[str, Any]) -> str:
  """Returns the contents of a benchmark's JSON file as Markdown, with one table for each value of the rows' 'table'."""
  by_name: dict[str, list[dict[str, Any]]] = {}
  for row in contents['rows']:
    by_name.setdefault(row.get('table', 'results'), []).append(row)
  parts = [f'Machine: {contents["machine"]}', *contents.get('notes', ())]
  for name, rows in by_name.items():
    parts.append(f'### {name}')
    measured = [row for row in rows if 'error' not in row and 'skipped' not in row]
    if measured and all('right' in row for row in measured):
      parts.append(f'{sum(row["right"] for row in measured)} of {len(rows)} are right.')
      measured = [row for row in measured if not row['right']]
    if measured:
      hidden = ('part', 'table', 'seconds')
      columns = [c for c in dict.fromkeys(c for row in measured for c in row) if c not in hidden]
      parts.append(table([{c: row.get(c, '') for c in columns} for row in measured]))
    parts += [f'- {_labels(row)}: {row["error"]}' for row in rows if 'error' in row]
    parts += [f'- {_labels(row)}: not run, {row["skipped"]}' for row in rows if 'skipped' in row]
  return '\n\n'.join(parts).replace('\n\n- ', '\n- ')


def _labels(row: dict[str, Any]) -> str:
  hidden = ('part', 'table', 'seconds', 'error', 'where', 'skipped')
  return ', '.join(f'{k} {v}' for k, v in row.items() if k not in hidden) or row.get('part', '')


def described(name: str, value: Any) -> str:
  """Returns an additional result as text: rows as a table; values nested deeper are left out."""
  flat = lambda v: not any(isinstance(x, dict | list) for x in (v.values() if isinstance(v, dict) else v))
  if isinstance(value, list) and value and all(isinstance(row, dict) and flat(row) for row in value):
    return f'{name}:\n{table(value)}'
  if isinstance(value, dict | list) and not flat(value):
    return f'{name}: see the file'
  return f'{name}: {value}'


def verdict(statement: str, holds: bool, measured: float) -> dict[str, Any]:
  """Prints and returns a statement, whether it holds, and what was measured."""
  print('PASS' if holds else 'MISS', statement, '--', round(measured, 4))
  return {'statement': statement, 'pass': bool(holds), 'measured': round(measured, 4)}


def write(name: str, rows: Sequence[dict[str, Any]], **more: Any) -> Path:
  """Prints the table and writes benchmarks/results/NAME.json."""
  RESULTS.mkdir(parents=True, exist_ok=True)
  path = RESULTS / f'{name}.json'
  path.write_text(json.dumps({'machine': machine(), **more, 'rows': list(rows)}, indent=2) + '\n')
  print(
    table(rows), f'\nMachine: {machine()}', *(described(k, v) for k, v in more.items()), f'Written to {path}', sep='\n'
  )
  return path


def require_peer() -> None:
  """Raises SystemExit with the install line when PyTorch or transformers is missing."""
  try:
    import torch  # noqa: F401
    import transformers  # noqa: F401
  except ImportError as error:
    raise SystemExit(
      f"This benchmark runs beside PyTorch and transformers: pip install -e '.[bench]' ({error})."
    ) from None


if __name__ == '__main__':
  if len(sys.argv) != 2 or sys.argv[1].startswith('-'):
    raise SystemExit('usage: python -m benchmarks.report FILE.json')
  print(tables(json.loads(Path(sys.argv[1]).read_text())))
