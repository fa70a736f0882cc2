"""Nights of the credit accounts for tests: a run from claim to end, what it did, and whom it finds."""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import NamedTuple

from customer_actors.domain.events import Message, from_us
from customer_actors.domain.segmentation import day_start_us
from customer_actors.storage import job_runs
from customer_actors.storage.database import Database
from customer_actors.storage.drift import aged_by, drift_of
from customer_actors.storage.job_runs import Run
from customer_actors.storage.nightly_credit import NightlyCredit
from tests.model.examples import JUNE_1_US, cancellation, limit_changed, opened, order, payment
from tests.storage.support import NOW_US, RULES, Dump, Storage, dump

JUNE_1 = from_us(JUNE_1_US).date()
DUE = JUNE_1 + timedelta(days=30)
"""Of a sale on June 1."""
SUSPENDED_FROM = DUE + timedelta(days=31)
"""More than 30 days late."""
NIGHTS = ("job_run", "job_chunk", "credit_drift", "credit_ageing")

Story = tuple[str, str, int, int, bool]


class Night(NamedTuple):
    """What one run did."""

    examined: int
    changed: int
    drift: list[Story]
    """(customer, field, stored, expected, repaired)."""
    aged: list[tuple[str, str]]
    """(customer, action)."""


def of(customer_id: str, *messages: Message) -> list[Message]:
    """The same messages about another customer."""
    return [m if m.customer_id is None else m._replace(customer_id=customer_id) for m in messages]


LIVES: Sequence[Message] = (
    # pays in part, cancels a paid order, and has its limit cut below what is used
    *of("owes", opened("100"), order("A1", "60", on_credit=True), order("A2", "30", on_credit=True)),
    *of("owes", payment("P1", "20"), cancellation("A1"), order("A3", "50", on_credit=True), limit_changed("10")),
    # paid more than it owes
    *of("rich", opened("100"), order("B1", "40", on_credit=True), payment("P1", "55"), payment("P2", "5")),
    # has no account
    *of("new", order("C1", "10", on_credit=True), payment("P1", "25")),
    *of("paid", opened("100"), order("D1", "40", on_credit=True), payment("P1", "40")),
    *of("cash", order("E1", "40")),
)


def night(
    storage: Storage, slot: str = "1", as_of: date = JUNE_1, dry_run: bool = False, chunk_customers: int = 2
) -> Night:
    """One run from its claim to its end, and what it reports."""
    job = NightlyCredit(storage.stores(), chunk_customers)
    run = Run("credit", slot, as_of, dry_run)
    job_runs.claim(storage.database, run, now_of(run))
    return resumed(storage, job, run)


def resumed(storage: Storage, job: NightlyCredit, run: Run) -> Night:
    """The rest of a claimed run, on a day on which its date has begun."""
    database, now_us = storage.database, now_of(run)
    assert job_runs.plan(database, job, run, now_us)
    for number in job_runs.open_chunks(database, run):
        assert job_runs.work(database, job, run, number, now_us)
    assert job_runs.finish(database, job, run, now_us)
    progress = job_runs.progress_of(database, "credit", run.slot)
    assert progress is not None
    return Night(
        progress.examined,
        progress.changed,
        [(d.customer_id, d.field, d.stored, d.expected, d.repaired) for d in drift_of(database, run.slot)],
        [(aged.customer_id, aged.action) for aged in aged_by(database, run.slot)],
    )


def now_of(run: Run) -> int:
    return max(NOW_US, day_start_us(run.as_of, RULES.zone))


def data(database: Database) -> Dump:
    """Everything but the nights' own records."""
    return {table: rows for table, rows in dump(database).items() if table not in NIGHTS}


def execute(storage: Storage, sql: str, *parameters: object) -> None:
    """Behind the service's back."""
    with storage.database.transaction():
        storage.database.execute(sql, parameters)


def row_of(storage: Storage, columns: str, customer_id: str) -> list[tuple[object, ...]]:
    sql = f"SELECT {columns} FROM credit_state WHERE customer = ?"
    return storage.database.query(sql, (storage.number(customer_id),))


def late(customer_id: str = "c1") -> list[Message]:
    """An account with a sale of June 1."""
    return of(customer_id, opened("100"), order(f"L-{customer_id}", "60", on_credit=True))
