"""Programs are compiled once, and no more of them are kept than a process can hold."""

import gc
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from decoders import programs
from tests.models import float64


def test_the_latest_used_are_kept(monkeypatch):
  monkeypatch.setattr(programs, 'MOST', 3)
  programs.forget()
  double, compiled = jax.jit(lambda x: 2 * x), []
  for n in (1, 2, 3, 1, 4, 1, 3, 2):
    clock = programs.Clock()
    assert clock.run('test', double, jnp.ones(n)).tolist() == [2.0] * n and len(programs._programs) <= 3
    compiled += [n] * (clock.compile_seconds > 0)
  assert compiled == [1, 2, 3, 4, 2]  # 2 was the longest unused when 4 came.


def test_a_program_is_not_used_where_numbers_are_wider():
  one, double = jnp.ones(2), jax.jit(lambda x: x + jnp.arange(2.0))
  run = lambda: programs.Clock().run('test', double, one).dtype.name
  assert run() == 'float32'
  with float64():
    assert run() == 'float64'
  assert run() == 'float32'


def test_programs_get_the_options_of_the_cpu(monkeypatch):
  run = lambda: programs.Clock().run('test', jax.jit(lambda x: 3 * x), jnp.ones(2))
  assert run().tolist() == [3.0, 3.0]
  monkeypatch.setattr(programs, 'CPU_OPTIONS', {'xla_cpu_no_such_option': 1})
  with pytest.raises(Exception, match='xla_cpu_no_such_option'):
    run()


MAPS = Path('/proc/self/maps')


@pytest.mark.skipif(not MAPS.exists(), reason='Linux lists the memory maps of a process there.')
def test_what_is_not_kept_gives_its_memory_back(monkeypatch):
  count = lambda: len(MAPS.read_text().splitlines())
  monkeypatch.setattr(programs, 'MOST', 2)
  programs.forget()

  @jax.jit
  def long(x):
    for i in range(8):
      x = jnp.sort(jnp.sin(x @ x), axis=-1) + i
    return x

  run = lambda n: programs.Clock().run('test', long, jnp.ones((n, n)))
  run(2)
  before, counts = count(), []
  for n in range(3, 9):
    run(n)
    gc.collect()
    counts.append(count())
  assert counts[0] > before + 5  # A second program takes memory,
  assert max(counts[1:]) < counts[0] + 3 * (counts[0] - before)  # and six more take no more than two.
  programs.forget()
  gc.collect()
  assert count() < before
