"""A nightly job whose effects can be counted: one row per chunk, one for the plan and one for the end."""

from collections.abc import Callable
from datetime import date

from customer_actors.storage.database import Database
from customer_actors.storage.job_runs import Chunk, Done, Run

NIGHT = Run("counting", "2026-11-24T03:15", date(2026, 11, 24))
CHUNKS = 5
PLANNED, FINISHED = 1_000, 2_000
_FAR_US = 4_000_000_000_000_000
"""The rows are bells of the next century, which no sweep looks at."""


class CountingJob:
    """Leaves a row for whatever it does."""

    name = NIGHT.job

    def __init__(
        self, database: Database, before: Callable[[Chunk], object] = lambda _: None, chunks: int = CHUNKS
    ) -> None:
        """`before` is called inside the transaction of a chunk, after its row and before it is done."""
        self._database = database
        self._before = before
        self._chunks = chunks

    def plan(self, run: Run, now_us: int) -> list[Chunk]:
        self._leave(PLANNED)
        return [Chunk(number, "org-1", 10 * number, 10 * number + 9) for number in range(self._chunks)]

    def work(self, run: Run, chunk: Chunk, now_us: int, done: Done) -> None:
        with self._database.transaction():
            self._leave(chunk.number)
            self._before(chunk)
            done(10, chunk.number)

    def finish(self, run: Run, now_us: int) -> None:
        self._leave(FINISHED)

    def _leave(self, number: int) -> None:
        self._database.execute("INSERT INTO bell (rung_at_us, groups) VALUES (?, '{}')", (_FAR_US + number,))


def effects(database: Database) -> list[int]:
    """What was done, in numeric order."""
    rows = database.query("SELECT rung_at_us FROM bell WHERE rung_at_us >= ? ORDER BY rung_at_us", (_FAR_US,))
    return [us - _FAR_US for (us,) in rows]


UNDISTURBED = [*range(CHUNKS), PLANNED, FINISHED]
