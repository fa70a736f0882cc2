"""What the fold of a long stream keeps, in a temporary file: memory stays the same however long the stream is.

It is a private SQLite database that nothing else sees and that is gone with the process. It takes about 200 bytes per
credit usage with its payment, where TMPDIR says.
"""

import pickle
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Final, Generic, TypeVar

from customer_actors.domain.credit_book import Facts, Payment, Usage
from customer_actors.domain.scratch import IN_MEMORY, Numbers, Scratch

_CACHE_KIB: Final = 8_192

Item = TypeVar("Item")
Row = TypeVar("Row", bound=Usage | Payment)


def scratch_for(events: int, most: int) -> Scratch:
    """Memory for a stream of at most so many events, a file for a longer one.

    Whatever uses what the file's scratch made can raise OSError: the folder of temporary files is full.
    """
    return IN_MEMORY if events <= most else FileScratch()


class FileScratch(Scratch):
    """One temporary file, closed with the last that was made of it."""

    def __init__(self) -> None:
        self._file = _File()
        self._tables = count()

    def numbers(self) -> Numbers:
        return _FileNumbers(self._file, f"number_{next(self._tables)}")

    def credit_facts(self) -> Facts:
        return _FileFacts(self._file)


class _File:
    """A full disk is the machine's fault, never that of the event being folded: OSError."""

    def __init__(self) -> None:
        # No name: SQLite makes the file once its cache is full, and removes it.
        self._connection = sqlite3.connect("", isolation_level=None)
        for setting in (f"cache_size = -{_CACHE_KIB}", "journal_mode = OFF", "synchronous = OFF"):
            self.rows(f"PRAGMA {setting}")
        self.rows("BEGIN")

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[Any]:
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise _full(error) from None

    def walk(self, sql: str) -> Iterator[Any]:
        """Row by row; whoever walks may stop early."""
        try:
            yield from self._connection.execute(sql)
        except sqlite3.DatabaseError as error:
            raise _full(error) from None


def _full(error: sqlite3.DatabaseError) -> OSError:
    return OSError(f"no temporary file ({error}): make room, or name another folder in TMPDIR")


class Spool(Generic[Item]):
    """Items that can be pickled, read in their order once all are there; on disk when they are many."""

    def __init__(self) -> None:
        self._file = _File()
        self._file.rows("CREATE TABLE item (first INTEGER, second INTEGER, body BLOB)")

    def add(self, order: tuple[int, int], item: Item) -> None:
        """Add an item; those of the same order stay as they came."""
        self._file.rows("INSERT INTO item VALUES (?, ?, ?)", (*order, pickle.dumps(item)))

    def __iter__(self) -> Iterator[Item]:
        return map(pickle.loads, _only(self._file.walk("SELECT body FROM item ORDER BY first, second, rowid")))


class _FileNumbers(Numbers):
    def __init__(self, file: _File, table: str) -> None:
        self._file, self._table = file, table
        file.rows(f"CREATE TABLE {table} (position INTEGER PRIMARY KEY, value INTEGER NOT NULL)")

    def __getitem__(self, position: int) -> int:
        for (value,) in self._file.rows(f"SELECT value FROM {self._table} WHERE position = ?", (position,)):
            return int(value)
        raise KeyError(position)

    def __setitem__(self, position: int, value: int) -> None:
        self._file.rows(f"INSERT OR REPLACE INTO {self._table} VALUES (?, ?)", (position, value))

    def __delitem__(self, position: int) -> None:
        if not self._file.rows(f"DELETE FROM {self._table} WHERE position = ? RETURNING 1", (position,)):
            raise KeyError(position)

    def __iter__(self) -> Iterator[int]:
        return _only(self._file.walk(f"SELECT position FROM {self._table} ORDER BY position"))

    def __len__(self) -> int:
        ((number,),) = self._file.rows(f"SELECT count(*) FROM {self._table}")
        return int(number)

    def bounds(self) -> tuple[int, int] | tuple[None, None]:
        ((least, greatest),) = self._file.rows(f"SELECT min(value), max(value) FROM {self._table}")
        return least, greatest


