"""python -m benchmarks.assignment: time of the assignments of a batch on the device, compared with SciPy, lapx and Optax.

SciPy's solver runs in a loop over the problems, and in the same loop within a program, through jax.pure_callback. Uniform costs have
no structure; token costs are -log p of T positions for the tokens of a sentence in another order, some of which are equal.
"""

import dataclasses

import numpy as np
import tyro

from benchmarks import report
from jaxlm import console


@dataclasses.dataclass(frozen=True)
class Config:
  """Exact solvers of assignment problems, float32."""

  batches: tuple[int, ...] = (16, 32, 128)
  lengths: tuple[int, ...] = (32, 64, 128, 256)
  repeats: int = 9
  most_entries: int = 2**23
  """Largest number of costs in a batch; larger ones are left out."""
  most_entries_optax: int = 2**23
  """The same for Optax, which takes seconds for more."""


def uniform_costs(rng, T: int):
  return rng.uniform(0, 10, (T, T))


def token_costs(rng, T: int, vocab: int = 2000):
  """Returns -log p of T positions, peaked at the tokens of a sentence that is rotated for half of the problems, [T, T]."""
  targets = np.minimum(rng.zipf(1.3, T) - 1, vocab - 1)
  rotation = rng.integers(T) if rng.random() < 0.5 else 0
  logits = rng.normal(size=(T, vocab))
  for shift, weight in ((-1, 4.0), (0, 8.0), (1, 4.0)):
    logits[np.arange(T), targets[(np.arange(T) + rotation + shift) % T]] += weight * rng.random(T)
  return np.log(np.exp(logits).sum(axis=1, keepdims=True)) - logits[:, targets]


def scipy_columns(cost_BTT):
  from scipy.optimize import linear_sum_assignment

  return np.stack([linear_sum_assignment(cost_TT)[1] for cost_TT in cost_BTT]).astype(np.int32)


def solvers(cost_BTT, with_optax: bool):
  """Returns name -> a function without arguments that returns the columns [B, T]; a compiled one waits for its result."""
  import jax
  import jax.numpy as jnp
  import optax

  from pallas_kernels import linear_assignment

  cost = jax.device_put(cost_BTT)

  def compiled(solve):
    solve = jax.jit(solve)
    return lambda: jax.block_until_ready(solve(cost))

  def callback(cost):
    return jax.pure_callback(scipy_columns, jax.ShapeDtypeStruct(cost.shape[:2], jnp.int32), cost)

  def one_by_optax(cost_TT):
    rows, columns = optax.assignment.hungarian_algorithm(cost_TT)
    return jnp.zeros_like(columns).at[rows].set(columns)

  runs = {
    'jaxlm': compiled(linear_assignment),
    'SciPy': lambda: scipy_columns(cost_BTT),
    'SciPy by callback': compiled(callback),
  }
  try:
    import lap

    runs['lapx'] = lambda: np.stack([lap.lapjv(cost_TT)[1] for cost_TT in cost_BTT])
  except ImportError:
    print("lapx is not installed: pip install -e '.[bench]'")
  if with_optax:
    runs['Optax'] = compiled(jax.vmap(one_by_optax))
  return runs


def main(config: Config) -> None:
  rng, rows = np.random.default_rng(0), []
  for name, costs in (('uniform', uniform_costs), ('tokens', token_costs)):
    for T in config.lengths:
      for B in config.batches:
        if B * T * T > config.most_entries:
          continue
        cost_BTT = np.stack([costs(rng, T) for _ in range(B)]).astype(np.float32)
        runs = solvers(cost_BTT, B * T * T <= config.most_entries_optax)
        totals = [
          np.take_along_axis(cost_BTT, np.asarray(run())[..., None], 2).sum(axis=(1, 2)) for run in runs.values()
        ]
        np.testing.assert_allclose(totals, [totals[0]] * len(totals), rtol=1e-5)
        taken = report.in_turn({k: lambda run=run: report.seconds(run) for k, run in runs.items()}, config.repeats)
        # Other programs on the machine can only add time, to a compiled one more than to a loop in this thread.
        ms = {k: 1e3 * min(times) for k, times in taken.items()}
        row = {'costs': name, 'batch': B, 'T': T, **{f'{k} ms': v for k, v in ms.items()}}
        rows.append(
          row | {f'speed, {k} = 1': v / ms['jaxlm'] for k, v in ms.items() if k in ('SciPy', 'lapx', 'Optax')}
        )
        print(report.table(rows[-1:]).splitlines()[-1], flush=True)
  columns = list(dict.fromkeys(c for row in rows for c in row))
  rows = [{c: row.get(c, '') for c in columns} for row in rows]
  report.write('assignment', rows, config=dataclasses.asdict(config), statistic=f'least of {config.repeats} runs')


if __name__ == '__main__':
  with console.command():
    main(tyro.cli(Config))
