"""Runs of the nightly jobs: a slot is claimed once, planned in chunks, and every chunk takes effect once [G17]."""

from collections.abc import Callable, Sequence
from datetime import date
from typing import NamedTuple, Protocol


class Run(NamedTuple):
    """One run of a job."""

    job: str
    slot: str
    """Local wall time without offset, such as 2026-11-24T03:15, or what a person's run is called."""
    as_of: date
    """The business date it calculates for."""
    dry_run: bool = False
    """Report only, change nothing."""


class Chunk(NamedTuple):
    """A part of a run: the customers of one organization between two internal numbers, both included."""

    number: int
    organization_id: str
    first: int
    last: int


Done = Callable[[int, int], None]
"""Marks a chunk done, with how many customers were examined and how many rows changed. Called inside the transaction
that changes them, so that both happen or neither."""


class NightlyJob(Protocol):
    """What a job has to say; running it, resuming it and counting are done for it."""

    name: str

    def plan(self, run: Run, now_us: int) -> Sequence[Chunk]:
        """What precedes the chunks (a snapshot of cuts, say), and the chunks. Inside the transaction that plans."""

    def work(self, run: Run, chunk: Chunk, now_us: int, done: Done) -> None:
        """Do one chunk. May be called again for a chunk whose process was killed before `done` was committed."""

    def finish(self, run: Run, now_us: int) -> None:
        """After the last chunk, inside the transaction that marks the run done."""
