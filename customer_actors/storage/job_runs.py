"""Runs of the nightly jobs: a slot is claimed once, planned in chunks, and every chunk takes effect once [G17]."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import date, datetime, timedelta
from typing import Any, Final, NamedTuple, Protocol
from zoneinfo import ZoneInfo

from customer_actors.domain.events import business_date
from customer_actors.errors import Outage, UsageError
from customer_actors.storage.database import Database, Row, columns
from customer_actors.storage.postgresql import PostgresDatabase


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


class ChunkDoneError(Exception):
    """Somebody else did the chunk meanwhile: the transaction that meets this is rolled back, and all is well."""


_CHUNK: Final = columns(
    "job_chunk", "job text, slot text, number integer", "organization_id text, first bigint, last bigint"
)
_OLDER_OPEN: Final = (
    "SELECT 1 FROM job_run WHERE job = ? AND as_of < ? AND done_us IS NULL AND failures = 0 AND NOT dry_run LIMIT 1"
)
_PLANNED: Final = "SELECT 1 FROM job_run WHERE job = ? AND slot = ? AND planned_us IS NOT NULL AND done_us IS NULL"
_TOTALS: Final = (
    "UPDATE job_run AS r SET done_us = ?, error = NULL, (chunks, examined, changed) = (SELECT count(*), "
    "coalesce(sum(c.examined), 0), coalesce(sum(c.changed), 0) FROM job_chunk c "
    "WHERE c.job = r.job AND c.slot = r.slot) WHERE r.job = ? AND r.slot = ?"
)
_FORGET: Final = (
    "DELETE FROM job_chunk WHERE job = ? AND slot <> ? AND slot IN "
    "(SELECT slot FROM job_run WHERE job = ? AND done_us IS NOT NULL AND (dry_run OR as_of <= ?))"
)
"""The newest run's chunks tell whom it looked at [R7]; those of earlier dates tell nothing any more."""
_MOST_DOUBLINGS: Final = 6

_in_work: set[tuple[Any, ...]] = set()
_in_work_lock: Final = threading.Lock()


def claim(database: Database, run: Run, now_us: int) -> bool:
    """Claim a slot; False when somebody has it. Whoever gets True sends the message, nobody else does [G17]."""
    sql = "INSERT INTO job_run (job, slot, as_of, dry_run, claimed_us) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
    with database.transaction():
        row = (run.job, run.slot, run.as_of.isoformat(), run.dry_run, now_us)
        return bool(database.execute(sql, row).rowcount)


FIRST_DATE: Final = date(1970, 1, 1)
LAST_DATE: Final = date(9000, 1, 1)


def require_begun(run: Run, now_us: int, zone: ZoneInfo) -> None:
    """Refuse a run for a date that has not begun, which only a dry run may look at. One day is left to hosts that
    disagree about the date.

    Raises:
        UsageError: likewise for a date before FIRST_DATE, when no event can be, or after LAST_DATE.
    """
    if not FIRST_DATE <= run.as_of <= LAST_DATE:
        raise UsageError(f"{run.as_of} is no date of business: choose one from {FIRST_DATE} to {LAST_DATE}")
    if not run.dry_run and run.as_of > business_date(now_us, zone) + timedelta(days=1):
        raise UsageError(f"{run.as_of} lies ahead: choose a date that has begun, or --dry-run")


def later_began(database: Database, run: Run) -> bool:
    """Whether a run of the same job for a later date has begun; dry runs are no runs."""
    sql = "SELECT 1 FROM job_run WHERE job = ? AND as_of > ? AND planned_us IS NOT NULL AND NOT dry_run LIMIT 1"
    return bool(database.query(sql, (run.job, run.as_of.isoformat())))


def run_of(database: Database, job: str, slot: str) -> Run | None:
    """The run that was claimed under this name, done or not."""
    rows = database.query("SELECT job, slot, as_of, dry_run FROM job_run WHERE job = ? AND slot = ?", (job, slot))
    return _run(rows[0]) if rows else None


def _run(row: Row) -> Run:
    return Run(row[0], row[1], date.fromisoformat(row[2]), bool(row[3]))


