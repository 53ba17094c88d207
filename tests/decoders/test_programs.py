"""Programs are compiled once, and no more of them are kept than a process can hold."""

import jax
import jax.numpy as jnp

from decoders import programs


def test_the_latest_used_are_kept(monkeypatch):
  monkeypatch.setattr(programs, 'MOST', 3)
  programs.forget()
  double, compiled = jax.jit(lambda x: 2 * x), []
  for n in (1, 2, 3, 1, 4, 1, 3, 2):
    clock = programs.Clock()
    assert clock.run('test', double, jnp.ones(n)).tolist() == [2.0] * n and len(programs._programs) <= 3
    compiled += [n] * (clock.compile_seconds > 0)
  assert compiled == [1, 2, 3, 4, 2]  # 2 was the longest unused when 4 came.
