"""Translates any number of sources block by block. What is translated is handed on at once, so that an interruption loses little."""

from collections.abc import Callable, Iterable, Sequence
import itertools
from typing import Any

BATCHES = 16
"""Batches of a block: sources that are sorted by length, translated and handed on together."""


def translate_blocks(
  model: Any,
  sources: Iterable[Sequence[int] | None],
  write: Callable[[list[list[str] | None]], None],
  *,
  total: int,
  done: int = 0,
  batch_size: int,
  num_return: int = 1,
  **settings: Any,
) -> dict[str, Any]:
  """Translates sources in their order with a progress bar, and returns the stats of all blocks, {} if nothing was translated.

  Args:
    model: a Seq2SeqModel with a tokenizer.
    sources: token ids without EOS; None is a source that is not translated. They are read block by block.
    write: called for each block with the `num_return` translations of each of its sources, and None for None.
    total, done: number of sources in all, and of those that an earlier run has translated, for the progress bar.
    batch_size, num_return, settings: as for `decoders.translate`.

  Raises:
    ValueError, NotFiniteError: as `decoders.translate`.
  """
  import tqdm

  import decoders

  sources, run = iter(sources), {}
  with tqdm.tqdm(desc='translating', unit=' texts', total=total, initial=done, disable=None) as bar:
    while block := list(itertools.islice(sources, BATCHES * batch_size)):
      ids, found = [row for row in block if row is not None], iter(())
      if ids:
        out = decoders.translate(
          model, ids, batch_size=batch_size, num_return=num_return, progress=bar.update, **settings
        )
        found, run = iter(out.text), _totals(run, out.stats)
      write([None if row is None else list(itertools.islice(found, num_return)) for row in block])
      bar.update(len(block) - len(ids))
  return run


def _totals(run: dict[str, Any], block: dict[str, Any]) -> dict[str, Any]:
  """Returns the stats of a run with one more block: bytes are the largest, all else is summed."""
  return {
    name: max(n, run.get(name, 0)) if name.endswith('_bytes') else n + run.get(name, 0) for name, n in block.items()
  }
