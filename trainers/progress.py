"""Shows the progress of a run: a progress bar on a terminal, and a line every few seconds elsewhere."""

import math
import sys
import time

from jaxlm import console


class Progress:
  """A progress bar on a terminal; elsewhere a line every `every_seconds`. `say` prints a text above the bar.

  If the terminal or pipe is closed, the run continues without output. `bar`: False for `say` alone.
  """

  def __init__(
    self, start: int, total: int, *, show: bool, unit: str = 'tokens', every_seconds: float = 5.0, bar: bool = True
  ):
    self.unit, self.total, self.done, self.show, self.every_seconds = unit, total, start, show, every_seconds
    self._started, self._start, self._last = time.monotonic(), start, -math.inf
    self._bar = None
    if bar and show and sys.stderr is not None and sys.stderr.isatty():
      from tqdm import tqdm

      self._bar = tqdm(total=total, initial=start, unit='step', dynamic_ncols=True)

  def begin(self, step: int) -> None:
    """Sets the step from which the progress is counted."""
    self.done = self._start = step
    if self._bar is not None:
      self._bar.initial = self._bar.n = self._bar.last_print_n = step

  def update(self, step: int, loss: float, rate: float) -> None:
    """Shows that `step` is done. rate: units of data (such as tokens) per second."""
    advanced, self.done = step - self.done, step
    if self._bar is not None:
      try:
        self._bar.set_postfix_str(f'loss {loss:.4f}, {rate:,.0f} {self.unit}/s', refresh=False)
        self._bar.update(advanced)
      except (OSError, ValueError) as e:
        self._drop_bar(e)
    elif self.show and (time.monotonic() - self._last > self.every_seconds or step == self.total):
      self._last = time.monotonic()
      left = (self._last - self._started) / max(1, step - self._start) * (self.total - step)
      self.say(f'step {step}/{self.total}  loss {loss:.4f}  {rate:,.0f} {self.unit}/s  {left:.0f} s left')

  def say(self, text: str) -> None:
    if not self.show:
      return
    try:
      if self._bar is not None:
        self._bar.write(text)
      else:
        print(text, flush=True)
    except UnicodeEncodeError as e:
      self.say(text.encode(e.encoding, 'backslashreplace').decode(e.encoding))
    except (OSError, ValueError) as e:
      self.show = False
      console.silence(sys.stdout)
      _last_word(f'Standard output is closed ({e}): the run continues without it.')

  def close(self) -> None:
    try:
      if self._bar is not None:
        self._bar.close()
    except (OSError, ValueError) as e:
      self._drop_bar(e)

  def _drop_bar(self, error: Exception) -> None:
    if self._bar is not None:
      self._bar.disable, self._bar = True, None
    console.silence(sys.stderr)
    self.say(f'The progress bar cannot be written ({error}): the run continues without it.')


def _last_word(text: str) -> None:
  try:
    print(text, file=sys.stderr, flush=True)
  except (OSError, ValueError):
    console.silence(sys.stderr)
