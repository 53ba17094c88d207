"""Which way to decode is the fastest here, found out in seconds measured, at a bounded cost."""

from collections.abc import Iterable, Sequence
import dataclasses
from typing import Any

ALLOWANCE = 0.025  # Share of all time that searching and trying may cost,
TRYING = 0.0125  # and of the time since a way was tried, trying it again: something is left for the search.
CHUNK = 8  # Calls of the model between two decisions at least, and of a try.


@dataclasses.dataclass
class Known:
  """What each way took under some conditions."""

  pace: dict[str, float] = dataclasses.field(default_factory=dict)  # seconds a token
  call: dict[str, float] = dataclasses.field(default_factory=dict)  # seconds of a round or a step, by the last chunk
  worst: dict[str, float] = dataclasses.field(default_factory=dict)  # seconds that a call may lose, by the last try
  tried: dict[str, float] = dataclasses.field(default_factory=dict)  # `spent` after the last try


class Account:
  """What each way of decoding took, and what was lost by searching and by ways that were slower than another.

  A way is a name. Times are of a row's token. A way that was slower is tried again as soon as there is time in hand, a surer
  one too: its time may have been that of a bad moment.

  Args:
    on: guard; without, the most daring way is taken whatever it costs.
  """

  def __init__(self, on: bool):
    self.on = on
    self.spent = self.lost = 0.0
    self.search_cost: float | None = None  # seconds of the last step of the search
    self._known: dict[Any, Known] = {}
    self.turn(None)

  def turn(self, conditions: Any) -> None:
    """Goes on under these conditions, with what was measured under them before."""
    known = self._known.setdefault(conditions, Known())
    self.pace, self.call, self.worst, self.tried = known.pace, known.call, known.worst, known.tried

  def changed(self, way: str) -> None:
    """A way is another one now, likely a better one: it is measured again, and until then taken for what it was."""
    for known in self._known.values():
      known.call.pop(way, None)
      known.worst.pop(way, None)

  def decides(self, ways: Sequence[str]) -> str:
    """Returns how to go on, one of `ways`, of which the first is the surest and the last the most daring."""
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
    """Returns the fastest of those tried; None before any."""
    return min((way for way in ways if way in self.pace), key=self.pace.get, default=None)

  def affords(self, seconds: float) -> bool:
    return not self.on or self.lost + seconds <= ALLOWANCE * self.spent

  def affords_search(self, guess: float) -> bool:
    """Whether there is time for a step of the search, which takes as long as the last one, the first one `guess`."""
    return self.affords(guess if self.search_cost is None else self.search_cost)

  def note(self, way: str, seconds: float, tokens: float, calls: int = 1, first: bool = False) -> None:
    """Takes what a chunk of so many calls of the model took, and how many tokens each row got in it.

    The first run of a program is no measure of it; what it costs more than another way is lost like any other time.
    """
    self.spent += seconds
    if not tokens:
      return
    others = [pace for name, pace in self.pace.items() if name != way]
    # Gains are not set off against losses: they are no reason to lose as much.
    loss = max(seconds - tokens * min(others), 0.0) if others else 0.0
    if first or way != self.best(self.pace):
      self.lost += loss
    if first:
      if loss > calls * min(others, default=0.0):  # Too dear to be tried again at once.
        self.worst[way] = loss / calls
      return
    each = seconds / tokens
    self.pace[way] = 0.7 * self.pace[way] + 0.3 * each if way in self.call else each
    self.call[way] = seconds / calls
    # Where nothing was lost a try still takes a chunk of its own.
    self.worst[way], self.tried[way] = max(loss, seconds / 10) / calls, self.spent

  def searched(self, seconds: float) -> None:
    self.spent, self.lost, self.search_cost = self.spent + seconds, self.lost + seconds, seconds
