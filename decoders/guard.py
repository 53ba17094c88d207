"""Which way to decode is the fastest here, found out in seconds measured, at a bounded cost."""

from collections.abc import Iterable, Sequence
from typing import Any

ALLOWANCE = 0.025  # Share of all time that searching and trying may cost,
TRYING = 0.0125  # and of the time since a way was tried, trying it again: something is left for the search.


class Account:
  """What each way of decoding took, and what was lost by searching and by ways that were slower than another.

  A way is a name. Times are of a row's token. A way that was slower is tried again as soon as there is time in hand, a surer
  one too: its time may have been that of a bad moment.

  Args:
    on: guard; without, the most daring way is taken whatever it costs.
  """

  def __init__(self, on: bool):
    self.on = on
    self.spent = self.lost = self.search_cost = 0.0
    self.turn(None)

  def turn(self, conditions: Any) -> None:
    """Goes on under these conditions; what was measured under others is put aside."""
    if getattr(self, 'conditions', self) != conditions:
      self.conditions = conditions
      self.pace: dict[str, float] = {}  # seconds a token
      self.call: dict[str, float] = {}  # seconds of a round or a step, by the last chunk
      self.worst: dict[str, float] = {}  # seconds that another try may cost, by the last one
      self.tried: dict[str, float] = {}  # `spent` after the last try

  def forget(self, way: str) -> None:
    """Puts aside what a way took: it is another one now."""
    for known in (self.pace, self.call, self.worst):
      known.pop(way, None)

  def decides(self, ways: Sequence[str]) -> str:
    """Returns how to go on, one of `ways`, of which the first is the surest and the last the most daring."""
    if not self.on:
      return ways[-1]
    if ways[0] not in self.pace:
      return ways[0]
    best = self.best(ways)
    cost = {way: self.worst.get(way, 0.0) for way in ways if way != best}
    due = [way for way in cost if cost[way] <= TRYING * (self.spent - self.tried.get(way, 0.0))]
    cheapest = min(due, key=cost.get, default=best)
    return cheapest if cheapest != best and self.affords(cost[cheapest]) else best

  def best(self, ways: Iterable[str]) -> str | None:
    """Returns the fastest of those tried; None before any."""
    return min((way for way in ways if way in self.pace), key=self.pace.get, default=None)

  def affords(self, seconds: float) -> bool:
    return not self.on or self.lost + seconds <= ALLOWANCE * self.spent

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
      return
    self.call[way] = seconds / calls
    # Where nothing was lost a try still takes a chunk of its own.
    self.worst[way], self.tried[way] = max(loss, seconds / 10), self.spent
    each = seconds / tokens
    self.pace[way] = 0.7 * self.pace[way] + 0.3 * each if way in self.pace else each

  def searched(self, seconds: float) -> None:
    self.spent, self.lost, self.search_cost = self.spent + seconds, self.lost + seconds, seconds
