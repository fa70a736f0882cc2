"""A publisher in the background: sends every line until the broker has confirmed it, and remembers which it has."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from customer_actors.errors import CustomerActorsError
from customer_actors.ingest.publish import publish
from tests.faults.accounts import routing_key

PACE_S: Final = 0.2
"""Between two portions while a fault is injected, so that it meets traffic."""
PORTION: Final = 30
_AGAIN_S: Final = 0.2


class Publisher(threading.Thread):
    """Sends portions until all are confirmed; one that is not is sent again as a whole, as publishers do."""

    def __init__(self, url: str, lines: Sequence[str], portion: int = PORTION, least: int | None = None) -> None:
        """
        Args:
            least: after `hurry` so many lines are enough; without it all of them are sent.
        """
        super().__init__(name="publisher", daemon=True)
        self._url = url
        self._portions = [lines[start : start + portion] for start in range(0, len(lines), portion)]
        self._least = len(lines) if least is None else least
        self._hurry = threading.Event()
        self._over = threading.Event()
        self._sending = threading.Lock()
        self.repeated = len(lines) - len(set(lines))
        """Lines that are sent although they were sent before."""
        self.confirmed: list[str] = []
        """Lines the broker has confirmed."""
        self.refused = 0
        """Portions that had to be sent again."""

    def run(self) -> None:
        for portion in self._portions:
            if self._hurry.is_set() and len(self.confirmed) >= self._least:
                return
            while not self._over.is_set() and not self._sent(portion):
                self.refused += 1
                self._over.wait(_AGAIN_S)
            self._hurry.wait(PACE_S)

    def _sent(self, portion: Sequence[str]) -> bool:
        with self._sending:
            try:
                report = publish(self._url, [(routing_key(line), line.encode()) for line in portion])
            except CustomerActorsError:
                return False
            if report.confirmed < len(portion):
                return False
            self.confirmed += portion
            return True

    def send(self, lines: Sequence[str]) -> None:
        """Send these now, in the caller's thread, again and again until they are confirmed."""
        while not self._sent(lines):
            self._over.wait(_AGAIN_S)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is sent while inside."""
        with self._sending:
            yield

    def hurry(self) -> None:
        """The fault is over: send the rest as fast as the broker takes it."""
        self._hurry.set()

    def end(self) -> None:
        """Give up whatever is not confirmed."""
        self._over.set()
        self._hurry.set()
        self.join(30)
