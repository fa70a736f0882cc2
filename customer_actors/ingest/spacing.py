"""How far apart batches begin: a busy machine gets fewer and fuller ones."""

from collections import deque
from typing import Final

_PARTS: Final = 3
"""A batch that took a third of the time until the next leaves two thirds to everybody behind it."""
_RECENT: Final = 4
"""The quickest of so many batches says how busy the machine is: one that met a lock or a pause says nothing."""
_LONGEST_S: Final = 0.1
"""Not longer than a flood of one customer rests (`link.Inbox.pace`): it would end its rest while others still wait."""


class Spacing:
    """The least time between the starts of two batches, unless one is full.

    What a small batch costs is the batch: its statements, its commit, a bell, four rounds. Ingest comes first and never
    feels that what comes after it cannot keep up; without a brake it would go on making small batches of which every
    one makes it worse. What it does feel is that its own statements wait for a processor.
    """

    def __init__(self, age_s: float) -> None:
        """
        Args:
            age_s: the least it ever is.
        """
        self._age_s = age_s
        self._took_s: deque[float] = deque(maxlen=_RECENT)

    def took(self, seconds: float) -> None:
        """Told how long a batch took, from its start to its bell."""
        self._took_s.append(seconds)

    @property
    def seconds(self) -> float:
        """From the start of the last batch to the start of the next."""
        return max(self._age_s, min(_LONGEST_S, _PARTS * min(self._took_s, default=0.0)))
