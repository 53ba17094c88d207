"""Makes the command that a finished run suggests. The printed command can be copied to a shell and works."""

from collections.abc import Sequence
from pathlib import Path
import re
import shlex
from typing import Any


def quoted(text: str) -> str:
  """Returns a text as one shell word: in double quotes, which read better, if they are enough; otherwise quoted by shlex."""
  return f'"{text}"' if re.fullmatch(r'[\w .,:;?()]+', text) else shlex.quote(text)


def generate_command(directory: Path, lm: Any, prompts: Sequence[str]) -> str:
  """Returns a command that continues one of the prompts with a run's model.

  Args:
    directory: the run directory.
    lm: the run's model; its parameters are not used.
    prompts: the first one is used that works on a command line and leaves the model room for an answer.
  """
  from decoders.command import GenerateConfig
  from decoders.prompts import encode

  room = lambda prompt: lm.config.max_length - len(encode(lm, [prompt])[0])
  # A prompt that begins with a hyphen would be read as a flag, or as standard input.
  fits = (p for p in (*prompts, 'Once', 'a') if p.strip() and not p.startswith('-') and room(p) > 0)
  prompt = next(fits, 'a')
  path = str(directory) if not str(directory).startswith('-') else f'./{directory}'
  most = f' --max-new-tokens {room(prompt)}' if room(prompt) < GenerateConfig.max_new_tokens else ''
  return f'python -m decoders.generate {shlex.quote(path)} --prompt {quoted(prompt)}{most}'
