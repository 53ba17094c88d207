"""The command line of all decoders: python -m decoders.generate MODEL --prompt "..." """

from collections.abc import Callable
import dataclasses
import functools
import re
import sys
from typing import Annotated, Any, Literal

import tyro

from decoders.glide.config import GlideDecoding
from decoders.options import Sampling
from decoders.simlayerkv.config import LazyConfig, preset
from decoders.swift.config import SwiftConfig
from decoders.swift.sets import SkipSet
from jaxlm import console
from jaxlm.cache_config import KiviConfig


@dataclasses.dataclass(frozen=True)
class LazyFlags(LazyConfig):
  """LazyConfig without a flag for `quant`: --quant-bits sets it."""

  quant: tyro.conf.Suppress[KiviConfig | None] = None


@dataclasses.dataclass(frozen=True)
class SwiftFlags(SwiftConfig):
  """SwiftConfig without a flag for `skip`, because a SkipSet cannot be written as one word."""

  skip: tyro.conf.Suppress[SkipSet | None] = None


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
  """Continue prompts, or answer a chat message, with a model from a run directory, a Hugging Face directory, a .gguf
  file, a fetched name (python -m jaxlm.data.fetch) or a Hub id."""

  model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar='MODEL')]
  """Path, fetched name or Hub id of the model."""
  prompt: Annotated[tuple[str, ...], tyro.conf.arg(metavar='TEXT ...')] = ()
  """Texts to continue; '-' reads one from standard input."""
  chat: str | None = None
  """A message to answer, put through the model's chat template."""
  system: str | None = None
  """System message before --chat."""
  chat_template_args: Annotated[str | None, tyro.conf.arg(metavar='JSON')] = None
  """For --chat: what the chat template may name besides the messages, such as '{"enable_thinking": false}' or
  '{"tools": [...]}'."""
  tokenizer: Annotated[str | None, tyro.conf.arg(metavar='PATH')] = None
  """Another tokenizer than the model's own: a folder, a tokenizer.json, a SentencePiece .model file, or 'bytes'. With 'none' the
  prompts are token ids with spaces between, and ids are printed."""
  decoder: Literal['plain', 'simlayerkv', 'prompt-lookup', 'draft', 'swift', 'glide'] = 'plain'
  """How tokens are generated. plain: one call of the model for each token. simlayerkv: the same, with smaller caches in the layers
  that attend to little of the text (lazy layers). The other decoders draft several tokens and verify them in one call, which gives
  the same text as plain. prompt-lookup drafts the tokens that followed the latest tokens at an earlier place in the text. draft
  drafts with a smaller model. swift drafts with the model itself and skips some of its sub-layers. glide drafts with a small model that
  was trained to read the model's cache."""
  preset: str | None = None
  """For --decoder simlayerkv: named settings; flags of --lazy override them. authors-decode, authors-prefill, kvpress and
  lighttransfer make half of the layers lazy, unless a threshold, n-full or budget is given. streaming, snapkv, h2o and kivi are
  the methods of these names, for comparison."""
  lazy: LazyFlags = LazyFlags()
  """For --decoder simlayerkv: which layers are lazy, and which tokens they keep."""
  quant_bits: Literal[2, 4, 8] | None = None
  """For --decoder simlayerkv: number of bits for each number in the cache (none: the cache stays exact). The newest tokens always
  stay exact. Fewer bits: less memory, larger errors."""
  quant_group: int = 32
  """For --quant-bits: how many cached numbers share one scale. Fewer: smaller errors, more memory. It must divide the head size."""
  swift: SwiftFlags = SwiftFlags()
  """For --decoder swift: how many sub-layers are skipped, how they are searched, and how many tokens are drafted."""
  draft: str | None = None
  """For --decoder glide: run directory of the draft, which python -m trainers.glide has trained for this model."""
  glide: GlideDecoding = GlideDecoding()
  """For --decoder glide: how many tokens are drafted, and how many candidates are verified in place of each."""
  lookup_first: bool = False
  """For --decoder swift and glide: draft by prompt lookup when it finds something, and by the decoder's own drafts otherwise. Use it
  for texts that repeat themselves."""
  draft_model: str | None = None
  """For --decoder draft: path, fetched name or Hub id of the smaller model; it must have the same vocabulary."""
  draft_tokens: int | None = None
  """For --decoder prompt-lookup and draft: largest number of tokens drafted at once (none: 10 for prompt-lookup, 5 for draft).
  Raise it if most drafted tokens are accepted."""
  rule: Literal['match', 'residual'] = 'match'
  """For --decoder draft, swift and glide with a temperature: which drafted tokens are accepted. match: those that plain decoding would
  choose, so the text is the same as with plain. residual: more tokens are accepted; the text differs, but it is drawn from the
  same distribution."""
  max_new_tokens: int = 128
  """Largest number of tokens to generate for each text."""
  sampling: tyro.conf.OmitArgPrefixes[Sampling] = Sampling()
  seed: int = 0
  """Seed for the sampling noise; the same seed gives the same text."""
  num_samples: int = 1
  """Number of continuations for each prompt."""
  stop: tuple[str, ...] = ()
  """Strings that end the text. A string may contain special tokens, such as '<|im_end|>'."""
  eos_id: Annotated[tuple[str, ...], tyro.conf.arg(metavar='TOKEN ...')] = ()
  """Tokens that end the text, by id or by text (none given: the tokenizer's)."""
  direction: Literal['forward', 'reverse'] | None = None
  """forward: generate what follows the prompt. reverse: generate what comes before it, with a model that was trained to read texts
  from their end. (none: the direction that the model was trained for; forward if it was trained for both.)"""
  prefill_chunk: int | None = None
  """Number of a prompt's tokens that are read at once (none: all). Set it where a long prompt does not fit in memory."""
  dtype: Literal['float32', 'bfloat16', 'float16'] | None = None
  """Type of the parameters and the computation (none: float32 on CPU, bfloat16 elsewhere)."""
  implementation: Literal['default', 'xla', 'pallas'] = 'default'
  """How attention is computed. default: the fastest way on the device. xla: without kernels. pallas: prompts by kernels, which must know
  the model's attention, and decoding steps where they can."""
  stats: bool = True
  """Print speed, memory and the number of accepted drafted tokens to standard error."""


