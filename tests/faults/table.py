"""The closing table: one row for each fault that was injected, and the seed that all of them replay from."""

import os
import random
from collections.abc import Sequence
from typing import Final, NamedTuple

SEED: Final = int(os.environ.get("SEED") or random.SystemRandom().randrange(10**6))
"""Of every random schedule of this run."""
RECOVERY: Final = "seconds to recover: from the end of the fault until every event is through every actor"


class Row(NamedTuple):
    """What one fault did."""

    fault: str
    injected: str
    """What was injected how many times."""
    events: int
    """Confirmed by the broker, or handed over."""
    lost: int
    twice: int
    disorder: int
    recovery_s: float


ROWS: Final[list[Row]] = []
"""Of this run."""
_HEADINGS: Final = ("fault", "injected", "events", "lost", "twice", "disorder", "seconds")


def table(rows: Sequence[Row], seed: int) -> list[str]:
    """The lines of the table, with the sums below and how to replay it."""
    cells = [
        (row.fault, row.injected, *map(str, (row.events, row.lost, row.twice, row.disorder)), f"{row.recovery_s:.1f}")
        for row in rows
    ]
    sums = [str(sum(figures)) for figures in zip(*(row[2:6] for row in rows), strict=True)] if rows else ["0"] * 4
    slowest = max((row.recovery_s for row in rows), default=0.0)
    cells.append((f"{len(rows)} faults", "", *sums, f"{slowest:.1f} at most"))
    widths = [max(map(len, column)) for column in zip(_HEADINGS, *cells, strict=True)]
    lines = [_line(_HEADINGS, widths), "  ".join("-" * width for width in widths)]
    lines += [_line(cell, widths) for cell in cells]
    return [*lines, "", f"lost, applied twice, out of order: all must be 0. {RECOVERY}", f"replay: SEED={seed}"]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    texts = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
    return "  ".join(texts + [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]).rstrip()
