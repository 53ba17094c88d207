"""Sentence pairs for translation: a spec such as 'train.tsv', 'train.{en,de}' or 'grammar' -> (source, target) texts.

  for source, target in pairs.read('news.{en,de}', 'en', 'de'): ...     # as often as you like: each pass begins anew
  python -m jaxlm.data.pairs grammar --show 3                           # what a spec holds: counts, lengths, padding

Whatever is wrong with a source of pairs is a DataError that names the file and the line.
"""

from collections.abc import Callable, Iterator
import dataclasses
import functools
import itertools
from pathlib import Path
import re
import sys
from typing import Any

from jaxlm import console, errors
from jaxlm.data import (
  debian_pairs,
  fetch,
  files,
  grammar,
  pair_batches,
  pair_files,
  pair_splits,
  pair_tokenizers,
  tfds_source,
)
from jaxlm.data.source import Source


@dataclasses.dataclass(frozen=True)
class Counts:
  """What a pass over the pairs of a source found."""

  kept: int
  empty: int
  """Pairs that were left out because a side is empty; lines that are empty on both sides included."""


@dataclasses.dataclass(frozen=True)
class Pairs:
  """Sentence pairs that can be read again and again; pairs with an empty side are left out and counted.

  Attributes:
    name: what the user called them.
    languages: names of the source and of the target language.
    read: starts a new pass over all pairs, the empty ones too.
    facts: says what the content depends on (paths, sizes, times), without reading it.
    hint: end of the message if there is no pair, with a space before it.
  """

  name: str
  languages: tuple[str, str]
  read: Callable[[], Iterator[tuple[str, str]]]
  facts: Callable[[], Any]
  hint: str = ''

  def __iter__(self) -> Iterator[tuple[str, str]]:
    """Yields (source, target) without spaces around them. Raises DataError, also where no pair is left."""
    kept = total = 0
    for pair in self.read():
      total += 1
      source, target = pair[0].strip(), pair[1].strip()
      if source and target:
        kept += 1
        yield source, target
    self.__dict__['counts'] = Counts(kept, total - kept)  # Where a cached property keeps its value.
    if not kept:
      raise errors.DataError(f'{self.name!r} holds no sentence pair with text on both sides.{self.hint}')

  @functools.cached_property
  def counts(self) -> Counts:
    """Counts of the last complete pass; without one before, a pass is made for them."""
    kept = total = 0
    for source, target in self.read():
      total += 1
      kept += bool(source.strip() and target.strip())
    return Counts(kept, total - kept)

  @property
  def known_counts(self) -> Counts | None:
    """Counts of the last complete pass, or None if there was none; nothing is read."""
    return self.__dict__.get('counts')

  def side(self, index: int) -> Source:
    """Returns the sources (0) or the targets (1) as documents, in the order of the pairs."""
    label = ('source', 'target')[index]
    return Source(f'{self.name} ({label})', lambda: (pair[index] for pair in self), lambda: [self.facts(), label])


def read(
  spec: str, source: str = 'en', target: str = 'de', *, data_dir: str | Path | None = None, download: bool = False
) -> Pairs:
  """Returns the sentence pairs of a spec.

  Args:
    spec: one of the following, or several of the first and the last three with commas between.
      FILE.tsv, .jsonl, .json or .parquet, the first three also packed (.gz .bz2 .xz .zst); see `jaxlm.data.pair_files`.
      STEM.{en,de} or ONE,OTHER: two aligned text files, also packed; names that end in the languages say which side they are.
      'tfds:NAME[:SPLIT]': a TFDS data set with a field for each language, such as tfds:wmt14_translate/de-en.
      'NAME[:en-de][:SPLIT]': what `python -m jaxlm.data.fetch NAME` brought; a language pair here replaces the arguments.
      'grammar[:TASK][:SPLIT]': generated pairs with a known truth; see `jaxlm.data.grammar`.
    source, target: names of the languages, as the files, folders or fields have them.
    data_dir: where TFDS preparations lie (default: TFDS's own).
    download: whether TFDS may download and prepare what is not there.

  Raises:
    DataError: something that the spec names does not exist or is of an unknown kind, or lacks the languages.
  """
  if source == target:
    raise errors.DataError(f'{source=} and {target=} are the same language; a sentence pair needs two.')
  languages = source, target
  names = [name.strip() for name in re.split(r',(?![^{]*\})', spec)]
  if files.exists(spec):
    names = [spec]
  if not all(names):
    raise errors.DataError(f'The source {spec!r} names nothing{" between two commas" if len(names) > 1 else ""}.')
  if len(names) == 2 and not any(_is_one(name) for name in names):
    return _aligned(spec, [Path(name).expanduser() for name in names], languages)
  parts = [_one(name, languages, data_dir, download) for name in names]
  if len(parts) == 1:
    return parts[0]
  found = sorted({part.languages for part in parts})
  if len(found) > 1:
    raise errors.DataError(f'{spec!r} joins pairs of different languages: {", ".join("-".join(l) for l in found)}.')
  return Pairs(
    spec, found[0], lambda: (pair for part in parts for pair in part.read()), lambda: [part.facts() for part in parts]
  )


