"""Documented messages for the tests of decoding, and how they are read."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from customer_actors.domain.envelope import DecodePolicy, Received, decode
from customer_actors.domain.events import EventType, Message, Rejected, to_us

ORDER = EventType.ORDER_COMPLETED.value
CANCELLED = EventType.ORDER_CANCELLED.value
POS = EventType.POS_COMPLETED.value
PAYMENT = EventType.PAYMENT_RECEIVED.value

RECEIVED_AT = datetime(2025, 6, 1, 12, 0, 0, 250_000, tzinfo=UTC)
RECEIVED_AT_US = to_us(RECEIVED_AT)

DATA: dict[str, dict[str, Any]] = {
    ORDER: {"customer_id": "c-1", "order_id": "o-1", "total_amount": 129.9},
    CANCELLED: {"order_id": "o-1"},
    POS: {"customer_id": "c-1", "transaction_id": "t-1", "totals": {"total_amount": "12.30"}},
    PAYMENT: {"customer_id": "c-1", "amount": 50, "payment_reference": "p-1"},
}
OWN_TIME = {ORDER: "completed_at", CANCELLED: "cancelled_at", POS: "completed_at", PAYMENT: "paid_at"}
ABSENT = object()
DEFAULT_POLICY = DecodePolicy()


def message(type_: str, data: Mapping[str, object] | None = None, **envelope: object) -> dict[str, Any]:
    """A documented message with changes; ABSENT takes a field out."""
    merged = {**DATA[type_], **(data or {})}
    document = {"event": type_, **envelope, "data": {key: item for key, item in merged.items() if item is not ABSENT}}
    return {key: item for key, item in document.items() if item is not ABSENT}


def read(
    body: bytes | dict[str, Any],
    routing_key: str | None = None,
    policy: DecodePolicy = DEFAULT_POLICY,
    content_encoding: str | None = None,
) -> Message | Rejected:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return decode(Received(raw, routing_key, RECEIVED_AT_US, content_encoding), policy)


def accepted(body: bytes | dict[str, Any], routing_key: str | None = None, **options: Any) -> Message:
    outcome = read(body, routing_key, **options)
    assert isinstance(outcome, Message), outcome
    return outcome


def rejected(body: bytes | dict[str, Any], routing_key: str | None = None, **options: Any) -> Rejected:
    outcome = read(body, routing_key, **options)
    assert isinstance(outcome, Rejected), outcome
    assert outcome.reason.isascii()
    assert len(outcome.reason) < 300
    return outcome


def with_amount(type_: str, literal: str) -> bytes:
    """A message with an amount exactly as written here, past any float of this test."""
    field = {ORDER: "total_amount", PAYMENT: "amount"}.get(type_)
    change = {field: "AMOUNT"} if field else {"totals": {"total_amount": "AMOUNT"}}
    return json.dumps(message(type_, change)).replace('"AMOUNT"', literal).encode()


VALID = json.dumps(message(ORDER, organization_id="org-1"))


def with_extra(literal: str) -> bytes:
    return VALID.replace('"order_id"', f'"extra": {literal}, "order_id"').encode()
