"""Prompts and texts of a model that reads in reverse (https://arxiv.org/abs/2410.09817).

  the text            x1 x2 .. xk | xk+1 .. xN          the prompt is its end
  what a model reads  BOS xN .. xk+1                    and goes on with xk .. x1 EOS

Only prompts are turned round before generation and texts after it, so every way of decoding works on such models.
"""

from collections.abc import Sequence
import functools
from typing import Any, Literal

from jaxlm.config import ModelConfig
from jaxlm.data.directions import bos_of, head, signal_ids
from jaxlm.data.text_stream import TextStream
from jaxlm.errors import unknown
from jaxlm.language_model import LanguageModel

Way = Literal['forward', 'reverse']


def resolve(config: ModelConfig, direction: Way | None) -> Way:
  """Returns the direction to generate in: the one asked for, else the model's own, which for 'both' is forward.

  Raises:
    ValueError: a direction that the model was not trained for.
  """
  if direction is None:
    return 'reverse' if config.direction == 'reverse' else 'forward'
  if direction not in ('forward', 'reverse'):
    raise unknown('direction', direction, ('forward', 'reverse'))
  if config.direction not in (direction, 'both'):
    raise ValueError(f'{direction=}, but this model was trained with direction={config.direction!r}.')
  return direction


def in_model_order(lm: LanguageModel, ids: Sequence[int], direction: Way, *, text: bool) -> list[int]:
  """Returns what the model reads of a prompt: BOS and the signal, then the prompt in the model's order.

  Ids (not `text`) to be read forward by a model without a signal stay as they are.
  """
  c, ids = lm.config, list(ids)
  if direction == 'forward' and c.direction_signal == 'none' and not (text and c.direction == 'both'):
    return ids
  content = _content(lm, ids)
  first = head(direction, c.direction_signal, _bos(lm), c.vocab_size)
  return first + (content[::-1] if direction == 'reverse' else content)


def generated_text(
  lm: LanguageModel, prompt: Sequence[int], ids: Sequence[int], direction: Way, skip_special: bool = True
) -> str:
  """Returns the text that `ids`, in the order of generation, add to a prompt in the model's order: behind it, or before it.

  `skip_special`: special tokens have no text; otherwise they are written out.
  """
  if direction == 'forward':
    stream = TextStream(lm.tokenizer, prompt=prompt, skip_special=skip_special)
    return stream.push(ids) + stream.flush()
  content, new = _content(lm, prompt)[::-1], [int(i) for i in ids][::-1]
  # The prompt's own text is what it is at the end, so that a space before it belongs to what is added.
  decode = functools.partial(lm.tokenizer.decode, skip_special=skip_special)
  whole, end = (decode(x) for x in (new + content, content))
  return whole.removesuffix(end) if whole.endswith(end) else decode(new)


def cut(text: str, stop: Sequence[str], direction: Way) -> str:
  """Returns a text up to the first stop string; of one that grew from its end, what is behind the last."""
  if direction == 'forward':
    return text[: min([len(text), *(at for s in stop if (at := text.find(s)) >= 0)])]
  return text[max([0, *(at + len(s) for s in stop if (at := text.rfind(s)) >= 0)]) :]


def _bos(lm: LanguageModel) -> int | None:
  return None if lm.tokenizer is None else bos_of(lm.tokenizer)


def _content(lm: LanguageModel, ids: Sequence[int]) -> list[int]:
  """Returns the ids behind BOS and the signal."""
  firsts: set[Any] = {_bos(lm), *signal_ids(lm.config.direction_signal, lm.config.vocab_size)}
  start = next((i for i, id in enumerate(ids) if id not in firsts), len(ids))
  return list(ids[start:])
