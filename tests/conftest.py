"""Four CPU devices, no silent broadcasting, programs compiled quickly, and one cache of them for all runs of the suite.

XLA_FLAGS= (set to nothing) compiles them as users run them.
"""

import gc
from importlib import metadata
import os
from pathlib import Path

# Most of the suite's time is compiling programs that run once: without LLVM's optimisations and XLA's newer emitters it is a
# fifth. A program in one piece takes a fifth less processor time than one that is split for many threads. jaxlib 0.12 has no switch
# for those emitters, and a flag that is not known ends the process.
QUICK = (
  '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true --xla_cpu_parallel_codegen_split_count=1'
)
if tuple(map(int, metadata.version('jaxlib').split('.')[:2])) < (0, 11):
  QUICK += ' --xla_cpu_use_fusion_emitters=false'
os.environ.setdefault('XLA_FLAGS', QUICK)
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# NumPy's threads of two workers on two cores wait for each other: a study took eight times as long.
os.environ.setdefault('OPENBLAS_NUM_THREADS', '1')

# XLA's thread pool on a CPU. With as many threads as cores, a program with independent all-reduces over four devices waits for ever.
os.environ.setdefault('NPROC', '16')

import jax  # noqa: E402
import pytest  # noqa: E402

# Tracing makes many objects, and a collection looks at all that the libraries hold: a twelfth of the suite's time.
gc.freeze()
gc.set_threshold(50_000, 20, 10)

jax.config.update('jax_num_cpu_devices', 4)
jax.config.update('jax_numpy_rank_promotion', 'raise')
CACHE = Path(os.environ.get('JAXLM_TEST_CACHE', Path(__file__).parents[1] / '.jax_cache')) / jax.__version__
jax.config.update('jax_compilation_cache_dir', str(CACHE))
jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.3)


# The part that the other version worlds run (.ci/run): what calls an interface that has changed between versions of JAX, Flax,
# Orbax, Grain or the tokenizer libraries, and one path through each system. Files or folders.
VERSIONED = (
  'benchmarks/test_accelerator.py',
  'compatibility',
  'decoders/beam/test_search.py',
  'decoders/glide/test_drafter.py',
  'decoders/classification/test_classifier.py',
  'decoders/simlayerkv/test_decode.py',
  'decoders/swift/test_stream.py',
  'decoders/atspeed/test_rounds_double.py',
  'decoders/test_plain.py',
  'decoders/test_sampling.py',
  'decoders/test_strategies_float64.py',
  'decoders/translation/test_parallel.py',
  'jaxlm/analysis/direction/test_scores.py',
  'jaxlm/analysis/sink/test_command.py',
  'jaxlm/attention/test_cached.py',
  'jaxlm/attention/test_dropout.py',
  'jaxlm/attention/test_flash.py',
  'jaxlm/attention/test_rule.py',
  'jaxlm/caches/test_protocol.py',
  'jaxlm/data/test_added_tokens.py',
  'jaxlm/data/test_packing.py',
  'jaxlm/data/test_pair_batches.py',
  'jaxlm/data/test_pair_tokenizers.py',
  'jaxlm/data/test_pairs.py',
  'jaxlm/data/test_sources.py',
  'jaxlm/data/test_tokenizers.py',
  'jaxlm/io',
  'jaxlm/losses/test_ctc.py',
  'jaxlm/losses/test_oaxe.py',
  'jaxlm/models/test_exam.py',
  'jaxlm/models/test_functions.py',
  'jaxlm/models/test_initializers.py',
  'jaxlm/models/test_registry.py',
  'jaxlm/models/test_seq2seq.py',
  'jaxlm/models/test_transformer.py',
  'jaxlm/models/test_transformer_dropout.py',
  'jaxlm/test_text_classifier.py',
  'pallas_kernels',
  'trainers/classify/test_train.py',
  'trainers/glide/test_train.py',
  'trainers/pretrain/test_train.py',
  'trainers/recommend/test_train.py',
  'trainers/test_averaging.py',
  'trainers/test_best.py',
  'trainers/test_loop.py',
  'trainers/test_loop_processes.py',
  'trainers/test_loop_resuming.py',
  'trainers/test_optimizer.py',
  'trainers/test_place_in_data.py',
  'trainers/test_side.py',
  'trainers/test_start.py',
  'trainers/test_step.py',
  'trainers/translate/test_train.py',
)


def pytest_collection_modifyitems(items):
  here = Path(__file__).parent
  for item in items:
    name = item.path.relative_to(here).as_posix()
    if item.get_closest_marker('long'):
      item.add_marker(pytest.mark.study)
    if item.get_closest_marker('study'):
      item.add_marker(pytest.mark.slow)
    if any(name == part or name.startswith(f'{part}/') for part in VERSIONED):
      item.add_marker(pytest.mark.versions)


@pytest.fixture(autouse=True, scope='module')
def forget_programs():
  """Every compiled program holds memory maps, and a process may have 65530: a suite that keeps all of them crashes."""
  yield
  from decoders import programs

  programs.forget()
  jax.clear_caches()


@pytest.fixture(scope='module')
def compile_quickly():
  """For modules whose time goes to compiling: programs are not optimised."""
  jax.config.update('jax_disable_most_optimizations', True)
  yield
  jax.config.update('jax_disable_most_optimizations', False)
