"""What became of every message the broker confirmed: the books of A1, kept by business key and body."""

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from customer_actors.domain.envelope import DecodePolicy, Received, decode
from customer_actors.domain.events import Channel, EventType, Message, to_us
from customer_actors.ingest.topology import SOURCES

Query = Callable[[str], list[tuple[Any, ...]]]
"""Runs one statement and returns its rows."""

_KNOWN: Final = {str(type_) for source in SOURCES for type_ in source.routing_keys}


def routing_key(line: str) -> str:
    """As its publisher sends it; what names no known type goes out as an order would."""
    try:
        type_ = json.loads(line).get("event")
    except ValueError:
        type_ = None
    return type_ if type_ in _KNOWN else EventType.ORDER_COMPLETED.value


class Accounts:
    """The outcome of each line, looked up in what the service stored. Lines must not contradict each other [A3]."""

    def __init__(self) -> None:
        self._decoded: dict[str, Message | None] = {}

    def missing(self, lines: Sequence[str], query: Query) -> list[str]:
        """The lines without an outcome: the body not in quarantine, though it must be there, or the key unknown."""
        quarantined = {bytes(row[0]) for row in query("SELECT body FROM quarantine")}
        sales = {row[:3]: row[3:] for row in query(_SALES)}
        payments = {row[:3]: row[3] for row in query(_PAYMENTS)}
        return [line for line in dict.fromkeys(lines) if not self._settled(line, quarantined, sales, payments)]

    def _settled(self, line: str, quarantined: set[bytes], sales: dict[Any, Any], payments: dict[Any, Any]) -> bool:
        message = self._message(line)
        if message is None:
            return line.encode() in quarantined
        if message.type == EventType.PAYMENT_RECEIVED:
            paid = payments.get((message.organization_id, message.customer_id, message.reference))
            return bool(paid == message.amount_minor)
        channel = Channel.POS if message.type == EventType.POS_COMPLETED else Channel.ORDER
        key = (message.organization_id, channel, message.reference)
        customer, amount, cancelled = sales.get(key, (None, None, False))
        if message.type == EventType.ORDER_CANCELLED:
            return bool(cancelled)
        return bool(amount == message.amount_minor and message.customer_id in (None, customer))

    def _message(self, line: str) -> Message | None:
        if line not in self._decoded:
            decoded = decode(Received(line.encode(), routing_key(line), to_us(datetime.now(UTC))), DecodePolicy())
            self._decoded[line] = decoded if isinstance(decoded, Message) else None
        return self._decoded[line]

    def wrongly_refused(self, lines: Sequence[str], query: Query) -> int:
        """Sound lines that stand in quarantine."""
        sound = {line.encode() for line in dict.fromkeys(lines) if self._message(line) is not None}
        return len(sound & {bytes(row[0]) for row in query("SELECT body FROM quarantine")})

    def unpublished(self, lines: Sequence[str], query: Query) -> list[object]:
        """Events and quarantined bodies that come from none of the lines, which must be all that was published.

        Events of operators and of the nights are no messages, hence left out.
        """
        published: dict[tuple[str, str, str], set[str | None]] = {}
        for message in filter(None, map(self._message, dict.fromkeys(lines))):
            named = published.setdefault((message.organization_id, message.type.value, message.reference), set())
            named.add(message.customer_id)
        # A cancellation finds its customer through its sale.
        events = [
            row
            for row in query(_MESSAGE_EVENTS)
            if not {row[3], None if row[1] == EventType.ORDER_CANCELLED else row[3]} & published.get(row[:3], set())
        ]
        bodies = {line.encode() for line in lines}
        return [*events, *({bytes(row[0]) for row in query("SELECT body FROM quarantine")} - bodies)]


_MESSAGE_EVENTS: Final = (
    "SELECT c.organization_id, e.type, e.reference, c.customer_id FROM event e JOIN customer c ON c.id = e.customer "
    "WHERE e.type IN ('" + "', '".join(sorted(_KNOWN)) + "')"
)
_SALES: Final = "SELECT organization_id, channel, reference, customer_id, amount_minor, cancelled FROM sale"
_PAYMENTS: Final = "SELECT organization_id, customer_id, reference, amount_minor FROM payment_key"

# An order that is one with a POS sale has its place in that sale's row [A5].
_NAMED_SALES: Final = (
    "sale s JOIN customer c ON c.organization_id = s.organization_id AND c.customer_id = s.customer_id "
    "LEFT JOIN sale m ON m.organization_id = s.organization_id AND m.channel = 'pos' AND m.reference = s.alias"
)

UNKEPT: Final = {
    "named sales whose event is not where the registry says it is": f"SELECT count(*) FROM {_NAMED_SALES} "
    "LEFT JOIN event e ON e.customer = c.id AND e.position = COALESCE(m.position, s.position) "
    "WHERE s.amount_minor IS NOT NULL AND (e.position IS NULL OR e.amount_minor <> s.amount_minor)",
    "cancelled sales without their cancellation in the stream": f"SELECT count(*) FROM {_NAMED_SALES} "
    "WHERE s.cancelled AND s.amount_minor IS NOT NULL AND NOT EXISTS (SELECT 1 FROM event e WHERE e.customer = c.id "
    "AND ((e.type = 'order.cancelled' AND e.sale_position = COALESCE(m.position, s.position)) "
    "OR (e.position = COALESCE(m.position, s.position) AND e.already_cancelled)))",
    "payments that are not in the stream": "SELECT count(*) FROM payment_key p LEFT JOIN customer c "
    "ON c.organization_id = p.organization_id AND c.customer_id = p.customer_id WHERE NOT EXISTS "
    "(SELECT 1 FROM event e WHERE e.customer = c.id AND e.type = 'payment.received' "
    "AND e.reference = p.reference AND e.amount_minor = p.amount_minor)",
    "events without the body they came from": "SELECT count(*) FROM event e "
    "LEFT JOIN event_payload p USING (customer, position) WHERE p.payload IS NULL",
}
"""Claim -> how many keys or bodies are lost in that way."""

_REPEATED: Final = "SELECT COALESCE(sum(times - 1), 0) FROM (SELECT count(*) AS times FROM {}) AS counted"
TWICE: Final = {
    "sales that entered twice": _REPEATED.format(
        "event e JOIN customer c ON c.id = e.customer WHERE e.type IN ('order.completed', 'pos.transaction.completed') "
        "GROUP BY c.organization_id, e.type, e.reference"
    ),
    "payments that entered twice": _REPEATED.format(
        "event WHERE type = 'payment.received' GROUP BY customer, reference"
    ),
    "cancellations that entered twice": _REPEATED.format(
        "event WHERE type = 'order.cancelled' AND sale_position IS NOT NULL GROUP BY customer, sale_position"
    ),
}
"""Claim -> how many business keys entered the streams more than once [A2]."""
