"""The command line python -m jaxlm.analysis.direction score|select|report."""

import dataclasses
import itertools
import json
from pathlib import Path
import shlex
import sys
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from jaxlm import console

if TYPE_CHECKING:
  from jaxlm.analysis.direction.files import Scores

DESCRIPTION = """How much easier texts are in reverse than forward, and data selection by it (arXiv 2410.09817).

  score CORPUS --model MODEL --out scores.parquet;  report scores.parquet;  select scores.parquet --out selected.jsonl"""


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
  """Scores the documents of a corpus by how much harder they are forward than in reverse.

  S = forward loss - reverse loss, in nats per token. Score text that the model was not trained on. Start an interrupted run
  again with the same command, and it continues where it stopped."""

  corpus: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar='CORPUS')]
  """A file (text, JSONL, Parquet), a folder, a pattern with *, tfds:NAME, 'embedded' (text that comes with Python), or
  several of these separated by commas."""
  model: Annotated[str, tyro.conf.arg(metavar='MODEL')]
  """Model trained on both directions (python -m trainers.pretrain --direction both): a run directory, a Hugging Face
  directory, a .gguf file, a fetched name or a Hub id."""
  reverse_model: Annotated[str | None, tyro.conf.arg(metavar='MODEL')] = None
  """Second model for the reverse direction (none: MODEL scores both)."""
  out: str = 'scores.parquet'
  """File to write."""
  field: str = 'text'
  """Name of the field that holds the text in JSON, Parquet and TFDS examples."""
  document: int = 8192
  """A text file is split into documents of about this many characters (0: the whole file is one document)."""
  download: bool = False
  """Allows TFDS to download and prepare a missing data set."""
  batch_size: int = 16
  """Rows computed at the same time, on all devices together."""
  max_length: int | None = None
  """Tokens of a row; longer documents are split into chunks that do not see each other (none: the model's context)."""
  min_tokens: int = 2
  """Documents with fewer tokens are listed without a score."""
  limit: int | None = None
  """Number of documents to read, from the first (none: all)."""
  dtype: Literal['float32', 'bfloat16', 'float16'] | None = None
  """Type of the parameters and the products; losses are float32 (none: float32 on CPU, bfloat16 elsewhere)."""
  overwrite: bool = False
  """Deletes the results of an earlier run, finished or not, and starts from the beginning."""


@dataclasses.dataclass(frozen=True)
class SelectConfig:
  """Selects documents by a rule within a budget of tokens, and writes them as training data.

  Writes a JSONL file (field: text), and OUT.manifest, a JSON object that says how the documents were selected."""

  scores: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar='SCORES')]
  """What `score` wrote."""
  out: str = 'selected.jsonl'
  """File to write."""
  budget_tokens: int | None = None
  """Number of tokens to keep; documents are kept until their total is as near to it as possible."""
  fraction: float | None = None
  """Share of all tokens to keep, instead of --budget-tokens (if neither is given: 0.1)."""
  rule: Annotated[str, tyro.conf.arg(metavar='RULE')] = 'highest'
  """highest, lowest, abs-low (near 0), band (around a quantile): by score. random: random documents. length-matched: random
  documents with the lengths that highest would keep. low-perplexity, high-perplexity: by forward loss. dsir: documents
  similar to --target."""
  score: Annotated[str, tyro.conf.arg(metavar='S|S/se|length-rank')] = 'S'
  """S, S / its standard error, or the rank of S among texts of similar length. The last two help because short texts have the
  most extreme S."""
  per_domain: bool = False
  """Keeps the same share of the tokens of each file (domain)."""
  temperature: float | None = None
  """Scale of Gumbel noise added before ranking, in standard deviations of the ranked score; for dsir in nats (none: 0; for
  dsir 1)."""
  band: float = 0.5
  """band: the quantile of the score around which documents are kept."""
  min_tokens: int = 32
  """Shorter documents are left out."""
  target: str | None = None
  """dsir: a corpus that the selected documents should resemble."""
  order: Literal['shuffled', 'original'] = 'shuffled'
  """Order of the documents in the file."""
  seed: int = 0
  """Seed for random rules, noise and the shuffled order."""
  corpus: str | None = None
  """Where the corpus is now (none: where it was scored)."""
  overwrite: bool = False
  """Replaces an existing file."""


