"""What enters the service (`Message`) and what a stream holds (`Event`).

Amounts are integers in minor units (cents when `currency_decimals` is 2), times are integers in microseconds since
1970-01-01 UTC: both databases store and compare integers exactly, and no float or zone can slip in.
"""

from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import NamedTuple
from zoneinfo import ZoneInfo


class EventType(StrEnum):
    """Every type a stream can hold. The first four come from other services, the rest are commands [C9]."""

    ORDER_COMPLETED = "order.completed"
    ORDER_CANCELLED = "order.cancelled"
    POS_COMPLETED = "pos.transaction.completed"
    PAYMENT_RECEIVED = "payment.received"
    CREDIT_OPENED = "credit.opened"
    CREDIT_CHARGED = "credit.charged"
    CREDIT_LIMIT_CHANGED = "credit.limit_changed"
    CREDIT_SUSPENDED = "credit.suspended"
    CREDIT_LIFTED = "credit.lifted"
    LOYALTY_REDEEMED = "loyalty.redeemed"


SALE_TYPES = frozenset({EventType.ORDER_COMPLETED, EventType.POS_COMPLETED})


class Channel(StrEnum):
    """Where a sale was made; with the id it is the sale's business key [A2]."""

    ORDER = "order"
    POS = "pos"


class Outcome(StrEnum):
    """What a received message became: always exactly one of these [A1]."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    ANONYMOUS = "anonymous"
    SUPPRESSED = "suppressed"
    QUARANTINED = "quarantined"


class Message(NamedTuple):
    """A decoded, valid message that admission has not judged yet."""

    type: EventType
    organization_id: str
    customer_id: str | None
    """None for a cancellation (found through its sale, A4) and for an anonymous POS sale."""
    reference: str
    """Order id, transaction id, payment reference (else "event:" + event_id) or redemption reference."""
    amount_minor: int
    """Sale total, payment, charge or limit in minor units; points for a redemption; 0 where there is none."""
    currency: str | None
    occurred_at_us: int
    received_at_us: int
    payload: str
    """The body as received (JSON text), kept for `explain`."""
    on_credit: bool = False
    pos_transaction_id: str | None = None
    """The POS sale an order says it is [A5]."""
    order_id: str | None = None
    """The open order a payment names [C2]."""
    detail: str | None = None
    """JSON text of what only some types carry: terms_days, by, reason, as_of, occurred_at (raw, when clamped)."""


class Rejected(NamedTuple):
    """A message that cannot enter a stream; stored raw in quarantine with the reason."""

    code: str
    """Stable, for grouping: `bad_json`, `bad_amount`, `conflict`, …"""
    reason: str
    """A sentence a person can act on, naming the field and the offending kind of value."""
    organization_id: str | None = None


class Event(NamedTuple):
    """An accepted message, normalized and immutable, at its position in one customer's stream."""

    customer: int
    """The customer's internal number: the message group."""
    position: int
    type: str
    reference: str
    channel: str | None
    """Of the sale: for sales, cancellations (the cancelled sale's) and charges."""
    amount_minor: int
    """As in `Message`; for a cancellation the cancelled sale's amount."""
    occurred_at_us: int
    received_at_us: int
    rules: int
    """Number of the business rules it is folded with [A10]."""
    concerns: int
    """Bit mask of the actors it concerns (`routing.BIT`)."""
    on_credit: bool
    already_cancelled: bool
    """A completion that came after its cancellation: only cancelled_orders + 1 [A4]."""
    sale_position: int | None
    """Cancellation, charge or payment: where the sale of the order it names stands; None while that is not known."""
    sale_occurred_at_us: int | None
    order_id: str | None
    """Payment: the open order it names [C2]."""
    detail: str | None
    sale_reference: str | None = None
    """The id under which that sale was made, maybe another than the order's [A5]."""


EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def to_us(moment: datetime) -> int:
    """Microseconds since the epoch of an aware datetime, exactly (no float in between)."""
    return (moment - EPOCH) // _MICROSECOND


def from_us(us: int) -> datetime:
    """The aware UTC datetime of microseconds since the epoch."""
    return EPOCH + timedelta(microseconds=us)


def iso(us: int) -> str:
    """RFC 3339 in UTC ending in Z, with a fraction only if it is not zero."""
    return from_us(us).isoformat().replace("+00:00", "Z")


def business_date(us: int, zone: ZoneInfo) -> date:
    """The calendar day of a moment in the business time zone [A7]."""
    return from_us(us).astimezone(zone).date()
