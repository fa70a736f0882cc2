"""The check that ends every fault finds what it claims to find."""

import io
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from customer_actors.embedded import embedded
from customer_actors.ingest.topology import SOURCES
from customer_actors.settings import load_settings
from customer_actors.simulate import ShopPlan, simulate
from customer_actors.storage.append import EVENT
from customer_actors.storage.opening import open_database
from customer_actors.storage.schema import migrate
from tests.faults.accounts import Accounts
from tests.faults.check import Verdict, check
from tests.faults.order_log import INSTALL_SQLITE
from tests.faults.table import Row, table

LINES: Final = list(simulate(ShopPlan(customers=40, events=300, seed=8, conflict=0, malformed=0.03)))


class Finished(NamedTuple):
    """A database that has been through all lines without any fault."""

    path: Path

    def tamper(self, *statements: str) -> None:
        with closing(sqlite3.connect(self.path)) as connection, connection:
            names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
            for (name,) in names:  # the product's own refuse to change history
                if not name.startswith("log_"):
                    connection.execute(f"DROP TRIGGER {name}")
            for statement in statements:
                assert connection.execute(statement).rowcount > 0, statement

    def verdict(self) -> Verdict:
        database = open_database(f"sqlite:///{self.path}")
        try:
            return check(database, load_settings({}).rules(), LINES, Accounts(), datetime.now(UTC).date())
        finally:
            database.release()


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("check") / "shop.db"
    settings = load_settings({"DATABASE_URL": f"sqlite:///{path}", "CUSTOMER_ACTORS_BATCH_SIZE": "20"})
    database = open_database(settings.database_url)
    migrate(database)
    database.release()
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(INSTALL_SQLITE)
    with embedded(settings) as service:
        service.feed(io.BytesIO("\n".join(LINES).encode()))
        service.drain()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return path.read_bytes()


@pytest.fixture
def finished(untouched: bytes, tmp_path: Path) -> Finished:
    path = tmp_path / "shop.db"
    path.write_bytes(untouched)
    return Finished(path)


def test_an_undisturbed_run_is_clean(finished: Finished) -> None:
    found = finished.verdict()
    assert (found.lost, found.twice, found.disorder, found.wrong) == (0, 0, 0, [])
    assert found.applied > 2 * len(LINES)


_TYPES: Final = [str(type_) for source in SOURCES for type_ in source.routing_keys]
_OWED: Final = "cancelled_position IS NULL AND outstanding_minor > 0"
_LAST: Final = "customer = (SELECT customer FROM loyalty_entry ORDER BY position DESC LIMIT 1)"


@pytest.mark.parametrize(
    "statements",
    [
        ("DELETE FROM sale WHERE channel = 'order' AND amount_minor IS NOT NULL",),
        ("DELETE FROM payment_key",),
        ("DELETE FROM quarantine",),
        ("DELETE FROM event WHERE type = 'order.completed' AND position = 1",),
        ("DELETE FROM event_payload WHERE position = 1",),
        (f"UPDATE stats_state SET position = position - 1 WHERE {_LAST}",),
        (f"UPDATE credit_state SET position = position + 1 WHERE {_LAST}",),
    ],
    ids=["sales forgotten", "payments forgotten", "refused bodies gone", "event gone", "body gone", "behind", "past"],
)
def test_what_is_lost_is_found(finished: Finished, statements: tuple[str, ...]) -> None:
    finished.tamper(*statements)
    assert finished.verdict().lost > 0


@pytest.mark.parametrize(
    "statements",
    [
        (
            f"UPDATE loyalty_state SET position = position - 1 WHERE {_LAST}",
            f"UPDATE loyalty_state SET position = position + 1 WHERE {_LAST}",
        ),
        (
            "INSERT INTO order_log (actor, customer, old_position, new_position) "
            "SELECT 'stats', customer, 0, 1 FROM event",
        ),
        ("INSERT INTO loyalty_entry (customer, position, kind, points) VALUES (1, 999, 'redeem', -1)",),
        (
            "INSERT INTO ledger_log (ledger, actor, customer, position) "
            "SELECT ledger, actor, customer, position FROM ledger_log",
        ),
    ],
    ids=["applied again", "step again", "ledger row without a step", "ledger row again"],
)
def test_what_is_applied_twice_is_found(finished: Finished, statements: tuple[str, ...]) -> None:
    finished.tamper(*statements)
    assert finished.verdict().twice > 0


