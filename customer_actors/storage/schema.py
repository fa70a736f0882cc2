"""Migrations: forward only, one runner at a time, shipped with the package."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from playhouse.migrations import Runner

from customer_actors.errors import UsageError
from customer_actors.storage.database import Database, sorted_errors
from customer_actors.storage.postgresql import PostgresDatabase

MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 7_203_114_015  # any number, the same in every version: the advisory lock that serializes migrations


def migrate(database: Database) -> list[str]:
    """Apply every pending migration and return their names (none when the schema is current).

    Raises:
        UsageError: the installation ships no migrations.
        Outage: the database is away.
    """
    runner = _runner(database)
    with sorted_errors(database), _one_at_a_time(database):
        return list(runner.up())


def pending(database: Database) -> list[str]:
    """Names of the migrations this version needs and the database lacks."""
    runner = _runner(database)
    with sorted_errors(database):
        applied = runner.applied()
    return [migration.name for migration in runner.migrations() if migration.name not in applied]


def require_current(database: Database) -> None:
    """Refuse to work on a schema this version does not know.

    Raises:
        UsageError: the schema is older or newer than this version; the text names the command.
    """
    runner = _runner(database)
    with sorted_errors(database):
        applied = set(runner.applied())
    known = {migration.name for migration in runner.migrations()}
    if known - applied:
        raise UsageError(
            f"the database schema is old (missing {', '.join(sorted(known - applied))}): run `customer-actors migrate`"
        )
    if applied - known:
        raise UsageError("the database schema is newer than this version: install the version that made it")


def _runner(database: Database) -> Runner:
    runner = Runner(database.engine, directory=str(MIGRATIONS))
    if not runner.migrations():
        raise UsageError("no migrations found beside the package: the installation is damaged, install it again")
    return runner


@contextmanager
def _one_at_a_time(database: Database) -> Iterator[None]:
    if not isinstance(database, PostgresDatabase):
        # SQLite: the whole run is one transaction behind the file's write lock.
        with database.transaction():
            yield
        return
    database.execute("SELECT pg_advisory_lock(?)", (_LOCK,))
    try:
        yield
    finally:
        database.execute("SELECT pg_advisory_unlock(?)", (_LOCK,))
