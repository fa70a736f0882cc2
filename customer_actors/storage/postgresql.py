"""PostgreSQL: one statement per step and batch, over arrays."""

import io
import re
import select
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, Final

import peewee
import structlog
from psycopg2.extensions import TRANSACTION_STATUS_IDLE

from customer_actors.errors import UsageError
from customer_actors.storage.database import Columns, Database, Row

log = structlog.get_logger(__name__)

COPY_FROM_ROWS: Final = 16
"""From so many rows on, COPY costs less than an INSERT over arrays, though it needs one more round trip."""
_ESCAPES: Final = str.maketrans({"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r"})
_NEEDS_ESCAPING: Final = re.compile(r"[\\\t\n\r]")
_QUOTED: Final = str.maketrans({"\\": "\\\\", '"': '\\"'})
_NEEDS_QUOTING: Final = re.compile(r'[\\"]')

_SET_AGAIN: Final = {
    "command line": "remove synchronous_commit from the command that starts PostgreSQL, and restart it",
    "global": "ALTER ROLE ALL SET synchronous_commit = on;",
    "database": "ALTER DATABASE {database} SET synchronous_commit = on;",
    "user": "ALTER ROLE {user} SET synchronous_commit = on;",
    "database user": "ALTER ROLE {user} IN DATABASE {database} SET synchronous_commit = on;",
    "client": "remove synchronous_commit from PGOPTIONS or DATABASE_URL",
}
"""Where a setting comes from -> what puts it right; elsewhere it is the server's own."""
_SERVER_SET: Final = "ALTER SYSTEM SET synchronous_commit = on; SELECT pg_reload_conf();"


class PostgresDatabase(Database):
    """READ COMMITTED transactions; every bulk step is one statement over arrays."""

    name = "PostgreSQL"

    def __init__(self, url: str) -> None:
        options = (
            "-c statement_timeout=60000 -c lock_timeout=20000 -c idle_in_transaction_session_timeout=60000 "
            "-c default_transaction_isolation=read\\ committed -c client_encoding=UTF8"
        )
        super().__init__(
            peewee.PostgresqlDatabase(
                url,
                options=options,
                application_name="customer_actors",
                connect_timeout=5,
                # A host that is gone without a word is noticed within 30 s; Linux alone waits for a quarter of an hour.
                keepalives_idle=10,
                keepalives_interval=5,
                keepalives_count=4,
                tcp_user_timeout=30_000,
            )
        )

    def require_durable(self) -> None:
        _, fix = self.synchronous_commit()
        if fix is not None:
            raise UsageError(
                f"synchronous_commit is off, so PostgreSQL would lose commits whose messages are acknowledged: {fix}"
            )
        if self.query("SELECT current_setting('fsync')") == [("off",)]:
            log.warning("fsync is off: a crash of the server's host loses data", then="set fsync = on and restart it")

    def synchronous_commit(self) -> tuple[str, str | None]:
        """What it is set to for us, and, where that is off, what switches it on again."""
        sql = (
            "SELECT setting, source, current_database(), session_user FROM pg_settings "
            "WHERE name = 'synchronous_commit'"
        )
        setting, source, database, user = self.query(sql)[0]
        if setting != "off":
            return setting, None
        return setting, _SET_AGAIN.get(source, _SERVER_SET).format(database=_quoted(database), user=_quoted(user))

    def _begin(self) -> Any:
        return self.engine.atomic()

    def _marked(self, sql: str) -> str:
        return _marks(sql)

    def _usable(self, connection: Any) -> bool:
        if connection.closed or connection.info.transaction_status != TRANSACTION_STATUS_IDLE:
            return False
        # What a server says to an idle client is that it closes the connection.
        watched = select.poll()
        watched.register(connection.fileno(), select.POLLIN)
        return not watched.poll(0)

    def insert(self, into: Columns, rows: Sequence[Row]) -> None:
        if len(rows) >= COPY_FROM_ROWS:
            sql = f"COPY {into.table} ({', '.join(into.names)}) FROM STDIN"
            # Encoded here: what cannot be is the data's fault, and inside psycopg 2 it would look like an outage.
            self._connection().cursor().copy_expert(sql, io.BytesIO(_copy_text(rows).encode()))
        elif rows:
            self._run(_insert(into), rows)

    def insert_missing(self, into: Columns, rows: Sequence[Row]) -> set[Row]:
        if not rows:
            return set()
        sql = f"{_insert(into)} ON CONFLICT DO NOTHING RETURNING {_names(into.key)}"
        return set(self._run(sql, rows).fetchall())

    def update(self, of: Columns, rows: Sequence[Row]) -> None:
        if rows:
            self._run(_update(of), rows)

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
        rows: list[Row] = self.execute(sql, (_array(groups),)).fetchall()
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
        cursor.execute(sql, [_array(column) for column in zip(*rows, strict=True)])
        return cursor


@cache
def _marks(sql: str) -> str:
    return sql.replace("?", "%s")


def _unnest(pairs: Sequence[tuple[str, str]]) -> str:
    return f"unnest({', '.join(f'%s::{type_}[]' for _, type_ in pairs)}) AS v({_names(pairs)})"


def _quoted(identifier: str) -> str:
    return '"' + identifier.replace('"', '""') + '"'


@cache
def _insert(into: Columns) -> str:
    return f"INSERT INTO {into.table} ({', '.join(into.names)}) SELECT * FROM {_unnest(into.key + into.values)}"


@cache
def _update(of: Columns) -> str:
    setting = ", ".join(f"{name} = v.{name}" for name, _ in of.values)
    return f"UPDATE {of.table} t SET {setting} FROM {_unnest(of.key + of.values)} WHERE {_same(of.key, 't', 'v')}"


def _names(pairs: Sequence[tuple[str, str]], prefix: str = "") -> str:
    return ", ".join(prefix + name for name, _ in pairs)


def _same(pairs: Sequence[tuple[str, str]], left: str, right: str) -> str:
    return " AND ".join(f"{left}.{name} = {right}.{name}" for name, _ in pairs)


def _array(values: Sequence[Any]) -> str:
    """An array in PostgreSQL's text format: one constant to the parser, where psycopg 2 would write one for each value
    (docs/decisions/0010-what-a-statement-costs.md)."""
    kinds = set(map(type, values))
    if kinds == {int}:
        return "{" + ",".join(map(str, values)) + "}"
    if kinds == {str} and not _NEEDS_QUOTING.search("".join(values)):
        return '{"' + '","'.join(values) + '"}'
    return "{" + ",".join([_array_element(value) for value in values]) + "}"


def _array_element(value: Any) -> str:
    if value is None:
        return "NULL"
    return f'"{value.translate(_QUOTED)}"' if isinstance(value, str) else str(value)


def _copy_text(rows: Sequence[Row]) -> str:
    """Rows in COPY's text format, made column by column: most columns hold one type and nothing to escape."""
    columns = [_copy_column(column) for column in zip(*rows, strict=True)]
    return "\n".join([*map("\t".join, zip(*columns, strict=True)), ""])


def _copy_column(values: Sequence[Any]) -> Iterable[str]:
    kinds = set(map(type, values))
    if kinds == {int}:
        return map(str, values)
    if kinds == {str} and not _NEEDS_ESCAPING.search("".join(values)):
        return values
    return map(_copy_field, values)


def _copy_field(value: Any) -> str:
    if value is None:
        return "\\N"
    return value.translate(_ESCAPES) if isinstance(value, str) else str(value)
