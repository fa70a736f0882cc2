"""What a run did, as JSON and as tables on standard output."""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import click

from customer_actors.cli.common import printable
from customer_actors.domain.events import Outcome
from customer_actors.storage.summary import Held

MEANING: Final[Mapping[Outcome, str]] = {
    Outcome.ACCEPTED: "entered its customer's stream",
    Outcome.DUPLICATE: "was received before: no effect",
    Outcome.ANONYMOUS: "a sale to nobody known: no effect",
    Outcome.SUPPRESSED: "an order cancelled before it was completed: counted as cancelled, nothing else",
    Outcome.QUARANTINED: "cannot be used: kept as it came, with the reason",
}

_PLAIN_WIDTH: Final = 250
"""Outside a terminal lines are as long as they are."""

_NUMBER: Final = re.compile(r"-?[0-9.]+")

Cells = Sequence[str | int]


def run_summary(
    seconds: float,
    outcomes: Mapping[Outcome, int],
    quarantined: Mapping[str, int],
    reasons: Mapping[str, str],
    held: Iterable[Held],
) -> dict[str, Any]:
    """What `run --json` prints. `quarantined` and `reasons` are by code, the reason is the first one met."""
    groups = Counter((one.actor, "parked" if one.parked else "held", _kind(one)) for one in held)
    return {
        "lines": sum(outcomes.values()),
        "seconds": round(seconds, 3),
        "outcomes": {outcome.value: outcomes.get(outcome, 0) for outcome in Outcome},
        "quarantined": [
            {"code": code, "count": count, "reason": reasons[code]} for code, count in _by_count(quarantined)
        ],
        "held": [
            {"actor": actor, "status": status, "error": error, "customers": count}
            for (actor, status, error), count in _by_count(groups)
        ],
    }


def print_run(summary: Mapping[str, Any]) -> None:
    """The same as text."""
    lines, seconds = summary["lines"], summary["seconds"]
    print_line(f"{lines:,} lines in {seconds:.1f} s ({lines / max(seconds, 0.001):,.0f} lines/s)")
    print_outcomes({Outcome(name): count for name, count in summary["outcomes"].items()})
    if summary["quarantined"]:
        print_quarantined([(each["code"], each["count"], each["reason"]) for each in summary["quarantined"]])
    if summary["held"]:
        rows = [(each["actor"], each["status"], each["customers"], each["error"]) for each in summary["held"]]
        print_table("Waiting behind an event that failed", ("actor", "status", "customers", "error"), rows)


def print_outcomes(outcomes: Mapping[Outcome, int]) -> None:
    """How many lines had which outcome, and what that means [A1]."""
    rows = [(outcome.value, outcomes.get(outcome, 0), MEANING[outcome]) for outcome in Outcome]
    print_table("What became of the lines", ("outcome", "lines", "meaning"), rows)


def print_quarantined(rows: Iterable[tuple[str, int, str]]) -> None:
    """Codes with their count and one of their reasons."""
    print_table("Quarantined", ("code", "lines", "for example"), rows)


def print_table(title: str, columns: Sequence[str], rows: Iterable[Cells]) -> None:
    """A table of plain cells: numbers to the right, control characters escaped, no line folded outside a terminal."""
    from rich.console import Console  # only who prints tables pays for the import
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), title_justify="left", title_style="bold", box=None, pad_edge=False)
    table.padding = (0, 3, 0, 0)
    cells = [*rows]
    for index, column in enumerate(columns):
        numeric = cells and all(_NUMBER.fullmatch(str(row[index])) for row in cells)
        table.add_column(Text(column), justify="right" if numeric else "left")
    for row in cells:
        table.add_row(*(Text(f"{cell:,}" if isinstance(cell, int) else printable(cell)) for cell in row))
    print_line()
    if sys.stdout is not None and sys.stdout.isatty():
        Console().print(table)
        return
    console = Console(width=_PLAIN_WIDTH)
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        print_line(line.rstrip())


def print_line(text: str = "") -> None:
    """One line, escaped."""
    click.echo(printable(text))


def _kind(held: Held) -> str:
    """The kind of error, without what differs from customer to customer."""
    return held.error.partition(":")[0]


def _by_count(counts: Mapping[Any, int]) -> list[tuple[Any, int]]:
    return sorted(counts.items(), key=lambda each: (-each[1], each[0]))
