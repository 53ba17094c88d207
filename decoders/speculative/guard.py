"""The guard: it measures the modes of decoding, chooses the fastest, and bounds the time lost by searching and by slower modes."""

from collections.abc import Iterable, Sequence
import dataclasses
from typing import Any

ALLOWANCE = 0.025  # Largest share of all time that may be lost by searching and by trying slower modes.
TRYING = 0.0125  # Largest share of the time since a mode was last tried that trying it again may cost. The search gets the rest.
CHUNK = 8  # Smallest number of calls of the model between two decisions, and number of calls in which a mode is tried.


@dataclasses.dataclass
class Known:
  """Measurements of each mode under some conditions."""

  pace: dict[str, float] = dataclasses.field(default_factory=dict)  # seconds per token
  call: dict[str, float] = dataclasses.field(default_factory=dict)  # seconds per call of the model, in the last chunk
  worst: dict[str, float] = dataclasses.field(default_factory=dict)  # seconds that a call may lose, by the last try
  tried: dict[str, float] = dataclasses.field(default_factory=dict)  # `spent` after the last try


class Account:
  """Measures the modes of decoding, and the time lost by searching and by modes that were slower than another.

  A mode is given by its name. A slower mode, plain decoding too, is tried again as soon as the budget allows, because its
  measurement may have been bad by chance.

  Args:
    on: whether the guard is on; if not, the most speculative mode is always chosen.
  """

  def __init__(self, on: bool):
    self.on = on
    self.spent = self.lost = 0.0
    self.search_cost: float | None = None  # seconds of the last step of the search
    self._known: dict[Any, Known] = {}
    self.turn(None)

  def turn(self, conditions: Any) -> None:
    """Switches to these conditions, and to the measurements made under them before."""
    known = self._known.setdefault(conditions, Known())
    self.pace, self.call, self.worst, self.tried = known.pace, known.call, known.worst, known.tried

  def changed(self, mode: str) -> None:
    """Notes that a mode has changed (a new skip set): it is measured anew, and its old pace counts until then."""
    for known in self._known.values():
      known.call.pop(mode, None)
      known.worst.pop(mode, None)

  def decides(self, modes: Sequence[str]) -> str:
    """Returns the mode to decode next, one of `modes`. The first of them is the safest, the last the most speculative."""
    if not self.on:
      return modes[-1]
    if modes[0] not in self.pace:
      return modes[0]
    best = self.best(modes)
    cost = {mode: CHUNK * self.worst.get(mode, 0.0) for mode in modes if mode != best}
    due = [mode for mode in cost if cost[mode] <= TRYING * (self.spent - self.tried.get(mode, 0.0))]
    cheapest = min(due, key=cost.get, default=best)
    return cheapest if cheapest != best and self.affords(cost[cheapest]) else best

  def best(self, modes: Iterable[str]) -> str | None:
    """Returns the fastest of the modes that were tried; None before the first try."""
    return min((mode for mode in modes if mode in self.pace), key=self.pace.get, default=None)

  def affords(self, seconds: float) -> bool:
    return not self.on or self.lost + seconds <= ALLOWANCE * self.spent

  def affords_search(self, guess: float) -> bool:
    """Returns whether the budget allows a step of the search; it is expected to take as long as the last one, the first `guess`."""
    return self.affords(guess if self.search_cost is None else self.search_cost)

  def note(self, mode: str, seconds: float, tokens: float, calls: int = 1, first: bool = False) -> None:
    """Adds the measurement of a chunk: its seconds, its `tokens` per row, and its `calls` of the model.

    `first`: the chunk was the first run of a program, which says nothing about its speed. It may still lose time.
    """
    self.spent += seconds
    if not tokens:
      return
    others = [pace for name, pace in self.pace.items() if name != mode]
    # Time won by speculation does not enlarge the budget: `lost` only grows.
    loss = max(seconds - tokens * min(others), 0.0) if others else 0.0
    if first or mode != self.best(self.pace):
      self.lost += loss
    if first:
      if loss > calls * min(others, default=0.0):  # Too slow to be tried again at once.
        self.worst[mode] = loss / calls
      return
    each = seconds / tokens
    self.pace[mode] = 0.7 * self.pace[mode] + 0.3 * each if mode in self.call else each
    self.call[mode] = seconds / calls
    # A try that lost nothing still counts as a tenth of its time, so that tries stay rare.
    self.worst[mode], self.tried[mode] = max(loss, seconds / 10) / calls, self.spent

  def searched(self, seconds: float) -> None:
    self.spent, self.lost, self.search_cost = self.spent + seconds, self.lost + seconds, seconds