@dataclasses.dataclass(frozen=True)
class ReportConfig:
  """Shows the distribution of S, its correlation with other measures, and texts with very low, middle and very high S.

  Prints tables, and writes report.json and direction.png."""

  scores: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar='SCORES')]
  """What `score` wrote."""
  texts: int = 20
  """Number of texts shown for each of lowest, middle and highest S."""
  characters: int = 300
  """Number of characters shown of each text."""
  min_tokens: int = 32
  """Shorter documents are left out."""
  sample: int = 10_000
  """Number of random documents for the correlations."""
  output: str | None = None
  """Folder to write to (none: direction-SCORES in the current folder). Files of the same names are replaced."""
  corpus: str | None = None
  """Where the corpus is now (none: where it was scored)."""
  seed: int = 0
  """Seed for the sample."""


def score(config: ScoreConfig) -> Path:
  """Scores a corpus; returns the file. Raises DataError if another run writes it."""
  _check_least(config, batch_size=1, min_tokens=1, document=0, limit=1)
  from jaxlm.analysis.direction import files as direction_files

  direction_files.pyarrow()
  out = _outside(config.out, config.corpus)
  with direction_files.locked(out):
    return _score(config, out)


def _score(config: ScoreConfig, out: Path) -> Path:
  """Scores a corpus into a file that no other run writes."""
  from jaxlm.analysis.direction import files as direction_files
  from jaxlm.data import corpus, sources

  source = sources.documents(config.corpus, field=config.field, download=config.download, document=config.document)
  facts = {'format': direction_files.FORMAT, 'corpus': config.corpus, 'source': sources.fingerprint(source)[:16]}
  import jax
  import tqdm

  import jaxlm
  from jaxlm.analysis.direction import model as direction_model
  from jaxlm.analysis.direction import scores as direction_scores

  lm = jaxlm.load(config.model, dtype=config.dtype)
  reverse_lm = jaxlm.load(config.reverse_model, dtype=config.dtype) if config.reverse_model else None
  if lm.tokenizer is None:
    raise ValueError('The model has no tokenizer, so it cannot read text; use jaxlm.analysis.score_documents.')
  length = direction_scores.row_length(lm, reverse_lm, config.max_length)
  facts |= {
    **{name: getattr(config, name) for name in ('field', 'document', 'model')},
    'weights': direction_model.digest(lm),
    'reverse_model': config.reverse_model,
    'reverse_weights': reverse_lm and direction_model.digest(reverse_lm),
    'tokenizer': corpus.tokenizer_fingerprint(lm.tokenizer)[:16],
    'dtype': lm.config.dtype,
    'max_length': length,
    **{name: getattr(config, name) for name in ('batch_size', 'min_tokens', 'limit')},
  }
  if found := direction_model.doubt(lm, reverse_lm):
    print(f'warning: {found}', file=sys.stderr)
  nll, ends = direction_model.token_losses(lm, reverse_lm), direction_model.ends(lm, reverse_lm)
  parts = direction_files.Parts(out, facts, overwrite=config.overwrite)
  if parts.complete:
    print(f'{out} is complete already.')
    return out
  if parts.done:
    print(f'Going on after {parts.done:,} documents.')
  documents = itertools.islice(sources.labelled(source), parts.done, config.limit)
  with tqdm.tqdm(desc=f'scoring {config.corpus}', unit=' tokens', unit_scale=True, disable=None) as bar:
    for window in direction_scores.scored_windows(
      documents, lm.tokenizer, nll, ends, min(m.config.vocab_size for m in (lm, reverse_lm or lm)),
      batch_size=direction_scores.rounded(config.batch_size, jax.local_device_count()), length=length,
      min_tokens=config.min_tokens, first=parts.done, progress=bar.update,
    ):  # fmt: skip
      parts.add(window)
      bar.set_postfix(documents=window[-1].id + 1, refresh=False)
  parts.finish()
  scores = direction_files.read_scores(out)
  print(
    f'{len(scores):,} of {scores.documents:,} documents scored, {scores.tokens.sum():,} tokens: mean forward loss '
    f'{scores.loss_forward.mean():.4f}, reverse {scores.loss_reverse.mean():.4f}, S {scores.S.mean():+.4f} '
    f'(std {scores.S.std():.4f}). Written to {out}\nLook at it: python -m jaxlm.analysis.direction report {shlex.quote(str(out))}'
  )
  return out


