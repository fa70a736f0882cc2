"""What keeps messages from getting through for so long that somebody has to know: lost connections, outages."""

from collections.abc import Mapping
from typing import Final

WINDOW_S: Final = 60.0
"""A loss that long after the one before it begins a new count, and that long after it the last one is over."""
MOST: Final = 4
"""Losses in a row that say nothing: a broker restarts, a message is given up."""
STUCK: Final = "nothing can be committed"
"""How the alarm of an outage begins; `doctor` has another fix for it than for lost connections."""
GAP_S: Final = 120.0
"""An outage that long after the one before it begins anew: a try may take a statement's 60 s before it fails."""


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


class Outages:
    """Outages of the database that follow each other without a commit between them.

    Missing grants, a full disk or a lock held for long: the process lives, tries each time and commits nothing, so
    nothing that health counts would grow. One outage alone says nothing, for without messages no commit follows it; nor
    do those while the database is away, after which there need not be anything to commit.
    Times are seconds of one clock; written by one thread, read by any.
    """

    def __init__(self) -> None:
        self.in_a_row = 0
        self._seen: tuple[float, float, str] | None = None
        """When the first one was, when the last one was, and why."""

    def failed(self, reason: str, now_s: float, *, away: bool = False) -> None:
        """A commit failed, or was not even tried because the database is `away`."""
        self.in_a_row += 1
        if away:
            self._seen = None
            return
        first_s, last_s, _ = self._seen or (now_s, now_s, "")
        self._seen = (first_s if now_s - last_s < GAP_S else now_s, now_s, reason)

    def committed(self) -> None:
        """A batch was committed."""
        self.in_a_row = 0
        self._seen = None

    def alarming(self, now_s: float) -> str | None:
        """For how long nothing could be committed, and why the last time, if that is too long."""
        if self._seen is None:
            return None
        first_s, last_s, reason = self._seen
        if last_s - first_s < WINDOW_S or now_s - last_s >= GAP_S:
            return None
        return f"{STUCK} for {now_s - first_s:.0f} s: {reason}"