def plan(database: Database, job: NightlyJob, run: Run, now_us: int) -> bool:
    """Plan the run in chunks, unless it is planned; whether it is now.

    False also while somebody else plans it, or while an earlier day's run of this job is in progress: days go in order.

    Raises:
        Outage: nothing was planned. Whatever the job raises: likewise.
    """
    with database.transaction():
        row = _locked(database, run, " SKIP LOCKED")
        if row is None or row.done:
            return False
        if row.planned:
            return True
        if not run.dry_run and database.execute(_OLDER_OPEN, (run.job, run.as_of.isoformat())).fetchone():
            return False
        database.insert(_CHUNK, [(run.job, run.slot, *chunk) for chunk in job.plan(run, now_us)])
        sql = "UPDATE job_run SET planned_us = ? WHERE job = ? AND slot = ?"
        database.execute(sql, (now_us, run.job, run.slot))
        return True


def open_chunks(database: Database, run: Run) -> list[int]:
    """The numbers of the chunks that are not done."""
    sql = "SELECT number FROM job_chunk WHERE job = ? AND slot = ? AND done_us IS NULL ORDER BY number"
    return [number for (number,) in database.query(sql, (run.job, run.slot))]


def work(database: Database, job: NightlyJob, run: Run, number: int, now_us: int) -> bool:
    """Do one chunk; False when it is done already, or somebody does it right now.

    That nobody else works on it only saves work: that it takes effect once is decided by `done`, which fails in the
    transaction of whoever comes second.

    Raises:
        Outage: nothing since the job's last commit was kept. Whatever the job raises: likewise.
    """
    with _alone(database, run, number) as alone:
        chunk = _open_chunk(database, run, number) if alone else None
        if chunk is None:
            return False
        marked = False

        def done(examined: int, changed: int) -> None:
            nonlocal marked
            sql = (
                "UPDATE job_chunk SET done_us = ?, examined = ?, changed = ? "
                "WHERE job = ? AND slot = ? AND number = ? AND done_us IS NULL"
            )
            if not database.execute(sql, (now_us, examined, changed, run.job, run.slot, number)).rowcount:
                raise ChunkDoneError
            marked = True

        try:
            job.work(run, chunk, now_us, done)
        except ChunkDoneError:
            return False
        if not marked:
            raise RuntimeError(f"the job {job.name} did not say that its chunk is done")
        return True


def finish(database: Database, job: NightlyJob, run: Run, now_us: int) -> bool:
    """Finish the run if no chunk is open; whether this call did.

    Raises:
        Outage: it is not finished. Whatever the job raises: likewise.
    """
    # Looked at without a lock first: whoever plans the run meanwhile leaves it to those who hold its row.
    if not database.query(_PLANNED, (run.job, run.slot)) or open_chunks(database, run):
        return False
    with database.transaction():
        # Waits for whoever has it: two who did the last chunks at once must not each leave the end to the other.
        row = _locked(database, run)
        if row is None or row.done or not row.planned or open_chunks(database, run):
            return False
        job.finish(run, now_us)
        database.execute(_TOTALS, (now_us, run.job, run.slot))
        if not run.dry_run:
            database.execute(_FORGET, (run.job, run.slot, run.job, run.as_of.isoformat()))
        return True


def fail(database: Database, run: Run, error: str, now_us: int) -> None:
    """Note that a part of the run failed; it stays open. `error` names no customer."""
    sql = (
        "UPDATE job_run SET failures = failures + 1, failed_us = ?, error = ? "
        "WHERE job = ? AND slot = ? AND done_us IS NULL"
    )
    with database.transaction():
        database.execute(sql, (now_us, error, run.job, run.slot))


class _Locked(NamedTuple):
    planned: bool
    done: bool


def _locked(database: Database, run: Run, otherwise: str = "") -> _Locked | None:
    """The run's row, locked until the end of the transaction; None when there is none, or with SKIP LOCKED when
    somebody else holds it."""
    sql = "SELECT planned_us, done_us FROM job_run WHERE job = ? AND slot = ?"
    if isinstance(database, PostgresDatabase):  # SQLite's transaction holds the only write lock
        sql += f" FOR UPDATE{otherwise}"
    row = database.execute(sql, (run.job, run.slot)).fetchone()
    return None if row is None else _Locked(row[0] is not None, row[1] is not None)


def _open_chunk(database: Database, run: Run, number: int) -> Chunk | None:
    sql = (
        "SELECT number, organization_id, first, last FROM job_chunk "
        "WHERE job = ? AND slot = ? AND number = ? AND done_us IS NULL"
    )
    rows = database.query(sql, (run.job, run.slot, number))
    return Chunk._make(rows[0]) if rows else None


