"""The command line python -m jaxlm.analysis.laziness MODEL --text book.txt."""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jaxlm import console

if TYPE_CHECKING:
  from jaxlm.analysis.lazy.report import LazinessReport

READ = 200  # Largest number of documents of a source that are read to find one that is long enough.
LONGEST = 2048


@dataclasses.dataclass(frozen=True)
class LazinessConfig:
  """Measures which layers attend almost only to the first and the latest tokens, along a prompt and for the tokens after it.

  Prints a table for each text, and writes laziness.json and laziness.png (laziness-2.png for a second text, ...)."""

  model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar='MODEL')]
  """A run directory, a Hugging Face directory, a .gguf file, a fetched name (python -m jaxlm.data.fetch) or a Hub id."""
  text: Annotated[tuple[str, ...], tyro.conf.arg(metavar='FILE|NAME ...')] = ('embedded',)
  """Texts, each measured alone: a file of any text, or a source (a folder, tfds:NAME, 'embedded' for text that comes
  with Python) whose first document that is long enough is taken."""
  length: int | None = None
  """Largest length of the prompt in tokens, from the beginning of the text (none: 2048, or less if the model's context is shorter)."""
  new_tokens: int = 64
  """Number of tokens measured after the prompt."""
  continuation: Literal['greedy', 'text'] = 'greedy'
  """Tokens after the prompt. greedy: the model generates them. text: they are the next tokens of the text."""
  initial: int = 4
  """Number of first tokens that a lazy layer attends to."""
  recent: int | None = None
  """Number of latest tokens that a lazy layer attends to (none: first and latest tokens are a quarter of the prompt, at most
  1020 latest ones)."""
  threshold: float = 0.9
  """A layer is lazy if more than this share of its attention goes to the first and the latest tokens."""
  queries: int = 64
  """Number of consecutive prompt queries averaged into one ratio."""
  output: str | None = None
  """Folder to write to (none: laziness-MODEL in the current folder, laziness-MODEL-text with --continuation text). Files
  of the same names are replaced."""
  dtype: Literal['float32', 'bfloat16', 'float16'] | None = None
  """Type of the parameters and the computation (none: float32 on CPU, bfloat16 elsewhere)."""


def main(config: LazinessConfig) -> 'list[LazinessReport]':
  from jaxlm.analysis.lazy import scores as laziness_scores

  options = {name: getattr(config, name) for name in ('initial', 'recent', 'threshold', 'queries')}
  # Options are checked before JAX and the model are loaded.
  laziness_scores.check_options(new_tokens=config.new_tokens, **options)
  if not config.text:
    raise ValueError('--text names no text.')
  if config.length is not None and config.length < 1:
    raise ValueError(f'length={config.length} must be at least 1.')
  import jaxlm
  from jaxlm.analysis.lazy import plots as laziness_plots
  from jaxlm.analysis.lazy.report import laziness

  lm = jaxlm.load(config.model, dtype=config.dtype)
  length = config.length or max(1, min(LONGEST, lm.config.max_length - config.new_tokens))
  from_text = config.continuation == 'text'
  texts = [read(spec, length + (config.new_tokens if from_text else 0), lm.tokenizer) for spec in config.text]
  model = Path(config.model).resolve().name if Path(config.model).exists() else config.model.replace('/', '-')
  folder = Path(config.output or f'laziness-{model}' + ('-text' if from_text else ''))
  reports, written = [], []
  for number, (spec, ids) in enumerate(zip(config.text, texts), 1):
    continuation = None
    if from_text:
      if len(ids) <= config.new_tokens:
        raise ValueError(f'{spec!r} has {len(ids)} tokens, {config.new_tokens} of which are to follow a prompt.')
      ids, continuation = ids[: -config.new_tokens], ids[-config.new_tokens :]
    report = laziness(lm, ids, new_tokens=config.new_tokens, continuation=continuation, **options)
    following = 'of the text' if from_text else 'generated'
    title = f'{model}, {Path(spec).name}: {len(ids)} tokens and {config.new_tokens} {following} after them'
    print(f'{title}\n\n{layer_table(report)}\n\n{consistency_table(report)}\n', flush=True)
    reports.append(report)
    folder.mkdir(parents=True, exist_ok=True)
    written.append(folder / ('laziness.png' if number == 1 else f'laziness-{number}.png'))
    laziness_plots.plot_laziness(report, written[-1], title)
  if len(reports) > 1:
    print(texts_line(reports) + '\n')
  texts = [{'text': spec, **fields(report)} for spec, report in zip(config.text, reports)]
  written.insert(0, folder / 'laziness.json')
  written[0].write_text(json.dumps({'measured': dataclasses.asdict(config), 'texts': texts}, allow_nan=False) + '\n')
  print('Written to', ', '.join(map(str, written)))
  return reports


