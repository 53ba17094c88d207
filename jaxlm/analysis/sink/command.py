"""The command line python -m jaxlm.analysis.sinks MODEL --input natural."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from jaxlm import console
from jaxlm.analysis.tables import aligned

if TYPE_CHECKING:
  from jaxlm.analysis.sink.report import SinkReport


@dataclasses.dataclass(frozen=True)
class SinksConfig:
  """Measures attention sinks: Sink_k of the first positions, mean attention per layer and head, and norms.

  Prints a table, and writes sinks.json, heads.png (mean attention to the first token, layers x heads) and positions.png."""

  model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar='MODEL')]
  """A run directory, a Hugging Face directory, a .gguf file, a fetched name (python -m jaxlm.data.fetch) or a Hub id."""
  input: Literal['natural', 'random', 'repeated'] = 'natural'
  """natural: beginnings of documents. random: ids drawn uniformly. repeated: one random id at all positions."""
  bos: bool = False
  """Begins each sequence with the tokenizer's BOS, for models that always read one in training. False, as in the paper: the first
  token is an ordinary one."""
  text: str = 'embedded'
  """natural: source of the documents: a file, a folder, tfds:NAME, or 'embedded' (text that comes with Python)."""
  sequences: int = 100
  """Number of sequences."""
  length: int = 64
  """Tokens of each sequence, at least 16. Sink_k falls as the length grows."""
  eps: tuple[float, ...] = (0.3,)
  """Thresholds: a token is a sink in a head if its mean attention is above the threshold."""
  output: str | None = None
  """Folder to write to (none: sinks-MODEL in the current folder, followed by -random, -repeated and -bos for these inputs). Files
  of the same names are replaced."""
  seed: int = 0
  """Seed for the random ids and for the choice of documents."""
  batch_size: int = 16
  """Sequences computed at the same time."""
  chunk: int = 512
  """Number of queries whose attention maps are in memory at the same time. Lower it for very long sequences."""
  dtype: Literal['float32', 'bfloat16', 'float16'] | None = None
  """Type of the parameters and the computation (none: float32 on CPU, bfloat16 elsewhere)."""


def main(config: SinksConfig) -> 'SinkReport':
  import jaxlm
  from jaxlm.analysis.sink import plots as sink_plots
  from jaxlm.analysis.sink import scores as sink_scores
  from jaxlm.analysis.sink.inputs import inputs
  from jaxlm.analysis.sink.report import sinks

  sink_scores.check_length(config.length)  # The length is checked before the model is loaded.
  lm = jaxlm.load(config.model, dtype=config.dtype)
  shape = dict(batch=config.sequences, length=config.length, seed=config.seed, bos=config.bos)
  tokens = inputs(config.input, lm=lm, text=config.text, **shape)
  report = sinks(lm, tokens, eps=config.eps, chunk=config.chunk, batch_size=config.batch_size)
  name = Path(config.model).resolve().name if Path(config.model).exists() else config.model.replace('/', '-')
  title = f'{name}, {config.sequences} {config.input} sequences of {config.length} tokens' + ', BOS first' * config.bos
  print(f'{title}\n\n{position_table(report)}\n\n{layer_table(report)}\n')
  suffix = ('' if config.input == 'natural' else f'-{config.input}') + '-bos' * config.bos
  folder = Path(config.output or f'sinks-{name}{suffix}')
  folder.mkdir(parents=True, exist_ok=True)
  written = [folder / 'sinks.json', folder / 'heads.png', folder / 'positions.png']
  fields = {k: getattr(v, 'tolist', lambda v=v: v)() for k, v in vars(report).items()}
  written[0].write_text(
    json.dumps({'measured': dataclasses.asdict(config), 'positions': report.positions, **fields}) + '\n'
  )
  sink_plots.plot_heads(report, written[1], title)
  sink_plots.plot_positions(report, written[2], title)
  print('Written to', ', '.join(map(str, written)))
  return report


def position_table(report: 'SinkReport') -> str:
  """Returns a table of Sink_k in percent, for the slot if the model has one and for the first ten tokens."""
  shown = 10 + report.first
  lines = [['Sink_k, %', 'eps', *report.positions[:shown]]]
  for name, sink_ES in (('proxy', report.sink_proxy), ('raw', report.sink_raw)):
    for eps, sink_S in zip(report.eps, sink_ES):
      lines.append([name, f'{eps:g}', *(f'{100 * x:.2f}' for x in sink_S[:shown])])
  return aligned(lines)


def layer_table(report: 'SinkReport') -> str:
  """Returns a table of means over heads and norms of the first token: a line per layer, the final output, and the mean."""
  alpha, first = report.alpha_proxy.mean(axis=1), report.first
  slot = ['alpha_*'] if report.slot else []
  lines = [['layer', *slot, 'alpha_1', 'row mass', '|h_1| / |h|', '|k_1| / |k|', '|v_1| / |v|']]
  for layer, alpha_S in enumerate(alpha):
    numbers = (report.row_mass[layer].mean(), *(x[layer] for x in (report.hidden_norm_ratio, report.key_norm_ratio)))
    numbers = (*alpha_S[: first + 1], *numbers, report.value_norm_ratio[layer])
    lines.append([str(layer), *(f'{x:.3f}' for x in numbers)])
  lines.append(['end', *[''] * (first + 2), f'{report.hidden_norm_ratio[-1]:.3f}', '', ''])
  mean = [f'{x:.3f}' for x in (*alpha.mean(axis=0)[: first + 1], report.row_mass.mean())]
  lines.append(['mean', *mean, '', f'{report.key_norm_ratio.mean():.3f}', f'{report.value_norm_ratio.mean():.3f}'])
  note = 'alpha: of the proxy scores. |h_1| / |h|: first hidden state against the mean of the others, before the layer.'
  return f'{aligned(lines)}\n{note}'


def run() -> None:
  """Parses the command line and runs it; errors are reported in one line."""
  config = tyro.cli(SinksConfig, prog='python -m jaxlm.analysis.sinks')
  with console.errors_in_one_line():
    main(config)
