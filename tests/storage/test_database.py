"""The two databases behind one interface: bulk statements, whose fault an error is, outages."""

import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from customer_actors.errors import DataFault, KeyTaken, Outage, UsageError
from customer_actors.storage.database import Database, columns
from customer_actors.storage.opening import open_database
from customer_actors.storage.postgresql import COPY_FROM_ROWS, PostgresDatabase
from customer_actors.storage.schema import migrate
from customer_actors.storage.sqlite import SqliteDatabase
from tests.model.examples import order
from tests.storage.support import Storage, stored_state

THREADS = 8
WRITES = 25
"""Per thread."""

THING = columns("thing", "a text, b bigint", "c text, d boolean")
THING_KEY = columns("thing", "a text, b bigint")
GROUP = columns("thing_group", "customer bigint", "position bigint")


@pytest.fixture
def things(database: Database) -> Iterator[Database]:
    database.execute("CREATE TABLE thing (a text, b bigint, c text, d boolean, PRIMARY KEY (a, b))")
    database.execute("CREATE TABLE thing_group (customer bigint PRIMARY KEY, position bigint, held_position bigint)")
    yield database
    database.execute("DROP TABLE thing")
    database.execute("DROP TABLE thing_group")


def all_things(database: Database) -> list[tuple[Any, ...]]:
    return database.query("SELECT a, b, c, d FROM thing ORDER BY a, b")


# --- bulk statements ------------------------------------------------------------------------------------------------


def test_bulk_statements_write_and_read_the_same_on_both(things: Database) -> None:
    with things.transaction():
        things.insert(THING, [("x", 1, None, True), ("x", 2, "two", None), ("y", 1, "'; DROP TABLE thing --", False)])
        assert things.insert_missing(THING_KEY, [("x", 1), ("x", 3), ("z", 1)]) == {("x", 3), ("z", 1)}
        things.update(THING, [("x", 1, "one", False), ("x", 3, None, None), ("no", 9, "nobody", True)])
        things.delete(THING_KEY, [("z", 1), ("no", 9)])
    expected = [
        ("x", 1, "one", False),
        ("x", 2, "two", None),
        ("x", 3, None, None),
        ("y", 1, "'; DROP TABLE thing --", False),
    ]
    assert all_things(things) == expected
    keys = [("x", 2), ("no", 1), ("y", 1)]
    assert sorted(things.select(THING, keys)) == [expected[1], expected[3]]
    with things.transaction():
        assert things.lock(THING, keys, "t.a, t.b") == [expected[1], expected[3]]
    each = "SELECT {a} AS a, count(*) AS n FROM thing WHERE a = {a} AND b <= {b}"
    assert sorted(things.for_each(THING_KEY, each, [("x", 2), ("y", 5), ("no", 1)])) == [("no", 0), ("x", 2), ("y", 1)]


@pytest.mark.parametrize("rows", [1, COPY_FROM_ROWS], ids=["array", "copy"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "NULL",
        "null",
        "\\N",
        "\\.",
        "{}",
        "{1,2}",
        '"',
        '""',
        '\\"',
        "a\\",
        ",",
        "\t",
        "a\nb",
        "\r\n",
        " x ",
        "%s",
        "?",
        "'",
        "é☃😀",
    ],
)
def test_any_text_comes_back_as_it_was_however_it_is_sent(things: Database, text: str, rows: int) -> None:
    sent = [(f"{text}{n}", n, text, None) for n in range(rows)]
    with things.transaction():
        things.insert(THING, sent)
        assert things.insert_missing(THING, [*sent[:1], (text, -1, text, True)]) == {(text, -1)}
        things.update(THING, [(text, -1, text + text, False)])
    assert sorted(things.select(THING, [row[:2] for row in sent])) == sorted(sent)
    assert things.select(THING, [(text, -1)]) == [(text, -1, text + text, False)]


