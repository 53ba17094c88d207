"""Sequence-level knowledge distillation: a corpus of the training sources with the translations of a teacher as targets.

  target(x) = argmax_y  log p_teacher(y | x) / |y|^length_penalty,  by beam search      (https://arxiv.org/abs/1606.07947)

The corpus FILE is JSON Lines: line i is {"en": source i, "de": its translation}, by the names of the languages. Where there is no
translation, the target is empty and "left_out" says why. So each source has its line, and `jaxlm.data.pairs` leaves such pairs out.
`trainers.made_corpus` says what lies beside the corpus, and how it is continued and used again.
"""

import collections
from collections.abc import Callable
import dataclasses
import functools
import hashlib
import itertools
import json
import os
from pathlib import Path
import sys
from typing import Any, ClassVar

from decoders.resumable import Blocks
from decoders.translation import blocks
from decoders.translation.loading import load_model
from jaxlm.data import pairs
from jaxlm.errors import DataError
from jaxlm.io import checkpoint, digest
from jaxlm.translation_model import Seq2SeqModel
from trainers import distributed, run_directory
from trainers.made_corpus import DIGEST, MadeCorpus
from trainers.progress import Progress
from trainers.translate.config import DistillConfig, TranslateConfig

UNREADABLE, EMPTY = 'the teacher cannot read the source', 'the translation is empty'
"""Reasons why a source is left out."""


def distilled_pairs(config: TranslateConfig, train: pairs.Pairs, trainer: str) -> pairs.Pairs:
  """Returns the training sources with the translations of `config.distill_from`. The corpus is made if it is not there.

  Process 0 translates, on one of its devices, and the other hosts wait. They read the corpus, so they must see the same files.

  Args:
    config: of the run, with `run.directory`. The run directory is opened first, so that one that cannot be used is refused at once.
    train: training pairs, whose targets are not used.
    trainer: name of the trainer, for the run directory.

  Raises:
    CheckpointError: the run directory cannot be used.
    DataError: the teacher cannot be loaded or predicts all tokens at once, or the corpus cannot be written or is made from something else.
  """
  name, directory = config.distill_from, Path(config.run.directory)
  path = Path(config.distill.corpus or directory / 'distilled.jsonl').expanduser()
  try:
    teacher = load_model(name, config.distill.dtype)  # Each host loads it: Orbax reads in all processes together.
  except (OSError, ValueError) as e:
    raise DataError(f'--distill-from {name}: {e}') from e
  if teacher.config.is_parallel:
    raise DataError(
      f'--distill-from {name}: this model has kind={teacher.config.kind!r} and predicts all tokens at once, but a teacher writes token by '
      "token, by beam search. Name a model of kind 'autoregressive'."
    )

  say = Progress(0, 0, show=True, bar=False).say
  corpus = Corpus(path, train, teacher, name, config.distill, say)

  def make() -> None:
    run_directory.check_start(directory, config.start)
    lock, _ = run_directory.open_run(directory, config, trainer)
    with lock:
      say(corpus.report(corpus.make()))

  distributed.on_first_host(make, DataError)
  return pairs.read(str(path), *train.languages)


@dataclasses.dataclass(frozen=True)
class Corpus(MadeCorpus):
  """A corpus that is made, gone on with, or there already.

  Attributes:
    path: FILE.
    train: pairs whose sources are translated.
    name: path of the teacher.
    say: prints how far the work is where no progress bar is shown.
  """

  path: Path
  train: pairs.Pairs
  teacher: Seq2SeqModel
  name: str
  settings: DistillConfig
  say: Callable[[str], None]

  flag: ClassVar[str] = '--distill.corpus'
  or_else: ClassVar[str] = ' To train on it as it is, pass it as --data.source.'

  @functools.cached_property
  def facts(self) -> dict[str, Any]:
    """What the translations depend on, as JSON."""
    sources, total = hashlib.sha256(), 0
    for source, _ in self.train:
      sources.update(source.encode() + b'\0')
      total += 1
    steps = checkpoint.steps(Path(self.name) / 'checkpoints')
    return {
      'beam_size': self.settings.beam_size,
      'length_penalty': self.settings.length_penalty,
      'dtype': self.teacher.config.dtype,
      "teacher's step": steps[-1] if steps else None,
      "teacher's digest": digest.of_tree(self.teacher.params),
      'pair of languages': list(self.train.languages),
      'sha256 of the sources': sources.hexdigest(),
      'sources': total,
    }

  def write(self, out: Blocks) -> None:
    total = self.facts['sources']
    sources, again = itertools.tee(source for source, _ in itertools.islice(self.train, out.done, None))
    written, has_bar = itertools.count(out.done), sys.stderr is not None and sys.stderr.isatty()

    def write(found: list[list[str] | None]) -> None:
      out.write([self._line(next(again), texts) for texts in found])
      if not has_bar:
        done = [next(written) for _ in found][-1] + 1
        self.say(f'distilling: {done:,} of {total:,} sources')

    s = self.settings
    blocks.translate_blocks(
      self.teacher, map(self._ids, sources), write, total=total, done=out.done, batch_size=s.batch_size,
      beam_size=s.beam_size, length_penalty=s.length_penalty,
    )  # fmt: skip

  def summary(self) -> dict[str, Any]:
    return {'teacher': os.path.abspath(self.name)} | _counts(self.path)

  def _ids(self, source: str) -> list[int] | None:
    """Returns the ids of a source without EOS; None for a source without tokens or with too many for the teacher."""
    ids = self.teacher.tokenizer.encode_source(source)
    return ids if 0 < len(ids) < self.teacher.config.max_length else None

  def _line(self, source: str, texts: list[str] | None) -> str:
    target = '' if texts is None else texts[0].strip()
    pair = dict(zip(self.train.languages, (source, target)))
    if not target:
      pair['left_out'] = UNREADABLE if texts is None else EMPTY
    line = json.dumps(pair, ensure_ascii=False)
    # Unicode has line ends that JSON does not escape.
    return line if len(line.splitlines()) == 1 else json.dumps(pair)

  def report(self, note: dict[str, Any]) -> str:
    """Returns what the corpus holds, in a line."""
    long = self.teacher.config.max_length - 1
    out = [
      f'{note[UNREADABLE]:,} sources that the teacher cannot read (no token, or more than {long})'
      if note[UNREADABLE]
      else '',
      f'{note[EMPTY]:,} sources with an empty translation' if note[EMPTY] else '',
    ]
    left_out = f' Left out: {"; ".join(filter(None, out))}.' if any(out) else ''
    return f'Distilled: {note["pairs"]:,} of {note["sources"]:,} sources with translations by {self.name}, in {self.path}.{left_out}'


def _counts(path: Path) -> dict[str, Any]:
  """Returns the pairs of a corpus, the sources that are left out by reason, and the digest of the file."""
  content, reasons = hashlib.sha256(), collections.Counter()
  with open(path, 'rb') as file:
    for one in file:
      content.update(one)
      reasons[json.loads(one).get('left_out')] += 1
  return {'pairs': reasons[None], UNREADABLE: reasons[UNREADABLE], EMPTY: reasons[EMPTY], DIGEST: content.hexdigest()}
