"""The command line of recommendation: python -m decoders.recommend RUN --history ITEM ..."""

import dataclasses
import functools
import hashlib
import itertools
import json
import os
from pathlib import Path
import sys
from typing import Annotated, Any, Literal

import tyro

from decoders import line_files
from decoders.atspeed.config import AtSpeedConfig, Select, Verify
from jaxlm import console

BATCHES = 8
"""Batches of histories that are searched and written together."""


@dataclasses.dataclass(frozen=True)
class RecommendFlags:
  """Recommend the next items after a history of items, or after each history of a file, by beam search over the items of a catalogue."""

  model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar='RUN')]
  """Run directory of trainers.recommend: a target."""
  history: Annotated[tuple[str, ...] | None, tyro.conf.arg(metavar='ITEM ...')] = None
  """Items of one user in order of time, each by its id or title. '' alone is an empty history: the list is what users begin with,
  unless the target was trained with --data.predict last, which does not teach it."""
  input: Annotated[str | None, tyro.conf.arg(metavar='FILE')] = None
  """A file with a history on each line, instead of --history: a JSON list of ids or titles. A blank line stays blank."""
  output: Annotated[str | None, tyro.conf.arg(metavar='FILE')] = None
  """For --input: where to write the items, a JSON list of {"id", "title", "score"} on each line (none: standard output). The same command
  continues where an earlier one was interrupted."""
  k: int = 10
  """Number of items. A catalogue with fewer items gives all it has."""
  draft: Annotated[str | None, tyro.conf.arg(metavar='RUN')] = None
  """Run directory of a draft for this target, which makes the search faster (none: the target searches alone)."""
  beam: int = 40
  """With a draft: number of beams of the draft, at least k."""
  gamma: int = 3
  """With a draft: largest number of steps that it runs ahead."""
  verify: Verify = 'strict'
  """With a draft: strict gives the target's own lists. relaxed and relaxed_exact draw items at random, with fewer target calls; see
  docs/recommendation.md. Without a draft, relaxed and relaxed_exact draw from the target."""
  select: Select = 'uniform'
  """For relaxed with a draft: which of more than k accepted prefixes are kept, a random choice or those with the best scores."""
  exclude_seen: bool = False
  """Do not recommend items of the history."""
  allow: Annotated[str | None, tyro.conf.arg(metavar='FILE')] = None
  """A file with an id or a title on each line: only these items are recommended (none: all)."""
  unknown: Literal['error', 'skip'] = 'error'
  """What to do with an item of a history that the catalogue does not have: stop and name it, or leave it out. A title that several items
  have always stops."""
  batch_size: int = 32
  """Number of histories that are searched together. Fewer need less memory."""
  seed: int = 0
  """Seed for relaxed and relaxed_exact. With --input, what a line draws depends on the seed and the number of the line."""
  dtype: Literal['float32', 'bfloat16', 'float16'] | None = None
  """Type of the parameters and the computation (none: float32 on CPU, bfloat16 elsewhere)."""
  stats: bool = True
  """Print speed and target calls to standard error."""


@dataclasses.dataclass(frozen=True)
class Recommender:
  """The models and the trie that a command searches with."""

  config: RecommendFlags
  lm: Any
  draft: Any
  trie: Any

  def find(self, names: Any, where: str) -> list[int]:
    """Returns the numbers of a history's items. Raises DataError, which begins with `where`, for items that are not known."""
    from jaxlm.data.catalogue import SeveralItemsError
    from jaxlm.errors import DataError, shown

    if not isinstance(names, list) or not all(isinstance(name, str | int) for name in names):
      raise DataError(f'{where}: found {shown(names)}; expected a list of items, each by its id or title.')
    found = []
    for name in map(str, names):
      try:
        found += self.lm.tokenizer.find([name])
      except SeveralItemsError as e:
        raise DataError(f'{where}: {e}') from e
      except DataError as e:
        if self.config.unknown == 'error':
          raise DataError(f'{where}: {e} To leave out such items: --unknown skip.') from e
    return found

  def __call__(
    self, histories: list[list[int]], numbers: list[int] | None = None, progress: Any = None
  ) -> tuple[list[list[dict[str, Any]]], dict[str, Any]]:
    """Returns (the items of each history with ids, titles and scores; the stats of the search). `numbers`: see `recommend`."""
    from decoders import atspeed

    c, items = self.config, self.lm.tokenizer
    out = atspeed.recommend(
      self.lm, self.draft, self.trie, [items.prompt(history) for history in histories], k=c.k, beam=c.beam, gamma=c.gamma,
      verify=c.verify, select=c.select, exclude=histories if c.exclude_seen else None, seed=c.seed, numbers=numbers,
      batch_size=c.batch_size, progress=progress,
    )  # fmt: skip
    named = lambda i, score: {'id': items.item_ids[i], 'title': items.titles[i], 'score': round(float(score), 6)}
    rows = zip(out.items, out.item_scores)
    return [[named(i, score) for i, score in zip(*row)][: c.k] for row in rows], out.stats


