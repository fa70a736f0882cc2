"""JSON lines: one envelope each, exactly as a publisher would send it; the line itself names its type."""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from queue import Empty, Full, Queue
from typing import IO, NamedTuple

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
    items: Queue[Received | _End] = Queue(2 * size)
    abandoned = threading.Event()
    # A daemon: nothing can interrupt its read.
    threading.Thread(target=_read_ahead, args=(messages, items, abandoned), name="lines", daemon=True).start()
    end: _End | None = None
    try:
        while end is None:
            batch, end = _fill(items, size, age_s)
            if batch or end is None:
                yield batch
    finally:
        abandoned.set()
    if end.error is not None:
        raise end.error


class _End(NamedTuple):
    """Nothing comes any more."""

    error: Exception | None = None


def _read_ahead(messages: Iterator[Received], items: "Queue[Received | _End]", abandoned: threading.Event) -> None:
    def put(item: Received | _End) -> bool:
        while not abandoned.is_set():
            try:
                items.put(item, timeout=_LOOK_S)
            except Full:
                continue
            return True
        return False

    try:
        if all(put(message) for message in messages):
            put(_End())
    except Exception as error:
        put(_End(error))


def _fill(items: "Queue[Received | _End]", size: int, age_s: float) -> tuple[list[Received], _End | None]:
    """The next batch, empty when nothing arrives for a moment, and the end when it came."""
    batch: list[Received] = []
    due = time.monotonic() + _LOOK_S
    while len(batch) < size:
        try:
            item = items.get(timeout=max(0.0, due - time.monotonic()))
        except Empty:
            break
        if isinstance(item, _End):
            return batch, item
        if not batch:
            due = time.monotonic() + age_s
        batch.append(item)
    return batch, None
