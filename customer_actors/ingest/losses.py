"""Queues whose connection is lost time and again, so that nothing gets through."""

from collections.abc import Mapping
from typing import Final

WINDOW_S: Final = 60.0
"""A loss that long after the one before it begins a new count, and that long after it the last one is over."""
MOST: Final = 4
"""Losses in a row that say nothing: a broker restarts, a message is given up."""


class Losses:
    """Counts, for each queue, losses without a message that got through between them.

    A message that kills the connection while it is decoded comes back for ever on a queue without a delivery limit
    (docs/guarantees.md M6). The process lives and connects each time, so nothing else would tell. Times are seconds of
    one clock.
    """

    def __init__(self) -> None:
        self._losses: dict[str, tuple[int, float, str]] = {}
        """Queue -> how many in a row, when the last one was, and why."""

    def lost(self, queue: str, reason: str, now_s: float) -> None:
        """The connection was lost, or could not be made."""
        count, last_s, _ = self._losses.get(queue, (0, 0.0, ""))
        self._losses[queue] = (count + 1 if now_s - last_s < WINDOW_S else 1, now_s, reason)

    def through(self, queue: str) -> None:
        """A message was committed."""
        self._losses.pop(queue, None)

    def alarming(self, now_s: float) -> Mapping[str, str]:
        """Queue -> how often its connection was lost, and why the last time; those where it is too often."""
        return {
            queue: f"{count} connections lost in a row, the last one: {reason}"
            for queue, (count, last_s, reason) in sorted(self._losses.copy().items())
            if count > MOST and now_s - last_s < WINDOW_S
        }
