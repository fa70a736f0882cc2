"""How far a run is, on standard error: live on a terminal, a plain line every few seconds anywhere else."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Final

import click

from customer_actors.embedded import Embedded, Progress, Watch
from customer_actors.errors import Outage

PLAIN_EVERY_S: Final = 3.0
_COUNT_EVERY_S: Final = 1.0
_COUNT_SHARE: Final = 20
"""Counting who waits compares all heads, so it may take a twentieth of the time, not more."""


@contextmanager
def shown(service: Embedded) -> Iterator[Watch]:
    """Show lines, lines per second and customers waiting, as the `Watch` that comes out is told."""
    state = _State(service.waiting)
    last = Progress(0, True)
    with display() as show:

        def watch(progress: Progress) -> None:
            nonlocal last
            last = progress
            show(state.text(progress))

        yield watch
        state.count_again()
        watch(last)


def display() -> AbstractContextManager[Callable[[str], None]]:
    """Comes out as what shows a text in place of the one before."""
    return _live() if sys.stderr.isatty() else _plain()


class _State:
    """The text of one line of progress."""

    def __init__(self, waiting: Callable[[], int]) -> None:
        self._count = waiting
        self._started = time.monotonic()
        self._read_s = 0.0
        self._waiting = 0
        self._count_at = 0.0

    def text(self, progress: Progress) -> str:
        now = time.monotonic()
        if progress.reading:
            self._read_s = now - self._started
        if now >= self._count_at:
            self._look()
            self._count_at = now + max(_COUNT_EVERY_S, _COUNT_SHARE * (time.monotonic() - now))
        rate = progress.lines / self._read_s if self._read_s else 0.0
        return f"{progress.lines:,} lines, {rate:,.0f} lines/s, {self._waiting:,} customers waiting"

    def count_again(self) -> None:
        """Count at once, however short ago that was."""
        self._count_at = 0.0

    def _look(self) -> None:
        with suppress(Outage):  # whoever does the work says so; the number is only old
            self._waiting = self._count()


@contextmanager
def _live() -> Iterator[Callable[[str], None]]:
    from rich.console import Console  # only who sees it pays for the import
    from rich.progress import Progress as Bars
    from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
    with Bars(*columns, console=Console(stderr=True)) as bars:
        task = bars.add_task("starting")
        yield lambda text: bars.update(task, description=text)


@contextmanager
def _plain() -> Iterator[Callable[[str], None]]:
    shown_at = time.monotonic()

    def show(text: str) -> None:
        nonlocal shown_at
        if time.monotonic() - shown_at >= PLAIN_EVERY_S:
            shown_at = time.monotonic()
            click.echo(text, err=True)

    yield show
