"""Four CPU devices, no silent broadcasting, and one compilation cache for all runs of the suite."""

import os
from pathlib import Path

os.environ.setdefault('JAX_PLATFORMS', 'cpu')

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_num_cpu_devices', 4)
jax.config.update('jax_numpy_rank_promotion', 'raise')
CACHE = Path(os.environ.get('JAXLM_TEST_CACHE', Path(__file__).parents[1] / '.jax_cache')) / jax.__version__
jax.config.update('jax_compilation_cache_dir', str(CACHE))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)


@pytest.fixture(autouse=True, scope='module')
def forget_programs():
  """Every compiled program holds memory maps, and a process may have 65530: a suite that keeps all of them crashes."""
  yield
  from decoders import programs

  programs.forget()
  jax.clear_caches()
