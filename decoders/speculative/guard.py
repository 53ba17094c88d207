"""The guard: it measures the ways to decode, chooses the fastest, and bounds the time lost by searching and by slower ways."""

from collections.abc import Iterable, Sequence
import dataclasses
from typing import Any

ALLOWANCE = 0.025  # Largest share of all time that may be lost by searching and by trying slower ways.
TRYING = 0.0125  # Largest share of the time since a way was last tried that trying it again may cost. The search gets the rest.
CHUNK = 8  # Smallest number of calls of the model between two decisions, and number of calls in which a way is tried.


@dataclasses.dataclass
class Known:
  """Measurements of each way under some conditions."""

  pace: dict[str, float] = dataclasses.field(default_factory=dict)  # seconds per token
  call: dict[str, float] = dataclasses.field(default_factory=dict)  # seconds per call of the model, in the last chunk
  worst: dict[str, float] = dataclasses.field(default_factory=dict)  # seconds that a call may lose, by the last try
  tried: dict[str, float] = dataclasses.field(default_factory=dict)  # `spent` after the last try


class Account:
  """Measures the ways of decoding, and the time lost by searching and by ways that were slower than another.

  A way is given by its name. A slower way, plain decoding too, is tried again as soon as the budget allows, because its
  measurement may have been bad by chance.

  Args:
    on: whether the guard is on; if not, the most speculative way is always chosen.
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

  def changed(self, way: str) -> None:
    """Notes that a way has changed (a new skip set): it is measured anew, and its old pace counts until then."""
    for known in self._known.values():
      known.call.pop(way, None)
      known.worst.pop(way, None)

  def decides(self, ways: Sequence[str]) -> str:
    """Returns the way to decode next, one of `ways`. The first of them is the safest, the last the most speculative."""
    if not self.on:
      return ways[-1]
    if ways[0] not in self.pace:
      return ways[0]
    best = self.best(ways)
    cost = {way: CHUNK * self.worst.get(way, 0.0) for way in ways if way != best}
    due = [way for way in cost if cost[way] <= TRYING * (self.spent - self.tried.get(way, 0.0))]
    cheapest = min(due, key=cost.get, default=best)
    return cheapest if cheapest != best and self.affords(cost[cheapest]) else best

  def best(self, ways: Iterable[str]) -> str | None:
    """Returns the fastest of the ways that were tried; None before the first try."""
    return min((way for way in ways if way in self.pace), key=self.pace.get, default=None)

  def affords(self, seconds: float) -> bool:
    return not self.on or self.lost + seconds <= ALLOWANCE * self.spent

  def affords_search(self, guess: float) -> bool:
    """Returns whether the budget allows a step of the search; it is expected to take as long as the last one, the first `guess`."""
    return self.affords(guess if self.search_cost is None else self.search_cost)

  def note(self, way: str, seconds: float, tokens: float, calls: int = 1, first: bool = False) -> None:
    """Adds the measurement of a chunk: its seconds, its `tokens` per row, and its `calls` of the model.

    `first`: the chunk was the first run of a program, which says nothing about its speed. It may still lose time.
    """
    self.spent += seconds
    if not tokens:
      return
    others = [pace for name, pace in self.pace.items() if name != way]
    # Time won by speculation does not enlarge the budget: `lost` only grows.
    loss = max(seconds - tokens * min(others), 0.0) if others else 0.0
    if first or way != self.best(self.pace):
      self.lost += loss
    if first:
      if loss > calls * min(others, default=0.0):  # Too slow to be tried again at once.
        self.worst[way] = loss / calls
      return
    each = seconds / tokens
    self.pace[way] = 0.7 * self.pace[way] + 0.3 * each if way in self.call else each
    self.call[way] = seconds / calls
    # A try that lost nothing still counts as a tenth of its time, so that tries stay rare.
    self.worst[way], self.tried[way] = max(loss, seconds / 10) / calls, self.spent

  def searched(self, seconds: float) -> None:
    self.spent, self.lost, self.search_cost = self.spent + seconds, self.lost + seconds, seconds
