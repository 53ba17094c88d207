"""The command line of classification: python -m decoders.classify RUN --text "..." """

import dataclasses
import functools
import itertools
import json
from pathlib import Path
import sys
from typing import Annotated, Any, Literal

import tyro

from decoders import line_files
from jaxlm import console

BATCHES = 16
"""Batches of texts that are classified and written together."""


@dataclasses.dataclass(frozen=True)
class ClassifyFlags:
  """Label texts, or the lines of a file, with a text classifier, and show the words that speak for each label."""

  model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar='RUN')]
  """Run directory of trainers.classify."""
  text: Annotated[tuple[str, ...], tyro.conf.arg(metavar='TEXT ...')] = ()
  """Texts to label; '-' reads one from each line of standard input."""
  input: Annotated[str | None, tyro.conf.arg(metavar='FILE')] = None
  """A file with a text on each line, instead of --text; it may be packed (.gz, .bz2, .xz, .zst). A blank line stays blank."""
  output: Annotated[str | None, tyro.conf.arg(metavar='FILE')] = None
  """For --input: where to write the labels, a JSON object on each line (none: standard output). The same command continues where an
  earlier one was interrupted."""
  top: int = 5
  """Number of labels of each text."""
  explain: bool = False
  """Also show what each word adds to the logit of each label."""
  heatmap: Annotated[str | None, tyro.conf.arg(metavar='FILE')] = None
  """For --text: write a heat map of words and labels, as HTML (.html) or as a picture (.png, .svg, .pdf)."""
  batch_size: int = 64
  """Number of texts that are classified together. Fewer need less memory."""
  dtype: Literal['float32', 'bfloat16', 'float16'] | None = None
  """Type of the parameters and the computation (none: float32 on CPU, bfloat16 elsewhere)."""
  stats: bool = True
  """Print the speed to standard error."""


def main(config: ClassifyFlags) -> None:
  line_files.check_flags(config.text, config.input, config.output, config.batch_size)
  if config.heatmap is not None and config.input is not None:
    raise ValueError('--heatmap FILE is for --text TEXT: a page with all texts of a file would be too long.')
  if config.heatmap is not None and Path(config.heatmap).suffix not in ('.html', '.png', '.svg', '.pdf'):
    raise ValueError(f'--heatmap {config.heatmap} must end in .html, .png, .svg or .pdf.')
  if config.top < 1:
    raise ValueError(f'{config.top=} must be at least 1.')
  if config.input is None:
    classify_texts(config)
    return
  settings = {name: getattr(config, name) for name in ('top', 'explain', 'dtype')}
  line_files.turn_file(
    config.input, config.output, config.model, settings, lambda: load_model(config), functools.partial(write_lines, config)
  )  # fmt: skip


def load_model(config: ClassifyFlags) -> Any:
  """Returns the classifier. Raises ValueError if it is something else, or as `jaxlm.load`."""
  import jaxlm
  from jaxlm.text_classifier import TextClassifier

  model = jaxlm.load(config.model, dtype=config.dtype)
  if not isinstance(model, TextClassifier):
    raise ValueError(f'{config.model} is no text classifier but a {type(model).__name__}.')
  return model


def classify_texts(config: ClassifyFlags) -> None:
  import decoders

  texts = line_files.texts_of(config.text)
  explain = config.explain or config.heatmap is not None
  out = decoders.classify(load_model(config), texts, top=config.top, explain=explain, batch_size=config.batch_size)
  print('\n\n'.join(shown(out, i, text, config.explain) for i, text in enumerate(texts)))
  if config.heatmap is not None:
    from decoders.classification import heatmap
    from jaxlm.io.atomic import write_atomically

    if config.heatmap.endswith('.html'):
      write_atomically(Path(config.heatmap), heatmap.html(out, texts))
    else:
      heatmap.picture(out, config.heatmap)
    print(f'[heat map: {config.heatmap}]', file=sys.stderr)
  if config.stats:
    print(summary(out.stats), file=sys.stderr)


def shown(out: Any, row: int, text: str, explain: bool) -> str:
  """Returns a text with its labels, and with the words that speak most for and against them, for people."""
  lines = [text if len(text) <= 100 else f'{text[:100]}...']
  for column in out.columns.values():
    lines.append(f'  {column.name}: {", ".join(column.predicted[row]) or "none"}')
    for i, label in enumerate(column.labels[row]):
      said = f'    {column.probabilities[row, i]:6.1%}  {label}'
      if explain:
        found = column.contributions[row]
        words = '  '.join(f'{word} {score:+.2f}' for word, score in found.strongest(i))
        said += f'   [{words}  rest {found.rest[i]:+.2f} = {found.logits[i]:+.2f}]'
      lines.append(said)
  return '\n'.join(lines)


def as_json(out: Any, row: int, explain: bool) -> str:
  """Returns the labels of a text as a JSON object: {column: {predicted, labels, probabilities}}, with contributions if asked for."""
  found = {}
  for name, column in out.columns.items():
    numbers = lambda values: [round(float(x), 6) for x in values]
    found[name] = {
      'predicted': column.predicted[row],
      'labels': column.labels[row],
      'probabilities': numbers(column.probabilities[row]),
    }
    if explain:
      one = column.contributions[row]
      found[name] |= {
        'words': one.words, 'contributions': [numbers(scores) for scores in one.scores], 'rest': numbers(one.rest)
      }  # fmt: skip
  return json.dumps(found, ensure_ascii=False)


def write_lines(
  config: ClassifyFlags, model: Any, lines: line_files.Lines, write: line_files.Write, total: int, done: int
) -> None:
  """Labels lines block by block, and writes a line for each in their order. `done`: number of lines of an earlier run."""
  import tqdm

  import decoders
  from decoders.classification import classifier

  lines, texts, seconds = iter(lines), 0, 0.0
  with tqdm.tqdm(desc='classifying', unit=' texts', total=total, initial=done, disable=None) as bar:
    while block := list(itertools.islice(lines, BATCHES * config.batch_size)):
      real = [(name, text) for name, text in block if text.strip()]
      found = iter(())
      if real:
        classifier.encode(model, [text for _, text in real], [name for name, _ in real])  # Names the line of an error.
        out = decoders.classify(
          model, [text for _, text in real], top=config.top, explain=config.explain, batch_size=config.batch_size,
          progress=bar.update,
        )  # fmt: skip
        found = iter([as_json(out, i, config.explain) for i in range(len(real))])
        texts, seconds = texts + len(real), seconds + out.stats['seconds']
      write([next(found) if text.strip() else '' for _, text in block])
      bar.update(len(block) - len(real))
  if config.stats and texts:
    print(summary({'texts': texts, 'seconds': seconds, 'texts_per_second': texts / seconds}), file=sys.stderr)


def summary(stats: dict[str, Any]) -> str:
  return f'[{stats["texts"]} texts, {stats["texts_per_second"]:.1f} texts/s]'


def run() -> None:
  """Parses the command line, and says what is wrong with it in one line."""
  config = tyro.cli(ClassifyFlags, prog='python -m decoders.classify')
  with console.errors_in_one_line():
    main(config)
