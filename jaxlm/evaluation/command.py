"""The command line python -m jaxlm.analysis.evaluate MODEL SPEC ... --choices FILE --against MODEL2."""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import itertools
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jaxlm import console
from jaxlm.analysis.tables import aligned


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
  """Evaluates a model: losses on held-out text, and accuracy on multiple-choice questions. Needs no network.

  Prints tables: tokens, loss (nats per token), perplexity and bits per byte for each set of documents; accuracy by
  log-likelihood for each file of questions. With --against, it also prints the differences between two models with 95 %
  intervals and p-values (paired bootstrap over documents or questions)."""

  model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar='MODEL')]
  """A run directory, a Hugging Face directory, a .gguf file, a fetched name (python -m jaxlm.data.fetch) or a Hub id."""
  specs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar='[NAME=]SPEC')] = ()
  """Held-out documents: a file (text, JSONL, Parquet), a folder, a pattern with *, tfds:NAME, 'embedded' (text that comes with
  Python), or several of these separated by commas."""
  choices: Annotated[tuple[str, ...], tyro.conf.arg(metavar='[NAME=]FILE')] = ()
  """Questions: a JSONL file, each line {"context": text, "choices": [text, ...], "answer": number from 0, or text}."""
  against: Annotated[str | None, tyro.conf.arg(metavar='MODEL')] = None
  """A second model that is evaluated in the same way and compared with the first."""
  tokenizer: Annotated[str | None, tyro.conf.arg(metavar='PATH')] = None
  """Another tokenizer than the models' own: a folder, a tokenizer.json, a SentencePiece .model file, or 'bytes'."""
  direction: Literal['forward', 'reverse', 'both'] | None = None
  """Direction in which documents are read (none: the model's direction, or forward for a model of both). Questions are always
  read forward."""
  delimiter: str = ' '
  """Text inserted between context and choice if there is no white space between them."""
  field: str = 'text'
  """Name of the field that holds the text in JSON, Parquet and TFDS examples."""
  document: int = 8192
  """A text file is split into documents of about this many characters (0: the whole file is one document)."""
  download: bool = False
  """Allows TFDS to download and prepare a missing data set."""
  limit: int | None = None
  """Number of documents of each set and questions of each file to read, from the first (none: all)."""
  batch_size: int = 16
  """Rows computed at the same time, on all devices together."""
  max_length: int | None = None
  """Tokens of a row; longer documents are split into chunks that do not see each other (none: the model's context)."""
  resamples: int = 2000
  """Number of resamples of the bootstrap; more give a more precise p-value."""
  seed: int = 0
  """Seed for the bootstrap."""
  dtype: Literal['float32', 'bfloat16', 'float16'] | None = None
  """Type of the parameters and the products; losses are float32 (none: float32 on CPU, bfloat16 elsewhere)."""
  out: str | None = None
  """JSON file to write."""
  overwrite: bool = False
  """Replaces an existing --out file."""


def named(specs: tuple[str, ...]) -> dict[str, str]:
  """Returns specs by name; NAME=SPEC gives a spec a name. Raises ValueError if two have the same name."""
  found: dict[str, str] = {}
  for spec in specs:
    name, equals, rest = spec.partition('=')
    name, spec = (name, rest) if equals and name and rest and not Path(spec).exists() else (spec, spec)
    if name in found:
      raise ValueError(f'Two sets are called {name!r}: name one of them, as in NAME={spec}.')
    found[name] = spec
  return found


def main(config: EvaluateConfig) -> dict[str, Any]:
  """Evaluates one or two models, prints tables and writes --out; returns the content of that file."""
  sets, files = named(config.specs), named(config.choices)
  if not sets and not files:
    raise ValueError('There is nothing to evaluate on: give documents (SPEC), or questions (--choices FILE).')
  for name in ('batch_size', 'resamples', 'limit'):
    if (value := getattr(config, name)) is not None and value < 1:
      raise ValueError(f'{name}={value} must be at least 1.')
  out = None if config.out is None else Path(config.out)
  if out is not None and out.exists() and not config.overwrite:
    raise FileExistsError(f'{out} is there already: --overwrite replaces it.')
  from jaxlm.data import sources
  from jaxlm.evaluation import choices as evaluate_choices

  options = dict(field=config.field, document=config.document, download=config.download)
  documents = {name: sources.documents(spec, **options) for name, spec in sets.items()}
  questions = {name: evaluate_choices.read_questions(path, config.limit) for name, path in files.items()}
  models = [config.model] if config.against is None else [config.model, config.against]
  losses, answers, tokenizers = [], [], []
  for model in models:  # Only one model is in memory at a time.
    found = _evaluated(model, config, documents, questions)
    for kept, one in zip((losses, answers, tokenizers), found):
      kept.append(one)
  labels = _labels(models)
  results: dict[str, Any] = {'measured': dataclasses.asdict(config)}
  results['documents'] = {
    label: {n: _loss_numbers(x) for n, x in found.items()} for label, found in zip(labels, losses)
  }
  results['choices'] = {
    label: {n: _choice_numbers(x) for n, x in found.items()} for label, found in zip(labels, answers)
  }
  if len(models) == 2:
    results['differences'] = _differences(config, losses, answers, same_tokens=tokenizers[0] == tokenizers[1])
  print('\n\n'.join(aligned(table) for table in tables(results) if len(table) > 1))
  if out is not None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=2, allow_nan=False) + '\n', encoding='utf-8')
    print(f'\nWritten to {out}')
  return results


