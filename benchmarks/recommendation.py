"""python -m benchmarks.recommendation: drafts for speculative beam search by loss, and how well their targets recommend.

recommending  Recall and NDCG of the target on test users, beside popular items, the items that follow the last one, and SASRec
drafts        for each loss of the draft, rule of verification and K: accepted steps, target calls, time of the search without a draft
              divided by that with it, for batches and for histories one by one, and Recall@K and NDCG@K
plain search  with --peer, the time of transformers' constrained beam search divided by ours, with the same weights, and whether its lists
              are ours

on generated data and, after `python -m jaxlm.data.fetch movielens-100k`, on films. All models are trained by trainers.recommend, once,
in the cache folder: a study that was stopped goes on with what is missing. Writes recommendation.json.
"""

from collections.abc import Sequence
import dataclasses
from typing import Any, Literal

import tyro

from benchmarks import report
from jaxlm import console

LOSSES = ('sft', 'word-kd', 'tvd-kd', 'seq-kd', 'seq-kd-released', 'atspeed-s', 'atspeed-s-clean', 'atspeed-r')
RULES = ('strict', 'relaxed')


@dataclasses.dataclass(frozen=True)
class Config:
  """Drafts and targets of generative recommendation."""

  sets: tuple[Literal['made-small', 'movielens-100k'], ...] = ('made-small',)
  losses: tuple[str, ...] = LOSSES
  """Losses of the drafts (none: targets without drafts, which are written to recommendation_plain.json)."""
  ks: tuple[int, ...] = (1, 3, 5, 10, 20)
  """Numbers of beams K of the target."""
  beam: int = 40
  """Number of beams N of the draft."""
  gamma: int = 3
  """Steps that the draft runs ahead."""
  seeds: int = 1
  """Number of seeds of all that is trained."""
  users: int = 128
  """Number of test users at most whose lists are searched with drafts; targets are measured on all."""
  batch_size: int = 32
  """Users whose lists are searched together."""
  timed_users: int = 32
  """Number of them whose searches are timed with the first seed, together and one by one."""
  steps: int = 400
  """Number of training steps of drafts. Targets and SASRec have as many; on movielens-100k, four times as many."""
  peer: bool = False
  """Also search with transformers, with the same weights, for the first seed."""
  tiny: bool = False
  """A few steps of tiny models: a test of the code path."""

  def __post_init__(self):
    for name in ('seeds', 'users', 'batch_size', 'timed_users', 'steps', 'gamma'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}={getattr(self, name)} must be at least 1.')
    if not self.ks or min(self.ks) < 1 or max(self.ks) > self.beam:
      raise ValueError(f'ks={self.ks} must be within 1 .. beam={self.beam}.')


def main(config: Config) -> None:
  from benchmarks import recommendation_runs as runs
  from benchmarks import recommendation_scores as scores

  if config.peer:
    report.require_peer()
  if unknown := set(config.losses) - set(LOSSES):
    raise SystemExit(f'Unknown losses {", ".join(sorted(unknown))}; there are {", ".join(LOSSES)}.')
  found: list[dict[str, Any]] = []
  for name in config.sets:
    for seed in range(config.seeds):
      target = runs.target(config, name, seed)
      found += scores.recommending(config, name, seed, target, runs.sasrec(config, name, seed))
      drafts = {loss: runs.draft(config, name, seed, loss) for loss in config.losses}
      found += scores.Searches(config, name, seed, target).rows(drafts)
      print(report.table([row for row in found if 'K' in row]), flush=True)
  rows = scores.means(found)
  report.write(
    'recommendation' if config.losses else 'recommendation_plain',
    rows,
    checks=checks(rows, config),
    config=dataclasses.asdict(config),
  )


def checks(rows: Sequence[dict[str, Any]], config: Config) -> list[dict[str, Any]]:
  """Returns the aims as statements, what was measured, and whether they hold."""
  verdicts, K = [], 10 if 10 in config.ks else config.ks[-1]
  for name in config.sets:
    calls = {
      (row['loss'], row['rule']): row['target calls'] for row in rows if row['table'] == f'{name}: drafts' and row['K'] == K
    }  # fmt: skip
    for best, rule, aim in (('atspeed-s', 'strict', 2.0), ('atspeed-r', 'relaxed', 1.6)):
      if (best, rule) not in calls:
        continue
      ours, others = calls[best, rule], {loss: n for (loss, r), n in calls.items() if r == rule and loss != best}
      verdicts.append(
        report.verdict(f'{name}, K={K}, {rule}: {best} needs at most {aim} target calls', ours <= aim, ours)
      )
      if others:
        nearest = min(others, key=others.get)
        text = f'{name}, K={K}, {rule}: {best} needs the fewest target calls ({nearest}: {others[nearest]:.2f})'
        verdicts.append(report.verdict(text, ours <= others[nearest], ours))
    strict = [row for row in rows if row['table'] == f'{name}: drafts' and row['rule'] == 'strict']
    if strict:
      same = min(row['same lists %'] for row in strict)
      text = f'{name}, strict: at least 99 % of the lists are those without a draft, whatever the draft and K; rounding may part equals'
      verdicts.append(report.verdict(text, same >= 99, same))
    for row in [row for row in rows if row['table'] == f'{name}: plain search' and row['K'] == K]:
      for way in ('transformers / jaxlm', 'one by one'):
        verdicts.append(report.verdict(f'{name}, K={K}: {way} at least 3', row[way] >= 3, row[way]))
    of = {row['system']: row for row in rows if row['table'] == f'{name}: recommending'}
    above = of['popularity']['behind']
    verdicts.append(report.verdict(f'{name}: NDCG@10 of the target above that of popular items', above > 0, above))
    behind, error = of['SASRec']['behind'], of['SASRec']['standard error']
    text = f'{name}: NDCG@10 of the target not below that of SASRec by more than two standard errors ({error:.4f} each)'
    verdicts.append(report.verdict(text, behind >= -2 * error, behind))
  return verdicts


if __name__ == '__main__':
  with console.command():
    main(tyro.cli(Config))
