"""The end of a generated text: end token ids and stop strings.

A stop string may contain special tokens, so each text is searched twice: without special tokens, as the user gets it, and with
special tokens written out. A stop string in either text ends the row.
"""

import bisect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from decoders.directions import Direction, cut
from jaxlm.errors import shown
from jaxlm.language_model import LanguageModel

Text = Callable[[Sequence[int], bool], str]
"""Returns the text of generated ids; the second argument says whether special tokens are left out."""


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
  """Returns the stop strings as a tuple; a user gives one string, several, or none.

  Raises:
    ValueError: a stop string is empty or is not a string.
  """
  strings = (stop,) if isinstance(stop, str) else tuple(stop or ())
  for string in strings:
    if not isinstance(string, str) or not string:
      raise ValueError(
        f'stop={shown(stop)} has the stop string {shown(string)}: expected text of at least one character. Leave it out to '
        'use no stop string.'
      )
  return strings


def ending(lm: LanguageModel, eos_id: Any) -> tuple[list[int], int]:
  """Returns (the ids that end a row, or [-1] if no id does; the padding id).

  Args:
    eos_id: see `decoders.generate`.

  Raises:
    ValueError: an id is not in the vocabulary, a text is not a single token of the tokenizer, or a value has another type.
  """
  tokenizer = lm.tokenizer
  if isinstance(eos_id, str) and eos_id == 'tokenizer':
    eos = [] if tokenizer is None else list(tokenizer.stop_ids)
  elif eos_id is None:
    eos = []
  elif isinstance(eos_id, str | int | np.integer):
    eos = [_end_id(lm, eos_id)]
  else:
    try:
      eos = [_end_id(lm, value) for value in eos_id]
    except TypeError:
      raise _refuse(eos_id) from None
  pad_id = next((p for p in (getattr(tokenizer, 'pad_id', None), *eos) if p is not None), 0)
  return eos or [-1], pad_id


def _end_id(lm: LanguageModel, value: Any) -> int:
  """Returns the token id of one value of `eos_id`. Raises ValueError as `ending` does."""
  if isinstance(value, str):
    if lm.tokenizer is None:
      raise ValueError(f'eos_id={shown(value)} is a text, and this model has no tokenizer: pass the id of the token.')
    if not value or (id := lm.tokenizer.token_id(value)) is None:
      raise ValueError(
        f'eos_id={shown(value)} is no token of this tokenizer: pass the text of a single token or its id, or end the text at '
        f'this string with stop.'
      )
    return int(id)
  if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
    raise _refuse(value)
  if not 0 <= value < lm.config.vocab_size:
    raise ValueError(f'eos_id={shown(value)} is no token: the vocabulary has ids 0 to {lm.config.vocab_size - 1}.')
  return int(value)


def _refuse(value: Any) -> ValueError:
  return ValueError(
    f"eos_id={shown(value)} cannot be used: expected a token id, a token's text, a list of these, or None."
  )


def stopped(text: Text, ids: Sequence[int], stop: Sequence[str]) -> bool:
  """Returns whether the text of these ids contains a stop string."""
  return any(any(s in text(ids, skip_special) for s in stop) for skip_special in (True, False))


def before_stop(text: Text, ids: Sequence[int], stop: Sequence[str], direction: Direction) -> str:
  """Returns the text of generated ids without special tokens, before the first stop string; in reverse, after the last."""
  plain = text(ids, True)
  if not stop:
    return plain
  whole = text(ids, False)
  kept = cut(whole, stop, direction)
  found = [cut(plain, stop, direction)]
  if len(kept) < len(whole):
    # n: the fewest ids whose written-out text is longer than `kept`. The excess is removed from their text without special
    # tokens, but no more than the last of these ids adds to it.
    n = bisect.bisect_right(range(len(ids) + 1), len(kept), key=lambda n: len(text(ids[:n], False)))
    shorter, longer = text(ids[: n - 1], True), text(ids[:n], True)
    off = min(len(text(ids[:n], False)) - len(kept), max(len(longer) - len(shorter), 0))
    found.append(longer[off:] if direction == 'reverse' else longer[: len(longer) - off])
  return min(found, key=len)