class _FileRows(Mapping[int, Row], Generic[Row]):
    """Rows of one table by position."""

    def __init__(self, file: _File, table: str, make: Callable[..., Row]) -> None:
        self._file, self._table, self._make = file, table, make

    def put(self, row: Row) -> None:
        self._file.rows(f"INSERT OR REPLACE INTO {self._table} VALUES ({', '.join('?' * len(row))})", row)

    def where(self, condition: str, values: tuple[object, ...]) -> list[Row]:
        return [self._make(*row) for row in self._file.rows(f"SELECT * FROM {self._table} WHERE {condition}", values)]

    def __getitem__(self, position: int) -> Row:
        for row in self.where("position = ?", (position,)):
            return row
        raise KeyError(position)

    def __iter__(self) -> Iterator[int]:
        return _only(self._file.walk(f"SELECT position FROM {self._table} ORDER BY position"))

    def __len__(self) -> int:
        ((number,),) = self._file.rows(f"SELECT count(*) FROM {self._table}")
        return int(number)


class _FilePaid(Mapping[int, Mapping[int, int]]):
    """Usage -> payment -> net amount."""

    def __init__(self, file: _File) -> None:
        self._file = file

    def __getitem__(self, usage: int) -> Mapping[int, int]:
        paid = dict(self._file.rows("SELECT payment, net FROM allocated WHERE usage = ?", (usage,)))
        if not paid:
            raise KeyError(usage)
        return paid

    def __iter__(self) -> Iterator[int]:
        return _only(self._file.walk("SELECT DISTINCT usage FROM allocated ORDER BY usage"))

    def __len__(self) -> int:
        ((number,),) = self._file.rows("SELECT count(DISTINCT usage) FROM allocated")
        return int(number)


class _FileFacts(Facts):
    """One customer's credit facts in a temporary file."""

    usages: _FileRows[Usage]
    payments: _FileRows[Payment]

    def __init__(self, file: _File) -> None:
        self._file = file
        for statement in _TABLES:
            file.rows(statement)
        self.usages = _FileRows(file, "usage", _usage)
        self.payments = _FileRows(file, "payment", Payment)
        self.paid_by = _FilePaid(file)

    def put_usage(self, usage: Usage) -> None:
        self.usages.put(usage)

    def put_payment(self, payment: Payment) -> None:
        self.payments.put(payment)

    def put_allocated(self, payment_position: int, usage_position: int, amount_minor: int) -> None:
        self._file.rows(_ADD, (usage_position, payment_position, amount_minor))

    def usage_of(self, channel: str, reference: str | None) -> Usage | None:
        last = "channel = ? AND reference = ? ORDER BY position DESC LIMIT 1"
        found = self.usages.where(last, (channel, reference))
        return found[0] if found else None

    def open_keys(self) -> Iterator[tuple[str, int]]:
        return self._file.walk("SELECT due_date, position FROM usage WHERE outstanding_minor > 0 ORDER BY 1, 2")

    def idle_keys(self) -> Iterator[int]:
        return _only(self._file.walk("SELECT position FROM payment WHERE unapplied_minor > 0 ORDER BY position"))

    def between(self, after: int, up_to: int) -> tuple[dict[int, Usage], dict[int, Payment]]:
        condition, values = "position > ? AND position <= ?", (after, up_to)
        return (
            {usage.position: usage for usage in self.usages.where(condition, values)},
            {payment.position: payment for payment in self.payments.where(condition, values)},
        )


_TABLES: Final = (
    f"CREATE TABLE usage ({', '.join(Usage._fields)}, PRIMARY KEY (position)) WITHOUT ROWID",
    "CREATE INDEX usage_of_sale ON usage (channel, reference)",
    "CREATE INDEX usage_open ON usage (due_date, position) WHERE outstanding_minor > 0",
    f"CREATE TABLE payment ({', '.join(Payment._fields)}, PRIMARY KEY (position)) WITHOUT ROWID",
    "CREATE INDEX payment_idle ON payment (position) WHERE unapplied_minor > 0",
    "CREATE TABLE allocated (usage, payment, net, PRIMARY KEY (usage, payment)) WITHOUT ROWID",
)
_ADD: Final = (
    "INSERT INTO allocated VALUES (?, ?, ?) ON CONFLICT (usage, payment) DO UPDATE SET net = net + excluded.net"
)


def _usage(*row: object) -> Usage:
    usage = Usage(*row)  # type: ignore[arg-type]
    return usage._replace(over_limit=bool(usage.over_limit), no_account=bool(usage.no_account))


def _only(rows: Iterable[Any]) -> Iterator[Any]:
    return (value for (value,) in rows)
