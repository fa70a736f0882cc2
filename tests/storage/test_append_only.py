"""Events, ledgers and what operators did stay as they were written, whoever asks [G21]."""

import pytest

from customer_actors.domain.events import Outcome
from customer_actors.errors import DataFault
from tests.model.examples import cancellation, opened, order, payment
from tests.storage.support import Storage, dump
from tests.tampering import tamper

KEPT = (
    "event",
    "event_payload",
    "loyalty_entry",
    "credit_allocation",
    "operator_action",
    "rules",
    "rfm_cuts",
    "credit_drift",
    "credit_ageing",
)
CHANGING = {"credit_usage": {"outstanding_minor", "cancelled_position"}, "credit_payment": {"unapplied_minor"}}


@pytest.fixture
def full(storage: Storage) -> Storage:
    """At least one row in every table that keeps what happened."""
    done = storage.settle(order("1", "10", on_credit=True), order("2", "20"), opened("100"), payment("p", "15"))
    done += storage.settle(cancellation("2"))
    assert set(done) == {Outcome.ACCEPTED}
    with storage.database.transaction():
        storage.database.execute(
            "INSERT INTO operator_action (at_us, operator, action, reason) VALUES (1, 'someone', 'release', 'fixed')"
        )
        storage.database.execute(
            "INSERT INTO rfm_cuts (organization_id, as_of, calculated_at_us) VALUES ('org-1', '2024-06-11', 0)"
        )
        customer = storage.number()
        storage.database.execute(
            "INSERT INTO credit_drift "
            "(job, slot, organization_id, customer, field, stored, expected, repaired, found_us) "
            "VALUES ('credit', '2024-06-11T03:45', 'org-1', ?, 'used', 1, 2, ?, 0)",
            (customer, False),
        )
        storage.database.execute(
            "INSERT INTO credit_ageing (job, slot, organization_id, customer, action) "
            "VALUES ('credit', '2024-06-11T03:45', 'org-1', ?, 'suspend')",
            (customer,),
        )
    for table in (*KEPT, *CHANGING):
        assert storage.value(f"SELECT count(*) FROM {table}"), f"no row to try it on in {table}"
    return storage


def refused(storage: Storage, sql: str) -> None:
    before = dump(storage.database)
    with pytest.raises(DataFault), storage.database.transaction():
        storage.database.execute(sql)
    assert dump(storage.database) == before, sql


def columns_of(storage: Storage, table: str) -> list[str]:
    return [column.name for column in storage.database.engine.get_columns(table)]


@pytest.mark.parametrize("table", KEPT)
def test_no_column_of_a_kept_row_can_be_changed(full: Storage, table: str) -> None:
    for column in columns_of(full, table):
        if column not in ("number", "id"):  # PostgreSQL numbers these itself and refuses for that
            refused(full, f"UPDATE {table} SET {column} = {column}")


@pytest.mark.parametrize("table", CHANGING)
def test_of_usages_and_payments_only_what_is_open_can_be_changed(full: Storage, table: str) -> None:
    for column in columns_of(full, table):
        if column not in CHANGING[table]:
            refused(full, f"UPDATE {table} SET {column} = {column}")
            refused(full, f"UPDATE {table} SET {min(CHANGING[table])} = 0, {column} = {column}")
    for column in CHANGING[table]:
        full.database.execute(f"UPDATE {table} SET {column} = {column}")


@pytest.mark.parametrize("table", [*KEPT, *CHANGING])
def test_no_kept_row_can_be_deleted(full: Storage, table: str) -> None:
    refused(full, f"DELETE FROM {table}")


def test_nothing_kept_can_be_truncated(postgres_storage: Storage) -> None:
    for table in (*KEPT, *CHANGING):
        refused(postgres_storage, f"TRUNCATE {table}")


def test_an_insert_that_updates_on_conflict_is_refused_too(full: Storage) -> None:
    refused(
        full,
        "INSERT INTO rules (content, created_at_us) SELECT content, 7 FROM rules WHERE true "
        "ON CONFLICT (content) DO UPDATE SET created_at_us = 7",
    )


def test_the_refusal_says_why(full: Storage) -> None:
    driver_error = r"event keeps what happened: its rows are never changed or deleted"
    with pytest.raises(Exception, match=driver_error):
        full.database.execute("DELETE FROM event")
    full.database.engine.close()


def test_inserting_runs_no_trigger(full: Storage) -> None:
    if full.database.name == "SQLite":
        sql = "SELECT count(*) FROM sqlite_master WHERE type = 'trigger' AND sql LIKE '%BEFORE INSERT%'"
    else:
        sql = "SELECT count(*) FROM information_schema.triggers WHERE event_manipulation = 'INSERT'"
    assert full.value(sql) == 0


def test_tests_that_tamper_leave_the_triggers_standing(full: Storage) -> None:
    tamper(full.database, "UPDATE event SET amount_minor = 1 WHERE position = 1")
    assert full.value("SELECT amount_minor FROM event WHERE position = 1") == 1
    refused(full, "UPDATE event SET amount_minor = 2")