def main(config: GenerateConfig) -> None:
  if bool(config.prompt) == (config.chat is not None):
    raise ValueError('Pass either --prompt TEXT ... or --chat MESSAGE.')
  if config.chat is None and config.chat_template_args is not None:
    raise ValueError('--chat-template-args is for --chat MESSAGE.')
  decode = decoder(config)
  lm = load_model(config)
  if config.tokenizer == 'none':
    print_ids(config, lm, decode)
    return
  if lm.tokenizer is None:
    raise ValueError(
      f'{config.model} has no tokenizer, so it cannot read text: name one with --tokenizer, or pass --tokenizer none and '
      'token ids.'
    )
  from decoders.directions import resolve

  direction = resolve(lm.config, config.direction)
  if config.chat is not None and direction == 'reverse':
    raise ValueError('--chat is answered forward, but the direction is reverse: pass --prompt, or --direction forward.')
  if config.chat is not None:
    from jaxlm.data.chat import variables_of

    system = [{'role': 'system', 'content': config.system}] if config.system else []
    variables = variables_of(config.chat_template_args)
    prompts = [lm.tokenizer.chat([*system, {'role': 'user', 'content': config.chat}], **variables)]
  else:
    prompts = [sys.stdin.read() if p == '-' else p for p in config.prompt]
  # Reverse generation produces the last word first, so the text is printed when it is complete.
  streams = len(prompts) * config.num_samples == 1 and direction == 'forward'
  printer = Printer(lm, prompts[0], direction)
  if streams and config.chat is None:
    printer.write(prompts[0])
  out = decode(
    lm,
    prompts,
    **settings_of(config) | {'direction': direction},
    # A stop string may still remove text that is generated already, so with --stop the text is printed when it is complete.
    stream=printer.stream if streams and not config.stop else None,
  )
  if streams:
    printer.write(out.text[0] if config.stop else printer.text.flush())
    printer.write('\n')
  elif direction == 'reverse':
    for row, text in enumerate(out.text):
      name = f'--- {row}\n' if len(out.text) > 1 else ''
      printer.write(f'{name}{text}{prompts[row // config.num_samples]}\n')
  else:
    for row, text in enumerate(out.text):
      prompt = '' if config.chat is not None else prompts[row // config.num_samples]
      printer.write(f'--- {row}\n{prompt}{text}\n')
  if config.stats:
    print(summary(out.stats), file=sys.stderr)


def load_model(config: GenerateConfig):
  """Returns the model with the tokenizer that --tokenizer names. Raises as `jaxlm.load`, and ValueError if there is none."""
  import jaxlm
  from jaxlm.language_model import named_tokenizer

  other = {} if config.tokenizer is None else {'tokenizer': named_tokenizer(config.tokenizer)}
  lm = jaxlm.load(config.model, dtype=config.dtype, **other)
  if isinstance(lm, jaxlm.GlideDraft):
    raise ValueError(
      f'{config.model} is a GliDe draft for {lm.config.target.name}: pass that model, and the draft as --draft with --decoder glide.'
    )
  return computed(lm, config)


def computed(lm: Any, config: GenerateConfig) -> Any:
  """Returns a language model that is computed as --implementation says; other models are unchanged. Raises as `flash.check`."""
  import jaxlm
  from jaxlm.attention import flash

  if config.implementation == 'default' or not isinstance(lm, jaxlm.LanguageModel):
    return lm
  lm = dataclasses.replace(lm, config=lm.config.replace(implementation=config.implementation))
  flash.check(lm.config)
  return lm


def settings_of(config: GenerateConfig) -> dict:
  """Returns the arguments of the decoder that are flags of the same meaning."""
  names = ('max_new_tokens', 'sampling', 'seed', 'num_samples', 'stop', 'prefill_chunk', 'direction')
  return {name: getattr(config, name) for name in names} | {'eos_id': end_tokens(config.eos_id)}


def print_ids(config: GenerateConfig, lm, decode: Callable) -> None:
  """Continues prompts of token ids, and prints ids. Raises ValueError for a prompt that is something else."""
  if config.chat is not None:
    raise ValueError('--chat needs a tokenizer: leave --tokenizer none out, or pass token ids as --prompt.')
  prompts = [sys.stdin.read() if p == '-' else p for p in config.prompt]
  for prompt in prompts:
    if not re.fullmatch(r'\s*[0-9]+(\s+[0-9]+)*\s*', prompt):
      raise ValueError(
        f'With --tokenizer none a prompt is token ids with spaces between, such as "1 15 7"; got {prompt!r}.'
      )
  out = decode(lm, [[int(id) for id in prompt.split()] for prompt in prompts], **settings_of(config))
  for row in out.rows():
    print(*row)
  if config.stats:
    print(summary(out.stats), file=sys.stderr)


# Flags that only some decoders use, and these decoders.
OWN = {
  'lazy': ('simlayerkv',),
  'preset': ('simlayerkv',),
  'quant_bits': ('simlayerkv',),
  'quant_group': ('simlayerkv',),
  'swift': ('swift',),
  'draft': ('glide',),
  'glide': ('glide',),
  'lookup_first': ('swift', 'glide'),
  'draft_model': ('draft',),
  'draft_tokens': ('prompt-lookup', 'draft'),
  'rule': ('draft', 'swift', 'glide'),
}


def decoder(config: GenerateConfig) -> Callable:
  """Returns the function that decodes. Raises ValueError for a flag that this decoder does not read."""
  import decoders
  import jaxlm

  plain = lambda x: dataclasses.asdict(x) if dataclasses.is_dataclass(x) else x
  for name, readers in OWN.items():
    default = GenerateConfig.__dataclass_fields__[name].default
    if plain(getattr(config, name)) != plain(default) and config.decoder not in readers:
      raise ValueError(f'--{name.replace("_", "-")} is for --decoder {" or ".join(readers)}, not for {config.decoder}.')
  most = {} if config.draft_tokens is None else {'max_draft': config.draft_tokens}
  if config.decoder == 'simlayerkv':
    return functools.partial(decoders.simlayerkv.generate, lazy=lazy_config(config))
  if config.decoder == 'prompt-lookup':
    return functools.partial(decoders.speculative.generate, drafter=decoders.speculative.PromptLookup(**most))
  if config.decoder == 'draft':
    if config.draft_model is None:
      raise ValueError('--decoder draft needs the smaller model: pass --draft-model.')
    draft = computed(jaxlm.load(config.draft_model, dtype=config.dtype), config)
    if isinstance(draft, jaxlm.GlideDraft):
      raise ValueError(f'{config.draft_model} is a GliDe draft: pass it as --draft with --decoder glide.')
    drafter = decoders.speculative.DraftModel.of(draft, **most)
    return functools.partial(decoders.speculative.generate, drafter=drafter, rule=config.rule)
  lookup = decoders.speculative.PromptLookup() if config.lookup_first else None
  if config.decoder == 'glide':
    if config.draft is None:
      raise ValueError('--decoder glide needs a draft that was trained for this model: pass --draft RUN.')
    draft = jaxlm.load(config.draft, dtype=config.dtype)
    if not isinstance(draft, jaxlm.GlideDraft):
      raise ValueError(f'{config.draft} is not a GliDe draft: pass a run of python -m trainers.glide as --draft.')
    options = {'glide': config.glide, 'rule': config.rule, 'lookup': lookup}
    return lambda lm, prompts, **settings: decoders.glide.generate(lm, draft, prompts, **options, **settings)
  if config.decoder == 'swift':
    return functools.partial(decoders.swift.generate, swift=config.swift, rule=config.rule, lookup=lookup)
  return decoders.generate


def end_tokens(given: tuple[str, ...]) -> str | list[int | str]:
  """Returns `eos_id` of `decoders.generate`: whole numbers are ids, anything else is a token's text."""
  return [int(x) if re.fullmatch('-?[0-9]+', x) else x for x in given] or 'tokenizer'


def lazy_config(config: GenerateConfig) -> LazyConfig:
  """Returns the preset (without --preset: the default settings), with every flag of --lazy that is not at its default."""
  given = {f.name: getattr(config.lazy, f.name) for f in dataclasses.fields(LazyConfig)}
  default = LazyConfig()
  changes = {name: value for name, value in given.items() if value != getattr(default, name)}
  if config.quant_bits is not None:
    changes['quant'] = KiviConfig(config.quant_bits, config.quant_group, config.quant_group)
  return default.replace(**changes) if config.preset is None else preset(config.preset, **changes)


class Printer:
  """Writes text as soon as it is complete."""

  def __init__(self, lm, prompt, direction):
    from decoders.prompts import encode
    from jaxlm.data.text_stream import TextStream

    self.text = TextStream(lm.tokenizer, prompt=encode(lm, [prompt], direction)[0])

  def stream(self, row: int, ids: list[int]) -> None:
    self.write(self.text.push(ids))

  def write(self, text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def summary(stats: dict) -> str:
  """Returns the lines that --stats prints: speed, memory, and the counts of drafting and search."""
  more = ''
  if 'lazy_layers' in stats:
    more = f' instead of {stats["kv_bytes_full"] / 1e6:.1f} MB; lazy layers {stats["lazy_layers"]}'
  line = (
    f'[{stats["new_tokens"]} tokens, {stats["tokens_per_second"]:.1f} tokens/s; prefill of {stats["prompt_tokens"]} tokens '
    f'{stats["prefill_seconds"]:.2f} s; compiling {stats["compile_seconds"]:.1f} s; KV cache {stats["kv_bytes"] / 1e6:.1f} MB{more}]'
  )
  if 'rounds' in stats:
    line += (
      f'\n[{stats["rounds"]} rounds: {stats["drafted"]} tokens drafted, {stats["accepted"]} accepted '
      f'({stats["acceptance"]:.0%}), {stats["tokens_per_round"]:.2f} tokens a round; {stats["target_calls"]} calls of the model]'
    )
  if 'search_seconds' in stats:
    line += (
      f'\n[search: {stats["searched_sets"]} sets in {stats["search_seconds"]:.2f} s; {stats["skip_ratio"]:.0%} skipped, '
      f'matchness {stats["matchness"]:.2f}; {stats["plain_steps"]} steps without drafting]'
    )
  if 'acceptance_by_position' in stats:
    shares = ' '.join(f'{share:.0%}' for share in stats['acceptance_by_position'])
    line += f'\n[accepted by place in the chain: {shares}; {stats["plain_steps"]} steps without drafting]'
  return line


def run() -> None:
  """Parses the command line and runs it; an error is printed as one line."""
  config = tyro.cli(GenerateConfig, prog='python -m decoders.generate')
  with console.errors_in_one_line():
    main(config)
