"""python -m benchmarks.accelerator: measures the library on a GPU or TPU in six minutes; see the package's docstring.

  python -m benchmarks.accelerator --out accelerator.json                 all parts
  python -m benchmarks.accelerator --parts attention training --seconds 200
  python -m benchmarks.accelerator --tiny                                 runs every part on a CPU in a minute

`python -m benchmarks.report FILE` prints the written file as tables.
"""

import argparse  # Not tyro: the machine may have only jax, flax, optax and numpy.
import importlib
import os
from pathlib import Path

from benchmarks.accelerator.record import Record
from benchmarks.accelerator.setting import ACCELERATOR, TINY
from jaxlm import console

PARTS = {
  'chip': 'matrix product and copy, to which other parts are compared',
  'peers': 'PyTorch and transformers, if installed; early, while JAX holds little memory',
  'agreement': 'the same tokens and losses as on the CPU',
  'attention': 'flash attention: correctness and speed',
  'column-mass': 'attention that each key receives: correctness and speed',
  'training': 'training steps of 135M and 1B models',
  'decoding': 'a 1B model over full, lazy and quantised caches',
  'speculation': 'cost of drafting and verifying, and the predicted gain',
  'decode-attention': "one step's attention over full, ring and 4-bit caches, by implementation",
  'assignment': 'exact assignment on the device, by implementation',
  'beams': 'beam search over a transformer-base encoder-decoder',
  'blocks': 'block sizes of the attention kernels, tried one by one; runs only if named in --parts',
}

USUAL = [part for part in PARTS if part != 'blocks']


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
  parts = '\n'.join(f'  {name:<16} {what}' for name, what in PARTS.items())
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.accelerator', formatter_class=argparse.RawDescriptionHelpFormatter,
    description='Measures the library on the GPU or TPU of this machine.', epilog=f'parts:\n{parts}',
  )  # fmt: skip
  parser.add_argument(
    '--parts', nargs='+', choices=PARTS, default=USUAL, metavar='PART', help='parts to run (all but blocks)'
  )
  parser.add_argument(
    '--seconds', type=float, default=360, help='time limit for all parts, compilation included (%(default)s)'
  )
  parser.add_argument(
    '--tiny', action='store_true', help='small sizes that test the code on a CPU; the times mean nothing'
  )
  parser.add_argument('--out', type=Path, help='JSON file (benchmarks/results/accelerator_DEVICE.json; tiny: none)')
  parser.add_argument(
    '--programs', type=Path, metavar='FOLDER', help="write the compiled programs' text, for example to find copies"
  )
  return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
  """Runs the parts; returns 1 if a case failed or a check is wrong, otherwise 0."""
  args = arguments(argv)
  # Set before JAX is imported, because PyTorch's process needs memory too.
  os.environ.setdefault('XLA_PYTHON_CLIENT_PREALLOCATE', 'false')
  import jax

  from benchmarks import report
  from benchmarks.accelerator.timing import Compiled

  if args.programs is not None:
    args.programs.mkdir(parents=True, exist_ok=True)
    Compiled.texts = args.programs
  device = jax.devices()[0]
  if device.platform == 'cpu' and not args.tiny:
    raise SystemExit('JAX sees no GPU or TPU here. --tiny proves the code on a CPU.')
  if args.out is None and not args.tiny:
    args.out = report.RESULTS / f'accelerator_{device.device_kind.lower().replace(" ", "_")}.json'
  setting = TINY if args.tiny else ACCELERATOR
  record = Record(
    args.out, report.machine(), {'tiny': args.tiny, 'parts': args.parts, 'seconds': args.seconds}, args.seconds
  )
  with record.watching():
    for name in args.parts:
      cases = importlib.import_module(f'benchmarks.accelerator.{name.replace("-", "_")}').cases
      record.run_part(name, lambda cases=cases: cases(setting))
  wrong = [row for row in record.contents['rows'] if 'error' in row or row.get('right') is False]
  print(
    f'{len(record.contents["rows"])} rows, {len(wrong)} of them wrong or failed; written to {args.out or "no file"}.'
  )
  return int(bool(wrong))


if __name__ == '__main__':
  with console.command():
    raise SystemExit(main())
