"""The two databases behind one small interface: transactions, bulk writes, and errors sorted into whose fault they are.

peewee owns connections (one per thread), schema and every query that is not hot. Hot statements are constant SQL with
bulk parameters: one statement per step and batch on PostgreSQL (`unnest`), `executemany` on SQLite.
"""

import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import peewee
import psycopg2

from customer_actors.errors import DataFault, Outage, UsageError

Row = tuple[Any, ...]


class Columns(NamedTuple):
    """A table and the columns a bulk statement writes: `key` finds the row, `values` are written."""

    table: str
    key: tuple[tuple[str, str], ...]
    values: tuple[tuple[str, str], ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.key + self.values)


def columns(table: str, key: str, values: str = "") -> Columns:
    """`Columns` from text such as "customer bigint, position bigint"; the types are PostgreSQL's alone."""

    def parse(text: str) -> tuple[tuple[str, str], ...]:
        pairs = (part.split() for part in text.split(",") if part.strip())
        return tuple((name, type_) for name, type_ in pairs)

    return Columns(table, parse(key), parse(values))


class Database(ABC):
    """One database. Use `transaction()` around every write; everything else runs inside it or autocommits."""

    name: str

    def __init__(self, engine: peewee.Database) -> None:
        self.engine = engine

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Commit on leaving, roll back on an exception.

        Raises:
            Outage: the database is away, busy, or gave up this transaction; nothing of it is kept.
            DataFault: the database refused the data itself; nothing of it is kept.
        """
        with sorted_errors(self), self._begin():
            yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Errors sorted as in `transaction`, for reads that need no common snapshot and take no lock."""
        with sorted_errors(self):
            yield

    @abstractmethod
    def _begin(self) -> Any: ...

    def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
        """Run one statement written with `?` marks and return its cursor."""
        cursor = self._connection().cursor()
        cursor.execute(self._marked(sql), parameters)
        return cursor

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[Row]:
        """All rows of one statement, with errors sorted."""
        with self.reading():
            rows: list[Row] = self.execute(sql, parameters).fetchall()
            return rows

    def _connection(self) -> Any:
        if self.engine.is_closed():
            self.engine.connect()
        return self.engine.connection()

    def _marked(self, sql: str) -> str:
        return sql

    def release(self) -> None:
        """Close this thread's connection, so that the next use makes a new one (a broken one never heals)."""
        if not self.engine.in_transaction():  # else whoever began it does this on the way out
            with suppress(peewee.PeeweeException, psycopg2.Error, sqlite3.Error):  # dropped even if it cannot be closed
                self.engine.close()

    @abstractmethod
    def insert(self, into: Columns, rows: Sequence[Row]) -> None:
        """Insert rows of `into.names`; a conflict is an error."""

    @abstractmethod
    def insert_missing(self, into: Columns, rows: Sequence[Row]) -> set[Row]:
        """Insert the rows whose key is new and return the keys inserted. Rows must be sorted by key."""

    @abstractmethod
    def update(self, of: Columns, rows: Sequence[Row]) -> None:
        """Set `of.values` of the rows found by `of.key`."""

    @abstractmethod
    def delete(self, of: Columns, rows: Sequence[Row]) -> None:
        """Delete the rows found by `of.key`."""

    @abstractmethod
    def lock(self, of: Columns, keys: Sequence[Row], order: str) -> list[Row]:
        """Read `of.names` of the rows with these keys, locked until the end of the transaction, waiting for others."""

    @abstractmethod
    def lock_groups(self, of: Columns, groups: Sequence[int], condition: str) -> list[Row]:
        """As `lock` for rows keyed by customer, in number order, but leaving out rows that others hold right now."""

    @abstractmethod
    def select(self, of: Columns, keys: Sequence[Row]) -> list[Row]:
        """Read `of.names` of the rows with these keys, not locked."""

    @abstractmethod
    def for_each(self, over: Columns, sql: str, rows: Sequence[Row]) -> list[Row]:
        """The result of `sql` for each row, in any order; `{name}` in it stands for the row's value of that key."""


@contextmanager
def sorted_errors(database: Database) -> Iterator[None]:
    """Translate driver errors; an outage also drops this thread's connection. Messages never carry key values."""
    try:
        yield
    except (peewee.PeeweeException, psycopg2.Error, sqlite3.Error, OverflowError) as error:
        cause: BaseException = (
            error.__cause__ if isinstance(error, peewee.PeeweeException) and error.__cause__ else error
        )
        if _data_fault(cause):
            raise DataFault(f"the database refused the data ({type(cause).__name__})") from None
        database.release()
        raise Outage(f"{database.name}: {_first_line(cause)}") from None
    except Outage:  # of a statement inside this transaction
        database.release()
        raise