@pytest.mark.parametrize(
    ("type_", "claim"),
    [
        ("order.completed", "sales that entered twice"),
        ("pos.transaction.completed", "sales that entered twice"),
        ("payment.received", "payments that entered twice"),
        ("order.cancelled", "cancellations that entered twice"),
    ],
)
def test_a_key_that_entered_twice_is_found(finished: Finished, type_: str, claim: str) -> None:
    columns = ", ".join(name for name in EVENT.names if name != "position")
    finished.tamper(
        f"INSERT INTO event ({columns}, position) SELECT {columns}, position + 1000 FROM event "
        f"WHERE type = '{type_}' AND (type <> 'order.cancelled' OR sale_position IS NOT NULL) LIMIT 1"
    )
    found = finished.verdict()
    assert f"{claim}: 1" in found.wrong
    assert found.twice > 0


@pytest.mark.parametrize(
    "statements",
    [
        ("DELETE FROM order_log WHERE actor = 'loyalty' AND old_position = 0",),
        ("UPDATE order_log SET id = -id WHERE actor = 'stats' AND old_position > 0",),
    ],
    ids=["first steps missing", "later steps first"],
)
def test_what_is_out_of_order_is_found(finished: Finished, statements: tuple[str, ...]) -> None:
    finished.tamper(*statements)
    assert finished.verdict().disorder > 0


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("UPDATE loyalty_state SET points = points + 1 WHERE customer = 1", "points"),
        (
            "UPDATE loyalty_state SET lifetime_points = lifetime_points + 1 WHERE customer = 1",
            "lifetime points are the",
        ),
        (f"UPDATE credit_usage SET outstanding_minor = 0 WHERE {_OWED}", "credit used is the sum"),
        ("UPDATE credit_state SET unapplied_minor = unapplied_minor + 1", "unapplied money and suspense are the sum"),
        ("UPDATE credit_payment SET amount_minor = amount_minor + 1", "payments are allocated or left"),
        ("UPDATE stats_state SET total_spent_minor = total_spent_minor + 1 WHERE customer = 1", "refolded from zero"),
        ("UPDATE customer SET head = head + 1 WHERE id = 1", "positions are not 1..head"),
        ("UPDATE customer_segment SET position = 0 WHERE customer = 1", "segment"),
        (
            "INSERT INTO held_group VALUES ('stats', 1, 1, 1, 1, '', '', 1)",
            "held",
        ),
        (
            "INSERT INTO quarantine (digest, body, code, reason, first_seen_us, last_seen_us) "
            "SELECT 'sound', CAST(payload AS BLOB), '', '', 1, 1 FROM event_payload LIMIT 1",
            "1 sound messages in quarantine",
        ),
        ("UPDATE quarantine SET body = CAST(body || ' ' AS BLOB)", "that nobody published"),
        *(
            (f"UPDATE event SET reference = reference || '?' WHERE type = '{t}'", "that nobody published")
            for t in _TYPES
        ),
        ("UPDATE customer SET customer_id = customer_id || '?' WHERE id = 1", "that nobody published"),
        ("UPDATE customer SET organization_id = 'elsewhere' WHERE id = 1", "that nobody published"),
    ],
)
def test_what_differs_from_the_model_is_found(finished: Finished, statement: str, what: str) -> None:
    finished.tamper(statement)
    assert what in " ".join(finished.verdict().wrong)


def test_a_hold_that_went_on_since_is_found(finished: Finished) -> None:
    """Nothing else tells of it: the customer is through."""
    assert finished.verdict().held == 0
    finished.tamper("INSERT INTO held_group VALUES ('stats', 1, 1, 1, 1, '', '', 1)")
    finished.tamper("UPDATE held_group SET attempts = 2", "DELETE FROM held_group")
    found = finished.verdict()
    assert (found.wrong, found.held) == ([], 2)


def test_the_table_adds_up_and_says_how_to_replay() -> None:
    rows = [Row("kill", "2 kills", 10, 0, 1, 0, 1.25), Row("cut", "9 cuts", 5, 2, 0, 3, 0.5)]
    lines = table(rows, 42)
    assert lines[2].split() == ["kill", "2", "kills", "10", "0", "1", "0", "1.2"]
    assert lines[4].split() == ["2", "faults", "15", "2", "1", "3", "1.2", "at", "most"]
    assert lines[-1] == "replay: SEED=42"
