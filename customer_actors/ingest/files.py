"""JSON lines: one envelope each, exactly as a publisher would send it; the line itself names its type."""

from collections.abc import Callable, Iterator
from typing import IO

from customer_actors.domain.envelope import MAX_BODY_BYTES, Received

_TOO_LONG = MAX_BODY_BYTES + 2
"""Read a little more than a body may have: enough to be refused for its size, never a whole endless line."""


def received_lines(lines: IO[bytes], clock: Callable[[], int]) -> Iterator[Received]:
    """Every non-blank line as a received message; a line over the size limit is kept up to the limit and refused."""
    while line := lines.readline(_TOO_LONG):
        body = line.rstrip(b"\r\n")
        if len(line) >= _TOO_LONG and not line.endswith(b"\n"):
            _skip_rest(lines)
            body = line
        if body.strip():
            yield Received(body, None, clock())


def _skip_rest(lines: IO[bytes]) -> None:
    while (rest := lines.readline(_TOO_LONG)) and not rest.endswith(b"\n"):
        pass
