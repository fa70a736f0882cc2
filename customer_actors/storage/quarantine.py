"""Quarantined messages: kept raw, looked through by a person, and what became of them after a fix."""

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from customer_actors.domain.admission import Decision
from customer_actors.domain.envelope import MAX_BODY_BYTES, Received
from customer_actors.domain.events import Rejected
from customer_actors.groups.advance import storable
from customer_actors.storage.database import Database, Row


class Code(NamedTuple):
    """All messages refused under one code."""

    code: str
    distinct: int
    seen: int
    """How often they arrived altogether."""
    first_seen_us: int
    last_seen_us: int
    resolved: int
    """Of the distinct ones: admitted after a fix."""


class Kept(NamedTuple):
    """One message, raw, and why it is here."""

    id: int
    code: str
    reason: str
    routing_key: str | None
    content_encoding: str | None
    organization_id: str | None
    seen: int
    first_seen_us: int
    last_seen_us: int
    resolved_us: int | None
    outcome: str | None
    """What admission made of it after a fix."""
    size: int
    """Bytes kept of the body."""
    body: bytes
    """Empty in lists."""
    digest: str

    @property
    def received(self) -> Received:
        """The message as it came first."""
        return Received(self.body, self.routing_key, self.first_seen_us, self.content_encoding)

    @property
    def cut(self) -> bool:
        """Whether the body was too large to be kept whole: only of a whole one the digest is that of what is here."""
        return self.size == MAX_BODY_BYTES and content_digest(self.received) != self.digest


class Filter(NamedTuple):
    """Which messages are meant; None: any."""

    ids: Sequence[int] | None = None
    code: str | None = None
    resolved: bool = False
    """Those admitted after a fix as well."""


_COLUMNS: Final = (
    "id, code, reason, routing_key, content_encoding, organization_id, seen, first_seen_us, last_seen_us, "
    "resolved_us, outcome, length(body)"
)


def keep(database: Database, refused: Iterable[tuple[Received, Rejected]], now_us: int) -> None:
    """Keep refused messages raw, once per content with a count [A1]."""
    by_digest: dict[str, tuple[Received, Rejected, int]] = {}
    for received, rejected in refused:
        digest = content_digest(received)
        seen = by_digest[digest][2] if digest in by_digest else 0
        by_digest[digest] = (received, rejected, seen + 1)
    for digest, (received, rejected, seen) in sorted(by_digest.items()):
        texts = (
            received.routing_key,
            received.content_encoding,
            rejected.code,
            rejected.reason,
            rejected.organization_id,
        )
        stored = (text if text is None else storable(text) for text in texts)
        database.execute(_KEEP, (digest, received.body, *stored, seen, now_us, now_us))


_KEEP: Final = (
    "INSERT INTO quarantine (digest, body, routing_key, content_encoding, code, reason, organization_id, seen, "
    "first_seen_us, last_seen_us) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (digest) DO UPDATE SET "
    "seen = quarantine.seen + excluded.seen, last_seen_us = excluded.last_seen_us, code = excluded.code, "
    "reason = excluded.reason, organization_id = excluded.organization_id, resolved_us = NULL, outcome = NULL"
)


def content_digest(received: Received) -> str:
    """What makes two quarantined messages the same one: body, routing key and encoding."""
    parts = (received.routing_key or "", received.content_encoding or "", str(received.cut_from or ""))
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass") + b"\0" + received.body).hexdigest()


def _conditions(wanted: Filter) -> tuple[str, list[Any]]:
    conditions, parameters = ["1 = 1"], list[Any]()
    if wanted.ids is not None:
        conditions.append(f"id IN ({', '.join('?' * len(wanted.ids))})" if wanted.ids else "1 = 0")
        parameters.extend(wanted.ids)
    if wanted.code is not None:
        conditions.append("code = ?")
        parameters.append(wanted.code)
    if not wanted.resolved:
        conditions.append("resolved_us IS NULL")
    return " AND ".join(conditions), parameters


def codes(database: Database, wanted: Filter) -> list[Code]:
    """The messages by code, the code with most of them first."""
    conditions, parameters = _conditions(wanted)
    sql = (
        "SELECT code, count(*) AS messages, CAST(sum(seen) AS bigint), min(first_seen_us), max(last_seen_us), "
        f"count(resolved_us) FROM quarantine WHERE {conditions} GROUP BY code ORDER BY messages DESC, code"
    )
    return [Code(*row) for row in database.query(sql, parameters)]


def newest(database: Database, wanted: Filter, limit: int) -> list[Kept]:
    """Messages without their bodies, the one seen last first."""
    conditions, parameters = _conditions(wanted)
    sql = f"SELECT {_COLUMNS} FROM quarantine WHERE {conditions} ORDER BY last_seen_us DESC, id DESC LIMIT ?"
    return [Kept._make((*row, b"", "")) for row in database.query(sql, (*parameters, limit))]


def kept(database: Database, wanted: Filter, after: int, limit: int) -> list[Kept]:
    """The next messages behind a number; a later batch has higher ones."""
    conditions, parameters = _conditions(wanted)
    sql = f"SELECT {_COLUMNS}, body, digest FROM quarantine WHERE {conditions} AND id > ? ORDER BY id LIMIT ?"
    return [_kept(row) for row in database.query(sql, (*parameters, after, limit))]


def _kept(row: Row) -> Kept:
    return Kept._make((*row[:-2], bytes(row[-2]), row[-1]))  # PostgreSQL's driver gives a memoryview


def count(database: Database, wanted: Filter) -> int:
    """How many messages these are."""
    conditions, parameters = _conditions(wanted)
    number: int = database.query(f"SELECT count(*) FROM quarantine WHERE {conditions}", parameters)[0][0]
    return number


def resolve(database: Database, decided: Sequence[tuple[Kept, Decision]], now_us: int) -> None:
    """Note what became of messages that were admitted again, in the transaction that admits them.

    One that was refused again stays, with its new reason; it was not seen once more.
    """
    for message, decision in sorted(decided, key=lambda each: each[0].digest):  # the order of appending
        rejected = decision.rejected
        if rejected is None:
            database.execute(_RESOLVE, (now_us, decision.outcome.value, message.id))
        else:
            database.execute(_REFUSE, (rejected.code, storable(rejected.reason), rejected.organization_id, message.id))


_RESOLVE: Final = "UPDATE quarantine SET resolved_us = ?, outcome = ? WHERE id = ? AND resolved_us IS NULL"
_REFUSE: Final = "UPDATE quarantine SET code = ?, reason = ?, organization_id = ? WHERE id = ? AND resolved_us IS NULL"