def main(config: RecommendFlags) -> None:
  if (config.history is None) == (config.input is None):
    raise ValueError('Pass either --history ITEM ... or --input FILE.')
  if config.output is not None and config.input is None:
    raise ValueError('--output FILE is for --input FILE.')
  if config.batch_size < 1:
    raise ValueError(f'{config.batch_size=} must be at least 1.')
  AtSpeedConfig(
    config.k, config.beam if config.draft is not None else max(config.beam, config.k), config.gamma, config.verify, 'score', config.select
  )  # fmt: skip
  if config.input is None:
    recommend_one(config)
    return
  names = ('k', 'beam', 'gamma', 'verify', 'select', 'exclude_seen', 'unknown', 'seed', 'dtype')
  settings = {name: getattr(config, name) for name in names}
  if config.draft is not None:
    settings['draft'] = os.path.realpath(config.draft)
  if config.allow is not None:
    settings['sha256 of --allow'] = hashlib.sha256(Path(config.allow).read_bytes()).hexdigest()
  line_files.turn_file(
    config.input, config.output, config.model, settings, lambda: load(config), functools.partial(write_lines, config)
  )  # fmt: skip


def load(config: RecommendFlags) -> Recommender:
  """Returns the models of a command.

  Raises:
    ValueError: a run is something else, or the draft has other identifiers.
    CheckpointError: as `jaxlm.load`.
    DataError: an allowed item is not known.
  """
  lm = _model(config.model, config.dtype, 'RUN')
  draft = None if config.draft is None else _model(config.draft, config.dtype, '--draft')
  if draft is not None:
    draft.tokenizer.check_same(lm.tokenizer, f'--draft {config.draft}', config.model)
  trie = lm.tokenizer.trie()
  if config.allow is not None:
    lines = [(where, line.strip()) for where, line in line_files.lines_of(config.allow) if line.strip()]
    if not lines:
      raise ValueError(f'--allow {config.allow} names no item: expected an id or a title on each line.')
    one = Recommender(dataclasses.replace(config, unknown='error'), lm, draft, trie)
    trie = trie.allowed([i for where, line in lines for i in one.find([line], where)])
  return Recommender(config, lm, draft, trie)


def _model(path: str, dtype: str | None, name: str) -> Any:
  import jaxlm
  from jaxlm.data.catalogue import Catalogue

  lm = jaxlm.load(path, dtype=dtype)
  if not isinstance(getattr(lm, 'tokenizer', None), Catalogue):
    raise ValueError(
      f'{name} {path} is no recommender but a {type(lm).__name__}: train one with python -m trainers.recommend.'
    )
  return lm


def recommend_one(config: RecommendFlags) -> None:
  one = load(config)
  names = [] if [name.strip() for name in config.history] == [''] else list(config.history)
  (items,), stats = one([one.find(names, '--history')])
  for i, item in enumerate(items, 1):
    name = item['title'] if item['title'] == item['id'] else f'{item["title"]}  ({item["id"]})'
    print(f'{i:3d}  {item["score"]:8.3f}  {name}')
  if config.stats:
    print(summary(stats), file=sys.stderr)


def write_lines(
  config: RecommendFlags, one: Recommender, lines: line_files.Lines, write: line_files.Write, total: int, done: int
) -> None:
  """Recommends for lines block by block, and writes a line for each in their order. `done`: number of lines of an earlier run."""
  import tqdm

  from jaxlm.errors import DataError

  def history(where: str, text: str) -> list[int]:
    try:
      names = json.loads(text)
    except ValueError as e:
      raise DataError(f'{where} is not JSON: {e}. Expected a list of ids or titles, such as ["42", "Heat"].') from e
    return one.find(names, where)

  # A history is numbered by its line, so that its random numbers depend neither on the batch size nor on where an earlier run stopped.
  lines, stats = enumerate(lines, done), []
  with tqdm.tqdm(desc='recommending', unit=' histories', total=total, initial=done, disable=None) as bar:
    while block := list(itertools.islice(lines, BATCHES * config.batch_size)):
      known = {number: history(where, text) for number, (where, text) in block if text.strip()}
      found = iter(())
      if known:
        rows, of_block = one(list(known.values()), list(known), bar.update)
        found, stats = iter(rows), [*stats, of_block]
      write([json.dumps(next(found), ensure_ascii=False) if text.strip() else '' for _, (_, text) in block])
      bar.update(len(block) - len(known))
  if config.stats and stats:
    print(summary(merged(stats)), file=sys.stderr)


def merged(stats: list[dict[str, Any]]) -> dict[str, Any]:
  """Returns the stats of several searches as those of one."""
  found = {name: sum((one[name] for one in stats), []) for name in ('target_calls', 'accept_steps')}
  found |= {name: sum(one[name] for one in stats) for name in ('histories', 'target_seconds', 'draft_seconds')}
  return found | {'seconds_per_history': (found['target_seconds'] + found['draft_seconds']) / found['histories']}


def summary(stats: dict[str, Any]) -> str:
  mean = lambda xs: sum(xs) / len(xs)
  said = f'{stats["histories"]} histories, {stats["seconds_per_history"] * 1000:.1f} ms each, {mean(stats["target_calls"]):.2f} target calls'
  accepted = mean(stats['accept_steps'])
  return f'[{said}, {accepted:.2f} steps of the draft accepted]' if accepted else f'[{said}]'


def run() -> None:
  """Parses the command line, and says what is wrong with it in one line."""
  config = tyro.cli(RecommendFlags, prog='python -m decoders.recommend')
  with console.errors_in_one_line():
    main(config)