def _is_one(name: str) -> bool:
  """Whether a name stands for pairs by itself, and not for one side of two aligned files."""
  special = name.split(':')[0] in ('tfds', 'grammar', *debian_pairs.DATASETS) and not files.exists(name)
  return special or '{' in name or pair_files.holds_pairs(Path(name))


def _one(name: str, languages: tuple[str, str], data_dir: str | Path | None, download: bool) -> Pairs:
  path = Path(name).expanduser()
  first = name.split(':')[0]
  if not files.exists(name):
    if first == 'tfds':
      return _tfds(name, languages, data_dir, download)
    if first == 'grammar':
      language = grammar.parse(name)
      return Pairs(name, languages, lambda: iter(language), lambda: language.facts())
    if first in debian_pairs.DATASETS:
      return _fetched(name, languages)
    if (found := re.fullmatch(r'(.*)\{([^{},]+),([^{},]+)\}(.*)', name)) is not None:
      return _aligned(name, [Path(found[1] + side + found[4]).expanduser() for side in (found[2], found[3])], languages)
  if path.is_file() and pair_files.holds_pairs(path):
    return Pairs(name, languages, lambda: pair_files.pairs(path, languages), lambda: [_stat(path), *languages])
  if files.exists(name):
    raise errors.DataError(
      f'{name!r} holds no sentence pairs by its name. Known: {" ".join(pair_files.KINDS)}, also packed; '
      "two aligned text files, 'STEM.{en,de}' or 'ONE,OTHER'."
    )
  known = ['grammar', 'tfds:NAME', *debian_pairs.DATASETS]
  raise errors.DataError(f'There is no file {name!r}. {errors.unknown("source of pairs", first, known)}')


def _stat(path: Path) -> list[Any]:
  stat = path.stat()
  return [str(path.resolve()), stat.st_size, stat.st_mtime_ns]


def _aligned(name: str, paths: list[Path], languages: tuple[str, str]) -> Pairs:
  for path in paths:
    if not path.is_file():
      raise errors.DataError(f'There is no file {str(path)!r}, which {name!r} names as one of two aligned files.')
  one, other = pair_files.in_order(*paths, languages)
  return Pairs(name, languages, lambda: pair_files.aligned(one, other), lambda: ['aligned', _stat(one), _stat(other)])


def _tfds(spec: str, languages: tuple[str, str], data_dir: str | Path | None, download: bool) -> Pairs:
  name, split = tfds_source.parse(spec)
  split = split or 'train'

  def open_builder():
    found = tfds_source.builder(name, data_dir, download=download)
    for language in languages:
      if language not in found.info.features:
        raise errors.unknown(f'language of TFDS dataset {name}', language, found.info.features, errors.DataError)
    return found

  return Pairs(
    spec,
    languages,
    lambda: tfds_source.texts(open_builder(), name, split, languages),
    lambda: tfds_source.facts(open_builder(), split, *languages),
  )


def _fetched(spec: str, languages: tuple[str, str]) -> Pairs:
  name, *options = spec.split(':')
  split = options.pop() if options and options[-1] in pair_splits.SPLITS else 'train'
  if options and '-' in options[0]:
    languages = tuple(options.pop(0).split('-', 1))
  if options:
    raise errors.DataError(
      f'{spec!r} is not of the form {name}[:en-de][:SPLIT]; splits: {", ".join(pair_splits.SPLITS)}.'
    )
  file = debian_pairs.DATASETS[name].file_of(languages, split)
  folder = fetch.locate(name)
  if folder is None:
    raise errors.DataError(f'{name!r} is not fetched. Run: python -m jaxlm.data.fetch {name}')
  return Pairs(
    spec, languages, lambda: pair_files.pairs(folder / file, languages), lambda: [_stat(folder / file), *languages]
  )


