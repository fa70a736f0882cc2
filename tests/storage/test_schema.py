"""Migrations: one runner at a time, all or nothing, and no work on a schema this version does not know."""

import multiprocessing
from collections.abc import Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from customer_actors.errors import Outage, UsageError
from customer_actors.storage import schema
from customer_actors.storage.database import Database
from customer_actors.storage.opening import open_database
from customer_actors.storage.schema import migrate, pending, require_current
from tests.model.examples import order
from tests.storage.support import Storage, dump

RUNNERS = 4
SHIPPED = sorted(path.stem for path in schema.MIGRATIONS.glob("[0-9]*.py"))

spawn = multiprocessing.get_context("spawn")
_at_once: list[Barrier] = []
"""Of this process; a barrier can only be handed over when a process starts."""


def meet_at(barrier: Barrier) -> None:
    _at_once.append(barrier)


def migrate_at_once(url: str) -> list[str]:
    """Migrate at the moment the other processes do."""
    database = open_database(url)
    _at_once[0].wait(30)
    applied = migrate(database)
    require_current(database)
    database.release()
    return applied


@pytest.fixture
def empty(database_url: str) -> Iterator[Database]:
    opened = open_database(database_url)
    yield opened
    opened.release()


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of migrations to add to and take from, as another version might ship it."""
    folder = tmp_path / "migrations"
    folder.mkdir()
    for path in schema.MIGRATIONS.glob("[0-9]*.py"):
        (folder / path.name).write_text(path.read_text())
    monkeypatch.setattr(schema, "MIGRATIONS", folder)
    return folder


def tables(database: Database) -> set[str]:
    return set(database.engine.get_tables())


def test_concurrent_runs_all_succeed_and_exactly_one_applies(database_url: str) -> None:
    with spawn.Pool(RUNNERS, meet_at, (spawn.Barrier(RUNNERS),)) as pool:
        applied = pool.map_async(migrate_at_once, [database_url] * RUNNERS, chunksize=1).get(60)
    assert sorted(applied) == [[]] * (RUNNERS - 1) + [SHIPPED]


def test_a_second_run_applies_nothing_and_changes_nothing(empty: Database) -> None:
    assert pending(empty) == SHIPPED
    assert migrate(empty) == SHIPPED
    Storage(empty).settle(order("1", "10"))
    before = dump(empty)
    assert (pending(empty), migrate(empty)) == ([], [])
    assert dump(empty) == before


def test_an_empty_database_is_refused_with_the_command_named(empty: Database) -> None:
    with pytest.raises(UsageError, match=r"old.*0001_streams.*customer-actors migrate"):
        require_current(empty)
    assert tables(empty) == set()


def test_an_old_schema_is_refused_until_it_is_migrated(empty: Database, shipped: Path) -> None:
    migrate(empty)
    (shipped / "9001_more.py").write_text(
        "def up(migrator, db):\n    db.execute_sql('CREATE TABLE more (a integer)')\n"
    )
    with pytest.raises(UsageError, match=r"old.*9001_more.*customer-actors migrate"):
        require_current(empty)
    assert pending(empty) == ["9001_more"]
    assert migrate(empty) == ["9001_more"]
    require_current(empty)
    assert "more" in tables(empty)


def test_a_newer_schema_is_refused(empty: Database, shipped: Path) -> None:
    (shipped / "9001_more.py").write_text("def up(migrator, db):\n    pass\n")
    migrate(empty)
    (shipped / "9001_more.py").unlink()
    with pytest.raises(UsageError, match="newer than this version"):
        require_current(empty)


def test_an_installation_without_migrations_says_so_and_is_not_taken_for_current(
    empty: Database, shipped: Path
) -> None:
    for path in shipped.iterdir():
        path.unlink()
    for work in (migrate, pending, require_current):
        with pytest.raises(UsageError, match="no migrations found"):
            work(empty)


def test_a_migration_that_fails_leaves_nothing_of_itself_and_no_lock_behind(
    empty: Database, shipped: Path, database_url: str
) -> None:
    migrate(empty)
    broken = shipped / "9001_broken.py"
    broken.write_text(
        "def up(migrator, db):\n"
        "    db.execute_sql('CREATE TABLE half (a integer)')\n"
        "    db.execute_sql('no SQL at all')\n"
    )
    before = tables(empty)
    with pytest.raises(Outage):
        migrate(empty)
    assert tables(empty) == before
    assert pending(empty) == ["9001_broken"]
    broken.write_text("def up(migrator, db):\n    db.execute_sql('CREATE TABLE half (a integer)')\n")
    other = open_database(database_url)
    assert migrate(other) == ["9001_broken"]
    other.release()
    assert tables(empty) == before | {"half"}