def _evaluated(model: str, config: EvaluateConfig, documents, questions) -> tuple[dict, dict, str | None]:
  """Returns (losses of each set, answers to each file, digest of the tokenizer) of one model."""
  import jaxlm
  from jaxlm.data import corpus
  from jaxlm.evaluation import choices as evaluate_choices
  from jaxlm.evaluation import documents as evaluate_scores
  from jaxlm.language_model import named_tokenizer

  other = {} if config.tokenizer is None else {'tokenizer': named_tokenizer(config.tokenizer)}
  lm = jaxlm.load(model, dtype=config.dtype, **other)
  if lm.tokenizer is None:
    raise ValueError(f'{model} has no tokenizer, so it cannot read text: name one with --tokenizer.')
  shape = dict(batch_size=config.batch_size, max_length=config.max_length)
  losses, answers = {}, {}
  for name, source in documents.items():
    with _bar(f'{_short(model)}: {name}', ' tokens') as progress:
      some = itertools.islice(source, config.limit)
      losses[name] = evaluate_scores.document_losses(lm, some, direction=config.direction, progress=progress, **shape)
  for name, asked in questions.items():
    with _bar(f'{_short(model)}: {name}', ' choices', sum(len(q.choices) for q in asked)) as progress:
      answers[name] = evaluate_choices.answer_choices(lm, asked, delimiter=config.delimiter, progress=progress, **shape)
  return losses, answers, corpus.tokenizer_fingerprint(lm.tokenizer)


@contextlib.contextmanager
def _bar(description: str, unit: str, total: int | None = None) -> Iterator[Callable[[int], Any]]:
  import tqdm

  with tqdm.tqdm(desc=description, unit=unit, unit_scale=True, total=total, disable=None) as bar:
    yield bar.update


def _short(model: str) -> str:
  return Path(model).name or model


def _labels(models: list[str]) -> list[str]:
  """Returns short names of the models, or the names that the user gave if the short ones are equal."""
  short = [_short(model) for model in models]
  if len(set(short)) == len(short):
    return short
  return models if len(set(models)) == len(models) else [f'{model} ({i})' for i, model in enumerate(models, 1)]


def _loss_numbers(found) -> dict[str, Any]:
  numbers = {'documents': len(found.tokens), 'tokens': int(found.tokens.sum()), 'bytes': int(found.bytes.sum())}
  measures = ('loss', 'perplexity', 'bits_per_byte')
  return numbers | {way: {name: getattr(found, name)(way) for name in measures} for way in found.nll}


def _choice_numbers(found) -> dict[str, Any]:
  from jaxlm.evaluation.choices import RULES

  return {'questions': len(found.answers), 'accuracy': {rule: found.accuracy(rule) for rule in RULES}}


def _differences(config: EvaluateConfig, losses, answers, *, same_tokens: bool) -> list[dict[str, Any]]:
  """Returns the differences, first model minus second, of all measures that both have."""
  from jaxlm.evaluation.choices import RULES

  options, found = dict(resamples=config.resamples, seed=config.seed), []
  add = lambda name, measure, d: found.append({'set': name, 'measure': measure, **dataclasses.asdict(d)})
  for name, first in losses[0].items():
    for way in first.nll:
      if way not in (second := losses[1][name]).nll:
        continue
      if same_tokens:
        add(name, f'loss, {way}', first.difference(second, way, per='token', **options))
      add(name, f'bits per byte, {way}', first.difference(second, way, **options))
  for name, first in answers[0].items():
    for rule in RULES:
      add(name, f'accuracy, {rule}', first.difference(answers[1][name], rule, **options))
  return found


def tables(results: dict[str, Any]) -> list[list[list[str]]]:
  """Returns the tables of losses, of accuracies and of differences, as rows of cells."""
  losses = [['documents', 'model', 'direction', 'texts', 'tokens', 'loss', 'perplexity', 'bits/byte']]
  for model, sets in results['documents'].items():
    for name, x in sets.items():
      for way in ('forward', 'reverse'):
        if way in x:
          numbers = f'{x[way]["loss"]:.4f}', f'{x[way]["perplexity"]:.3f}', f'{x[way]["bits_per_byte"]:.4f}'
          losses.append([name, model, way, f'{x["documents"]:,}', f'{x["tokens"]:,}', *numbers])
  choices = [['questions', 'model', 'number', 'accuracy, %', 'per token', 'per byte']]
  for model, sets in results['choices'].items():
    for name, x in sets.items():
      choices.append([name, model, f'{x["questions"]:,}', *(f'{100 * a:.2f}' for a in x['accuracy'].values())])
  differences = [['first - second', 'measure', 'difference', '95 % from', 'to', 'p', 'items']]
  for x in results.get('differences', ()):
    numbers = (f'{x[name]:+.4f}' for name in ('value', 'low', 'high'))
    differences.append([x['set'], x['measure'], *numbers, f'{x["p"]:.4f}', f'{x["items"]:,}'])
  return [losses, choices, differences]


def run() -> None:
  """Parses the command line and runs it; errors are reported in one line."""
  config = tyro.cli(EvaluateConfig, prog='python -m jaxlm.analysis.evaluate')
  with console.errors_in_one_line():
    main(config)
