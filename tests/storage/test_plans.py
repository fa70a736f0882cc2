"""The hot queries on PostgreSQL, pinned by the plans they get on a loaded database."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import psycopg2.extensions
import pytest

from customer_actors.domain.routing import ACTORS, STREAM_ACTORS
from customer_actors.settings import Settings
from customer_actors.storage import triage
from customer_actors.storage.database import Database
from customer_actors.storage.opening import open_database
from customer_actors.storage.operators import Action
from customer_actors.storage.schema import migrate
from customer_actors.storage.segmentation import SegmentationStore
from customer_actors.storage.triage import Wanted
from customer_actors.storage.views import STATES
from customer_actors.storage.vitals import vitals
from tests.model.examples import order
from tests.servers import PrivatePostgres
from tests.storage.support import NOW_US, Storage

LOADED_CUSTOMERS, EVENTS_EACH = 25_000, 2
BUNDLE: int = Settings.model_fields["bundle_size"].default


class Recorded(psycopg2.extensions.cursor):
    """Keeps every statement as it was sent."""

    statements: list[bytes]

    def execute(self, query: Any, parameters: Any = None) -> None:
        super().execute(query, parameters)
        type(self).statements.append(self.query or b"")


def load(database: Database) -> None:
    """50,000 events, half of them applied, and what the planner knows of them."""
    Storage(database).receive(order("first", "10"))
    numbers = f"generate_series(1000001, {1_000_000 + LOADED_CUSTOMERS}) c"
    database.execute(
        "INSERT INTO event SELECT c, p, type, reference, channel, amount_minor, occurred_at_us, received_at_us, "
        f"rules, 7, true, false FROM {numbers}, generate_series(1, {EVENTS_EACH}) p, event"
    )
    database.execute(
        "INSERT INTO customer (id, organization_id, customer_id, head, head_stats, head_loyalty, head_credit) "
        f"OVERRIDING SYSTEM VALUE SELECT c, 'o', c::text, 2, 2, 2, 2 FROM {numbers}"
    )
    for table in ("stats_state", "credit_state", "customer_segment"):
        database.execute(f"INSERT INTO {table} (customer, position) SELECT c, 1 FROM {numbers}")
    database.execute(f"INSERT INTO loyalty_state (customer, position, tier) SELECT c, 1, 'bronze' FROM {numbers}")
    database.execute("ANALYZE")


def scans(database: Database, work: Callable[[], object]) -> set[tuple[str, str]]:
    """(table, index or kind of scan) of every query that `work` runs."""
    connection = database.engine.connection()
    Recorded.statements = []
    connection.cursor_factory = Recorded
    work()
    connection.cursor_factory = psycopg2.extensions.cursor
    found: set[tuple[str, str]] = set()
    for statement in Recorded.statements:
        if statement.startswith(b"SELECT"):
            ((plan,),) = database.query("EXPLAIN (FORMAT JSON) " + statement.decode())
            found |= set(_scans(plan[0]["Plan"]))
    return found


def _scans(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    if "Relation Name" in plan:
        yield plan["Relation Name"], plan.get("Index Name", plan["Node Type"])
    for part in plan.get("Plans", []):
        yield from _scans(part)


@pytest.fixture(scope="module")
def loaded(postgres: PrivatePostgres) -> Iterator[Database]:
    """Loaded, and only looked at."""
    opened = open_database(postgres.create_database("loaded"))
    migrate(opened)
    load(opened)
    yield opened
    opened.release()


def test_hot_queries_read_by_primary_key_alone(loaded: Database) -> None:
    bundle = list(range(1_000_001, 1_000_001 + BUNDLE))
    for actor in ACTORS:
        store = Storage(loaded).stores().of(actor)
        state = SegmentationStore.table if actor == SegmentationStore.actor else f"{actor}_state"
        behind = scans(loaded, partial(store.behind, bundle))
        other = "stats_state" if actor == SegmentationStore.actor else "customer"
        assert behind == {(state, f"{state}_pkey"), (other, f"{other}_pkey")}
        if actor in STREAM_ACTORS:
            found = scans(loaded, partial(store.round, bundle, NOW_US))
            assert found >= {(state, f"{state}_pkey"), ("event", "event_pkey")}
            assert {how for table, how in found if table in (state, "event")} == {f"{state}_pkey", "event_pkey"}


@pytest.mark.parametrize(
    "work",
    [
        lambda database: vitals(database, 0, 0),
        lambda database: triage.held_totals(database, Wanted()),
        lambda database: triage.held_errors(database, Wanted(), 10),
        lambda database: triage.held_customers(database, Wanted(), 10),
        lambda database: list(triage.release(database, Wanted(), Action("op", "release", "fixed"), NOW_US)),
    ],
    ids=["health", "totals", "errors", "customers", "release"],
)
def test_who_is_held_is_found_without_reading_everybody_else(
    loaded: Database, work: Callable[[Database], object]
) -> None:
    tables = {STATES[actor].table for actor in ACTORS}
    found = {(table, how) for table, how in scans(loaded, partial(work, loaded)) if table in tables}
    segmentation_follows = ("stats_state", "stats_state_pkey")
    assert found - {segmentation_follows} == {(table, f"{table}_held") for table in tables}
