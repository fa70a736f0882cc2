"""SQLite: the embedded database, one row per statement, `executemany` for many."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Final

import peewee

from customer_actors.storage.database import Columns, Database, Row

BUSY_S: Final = 10.0
"""How long to wait for another process's write."""
_LOOK_S: Final = 0.02


class _Engine(peewee.SqliteDatabase):
    """Waits at connecting too: of two processes that turn a new file to WAL at once, SQLite refuses one at once."""

    def connect(self, reuse_if_open: bool = False) -> bool:
        deadline = time.monotonic() + BUSY_S
        while True:
            try:
                return bool(super().connect(reuse_if_open))
            except peewee.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(_LOOK_S)


class SqliteDatabase(Database):
    """A file of its own: IMMEDIATE transactions, WAL, synchronous FULL, one writer per process at a time."""

    name = "SQLite"

    def __init__(self, path: str) -> None:
        super().__init__(
            _Engine(
                path,
                pragmas={
                    "journal_mode": "wal",
                    "synchronous": "full",
                    "busy_timeout": int(BUSY_S * 1_000),
                    "cache_size": -32_000,
                },
            )
        )
        # The busy timeout serves other processes only: threads that poll for the write lock starve each other.
        self._writer = threading.RLock()

    def require_durable(self) -> None:
        """Nothing to ask: every connection of ours is made with synchronous FULL."""

    @contextmanager
    def _begin(self) -> Iterator[None]:
        with self._writer, self.engine.atomic("IMMEDIATE"):
            yield

    def _usable(self, connection: Any) -> bool:
        return not connection.in_transaction

    def insert(self, into: Columns, rows: Sequence[Row]) -> None:
        if rows:
            self._connection().executemany(_insert(into), rows)

    def insert_missing(self, into: Columns, rows: Sequence[Row]) -> set[Row]:
        cursor, sql, width = self._connection().cursor(), _insert(into) + " ON CONFLICT DO NOTHING", len(into.key)
        return {row[:width] for row in rows if cursor.execute(sql, row).rowcount}

    def update(self, of: Columns, rows: Sequence[Row]) -> None:
        if rows:
            width = len(of.key)
            self._connection().executemany(_update(of), [(*row[width:], *row[:width]) for row in rows])

    def delete(self, of: Columns, rows: Sequence[Row]) -> None:
        if rows:
            self._connection().executemany(f"DELETE FROM {of.table} WHERE {_key(of)}", rows)

    def lock(self, of: Columns, keys: Sequence[Row], order: str) -> list[Row]:
        return self.select(of, keys)  # the IMMEDIATE transaction already holds the only write lock

    def lock_groups(self, of: Columns, groups: Sequence[int], condition: str) -> list[Row]:
        return self._read(f"{_select(of)} AND {condition}", [(group,) for group in groups])

    def select(self, of: Columns, keys: Sequence[Row]) -> list[Row]:
        return self._read(_select(of), keys)

    def for_each(self, over: Columns, sql: str, rows: Sequence[Row]) -> list[Row]:
        numbered = {name: f"?{number}" for number, (name, _) in enumerate(over.key, 1)}
        return self._read(sql.format(**numbered), rows)

    def _read(self, sql: str, keys: Sequence[Row]) -> list[Row]:
        cursor = self._connection().cursor()
        return [row for key in keys for row in cursor.execute(sql, key)]


@cache
def _insert(into: Columns) -> str:
    return f"INSERT INTO {into.table} ({', '.join(into.names)}) VALUES ({', '.join('?' * len(into.names))})"


@cache
def _update(of: Columns) -> str:
    return f"UPDATE {of.table} SET {', '.join(f'{name} = ?' for name, _ in of.values)} WHERE {_key(of)}"


@cache
def _select(of: Columns) -> str:
    return f"SELECT {', '.join(of.names)} FROM {of.table} WHERE {_key(of)}"


@cache
def _key(of: Columns) -> str:
    return " AND ".join(f"{name} = ?" for name, _ in of.key)
