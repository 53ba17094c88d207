import os
from pathlib import Path
import subprocess
import sys

import pytest

from tests.conftest import CACHE

COLAB = Path(__file__).parents[2] / 'colab'
SOURCES = sorted(p for p in COLAB.glob('*.py') if p.stem not in ('__init__', 'build'))


def test_notebooks_are_made_from_their_sources():
  assert subprocess.run([sys.executable, '-m', 'colab.build', '--check'], cwd=COLAB.parent).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize('source', SOURCES, ids=lambda p: p.stem)
def test_notebook_runs_in_quick_mode(source, tmp_path):
  environment = {**os.environ, 'QUICK': '1', 'MPLBACKEND': 'agg', 'RUN_DIRECTORY': str(tmp_path / 'run')}
  environment |= {'JAX_COMPILATION_CACHE_DIR': str(CACHE), 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.3'}
  done = subprocess.run([sys.executable, str(source)], cwd=tmp_path, env=environment, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr[-2000:]
