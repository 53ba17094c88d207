"""The command line of translation: python -m decoders.translate MODEL --text "..." """

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import sys
from typing import Annotated, Any, Literal

import tyro

from decoders import line_files
from decoders.translation.loading import load_model
from jaxlm import console

SETTINGS = (
  'beam_size', 'length_penalty', 'max_new_tokens', 'num_return', 'early_stopping', 'recombine', 'length_beam', 'iterations', 'dedup',
)  # fmt: skip
"""Arguments of `decoders.translate` that are flags; an output that is gone on with must have been begun with the same."""


@dataclasses.dataclass(frozen=True)
class TranslateConfig:
  """Translate texts, or the lines of a file, with an encoder-decoder: by beam search, or all tokens at once."""

  model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar='MODEL')]
  """Where the model is: a run directory of trainers.translate, or what else `jaxlm.load` opens as an encoder-decoder."""
  text: Annotated[tuple[str, ...], tyro.conf.arg(metavar='TEXT ...')] = ()
  """Texts to translate; '-' reads one from each line of standard input."""
  input: Annotated[str | None, tyro.conf.arg(metavar='FILE')] = None
  """A file with a text on each line, instead of --text; it may be packed (.gz, .bz2, .xz, .zst). A blank line stays blank."""
  output: Annotated[str | None, tyro.conf.arg(metavar='FILE')] = None
  """For --input: where to write the translations, line by line (none: standard output). The same command goes on where an earlier
  one was interrupted."""
  beam_size: int | None = None
  """Hypotheses that are followed side by side; 1 is greedy decoding. More: slower, and more likely translations (none: 4)."""
  length_penalty: float = 1.0
  """Translations are compared by their log-probability / length ** length_penalty. More: longer translations."""
  early_stopping: Literal['never', 'false', 'true'] = 'never'
  """When a search ends that has beam-size finished translations. never: when no further one can beat them. false: when no unfinished
  one would beat them as it is, which takes fewer steps. true: at once."""
  recombine: bool = False
  """For models of exact Markov order k: of unfinished translations with the same last k tokens only the best is followed."""
  length_beam: int | None = None
  """For models of kind nat or cmlm: number of target lengths, the likeliest ones, that are tried for each text (none: 5)."""
  iterations: int | None = None
  """For models of kind cmlm: passes of the decoder. After the first, each pass predicts anew the tokens with the lowest probabilities.
  More: slower, and better translations (none: 1)."""
  dedup: bool | None = None
  """For models of kind nat or cmlm: a run of equal tokens becomes one token (none: after a single pass, but not after several)."""
  max_new_tokens: int | None = None
  """Most tokens of a translation (none: twice the tokens of its source and 20 more)."""
  num_return: int = 1
  """Translations of each text, on lines of their own, the best first."""
  batch_size: int = 64
  """Texts translated together. Fewer take less memory."""
  dtype: Literal['float32', 'bfloat16', 'float16'] | None = None
  """Type of the parameters and the computation (none: float32 on CPU, bfloat16 elsewhere)."""
  stats: bool = True
  """Print speed and memory to standard error."""


def main(config: TranslateConfig) -> None:
  line_files.check_flags(config.text, config.input, config.output, config.batch_size)
  load = lambda: load_model(config.model, config.dtype)
  if config.input is None:
    texts = line_files.texts_of(config.text)
    lines = [(f'Text {i}', text) for i, text in enumerate(texts, 1)]
    translate_lines(config, load(), lines, line_files.print_lines, len(texts))
    return

  def turn(model: Any, *arguments: Any) -> None:
    check_lines(config, model)
    translate_lines(config, model, *arguments)

  settings = {name: getattr(config, name) for name in (*SETTINGS, 'dtype')}
  line_files.turn_file(config.input, config.output, config.model, settings, load, turn, per_line=config.num_return)


def check_lines(config: TranslateConfig, model: Any) -> None:
  """Raises ValueError for a line that cannot be translated, before the work that it would interrupt."""
  from decoders.translation import sources

  for name, line in line_files.lines_of(config.input):
    if line.strip():
      sources.encode(model, [line], [name])


def translate_lines(
  config: TranslateConfig,
  model: Any,
  lines: Iterable[tuple[str, str]],
  write: Callable[[Sequence[str]], None],
  total: int,
  done: int = 0,
) -> None:
  """Translates lines block by block, and writes `num_return` lines for each in their order.

  Args:
    lines: (name for messages, text).
    write: appends lines to the output.
    total, done: sources in all, and those that an earlier run has translated.
  """
  from decoders.translation import blocks, sources

  blank = [''] * config.num_return
  ids = (sources.encode(model, [text], [name])[0][:-1] if text.strip() else None for name, text in lines)
  write_block = lambda found: write([line for texts in found for line in (blank if texts is None else texts)])
  run = blocks.translate_blocks(
    model, ids, write_block, total=total, done=done, batch_size=config.batch_size, **settings_of(config)
  )
  if config.stats and run:
    print(summary(run), file=sys.stderr)


def settings_of(config: TranslateConfig) -> dict[str, Any]:
  """Returns the arguments of `decoders.translate` that are flags of the same meaning."""
  early = {'never': 'never', 'false': False, 'true': True}[config.early_stopping]
  return {name: getattr(config, name) for name in SETTINGS} | {'early_stopping': early}


def summary(stats: dict[str, Any]) -> str:
  """Returns where time and memory went, in a line."""
  seconds = stats['encode_seconds'] + stats['decode_seconds']
  words = stats.get('tokens_before_dedup')
  repeated = (
    '' if not words else f'; {stats["repeated_tokens"] / words:.1%} of tokens were repeated before de-duplication'
  )
  return (
    f'[{stats["new_tokens"]} tokens, {stats["new_tokens"] / seconds:.1f} tokens/s; encoding {stats["encode_seconds"]:.2f} s, '
    f'decoding {stats["decode_seconds"]:.2f} s, compiling {stats["compile_seconds"]:.1f} s; decoding state '
    f'{stats["state_bytes"] / 1e6:.1f} MB, memory of the sources {stats["memory_bytes"] / 1e6:.1f} MB{repeated}]'
  )


def run() -> None:
  """Parses the command line, and says what is wrong with it in one line."""
  config = tyro.cli(TranslateConfig, prog='python -m decoders.translate')
  with console.errors_in_one_line():
    main(config)
