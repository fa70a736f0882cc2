"""A crowd of customers and a whole night over it, for the tests of the night of the segments."""

from datetime import date, timedelta
from typing import NamedTuple

from customer_actors.domain.events import Message
from customer_actors.storage.database import Database, Row
from customer_actors.storage.job_runs import Chunk, Run
from customer_actors.storage.nightly_segments import NightlySegments
from customer_actors.storage.segment_check import segment_differences
from customer_actors.storage.views import stored_customer
from tests.model.examples import DAY_US, JUNE_1_US, order
from tests.storage.support import NOW_US, TODAY, Storage, in_organization

TOMORROW = TODAY + timedelta(1)
TOMORROW_US = NOW_US + DAY_US


class Night(NamedTuple):
    """What a run did, chunk by chunk."""

    chunks: list[Chunk]
    examined: int
    changed: int


def night(
    storage: Storage, as_of: date = TOMORROW, now_us: int = TOMORROW_US, chunk_customers: int = 7, dry_run: bool = False
) -> Night:
    """A whole run, its chunks one after the other."""
    job, run = NightlySegments(storage.database, storage.rules, chunk_customers), Run("segments", "s", as_of, dry_run)
    with storage.database.transaction():
        chunks = list(job.plan(run, now_us))
    counts: list[tuple[int, int]] = []
    for chunk in chunks:
        job.work(run, chunk, now_us, lambda examined, changed: counts.append((examined, changed)))
    with storage.database.transaction():
        job.finish(run, now_us)
    assert len(counts) == len(chunks)
    return Night(chunks, sum(one for one, _ in counts), sum(two for _, two in counts))


def crowd(n: int = 120, organization_id: str = "org-1") -> list[Message]:
    """So many customers with one to five orders of many sizes, over the hundred days before `JUNE_1_US`."""
    sales = [
        order(f"{i}-{k}", str(3 * i + k), customer_id=f"c{i}", at_us=JUNE_1_US - (i * 37 % 100) * DAY_US)
        for i in range(n)
        for k in range(1 + i % 5)
    ]
    return in_organization(sales, organization_id)


def segments(database: Database) -> dict[tuple[str, str], Row]:
    """Every customer's scores and code."""
    rows = database.query(
        "SELECT c.organization_id, c.customer_id, g.recency, g.frequency, g.monetary, g.code "
        "FROM customer c JOIN customer_segment g ON g.customer = c.id"
    )
    return {(row[0], row[1]): row[2:] for row in rows}


def assert_each_row_agrees_with_its_inputs(storage: Storage) -> None:
    for key in storage.customers():
        stored = stored_customer(storage.database, *key)
        assert stored is not None
        assert segment_differences(storage.database, storage.rules, stored) == []
