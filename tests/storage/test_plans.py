"""The hot queries on PostgreSQL, pinned by the plans they get on a loaded database."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import psycopg2.extensions

from customer_actors.domain.routing import ACTORS, STREAM_ACTORS
from customer_actors.settings import Settings
from customer_actors.storage.database import Database
from customer_actors.storage.opening import open_database
from customer_actors.storage.schema import migrate
from customer_actors.storage.segmentation import SegmentationStore
from tests.model.examples import order
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


def test_hot_queries_read_by_primary_key_alone(postgres_url: str) -> None:
    database, bundle = open_database(postgres_url), list(range(1_000_001, 1_000_001 + BUNDLE))
    migrate(database)
    load(database)
    for actor in ACTORS:
        store = Storage(database).stores().of(actor)
        state = SegmentationStore.table if actor == SegmentationStore.actor else f"{actor}_state"
        behind = scans(database, partial(store.behind, bundle))
        other = "stats_state" if actor == SegmentationStore.actor else "customer"
        assert behind == {(state, f"{state}_pkey"), (other, f"{other}_pkey")}
        if actor in STREAM_ACTORS:
            found = scans(database, partial(store.round, bundle, NOW_US))
            assert found >= {(state, f"{state}_pkey"), ("event", "event_pkey")}
            assert {how for table, how in found if table in (state, "event")} == {f"{state}_pkey", "event_pkey"}
    database.release()