def select(config: SelectConfig) -> dict[str, Any]:
  """Writes selected documents; returns the manifest."""
  from jaxlm.analysis.direction import files as direction_files
  from jaxlm.analysis.direction import select as direction_select
  from jaxlm.data import files, selection, sources

  names = ('rule', 'score', 'budget_tokens', 'fraction', 'temperature', 'band')
  options = {name: getattr(config, name) for name in names}
  selection.check_options(**options)  # Before anything is read.
  if (config.rule == 'dsir') != (config.target is not None):
    raise ValueError(f'--target goes with --rule dsir, which needs it; got {config.rule=} and {config.target=}.')
  # The suffix is not .json: the folder may be read as a corpus, to which the manifest does not belong.
  out, told = Path(config.out), Path(config.out + '.manifest')
  if not out.name.lower().endswith(files.LINES):
    raise ValueError(f'--out {out} must end in {", ".join(files.LINES)}: by that it is known as a corpus.')
  if out.exists() and not config.overwrite:
    raise FileExistsError(f'{out} is there already: --overwrite replaces it.')
  scores = direction_files.read_scores(config.scores)
  _outside(out, config.corpus or scores.facts['corpus'])
  source = direction_select.corpus_of(scores, config.corpus)
  weight = None
  if config.rule == 'dsir':
    weight = direction_select.dsir_weights(
      scores, source, sources.documents(config.target), scores.tokens >= config.min_tokens
    )
  options |= {name: getattr(config, name) for name in ('per_domain', 'min_tokens', 'seed')}
  found = selection.select(direction_select.pool(scores, weight), **options)
  texts = direction_files.texts(scores, sources.labelled(source), found.kept)
  direction_select.write(out, scores, texts, shuffle=config.order == 'shuffled', seed=config.seed)
  manifest = direction_select.manifest(scores, found, dataclasses.asdict(config))
  told.write_text(json.dumps(manifest, indent=2) + '\n', encoding='utf-8')
  kept, of = manifest['kept'], manifest['pool']
  print(
    f'{config.rule}: {kept["documents"]:,} of {of["documents"]:,} documents, {kept["tokens"]:,} of {of["tokens"]:,} tokens '
    f'({kept["tokens"] / of["tokens"]:.1%}); mean S {kept["S_mean"]:+.4f}, of the pool {of["S_mean"]:+.4f}.\n'
    f'Written to {out}, {told}\nTrain on it: python -m trainers.pretrain --data.source {shlex.quote(str(out))}'
  )
  return manifest