def _data_fault(error: BaseException) -> bool:
    if isinstance(error, psycopg2.Error):
        return (error.pgcode or "")[:2] in ("22", "23")
    # sqlite3.DataError and IntegrityError, and Python integers past 64 bits
    return isinstance(error, sqlite3.IntegrityError | sqlite3.DataError | OverflowError | peewee.IntegrityError)


def _first_line(error: BaseException) -> str:
    """The driver's primary message alone: DETAIL and CONTEXT lines may hold key values."""
    primary = getattr(getattr(error, "diag", None), "message_primary", None) or str(error).split("\n", 1)[0]
    return f"{type(error).__name__}: {primary}"


def _names(pairs: Sequence[tuple[str, str]], prefix: str = "") -> str:
    return ", ".join(prefix + name for name, _ in pairs)


def _same(pairs: Sequence[tuple[str, str]], left: str, right: str) -> str:
    return " AND ".join(f"{left}.{name} = {right}.{name}" for name, _ in pairs)


class SqliteDatabase(Database):
    """A file of its own: IMMEDIATE transactions, WAL, synchronous FULL, one writer per process at a time."""

    name = "SQLite"

    def __init__(self, path: str) -> None:
        super().__init__(
            peewee.SqliteDatabase(
                path,
                pragmas={"journal_mode": "wal", "synchronous": "full", "busy_timeout": 10_000, "cache_size": -32_000},
            )
        )
        # The busy timeout serves other processes only: threads that poll for the write lock starve each other.
        self._writer = threading.RLock()

    @contextmanager
    def _begin(self) -> Iterator[None]:
        with self._writer, self.engine.atomic("IMMEDIATE"):
            yield

    def insert(self, into: Columns, rows: Sequence[Row]) -> None:
        if rows:
            self._connection().executemany(_sqlite_insert(into), rows)

    def insert_missing(self, into: Columns, rows: Sequence[Row]) -> set[Row]:
        connection, sql, width = self._connection(), _sqlite_insert(into) + " ON CONFLICT DO NOTHING", len(into.key)
        return {row[:width] for row in rows if connection.execute(sql, row).rowcount}

    def update(self, of: Columns, rows: Sequence[Row]) -> None:
        if rows:
            width = len(of.key)
            self._connection().executemany(_sqlite_update(of), [(*row[width:], *row[:width]) for row in rows])

    def delete(self, of: Columns, rows: Sequence[Row]) -> None:
        if rows:
            self._connection().executemany(f"DELETE FROM {of.table} WHERE {_sqlite_key(of)}", rows)

    def lock(self, of: Columns, keys: Sequence[Row], order: str) -> list[Row]:
        return self.select(of, keys)  # the IMMEDIATE transaction already holds the only write lock

    def lock_groups(self, of: Columns, groups: Sequence[int], condition: str) -> list[Row]:
        return self._read(f"{_sqlite_select(of)} AND {condition}", [(group,) for group in groups])

    def select(self, of: Columns, keys: Sequence[Row]) -> list[Row]:
        return self._read(_sqlite_select(of), keys)

    def for_each(self, over: Columns, sql: str, rows: Sequence[Row]) -> list[Row]:
        return self._read(*_sqlite_for_each(over, sql, rows))

    def _read(self, sql: str, keys: Sequence[Any]) -> list[Row]:
        connection = self._connection()
        return [row for key in keys for row in connection.execute(sql, key)]


def _sqlite_for_each(over: Columns, sql: str, rows: Sequence[Row]) -> tuple[str, list[dict[str, Any]]]:
    names = [name for name, _ in over.key]
    return sql.format(**{name: f":{name}" for name in names}), [dict(zip(names, row, strict=True)) for row in rows]


@cache
def _sqlite_insert(into: Columns) -> str:
    return f"INSERT INTO {into.table} ({', '.join(into.names)}) VALUES ({', '.join('?' * len(into.names))})"


@cache
def _sqlite_update(of: Columns) -> str:
    return f"UPDATE {of.table} SET {', '.join(f'{name} = ?' for name, _ in of.values)} WHERE {_sqlite_key(of)}"


@cache
def _sqlite_select(of: Columns) -> str:
    return f"SELECT {', '.join(of.names)} FROM {of.table} WHERE {_sqlite_key(of)}"


@cache
def _sqlite_key(of: Columns) -> str:
    return " AND ".join(f"{name} = ?" for name, _ in of.key)


