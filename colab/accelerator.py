# %% [markdown]
# # What does jaxlm reach on this accelerator?
# One command measures it in about six minutes: matrix products and copies, flash attention, training steps, decoding over several
# kinds of cache, and what speculation costs. Please share the JSON file that it writes.

# %%
# Installs without touching the jax that matches this machine's TPU; safe to run again.
import importlib.util
import subprocess
import sys

REPOSITORY = ''  # 'git+https://...' of your copy; not needed where jaxlm is installed already
if importlib.util.find_spec('jaxlm') is None:
  assert REPOSITORY, 'Write where your copy of jaxlm is into REPOSITORY above.'
  subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', f'jaxlm @ {REPOSITORY}'], check=True)

# %%
import json
import os
from pathlib import Path

import jax

from benchmarks import report
from benchmarks.accelerator.__main__ import main

# On a CPU the small sizes only prove that everything runs; their times mean nothing.
QUICK = bool(os.environ.get('QUICK')) or jax.default_backend() == 'cpu'
print(jax.__version__, jax.devices(), 'QUICK' if QUICK else '')

# %% [markdown]
# ## Measure
# Each line appears, and is written to the file, as soon as it is known. What fails says so and the rest goes on: a 1B model does not
# train in the 16 GB of a small chip. A TPU serves one process, so this runs here and not in another one.

# %%
results = Path(os.environ.get('RUN_DIRECTORY', 'runs/accelerator')) / 'accelerator.json'
results.parent.mkdir(parents=True, exist_ok=True)
failed = main(
  ['--out', str(results), '--seconds', '360', *(['--tiny', '--parts', 'chip', 'attention'] if QUICK else [])]
)

# %% [markdown]
# ## Tables

# %%
print(report.tables(json.loads(results.read_text())))
