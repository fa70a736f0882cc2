"""What the two databases have in common: transactions, bulk writes, and errors sorted into whose fault they are.

peewee owns connections (one per thread), schema and every query that is not hot. Hot statements are constant SQL with
bulk parameters; `sqlite` and `postgresql` run them each in its own way.
"""

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import peewee
import psycopg2
from psycopg2.errors import InsufficientPrivilege, UniqueViolation

from customer_actors.errors import DataFault, KeyTaken, Outage, UsageError

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
            UsageError: the file is no SQLite database, or may not be written.
        """
        with sorted_errors(self), self._begin():
            yield

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Errors sorted as in `transaction`, for reads that need no common snapshot and take no lock."""
        with sorted_errors(self):
            yield

    @abstractmethod
    def require_durable(self) -> None:
        """Refuse a server that could forget what it committed; warn of one that does so when its host crashes.

        Raises:
            UsageError: it could; the text names the statement that puts it right. Outage: it is away.
        """

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

    @contextmanager
    def scope(self) -> Iterator[None]:
        """One message's use of this thread's connection.

        A connection that the server closed meanwhile, or that was left in a transaction, is dropped at both ends, so
        that it costs no message. No statement is sent for it.
        """
        self._drop_unusable()
        try:
            yield
        finally:
            self._drop_unusable()

    def _drop_unusable(self) -> None:
        if self.engine.is_closed() or (not self.engine.in_transaction() and self._usable(self.engine.connection())):
            return
        while self.engine.in_transaction():
            self.engine.pop_transaction()
        self.release()

    @abstractmethod
    def _usable(self, connection: Any) -> bool:
        """Whether an idle connection is open and in no transaction, as far as this side knows."""

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
        cause = _cause(error)
        if isinstance(cause, UniqueViolation):
            raise KeyTaken("the database has this key already", cause.diag.constraint_name) from None
        if _data_fault(cause):
            raise DataFault(f"the database refused the data ({type(cause).__name__})") from None
        database.release()
        if isinstance(cause, sqlite3.DatabaseError) and _hopeless(str(cause)):
            raise UsageError(
                f"the SQLite file cannot be used ({cause}): check DATABASE_URL and the permissions"
            ) from None
        raise Outage(f"{database.name}: {_first_line(cause)}") from None
    except ValueError as error:
        # psycopg2 refuses a NUL, and both drivers half a surrogate pair, before the database sees them.
        if not isinstance(error, UnicodeEncodeError) and "NUL" not in str(error):
            raise
        raise DataFault(f"the database refused the data ({type(error).__name__})") from None
    except Outage:  # of a statement inside this transaction
        database.release()
        raise


def _cause(error: BaseException) -> BaseException:
    """The driver's error, which peewee keeps inside its own, or inside its own around that."""
    inner = getattr(error, "orig", None) if isinstance(error, peewee.PeeweeException) else None
    return error if inner is None else _cause(inner)


def _data_fault(error: BaseException) -> bool:
    if isinstance(error, psycopg2.Error):
        return (error.pgcode or "")[:2] in ("22", "23")
    # sqlite3.DataError and IntegrityError, and Python integers past 64 bits
    return isinstance(error, sqlite3.IntegrityError | sqlite3.DataError | OverflowError | peewee.IntegrityError)


def _hopeless(text: str) -> bool:
    """What trying again does not heal; everything else (locked, full, an I/O error) may pass."""
    return any(words in text for words in ("not a database", "readonly", "malformed", "unable to open"))


def _first_line(error: BaseException) -> str:
    """The driver's primary message alone: DETAIL and CONTEXT lines may hold key values."""
    primary = getattr(getattr(error, "diag", None), "message_primary", None) or str(error).split("\n", 1)[0]
    fix = "; its rights are in deploy/postgresql/roles.sql" if isinstance(error, InsufficientPrivilege) else ""
    return f"{type(error).__name__}: {primary}{fix}"