def read(spec: str, length: int, tokenizer: Any) -> list[int]:
  """Returns the first `length` tokens of a file, or of a source's first document with at least `length` tokens.

  If no document is long enough, the longest one is returned.

  Raises:
    DataError: the file or source does not exist or holds no text.
    ValueError: the model has no tokenizer.
  """
  from jaxlm import errors
  from jaxlm.data import files, sources

  if tokenizer is None:
    raise ValueError('The model has no tokenizer, so it cannot read text; use jaxlm.analysis.laziness from Python.')
  file = Path(spec).expanduser()
  if file.is_file() and not file.name.lower().endswith(files.SUFFIXES):  # For example source code.
    try:
      documents = [file.read_text('utf-8')]
    except UnicodeDecodeError as e:
      raise errors.DataError(f'{spec} is not UTF-8 text: {e.reason} at byte {e.start}.') from e
  else:
    documents = itertools.islice(sources.documents(spec, document=0), READ)
  longest = []
  for text in documents:
    ids = tokenizer.encode(text[: 32 * length], bos=tokenizer.adds_bos) if text.strip() else []
    longest = max(longest, ids[:length], key=len)
    if len(longest) == length:
      break
  if not longest:
    raise errors.DataError(f'{spec!r} holds no text.')
  return longest


def layer_table(report: 'LazinessReport') -> str:
  """Returns a table with one line per layer and one for their mean."""
  from jaxlm.analysis.tables import aligned

  head = ['layer', 'prompt', f'last {report.queries}', 'new', 'least', 'most', 'lazy, %', 'sink']
  columns = [report.prompt.mean(axis=1), report.prompt[:, -1], report.new.mean(axis=1), report.new.min(axis=1)]
  columns.append(report.new.max(axis=1))
  lines = [head]
  for layer, numbers in enumerate(zip(*columns)):
    lazy = 'sliding' if report.sliding[layer] else f'{100 * report.lazy[layer].mean():.0f}'
    lines.append([str(layer), *(f'{x:.3f}' for x in numbers), lazy, f'{report.sink[layer]:.3f}'])
  lazy = f'{100 * report.lazy[~report.sliding].mean():.0f}'
  lines.append(['mean', *(f'{x.mean():.3f}' for x in columns), lazy, f'{report.sink.mean():.3f}'])
  note = (
    f'Shares of attention, means over heads, paid to the first {report.initial} and the last {report.recent} tokens; a layer '
    f'that attends to all alike has {report.uniform:.3f}.\nprompt: windows of {report.queries} queries, their mean and the '
    f'last. new: the tokens after it. lazy: of these, above {report.threshold:g}.\nsink: mean attention of the prompt to the '
    f'first token; rank correlation with new over layers: {report.sink_correlation:.3f}.'
  )
  return f'{aligned(lines)}\n{note}'


def consistency_table(report: 'LazinessReport') -> str:
  """Returns a table: how well the prompt's last window and the first new token predict the lazy layers of the new tokens."""
  from jaxlm.analysis.tables import aligned

  above = f'overlap above {report.threshold:g}'
  lines = [['lazy layers of all new tokens, foretold by', 'rank correlation', above, 'chance', 'of halves', 'chance']]
  for name, found in (
    (f'the last {report.queries} of the prompt', report.from_prompt),
    ('the first of them', report.from_first),
  ):
    lines.append([name, *(f'{x:.3f}' for x in dataclasses.astuple(found))])
  return aligned(lines)


def texts_line(reports: 'list[LazinessReport]') -> str:
  from jaxlm.analysis.lazy import scores as laziness_scores

  halves = [laziness_scores.laziest_half(r.new[~r.sliding].mean(axis=1)) for r in reports]
  pairs = list(itertools.combinations(halves, 2))
  overlap = sum(laziness_scores.jaccard(*pair) for pair in pairs) / len(pairs)
  chance = laziness_scores.jaccard_by_chance(*pairs[0])
  return f'The laziest halves of the layers in different texts overlap by {overlap:.3f} (chance: {chance:.3f}).'


def fields(value: Any) -> dict[str, Any]:
  """Returns a report as plain data."""
  plain = lambda x: None if isinstance(x, float) and math.isnan(x) else getattr(x, 'tolist', lambda: x)()
  return {k: fields(v) if dataclasses.is_dataclass(v) else plain(v) for k, v in vars(value).items()}


def run() -> None:
  """Parses the command line and runs it; errors are reported in one line."""
  config = tyro.cli(LazinessConfig, prog='python -m jaxlm.analysis.laziness')
  with console.errors_in_one_line():
    main(config)
