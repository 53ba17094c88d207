"""Prompts and texts for models that read in reverse (https://arxiv.org/abs/2410.09817).

  the text            x1 x2 .. xk | xk+1 .. xN          the prompt is the end of the text
  the model reads     BOS xN .. xk+1                    and generates xk .. x1 EOS

Prompts are reversed before generation and texts after it, so every decoder works with these models unchanged.
"""

from collections.abc import Sequence
import functools
from typing import Any, Literal

from jaxlm.config import ModelConfig
from jaxlm.data.directions import bos_of, head, signal_ids
from jaxlm.data.text_stream import TextStream
from jaxlm.errors import unknown
from jaxlm.language_model import LanguageModel

Direction = Literal['forward', 'reverse']


def resolve(config: ModelConfig, direction: Direction | None) -> Direction:
  """Returns the direction to generate in: `direction`, or for None the model's own (forward for a model of both).

  Raises:
    ValueError: the model was not trained for `direction`.
  """
  if direction is None:
    return 'reverse' if config.direction == 'reverse' else 'forward'
  if direction not in ('forward', 'reverse'):
    raise unknown('direction', direction, ('forward', 'reverse'))
  if config.direction not in (direction, 'both'):
    raise ValueError(f'{direction=}, but this model was trained with direction={config.direction!r}.')
  return direction


def in_model_order(lm: LanguageModel, ids: Sequence[int], direction: Direction, *, text: bool) -> list[int]:
  """Returns the ids that the model reads for a prompt: BOS and the direction signal, then the prompt in the model's order.

  `text`: whether the prompt was given as text. A forward prompt for a model without a signal is returned unchanged, unless
  it is text and the model was trained for both directions.
  """
  c, ids = lm.config, list(ids)
  if direction == 'forward' and c.direction_signal == 'none' and not (text and c.direction == 'both'):
    return ids
  content = _content(lm, ids)
  first = head(direction, c.direction_signal, _bos(lm), c.vocab_size)
  return first + (content[::-1] if direction == 'reverse' else content)


def generated_text(
  lm: LanguageModel, prompt: Sequence[int], ids: Sequence[int], direction: Direction, skip_special: bool = True
) -> str:
  """Returns the text that generated ids add to a prompt: after it, or in reverse before it.

  `prompt` is in the model's order, `ids` are in the order of generation. `skip_special`: leave special tokens out of the text.
  """
  if direction == 'forward':
    stream = TextStream(lm.tokenizer, prompt=prompt, skip_special=skip_special)
    return stream.push(ids) + stream.flush()
  content, new = _content(lm, prompt)[::-1], [int(i) for i in ids][::-1]
  # The prompt is decoded alone and after the new ids. The difference is the new text, so a space between them belongs to it.
  decode = functools.partial(lm.tokenizer.decode, skip_special=skip_special)
  whole, end = (decode(x) for x in (new + content, content))
  return whole.removesuffix(end) if whole.endswith(end) else decode(new)


def cut(text: str, stop: Sequence[str], direction: Direction) -> str:
  """Returns the text before the first stop string; in reverse, the text after the last stop string."""
  if direction == 'forward':
    return text[: min([len(text), *(at for s in stop if (at := text.find(s)) >= 0)])]
  return text[max([0, *(at + len(s) for s in stop if (at := text.rfind(s)) >= 0)]) :]


def _bos(lm: LanguageModel) -> int | None:
  return None if lm.tokenizer is None else bos_of(lm.tokenizer)


def _content(lm: LanguageModel, ids: Sequence[int]) -> list[int]:
  """Returns the ids after BOS and the direction signal."""
  firsts: set[Any] = {_bos(lm), *signal_ids(lm.config.direction_signal, lm.config.vocab_size)}
  start = next((i for i, id in enumerate(ids) if id not in firsts), len(ids))
  return list(ids[start:])