@contextmanager
def _alone(database: Database, run: Run, number: int) -> Iterator[bool]:
    """Whether nobody else works on this chunk; a killed process gives it back at once, as its connection goes."""
    key = (str(database.engine.database), run.job, run.slot, number)
    with _in_work_lock:
        free = key not in _in_work
        _in_work.add(key)
    if not free:
        yield False
        return
    try:
        with _alone_among_processes(database, run, number) as alone:
            yield alone
    finally:
        with _in_work_lock:
            _in_work.discard(key)


@contextmanager
def _alone_among_processes(database: Database, run: Run, number: int) -> Iterator[bool]:
    if not isinstance(database, PostgresDatabase):  # a file has one process that works on it, as a rule
        yield True
        return
    key = (f"{run.job} {run.slot}", number)
    ((alone,),) = database.query("SELECT pg_try_advisory_lock(hashtext(?), ?)", key)
    try:
        yield alone
    finally:
        if alone:
            with suppress(Outage):  # then the connection, and the lock with it, is gone
                database.query("SELECT pg_advisory_unlock(hashtext(?), ?)", key)


_OPEN_RUNS: Final = (
    "SELECT r.job, r.slot, r.as_of, r.dry_run, r.failures, r.claimed_us, coalesce(r.planned_us, 0), "
    "coalesce(r.failed_us, 0), "
    "coalesce((SELECT max(c.done_us) FROM job_chunk c WHERE c.job = r.job AND c.slot = r.slot), 0) "
    "FROM job_run r WHERE r.done_us IS NULL ORDER BY r.as_of, r.job, r.slot"
)


def open_runs(database: Database) -> list[Run]:
    """Every run that is not done, the oldest date first."""
    return [_run(row) for row in database.query(_OPEN_RUNS)]


def unanswered_runs(database: Database, now_us: int, grace_us: int) -> list[Run]:
    """Open runs of which nothing was done for the grace, which doubles with every failure.

    An activity in the future was noted by a clock that was wrong, and counts as old.
    """
    return [
        _run(row)
        for row in database.query(_OPEN_RUNS)
        if abs(now_us - max(row[5:])) > grace_us << min(row[4], _MOST_DOUBLINGS)
    ]


class Progress(NamedTuple):
    """How far a run is."""

    run: Run
    claimed_us: int
    planned: bool
    done_us: int | None
    failures: int
    """How often a part of it failed, so far."""
    error: str | None
    """The last failure, while it is not done."""
    chunks: int
    chunks_done: int
    examined: int
    """Customers looked at."""
    changed: int
    """Rows changed."""


_PROGRESS: Final = (
    "SELECT r.job, r.slot, r.as_of, r.dry_run, r.claimed_us, r.planned_us, r.done_us, r.failures, r.error, "
    "r.chunks + count(c.number), r.chunks + count(c.done_us), "
    "r.examined + CAST(coalesce(sum(c.examined), 0) AS bigint), "
    "r.changed + CAST(coalesce(sum(c.changed), 0) AS bigint) "
    "FROM job_run r LEFT JOIN job_chunk c ON c.job = r.job AND c.slot = r.slot AND r.done_us IS NULL WHERE {which} "
    "GROUP BY r.job, r.slot ORDER BY r.job, r.claimed_us, r.slot"
)
_NEWEST: Final = (
    "NOT r.dry_run AND r.claimed_us = (SELECT max(x.claimed_us) FROM job_run x WHERE x.job = r.job AND NOT x.dry_run)"
)


def _progress(row: Row) -> Progress:
    return Progress(_run(row), row[4], row[5] is not None, *row[6:])


def progress_of(database: Database, job: str, slot: str) -> Progress | None:
    """How far the run of this name is; None when nobody claimed it."""
    rows = database.query(_PROGRESS.format(which="r.job = ? AND r.slot = ?"), (job, slot))
    return _progress(rows[0]) if rows else None


def last_runs(database: Database) -> dict[str, Progress]:
    """The newest run of every job that ever ran, by the job's name; dry runs are no runs."""
    return {row[0]: _progress(row) for row in database.query(_PROGRESS.format(which=_NEWEST))}


def first_migrated(database: Database) -> datetime:
    """When this database was made: no night before that was missed. By the clock and zone of the host that did it."""
    ((applied,),) = database.query("SELECT min(applied) FROM schema_migration")
    return (applied if isinstance(applied, datetime) else datetime.fromisoformat(applied)).astimezone()
