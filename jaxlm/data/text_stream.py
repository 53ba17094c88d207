"""Decodes generated ids to text step by step, in complete characters."""

import codecs
from collections.abc import Iterable, Sequence
from typing import Any


class TextStream:
  """Decodes ids that arrive a few at a time. It emits only complete characters; all parts joined equal `decode` of all ids.

  stream = TextStream(tokenizer)
  for ids in generated:
    print(stream.push(ids), end='')
  print(stream.flush())
  """

  def __init__(self, tokenizer: Any, *, prompt: Sequence[int] = (), skip_special: bool = True):
    """`prompt`: ids before the first pushed ones. Their text is not emitted, and a space after it is kept."""
    self._tokenizer, self._skip = tokenizer, skip_special
    # If decoding is more than joining bytes (WordPiece), all ids are decoded again at each push, and `stable_length` tells how much
    # of the text is final.
    self._joins = getattr(tokenizer, '_joins_bytes', hasattr(tokenizer, 'token_bytes'))
    self._strip = getattr(tokenizer, 'strips_first_space', False)
    self._decoder = codecs.getincrementaldecoder('utf-8')(errors='replace')
    self._ids: list[int] = []
    self._text = self._sent = ''
    if len(prompt):
      self.push(prompt)
      self.flush()

  def push(self, ids: Iterable[int]) -> str:
    """Returns the new text that is final after these ids."""
    ids = [int(i) for i in ids]
    if not self._joins:
      return self._push_whole(ids)
    data = b''.join(self._tokenizer.token_bytes(i, skip_special=self._skip) for i in ids)
    if data and self._strip:
      self._strip = False
      data = data.removeprefix(b' ')
    return self._decoder.decode(data)

  def _push_whole(self, ids: list[int]) -> str:
    self._ids += ids
    before, self._text = self._text, self._tokenizer.decode(self._ids, skip_special=self._skip)
    # A later token may change the end of the text (missing bytes of a character, a space). The common prefix of two successive
    # decodings is likely final.
    agreed = next((i for i, (a, b) in enumerate(zip(before, self._text)) if a != b), min(len(before), len(self._text)))
    stable = max(min(agreed, self._stable_length()), len(self._sent))
    new, self._sent = self._text[len(self._sent) : stable], self._text[:stable]
    return new

  def _stable_length(self) -> int:
    if hasattr(self._tokenizer, 'stable_length'):
      return self._tokenizer.stable_length(self._ids, self._text, skip_special=self._skip)
    return len(self._text.rstrip('\ufffd'))

  def flush(self) -> str:
    """Returns the rest of the text; incomplete characters become U+FFFD."""
    if not self._joins:
      new, self._sent = self._text[len(self._sent) :], self._text
      return new
    return self._decoder.decode(b'', final=True)
