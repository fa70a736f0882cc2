"""Mass failure: when nearly everybody fails, the code is at fault and not the customers, so nobody is charged."""

import threading
from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

WINDOW_S: Final = 60.0
LEAST_GROUPS: Final = 20
"""Fewer groups tried within the window say nothing about the code."""
MOST_TRIES: Final = 2_000
"""Newest tries kept: memory does not grow with the load, and under load the alarm is only quicker."""


class MassFailure:
    """Tells whether over half of the groups tried lately failed. One per process, for all its actors and threads.

    A group counts once, as failed while the newest try of any of its actors failed. What failed alone and is tried
    again is not told when it fails again. Times are seconds of one clock.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._tries: OrderedDict[tuple[str, int], tuple[float, bool]] = OrderedDict()
        """(actor, group) -> when it was tried last, and whether that failed; the newest try last."""
        self._failing: set[tuple[str, int]] = set()
        """Those of them whose try failed: mostly none, and then nothing needs to be counted."""
        self._told = False

    def note(self, actor: str, tried: Iterable[int], failed: Iterable[int], now_s: float) -> None:
        """Count the tries of one round; noting a round again changes nothing."""
        failures = set(failed)
        with self._lock:
            for group in {*tried, *failures}:
                key = (actor, group)
                self._tries.pop(key, None)
                self._tries[key] = (now_s, group in failures)
                if group in failures:
                    self._failing.add(key)
                else:
                    self._failing.discard(key)
            while len(self._tries) > MOST_TRIES:
                oldest, _ = self._tries.popitem(last=False)
                self._failing.discard(oldest)

    def raised(self, now_s: float) -> bool:
        """Whether within the last minute at least 20 groups were tried and over half of them failed."""
        with self._lock:
            return self._raised(now_s)

    def turned(self, now_s: float) -> bool | None:
        """True when the alarm was raised, False when it ended, since this was asked last; else None."""
        with self._lock:
            if not self._told and not self._failing:
                return None
            raised, told = self._raised(now_s), self._told
            self._told = raised
            return raised if raised != told else None

    def _raised(self, now_s: float) -> bool:
        since = now_s - WINDOW_S
        recent = [(group, failed) for (_, group), (at, failed) in self._tries.items() if at > since]
        tried, failing = {group for group, _ in recent}, {group for group, failed in recent if failed}
        return len(tried) >= LEAST_GROUPS and 2 * len(failing) > len(tried)
