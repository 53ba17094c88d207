# %% [markdown]
# # How fast is jaxlm on this accelerator?
# One command measures it in about six minutes: matrix products and copies, flash attention, training steps, decoding with several
# kinds of cache, and the cost of speculative decoding. Please share the JSON file that it writes.

# %%
# Installs jaxlm and keeps the jax of this machine, which matches its TPU. Running this cell again is safe.
import importlib.util
import subprocess
import sys

REPOSITORY = ''  # 'git+https://...' of your copy; not needed if jaxlm is installed already
if importlib.util.find_spec('jaxlm') is None:
  assert REPOSITORY, 'Set REPOSITORY above to the address of your copy of jaxlm.'
  subprocess.run([sys.executable, '-m', 'pip', 'install', '-q', f'jaxlm @ {REPOSITORY}'], check=True)

# %%
import json
import os
from pathlib import Path

import jax

from benchmarks import report
from benchmarks.accelerator.__main__ import main

# On a CPU the small sizes only show that everything runs; the times mean nothing.
QUICK = bool(os.environ.get('QUICK')) or jax.default_backend() == 'cpu'
print(jax.__version__, jax.devices(), 'QUICK' if QUICK else '')

# %% [markdown]
# ## Measure
# Each result is printed and written to the file at once. If a case fails, its error is shown and the next case runs; for example, a 1B
# model cannot be trained in the 16 GB of a small chip. A TPU can be used by one process only, so the benchmark runs in this process.

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
