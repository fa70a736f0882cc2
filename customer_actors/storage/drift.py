"""What the nightly reconciliations found: every difference of a cached figure, and whom a run suspended or lifted [C8].

Rows are appended before anything is changed, once per run however often the run is resumed.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

from customer_actors.storage.database import Database, columns
from customer_actors.storage.job_runs import Run

JOB: Final = "credit"
SUSPEND: Final = "suspend"
LIFT: Final = "lift"
PAGE: Final = 1_000

_DRIFT = columns(
    "credit_drift",
    "job text, slot text, customer bigint, field text",
    "organization_id text, stored bigint, expected bigint, repaired boolean, found_us bigint",
)
_AGEING = columns(
    "credit_ageing",
    "job text, slot text, customer bigint, action text",
    "organization_id text, oldest_due_date text",
)


class Drift(NamedTuple):
    """One cached figure that was not what the rows beneath it add up to; amounts in minor units."""

    customer: int
    field: str
    """`used`, `unapplied` or `suspense` of the account, `usage[POSITION].outstanding`, `payment[POSITION].unapplied`;
    or a fact that cannot be: `usage[POSITION].allocated`."""
    stored: int
    expected: int
    repaired: bool
    """False in a dry run, and for what only a person can put right: ledger facts are never changed [C8]."""


class Ageing(NamedTuple):
    """Who is suspended or lifted, and the oldest due date of what is open."""

    customer: int
    action: str
    oldest_due_date: str | None


def report_drift(database: Database, run: Run, organization_id: str, found: Sequence[Drift], now_us: int) -> None:
    """Append what was found; what this run has reported before is left as it is."""
    database.insert_missing(
        _DRIFT,
        sorted(
            (run.job, run.slot, d.customer, d.field, organization_id, d.stored, d.expected, d.repaired, now_us)
            for d in found
        ),
    )


def report_ageing(database: Database, run: Run, organization_id: str, found: Sequence[Ageing]) -> None:
    """Append whom this run suspends or lifts, likewise."""
    database.insert_missing(
        _AGEING,
        sorted((run.job, run.slot, a.customer, a.action, organization_id, a.oldest_due_date) for a in found),
    )


class Reconciliation(NamedTuple):
    """One run of the job, for a person; `number` counts them from 1 in the order they were claimed."""

    number: int
    slot: str
    as_of: str
    dry_run: bool
    finished: bool
    drift: int
    """Differences found."""
    unrepaired: int
    suspended: int
    """Customers suspended by it; of a dry run, who would be. Likewise:"""
    lifted: int


_RUNS: Final = (
    "SELECT number, slot, as_of, dry_run, done_us IS NOT NULL, "
    "(SELECT count(*) FROM credit_drift d WHERE d.job = r.job AND d.slot = r.slot), "
    "(SELECT count(*) FROM credit_drift d WHERE d.job = r.job AND d.slot = r.slot AND NOT d.repaired), "
    "(SELECT count(*) FROM credit_ageing a WHERE a.job = r.job AND a.slot = r.slot AND a.action = 'suspend'), "
    "(SELECT count(*) FROM credit_ageing a WHERE a.job = r.job AND a.slot = r.slot AND a.action = 'lift') "
    "FROM (SELECT *, row_number() OVER (ORDER BY claimed_us, slot) AS number FROM job_run WHERE job = ?) r "
    "WHERE {which} ORDER BY number DESC LIMIT 1"
)


def reconciliation(database: Database, number: int | None) -> Reconciliation | None:
    """The run of this number, by default the newest; None when there is none."""
    return _one(database, "1 = 1") if number is None else _one(database, "number = ?", number)


def reconciliation_of(database: Database, slot: str) -> Reconciliation | None:
    """The run of this slot."""
    return _one(database, "slot = ?", slot)


def _one(database: Database, which: str, *given: object) -> Reconciliation | None:
    rows = database.query(_RUNS.format(which=which), (JOB, *given))
    if not rows:
        return None
    number, slot, as_of, dry_run, finished, *counts = rows[0]
    return Reconciliation(number, slot, as_of, bool(dry_run), bool(finished), *counts)


class Found(NamedTuple):
    """One difference, as it is shown."""

    id: int
    organization_id: str
    customer_id: str
    field: str
    stored: int
    expected: int
    repaired: bool


def drift_of(database: Database, slot: str, after: int = 0) -> list[Found]:
    """What a run found, in the order it was found, behind a row's id; at most a page."""
    rows = database.query(
        "SELECT d.id, d.organization_id, c.customer_id, d.field, d.stored, d.expected, d.repaired FROM credit_drift d "
        "JOIN customer c ON c.id = d.customer WHERE d.job = ? AND d.slot = ? AND d.id > ? ORDER BY d.id LIMIT ?",
        (JOB, slot, after, PAGE),
    )
    return [Found._make((*row[:6], bool(row[6]))) for row in rows]


class Aged(NamedTuple):
    """One customer suspended or lifted, as it is shown."""

    id: int
    organization_id: str
    customer_id: str
    action: str
    oldest_due_date: str | None


def aged_by(database: Database, slot: str, after: int = 0) -> list[Aged]:
    """Whom a run suspended or lifted, likewise."""
    rows = database.query(
        "SELECT a.id, a.organization_id, c.customer_id, a.action, a.oldest_due_date FROM credit_ageing a "
        "JOIN customer c ON c.id = a.customer WHERE a.job = ? AND a.slot = ? AND a.id > ? ORDER BY a.id LIMIT ?",
        (JOB, slot, after, PAGE),
    )
    return [Aged._make(row) for row in rows]
