"""Changing what the database refuses to change, as a bug or an attacker with the owner's rights might."""

from collections.abc import Iterator
from contextlib import contextmanager

from customer_actors.storage.database import Database
from customer_actors.storage.postgresql import PostgresDatabase


@contextmanager
def tampering(database: Database) -> Iterator[None]:
    """One transaction without triggers; they stand again afterwards."""
    with database.transaction():
        if isinstance(database, PostgresDatabase):
            database.execute("SET LOCAL session_replication_role = replica")
            yield
            return
        triggers = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            database.execute(f"DROP TRIGGER {name}")
        yield
        for _, sql in triggers:
            database.execute(sql)


def tamper(database: Database, sql: str, *parameters: object) -> None:
    """Run one statement that way."""
    with tampering(database):
        database.execute(sql, parameters)
