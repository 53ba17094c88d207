"""python -m benchmarks.translation --study mat: studies of translation. `--study mat --help` shows the options of one.

decode  speed of beam search beside transformers and CTranslate2, with the same weights (benchmarks/translation_decode.py)
mat     how much target history translation needs: quality, agreement and speed by Markov order (benchmarks/translation_mat.py)
oaxe    order-agnostic losses of models that predict all tokens at once: validity, repetitions, speed (benchmarks/translation_oaxe.py)
"""

import argparse
import importlib
import sys

import tyro

from jaxlm import console

STUDIES = ('decode', 'mat', 'oaxe')


def main(argv: list[str]) -> None:
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.translation', add_help=False, usage='%(prog)s --study NAME ...', description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )  # fmt: skip
  parser.add_argument('--study', choices=STUDIES)
  chosen, options = parser.parse_known_args(argv)
  if chosen.study is None:
    if {'-h', '--help'} & set(options):  # With --study, the study has its own help.
      return parser.print_help()
    parser.error(f'name a study: --study {" or ".join(STUDIES)}')
  study = importlib.import_module(f'benchmarks.translation_{chosen.study}')
  study.main(tyro.cli(study.Config, prog=f'{parser.prog} --study {chosen.study}', args=options))


if __name__ == '__main__':
  with console.command():
    main(sys.argv[1:])
