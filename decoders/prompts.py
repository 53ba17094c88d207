"""Checks the prompts that a user gives, encodes them, and pads them into one array."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from decoders.directions import Direction, in_model_order, resolve
from jaxlm.language_model import LanguageModel
from jaxlm.lengths import bucket


@dataclasses.dataclass(frozen=True)
class PaddedPrompts:
  tokens: np.ndarray  # [B, T] int32, padded on the right with 0; T is a bucket, so that few programs are compiled
  lengths: np.ndarray  # [B] int32


def encode(
  lm: LanguageModel, prompts: Sequence[str] | Sequence[Sequence[int]], direction: Direction | None = None
) -> list[list[int]]:
  """Returns token ids of each prompt, in the order in which the model reads them.

  Raises:
    ValueError: a prompt is empty, has ids outside the vocabulary, or is text for a model without a tokenizer; the model was not
      trained for `direction`; or the model is not causal.
  """
  lm.config.check_causal('Reading a prompt to generate what follows')
  direction = resolve(lm.config, direction)
  if isinstance(prompts, str) or (len(prompts) and isinstance(prompts[0], (int, np.integer))):
    raise ValueError('`prompts` is a list of prompts: wrap a single one in a list.')
  if not len(prompts):
    raise ValueError('`prompts` is empty: pass at least one prompt.')
  ids = []
  for i, prompt in enumerate(prompts):
    if isinstance(prompt, str):
      if lm.tokenizer is None:
        raise ValueError('This model has no tokenizer: pass prompts as lists of token ids.')
      new = lm.tokenizer.encode(prompt, bos=lm.tokenizer.adds_bos)
    else:
      new = [int(t) for t in prompt]
    ids.append(in_model_order(lm, new, direction, text=isinstance(prompt, str)))
    if not ids[-1]:
      raise ValueError(f'Prompt {i} is empty: a model needs at least one token to start from, such as BOS.')
    if bad := [t for t in ids[-1] if not 0 <= t < lm.config.vocab_size]:
      raise ValueError(f'Prompt {i} has token id {bad[0]}; the vocabulary has ids 0 to {lm.config.vocab_size - 1}.')
  return ids


def pad(ids: Sequence[Sequence[int]], max_length: int) -> PaddedPrompts:
  lengths = np.array([len(row) for row in ids], np.int32)
  tokens = np.zeros((len(ids), min(bucket(int(lengths.max())), max_length)), np.int32)
  for row, prompt in zip(tokens, ids):
    row[: len(prompt)] = prompt
  return PaddedPrompts(tokens, lengths)


def check_room(longest: int, max_new_tokens: int, max_length: int) -> None:
  """Raises ValueError unless the longest prompt and its output fit into the model's context."""
  if max_new_tokens < 1:
    raise ValueError(f'{max_new_tokens=} must be at least 1.')
  if longest + max_new_tokens > max_length:
    room = max_length - longest
    fix = f'set max_new_tokens to at most {room}' if room > 0 else 'shorten the prompt'
    raise ValueError(
      f'The longest prompt has {longest} tokens and {max_new_tokens=}, together {longest + max_new_tokens}; '
      f'the model reads {max_length}: {fix}.'
    )


def check_prefix(shortest: int, prefix: int) -> None:
  """Raises ValueError if a prompt is shorter than the prefix of a prefix LM, whose tokens all attend to each other."""
  if shortest < prefix:
    raise ValueError(f'This model reads prefixes of {prefix} tokens at once; a prompt has only {shortest}.')