def test_a_key_that_is_there_is_told_apart_from_other_refused_data(postgres_storage: Storage) -> None:
    postgres = postgres_storage.database
    postgres.execute("CREATE TEMPORARY TABLE taken (n bigint PRIMARY KEY CHECK (n > 0))")
    taken = columns("taken", "n bigint")
    postgres.execute("INSERT INTO taken VALUES (1)")
    with pytest.raises(KeyTaken) as caught, postgres.transaction():
        postgres.insert(taken, [(1,)])
    assert caught.value.constraint == "taken_pkey"
    with pytest.raises(DataFault) as other, postgres.transaction():
        postgres.insert(taken, [(-1,)])
    assert not isinstance(other.value, KeyTaken)


def test_nothing_to_do_is_no_statement(things: Database) -> None:
    things.insert(THING, [])
    things.update(THING, [])
    things.delete(THING_KEY, [])
    assert things.insert_missing(THING_KEY, []) == set()
    assert (
        things.select(THING, []) == things.lock(THING, [], "t.a") == things.for_each(THING_KEY, "SELECT {a}", []) == []
    )
    assert things.lock_groups(GROUP, [], "held_position IS NULL") == []


def test_groups_are_locked_in_number_order_without_those_the_condition_leaves_out(things: Database) -> None:
    for customer, held in [(3, None), (1, None), (2, 7)]:
        things.execute("INSERT INTO thing_group VALUES (?, 5, ?)", (customer, held))
    with things.transaction():
        assert things.lock_groups(GROUP, [1, 2, 3, 99], "held_position IS NULL") == [(1, 5), (3, 5)]


def test_locked_groups_are_left_out_by_others_and_not_waited_for(postgres_storage: Storage, migrated_url: str) -> None:
    postgres_storage.receive(order("1", "10"), order("2", "10", customer_id="c2"))
    numbers = sorted([postgres_storage.number(), postgres_storage.number("c2")])
    state, other = columns("stats_state", "customer bigint", "position bigint"), open_database(migrated_url)
    with postgres_storage.database.transaction():
        postgres_storage.database.lock_groups(state, numbers[:1], "held_position IS NULL")
        with other.transaction():
            assert other.lock_groups(state, numbers, "held_position IS NULL") == [(numbers[1], 0)]
        assert Storage(other).advance("stats", numbers).moved == {numbers[1]}
    assert Storage(other).advance("stats", numbers).moved == {numbers[0]}
    other.release()


# --- transactions and errors ----------------------------------------------------------------------------------------


def test_what_raises_inside_a_transaction_keeps_nothing_of_it(things: Database) -> None:
    def work() -> None:
        with things.transaction():
            things.insert(THING, [("x", 1, None, None)])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert all_things(things) == []


COPIED: Final = [("copied", n, None, None) for n in range(COPY_FROM_ROWS)]

DATA_FAULTS: dict[str, Callable[[Database], object]] = {
    "the same key": lambda database: database.insert(THING, [("x", 1, None, None), ("x", 1, None, None)]),
    "past 64 bits": lambda database: database.insert(THING, [("x", 2**63, None, None)]),
    "past 64 bits, alone": lambda database: database.execute("INSERT INTO thing VALUES ('x', ?, NULL, NULL)", (2**63,)),
    "no customer": lambda database: database.execute("INSERT INTO customer (organization_id) VALUES ('o')"),
    "a NUL": lambda database: database.insert(THING, [("x\x00", 1, None, None), ("x\x00", 1, None, None)]),
    "half a surrogate pair": lambda database: database.insert(THING, [("\ud800", 1, None, None)]),
    "the same key, of many": lambda database: database.insert(THING, [*COPIED, COPIED[0]]),
    "past 64 bits, of many": lambda database: database.insert(THING, [*COPIED, ("x", 2**63, None, None)]),
    "a NUL, of many": lambda database: database.insert(
        THING, [*COPIED, ("x\x00", 1, None, None), ("x\x00", 1, None, None)]
    ),
    "half a surrogate pair, of many": lambda database: database.insert(THING, [*COPIED, ("\ud800", 1, None, None)]),
}


@pytest.mark.parametrize("work", DATA_FAULTS.values(), ids=DATA_FAULTS.keys())
def test_what_the_data_is_guilty_of_is_a_data_fault(things: Database, work: Callable[[Database], object]) -> None:
    def both() -> None:
        with things.transaction():
            things.insert(THING, [("before", 1, None, None)])
            work(things)

    with pytest.raises(DataFault):
        both()
    assert all_things(things) == []