# ---- held-out pairs ----


def split(pairs: Pairs, valid_fraction: float) -> tuple[Pairs, Pairs]:
  """Returns (train, valid). Case, digits and punctuation aside, equal sources are in the same part, in whatever order.

  Raises:
    DataError: on reading, when a part turns out empty.
    ValueError: valid_fraction is not in (0, 1).
  """
  if not 0 < valid_fraction < 1:
    raise ValueError(f'{valid_fraction=} must lie between 0 and 1.')

  def part(label: str, wanted: bool, hint: str = '') -> Pairs:
    held_out = lambda source: pair_splits.share(pair_splits.near_key(source)) < valid_fraction
    return Pairs(
      f'{pairs.name} ({label})',
      pairs.languages,
      lambda: (pair for pair in pairs.read() if held_out(pair[0]) == wanted),
      lambda: [pairs.facts(), label, valid_fraction],
      hint,
    )

  hint = ' Pairs are held out by a hash of their source, and none of these is: name other pairs to hold out, or a larger part.'
  return part('train', False), part('valid', True, hint)


def train_and_valid(
  spec: str, source: str = 'en', target: str = 'de', *, valid: str = '', valid_fraction: float = 0.02, **options: Any
) -> tuple[Pairs, Pairs]:
  """Returns (train, valid): `valid` names the held-out pairs, otherwise the spec's own split, otherwise a part of its pairs.

  Args:
    spec, source, target, options: as for `read`.
    valid_fraction: the part of the pairs that is held out where nothing else says which.

  Raises:
    DataError: as for `read`.
  """
  train = read(spec, source, target, **options)
  if valid:
    return train, read(valid, *train.languages, **options)
  own = spec.split(':')[0] in ('grammar', *debian_pairs.DATASETS) and ',' not in spec and not files.exists(spec)
  if own and spec.rpartition(':')[2] not in pair_splits.SPLITS:
    return train, read(f'{spec}:valid', source, target, **options)
  return split(train, valid_fraction)


# ---- the command ----


def main(argv: list[str] | None = None) -> int:
  import argparse

  parser = argparse.ArgumentParser(
    prog='python -m jaxlm.data.pairs', description='Shows what a source of sentence pairs holds, before training on it.'
  )
  parser.add_argument('spec', help="a file of pairs, 'STEM.{en,de}', tfds:NAME, a fetched name, or grammar[:TASK]")
  parser.add_argument('--source-language', default='en', help='name of the source language in the files (default: en)')
  parser.add_argument('--target-language', default='de', help='name of the target language in the files (default: de)')
  parser.add_argument('--show', type=int, default=3, help='number of pairs to print (default: 3)')
  parser.add_argument(
    '--tokenizer', choices=pair_tokenizers.KINDS, default='bytes', help='kind of tokens to count (default: bytes)'
  )
  parser.add_argument('--vocab-size', type=int, default=8000, help='ids of a tokenizer that is trained (default: 8000)')
  parser.add_argument('--tokens', type=int, default=8192, help='token budget of a batch (default: 8192)')
  parser.add_argument('--max-length', type=int, default=256, help='longer pairs are left out (default: 256 tokens)')
  args = parser.parse_args(argv)
  with console.errors_in_one_line():
    found = read(args.spec, args.source_language, args.target_language)
    print(
      f'{found.name}: {"-".join(found.languages)}, {found.counts.kept} pairs, {found.counts.empty} with an empty side'
    )
    tokenizers = pair_tokenizers.train(found, kind=args.tokenizer, vocab_size=args.vocab_size)
    batches = pair_batches.make_pair_batches(list(found), tokenizers, tokens=args.tokens, max_length=args.max_length)
    for side, lengths in zip(('source', 'target'), batches.corpus.lengths.T):
      print(f'{side}: {lengths.mean():.1f} tokens on average, {lengths.min()} to {lengths.max()}')
    print(batches.describe())
    for source, target in itertools.islice(found, args.show):
      print(f'\n{source}\n  {target}')
  return 0


if __name__ == '__main__':
  with console.command():
    sys.exit(main())
