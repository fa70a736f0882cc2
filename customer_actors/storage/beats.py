"""Beats: every process writes every few seconds that it lives, and with how many threads."""

import os
import socket
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

from customer_actors.storage.database import Database

Kind = Literal["worker", "ingest", "scheduler", "embedded"]

KEPT_US: Final = 24 * 60 * 60 * 1_000_000
"""How long the last beat of a process that is gone is kept."""

_BEAT: Final = """
    INSERT INTO beat (process, kind, host, pid, at_us, threads_expected, threads_alive, problem, alarm)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (process) DO UPDATE SET at_us = excluded.at_us, threads_expected = excluded.threads_expected,
        threads_alive = excluded.threads_alive, problem = excluded.problem, alarm = excluded.alarm
"""


class Beat(NamedTuple):
    """The last sign of life of one process."""

    process: str
    kind: str
    host: str
    pid: int
    at_us: int
    threads_expected: int
    threads_alive: int
    problem: str | None
    """What is wrong with the process itself; a restart heals it."""
    alarm: str | None
    """What the process sees of the service; a restart does not heal it."""

    def is_fresh(self, now_us: int, stale_us: int) -> bool:
        """Whether it is young enough to count as life. One from the future does not: a clock was set back, and who
        lives will beat by the new one.
        """
        return abs(now_us - self.at_us) <= stale_us

    @property
    def trouble(self) -> str | None:
        """What is wrong with the process itself, its dead threads included."""
        missing = self.threads_expected - self.threads_alive
        return self.problem or (f"{missing} of {self.threads_expected} threads are dead" if missing > 0 else None)


def beat(
    database: Database,
    kind: Kind,
    now_us: int,
    *,
    expected: int = 1,
    alive: int = 1,
    problem: str | None = None,
    alarm: str | None = None,
) -> None:
    """Write this process's sign of life, and forget those of processes gone for a day.

    Raises:
        Outage: the database is away.
    """
    host, pid = socket.gethostname(), os.getpid()
    process = f"{kind}:{host}:{pid}"
    with database.transaction():
        database.execute(_BEAT, (process, kind, host, pid, now_us, expected, alive, problem, alarm))
        database.execute("DELETE FROM beat WHERE at_us < ?", (now_us - KEPT_US,))


def end_beat(database: Database, kind: Kind) -> None:
    """Take this process's sign of life away: it ends because it was asked to.

    Raises:
        Outage: the database is away.
    """
    with database.transaction():
        database.execute("DELETE FROM beat WHERE process = ?", (f"{kind}:{socket.gethostname()}:{os.getpid()}",))


def all_beats(database: Database) -> Sequence[Beat]:
    """The last beat of every process, by name."""
    rows = database.query(f"SELECT {', '.join(Beat._fields)} FROM beat ORDER BY process")
    return [Beat._make(row) for row in rows]
