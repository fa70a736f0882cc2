"""JSON lines: one envelope each, exactly as a publisher would send it; the line itself names its type."""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import IO

from customer_actors.domain.envelope import MAX_BODY_BYTES, Received

_TOO_LONG = MAX_BODY_BYTES + 2
"""Read a little more than a body may have: enough to be refused for its size, never a whole endless line."""
_LOOK_S = 0.1
"""How long a wait may last before somebody looks around."""


def numbered_lines(lines: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Every line that is not blank with its number (from 1) and without its end; one over the size limit is cut."""
    number = 0
    while line := lines.readline(_TOO_LONG):
        number += 1
        body = line.rstrip(b"\r\n")
        if len(line) >= _TOO_LONG and not line.endswith(b"\n"):
            _skip_rest(lines)
            body = line
        if body.strip():
            yield number, body


def received_lines(lines: IO[bytes], clock: Callable[[], int]) -> Iterator[Received]:
    """Every line that is not blank as a received message; one over the size limit will be refused for that."""
    return (Received(body, None, clock()) for _, body in numbered_lines(lines))


def _skip_rest(lines: IO[bytes]) -> None:
    while (rest := lines.readline(_TOO_LONG)) and not rest.endswith(b"\n"):
        pass


def batches(messages: Iterator[Received], size: int, age_s: float) -> Generator[list[Received], None, None]:
    """The messages in batches: at most `size`, and none waits longer than `age_s` for the next one to arrive.

    A thread of its own reads a little ahead, so that a pipe that trickles is worked on at once. While it is silent
    empty batches come, several a second: the caller can look around, or stop. Raises what reading raised, behind the
    messages read before.
    """
    ahead = _ReadAhead(messages, size)
    ahead.start()
    try:
        while not ahead.empty:
            batch = ahead.take(age_s)
            if batch or not ahead.empty:
                yield batch
    finally:
        ahead.abandon()
    if ahead.error is not None:
        raise ahead.error


class _ReadAhead(threading.Thread):
    """Reads up to two batches ahead. Nothing is locked per message: the two sides wake each other once per batch."""

    def __init__(self, messages: Iterator[Received], size: int) -> None:
        super().__init__(name="lines", daemon=True)  # a daemon: nothing can interrupt its read
        self.error: Exception | None = None
        """What reading raised."""
        self._messages = messages
        self._size = size
        self._read: deque[Received] = deque()
        self._ended = False
        self._abandoned = False
        self._some, self._enough, self._room = threading.Event(), threading.Event(), threading.Event()

    @property
    def empty(self) -> bool:
        """Whether everything was read and taken."""
        return self._ended and not self._read

    def run(self) -> None:
        try:
            for message in self._messages:
                self._read.append(message)
                self._tell()
                if self._abandoned:
                    break
        except Exception as error:
            self.error = error
        self._ended = True
        self._some.set()
        self._enough.set()

    def _tell(self) -> None:
        if not self._some.is_set():
            self._some.set()
        if len(self._read) >= self._size and not self._enough.is_set():
            self._enough.set()
        while len(self._read) >= 2 * self._size and not self._abandoned:
            self._room.clear()
            if len(self._read) >= 2 * self._size:
                self._room.wait(_LOOK_S)

    def take(self, age_s: float) -> list[Received]:
        """The next batch, empty when nothing arrives for a moment."""
        if not self._read:
            self._some.clear()
            if not self._read and not self._ended and not self._some.wait(_LOOK_S):
                return []
        if len(self._read) < self._size:
            self._enough.clear()
            if len(self._read) < self._size and not self._ended:
                self._enough.wait(age_s)
        batch = [self._read.popleft() for _ in range(min(self._size, len(self._read)))]
        self._room.set()
        return batch

    def abandon(self) -> None:
        """Nobody takes any more."""
        self._abandoned = True
        self._room.set()