def report(config: ReportConfig) -> dict[str, Any]:
  """Prints tables and texts, draws the picture; returns what is in report.json."""
  _check_least(config, texts=0, characters=10, sample=2)
  import numpy as np

  from jaxlm import errors
  from jaxlm.analysis.direction import files as direction_files
  from jaxlm.analysis.direction import plots as direction_plots
  from jaxlm.analysis.direction import report as direction_report
  from jaxlm.analysis.direction import select as direction_select
  from jaxlm.analysis.tables import aligned
  from jaxlm.data import sources

  scores = direction_files.read_scores(config.scores)
  rows = np.flatnonzero(scores.tokens >= config.min_tokens)
  if not len(rows):
    raise errors.DataError(
      f'None of the {len(scores)} scored documents has {config.min_tokens} tokens; the longest has '
      f'{scores.tokens.max()}: lower --min-tokens.'
    )
  source = direction_select.corpus_of(scores, config.corpus)
  groups = direction_report.extremes(scores.S[rows], config.texts) if config.texts else {}
  groups = {name: rows[index] for name, index in groups.items()}
  sampled = direction_report.sample(rows, config.sample, config.seed)
  shown = set(itertools.chain.from_iterable(map(np.ndarray.tolist, groups.values())))
  wanted = np.zeros(len(scores), bool)
  wanted[sampled] = True
  features = {name: np.zeros(len(scores)) for name in direction_report.FEATURES}
  wanted[list(shown)] = True
  texts = {}
  for row, text in direction_files.texts(scores, sources.labelled(source), wanted):
    for name, feature in direction_report.FEATURES.items():
      features[name][row] = feature(text)
    if row in shown:
      texts[row] = text
  features = {name: x[sampled] for name, x in features.items()}
  related = direction_report.correlations(scores, sampled, features)
  title = f'{_name(scores)}: {len(rows):,} documents of {config.min_tokens} tokens or more'
  table = direction_report.distribution(scores, rows)
  print(f'{title}\n\n{aligned(table)}\n')
  print(f'Rank correlation of S over {len(sampled):,} documents\n')
  print(aligned([[name, f'{x:+.3f}', f'(mean {features[name].mean():.3f})' if name in features else ''] for name, x in related.items()]))  # fmt: skip
  for name, group in groups.items():
    lines = direction_report.example_lines(scores, group.tolist(), texts, config.characters)
    print(f'\n---- {name} ----\n\n' + '\n'.join(lines))
  folder = Path(config.output or f'direction-{Path(config.scores).stem}')
  folder.mkdir(parents=True, exist_ok=True)
  written = folder / 'report.json', folder / 'direction.png'
  number = lambda x: None if x != x else x
  results = {
    'measured': dataclasses.asdict(config),
    'scored': scores.facts,
    'distribution': [dict(zip(table[0], line)) for line in table[1:]],
    'rank_correlations': {name: number(x) for name, x in related.items()},
    'texts': {
      name: [{'id': int(scores.id[row]), 'S': float(scores.S[row]), 'text': texts[row]} for row in group.tolist()]
      for name, group in groups.items()
    },
  }
  written[0].write_text(json.dumps(results, allow_nan=False) + '\n', encoding='utf-8')
  direction_plots.plot_scores(scores, rows, written[1], title)
  print('\nWritten to', ', '.join(map(str, written)))
  return results


def _check_least(config: Any, **least: int) -> None:
  """Raises ValueError if a field is smaller than its minimum in `least`; fields that are None are skipped."""
  for name, number in least.items():
    if (value := getattr(config, name)) is not None and value < number:
      raise ValueError(f'{name}={value} must be at least {number}.')


def _outside(out: str | Path, corpus: str) -> Path:
  """Returns `out` as a path. Raises ValueError if it is in the corpus folder, where it would become part of the corpus."""
  out, folder = Path(out), Path(corpus).expanduser()
  if folder.is_dir() and out.resolve().is_relative_to(folder.resolve()):
    raise ValueError(f'--out {out} is in the folder {folder}, whose files are the corpus: choose another place.')
  return out


def _name(scores: 'Scores') -> str:
  model = scores.facts['model'] + (f' and {r}' if (r := scores.facts['reverse_model']) else '')
  return f'{Path(scores.facts["corpus"]).name} scored by {Path(model).name}'


def parse(args: list[str] | None = None) -> ScoreConfig | SelectConfig | ReportConfig:
  command = lambda config, name: Annotated[config, tyro.conf.subcommand(name, prefix_name=False)]
  kinds = command(ScoreConfig, 'score') | command(SelectConfig, 'select') | command(ReportConfig, 'report')
  return tyro.cli(kinds, prog='python -m jaxlm.analysis.direction', description=DESCRIPTION, args=args)


def run() -> None:
  """Parses the command line and runs it; errors are reported in one line."""
  config = parse()
  with console.errors_in_one_line():
    {ScoreConfig: score, SelectConfig: select, ReportConfig: report}[type(config)](config)