def test_errors_never_carry_key_values(things: Database) -> None:
    with pytest.raises(DataFault) as raised, things.transaction():
        things.insert(THING, [("secret", 4711, None, None)] * 2)
    assert "secret" not in str(raised.value)
    assert "4711" not in str(raised.value)
    assert raised.value.__cause__ is None
    assert raised.value.__suppress_context__


@pytest.mark.parametrize("nested", [True, False], ids=["a query inside a transaction", "a query"])
def test_a_statement_that_cannot_run_is_an_outage_and_the_next_one_runs(things: Database, nested: bool) -> None:
    def work() -> None:
        things.insert(THING, [("x", 1, None, None)])
        things.query("SELECT * FROM no_such_table")

    if nested:
        with pytest.raises(Outage), things.transaction():
            work()
    else:
        with pytest.raises(Outage):
            things.query("SELECT * FROM no_such_table")
    assert all_things(things) == []
    with things.transaction():
        things.insert(THING, [("x", 1, None, None)])
    assert len(all_things(things)) == 1


# --- addresses ------------------------------------------------------------------------------------------------------


def test_a_url_opens_the_database_it_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url, path in [
        ("sqlite:///relative.db", tmp_path / "relative.db"),
        (f"sqlite:///{tmp_path}/absolute.db", tmp_path / "absolute.db"),
        (f"sqlite:///{tmp_path}/with%20space.db", tmp_path / "with space.db"),
    ]:
        opened = open_database(url)
        assert isinstance(opened, SqliteDatabase)
        opened.execute("CREATE TABLE t (a)")
        opened.release()
        assert path.exists()
    for scheme in ("postgres", "postgresql"):
        assert isinstance(open_database(f"{scheme}://user@127.0.0.1:1/name"), PostgresDatabase)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "customers.db",
        "mysql://host/name",
        "sqlite://customers.db",
        "sqlite:///",
        "sqlite:////no/such/folder/customers.db",
        # What follows these signs is no part of the path, and must not be dropped in silence.
        "sqlite:///customers.db?mode=ro",
        "sqlite:///customers#2.db",
        "postgresql://user:secret%word@127.0.0.1:1/name",
        "postgresql://user:secret-word@127.0.0.1:1/name?no_such_option=secret",
    ],
)
def test_an_address_that_names_no_database_is_refused_with_the_variable_named(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="DATABASE_URL") as raised:
        open_database(url)
    assert "secret" not in str(raised.value)


def test_a_database_nobody_serves_is_an_outage() -> None:
    for work in (migrate, lambda database: database.query("SELECT 1")):
        with pytest.raises(Outage, match="PostgreSQL"):
            work(open_database("postgresql://postgres@127.0.0.1:1/none"))


# --- SQLite: one writer ---------------------------------------------------------------------------------------------


def test_threads_that_write_at_once_wait_for_each_other_and_never_for_the_busy_timeout(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/threads.db")
    migrate(database)
    errors: list[Exception] = []

    def write(thread: int) -> None:
        storage = Storage(database)
        database.execute("PRAGMA busy_timeout = 0")
        try:
            for number in range(WRITES):
                storage.receive(order(f"{thread}-{number}", "1"))
                storage.advance("stats")
        except Exception as error:
            errors.append(error)
        finally:
            database.release()

    threads = [threading.Thread(target=write, args=(thread,)) for thread in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    storage = Storage(database)
    assert stored_state(storage, "org-1", "c1")["stats"]["orders"] == THREADS * WRITES
    database.release()


def test_a_file_locked_by_another_process_is_an_outage_and_then_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "locked.db"
    storage = Storage(open_database(f"sqlite:///{path}"))
    migrate(storage.database)
    storage.database.execute("PRAGMA busy_timeout = 50")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Outage, match="locked"):
        storage.receive(order("1", "10"))
    other.rollback()
    other.close()
    assert storage.settle(order("1", "10")) == ["accepted"]
    storage.database.release()