class PostgresDatabase(Database):
    """READ COMMITTED transactions; every bulk step is one statement over arrays."""

    name = "PostgreSQL"

    def __init__(self, url: str) -> None:
        options = (
            "-c statement_timeout=60000 -c lock_timeout=20000 -c idle_in_transaction_session_timeout=60000 "
            "-c default_transaction_isolation=read\\ committed"
        )
        super().__init__(
            peewee.PostgresqlDatabase(
                url, options=options, connect_timeout=5, application_name="customer_actors", keepalives_idle=10
            )
        )

    def _begin(self) -> Any:
        return self.engine.atomic()

    def _marked(self, sql: str) -> str:
        return _postgres_marks(sql)

    def insert(self, into: Columns, rows: Sequence[Row]) -> None:
        if rows:
            self._run(_postgres_insert(into), rows)

    def insert_missing(self, into: Columns, rows: Sequence[Row]) -> set[Row]:
        if not rows:
            return set()
        sql = f"{_postgres_insert(into)} ON CONFLICT DO NOTHING RETURNING {_names(into.key)}"
        return set(self._run(sql, rows).fetchall())

    def update(self, of: Columns, rows: Sequence[Row]) -> None:
        if rows:
            self._run(_postgres_update(of), rows)

    def delete(self, of: Columns, rows: Sequence[Row]) -> None:
        if rows:
            self._run(f"DELETE FROM {of.table} t USING {_unnest(of.key)} WHERE {_same(of.key, 't', 'v')}", rows)

    def lock(self, of: Columns, keys: Sequence[Row], order: str) -> list[Row]:
        return self._read(of, keys, f"ORDER BY {order} FOR UPDATE OF t")

    def lock_groups(self, of: Columns, groups: Sequence[int], condition: str) -> list[Row]:
        sql = (
            f"SELECT {', '.join(of.names)} FROM {of.table} WHERE {of.key[0][0]} = ANY(%s::bigint[]) AND {condition} "
            f"ORDER BY {of.key[0][0]} FOR UPDATE SKIP LOCKED"
        )
        rows: list[Row] = self.execute(sql, (list(groups),)).fetchall()
        return rows

    def select(self, of: Columns, keys: Sequence[Row]) -> list[Row]:
        return self._read(of, keys, "")

    def for_each(self, over: Columns, sql: str, rows: Sequence[Row]) -> list[Row]:
        if not rows:
            return []
        each = sql.format(**{name: f"v.{name}" for name, _ in over.key})
        found: list[Row] = self._run(
            f"SELECT r.* FROM {_unnest(over.key)} CROSS JOIN LATERAL ({each}) r", rows
        ).fetchall()
        return found

    def _read(self, of: Columns, keys: Sequence[Row], tail: str) -> list[Row]:
        if not keys:
            return []
        wanted = ", ".join(f"t.{name}" for name in of.names)
        sql = f"SELECT {wanted} FROM {of.table} t JOIN {_unnest(of.key)} ON {_same(of.key, 't', 'v')} {tail}"
        rows: list[Row] = self._run(sql, keys).fetchall()
        return rows

    def _run(self, sql: str, rows: Sequence[Row]) -> Any:
        cursor = self._connection().cursor()
        cursor.execute(sql, [list(column) for column in zip(*rows, strict=True)])
        return cursor


@cache
def _postgres_marks(sql: str) -> str:
    return sql.replace("?", "%s")


def _unnest(pairs: Sequence[tuple[str, str]]) -> str:
    return f"unnest({', '.join(f'%s::{type_}[]' for _, type_ in pairs)}) AS v({_names(pairs)})"


@cache
def _postgres_insert(into: Columns) -> str:
    return f"INSERT INTO {into.table} ({', '.join(into.names)}) SELECT * FROM {_unnest(into.key + into.values)}"


@cache
def _postgres_update(of: Columns) -> str:
    setting = ", ".join(f"{name} = v.{name}" for name, _ in of.values)
    return f"UPDATE {of.table} t SET {setting} FROM {_unnest(of.key + of.values)} WHERE {_same(of.key, 't', 'v')}"


def open_database(url: str) -> Database:
    """Open the database of a DATABASE_URL: sqlite:///FILE or postgresql://USER@HOST/NAME. Connects on first use.

    Raises:
        UsageError: the URL names no supported database.
    """
    parts = urlsplit(url)
    if parts.scheme in ("postgres", "postgresql"):
        return PostgresDatabase(url)
    if parts.scheme == "sqlite" and not parts.netloc:
        path = unquote(parts.path[1:])
        if not path:
            raise UsageError("DATABASE_URL names no file; write for example sqlite:///customer_actors.db")
        folder = Path(path).expanduser().parent
        if not folder.is_dir():
            raise UsageError(f"DATABASE_URL: folder {folder} does not exist; create it or name another file")
        return SqliteDatabase(str(Path(path).expanduser()))
    raise UsageError("DATABASE_URL must start with postgresql:// or sqlite:///")
