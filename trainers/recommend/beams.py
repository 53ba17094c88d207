"""The target's own beams after many histories, as training data for its draft: what a draft must rank high is what its target keeps.

The file is JSON Lines: line i is [[token, ...], ...], the identifiers that the target finds after history i, best first.
`trainers.made_corpus` says what lies beside it, and how it is continued and used again.
"""

from collections.abc import Callable
import dataclasses
import functools
import json
from pathlib import Path
import time
from typing import Any, ClassVar

import jax
import numpy as np

from decoders import atspeed
from decoders.resumable import Blocks
from jaxlm.data.catalogue import Catalogue
from jaxlm.data.history_batches import Rows
from jaxlm.errors import DataError
from jaxlm.io import digest
from jaxlm.language_model import LanguageModel
from trainers import distributed, run_directory
from trainers.made_corpus import MadeCorpus
from trainers.progress import Progress
from trainers.recommend import teacher
from trainers.recommend.config import ON_BEAMS, BeamConfig, DraftConfig


@dataclasses.dataclass(frozen=True)
class TeacherBeams(MadeCorpus):
  """Beams that are searched, continued, or there already.

  Attributes:
    path: FILE.
    lm: the target, with parameters that this process can compute with.
    items: its catalogue.
    rows: histories, each with the next item, which is not read.
    settings: how many beams.
    say: prints a text.
  """

  path: Path
  lm: LanguageModel
  items: Catalogue
  rows: Rows
  settings: BeamConfig
  say: Callable[[str], None]

  flag: ClassVar[str] = '--beams.file'

  @functools.cached_property
  def facts(self) -> dict[str, Any]:
    """What the beams depend on, as JSON."""
    return {
      'sources': len(self.rows),
      'digest of the histories': self.rows.digest,
      'number of beams': self.settings.count,
      'dtype': self.lm.config.dtype,
      "target's digest": digest.of_tree(self.lm.params),
      'identifiers': self.items.digest,
    }

  def write(self, out: Blocks) -> None:
    started, first, size, trie = time.monotonic(), out.done, self.settings.batch_size, self.items.trie()
    for begin in range(first, len(self.rows), size * 8):
      block = self.rows.items[begin : begin + size * 8]
      prompts = [self.items.prompt(items[:-1]) for items in block]
      found = atspeed.recommend(self.lm, None, trie, prompts, k=self.settings.count, batch_size=size)
      out.write([json.dumps([row for row in rows.tolist() if row[0] >= 0]) for rows in found.tokens])
      done = begin + len(block)
      left = (time.monotonic() - started) / (done - first) * (len(self.rows) - done)
      self.say(f"target's beams: {done:,} of {len(self.rows):,} histories, {left:.0f} s left")

  def read(self) -> np.ndarray:
    """Returns the beams, int32 [histories, count, L]; -1 where there are fewer. `make` must have been called."""
    found = np.full((len(self.rows), self.settings.count, self.items.depth), -1, np.int32)
    with open(self.path, encoding='utf-8') as file:
      for row, line in zip(found, file):
        beams = json.loads(line)
        row[: len(beams)] = beams
    return found


def of(
  config: DraftConfig, lm: LanguageModel, items: Catalogue, rows: Rows, layout: distributed.Layout
) -> np.ndarray | None:
  """Returns the beams of a run, which are searched if they are not there, or None if its loss needs none.

  Process 0 writes, and the other hosts wait. They read the file afterwards, so all hosts must see the same files.

  Raises:
    DataError: the file of beams cannot be used.
    CheckpointError: the run directory cannot be used.
  """
  if config.loss.name not in ON_BEAMS:
    return None
  directory = Path(config.run.directory)
  path = Path(config.beams.file or directory / 'beams.jsonl').expanduser()
  several = jax.process_count() > 1
  own = teacher.load(config) if several else dataclasses.replace(lm, params=layout.local(lm.params))
  found = TeacherBeams(path, own, items, rows, config.beams, Progress(0, 0, show=True, bar=False).say)

  def make() -> None:
    run_directory.check_start(directory, config.start)
    lock, _ = run_directory.open_run(directory, config, 'recommend')
    with lock:
      found.make()

  distributed.on_first_host(make, DataError)
  return found.read()
