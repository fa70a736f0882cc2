"""The source contract as models: which fields of a message are read, and what each must be [A2, A6, A7].

A field is named as in `Message`; its alias is where the publishers put it. What no model lists is ignored here and
kept in the payload.
"""

import re
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Generic, NamedTuple, TypeVar

from pydantic import AliasPath, BaseModel, ConfigDict, Field, PlainValidator, ValidationInfo

from customer_actors.domain.events import EventType, to_us
from customer_actors.domain.money import minor_units

MAX_ID_CHARACTERS = 64

_DAY_US = 86_400_000_000


class DecodeError(ValueError):
    """Why a message or a field of it is refused. A ValueError, since that is what pydantic lets a validator raise."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code
        self.reason = reason


class Reading(NamedTuple):
    """What validators need besides the value; pass it as the validation context."""

    currency_decimals: int
    naive_timestamps: str
    received_at_us: int


class Ahead(NamedTuple):
    """A time after receipt, but by at most 24 hours: to be clamped, and kept as it was written [A7]."""

    text: str


# --- validators: JSON value -> value, or DecodeError -------------------------------------------------------------


def opaque(value: object) -> str:
    """A string as it is, an integer as its decimal text."""
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise DecodeError("bad_id", "must be a string or an integer")


def id_(value: object) -> str:
    """An opaque, non-blank id, never trimmed."""
    text = opaque(value)
    if not text or text.isspace():
        raise DecodeError("bad_id", "must not be blank")
    if len(text) > MAX_ID_CHARACTERS:
        raise DecodeError("bad_id", f"must have at most {MAX_ID_CHARACTERS} characters")
    return text


def optional_id(value: object) -> str | None:
    """An id, or None for null."""
    return None if value is None else id_(value)


def id_or_anonymous(value: object) -> str | None:
    """The customer of a POS sale; null and "" mean that nobody gave a name."""
    return None if value is None or value == "" else id_(value)


def payment_reference(value: object) -> str:
    """Trimmed; "" when there is none, so that the event_id takes its place [A2]."""
    text = "" if value is None else opaque(value).strip()
    if len(text) > MAX_ID_CHARACTERS:
        raise DecodeError("bad_reference", f"must have at most {MAX_ID_CHARACTERS} characters")
    return text


def correlation_id(value: object) -> str | None:
    """Nothing uses it, so only its kind is judged: a blank or long one must not cost a sale."""
    return None if value is None else opaque(value)


def version(value: object) -> object:
    """Publishers write 1, 1.0 and "1.0"; nothing uses it, so only its kind is judged."""
    if value is None or (isinstance(value, (str, int, Decimal)) and not isinstance(value, bool)):
        return value
    raise DecodeError("bad_field", "must be a string or a number")


def sale_amount(value: object, info: ValidationInfo) -> int:
    """Minor units; zero is a sale [A6]."""
    reading: Reading = info.context  # type: ignore[assignment]
    try:
        return minor_units(value, reading.currency_decimals)
    except ValueError as error:
        raise DecodeError("bad_amount", str(error)) from None


def payment_amount(value: object, info: ValidationInfo) -> int:
    """Minor units, more than zero [A6]."""
    amount = sale_amount(value, info)
    if amount == 0:
        raise DecodeError("bad_amount", "must be more than 0 for a payment")
    return amount


def currency(value: object) -> str | None:
    """The shape of an ISO 4217 code (or None for null); whether it is the organization's is for admission to say."""
    if value is None:
        return None
    if isinstance(value, str) and len(value) == 3 and value.isascii() and value.isalpha() and value.isupper():
        return value
    raise DecodeError("bad_currency", "must be three capital letters as in ISO 4217, such as EUR")


def sold_on_credit(value: object) -> bool:
    """Whether a payment method is the customer's credit account [C4]."""
    if value is None or isinstance(value, str):
        return value == "credit"
    raise DecodeError("bad_field", "must be a string")


_RFC3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ](?:[01][0-9]|2[0-3]):[0-5][0-9]:([0-5][0-9]|60)(?:\.[0-9]+)?"
    r"([Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])?"
)
"""Strict, because `datetime.fromisoformat` also takes weeks, bare dates and half a dozen other forms."""


def moment(value: object, info: ValidationInfo) -> int | Ahead | None:
    """Microseconds since the epoch of a time that is neither before 1970 nor after receipt, else `Ahead` [A7]."""
    if value is None:
        return None
    match = _RFC3339.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise DecodeError("bad_time", "must be an RFC 3339 string such as 2025-01-31T12:00:00Z")
    reading: Reading = info.context  # type: ignore[assignment]
    us = _microseconds(match, reading.naive_timestamps)
    if us < 0:
        raise DecodeError("bad_time", "must not be before 1970")
    if us <= reading.received_at_us:
        return us
    if us > reading.received_at_us + _DAY_US:
        raise DecodeError("bad_time", "must not be more than 24 hours ahead; check the publisher's clock")
    return Ahead(match[0])


def _microseconds(match: re.Match[str], naive_timestamps: str) -> int:
    """Since the epoch, finer fractions cut off. A leap second is the last microsecond before it: no calendar here
    has a 61st second."""
    text = match[0]
    second, zone = match.groups()
    if zone is None:
        if naive_timestamps != "utc":
            raise DecodeError("bad_time", "must end with a zone: Z or an offset such as +02:00")
        zone = "Z"
        text += zone
    elif zone == "z":
        zone = "Z"
        text = text[:-1] + zone
    if second == "60":
        text = f"{text[:17]}59.999999{zone}"
    try:
        us = to_us(datetime.fromisoformat(text))
    except ValueError:
        raise DecodeError("bad_time", "must be a day of the calendar") from None
    if second == "60" and (us + 1) % _DAY_US:
        raise DecodeError("bad_time", "must not have a leap second anywhere but at the end of a UTC day")
    return us


# --- models ------------------------------------------------------------------------------------------------------

_Id = Annotated[str, PlainValidator(id_)]
_OptionalId = Annotated[str | None, PlainValidator(optional_id)]
_CorrelationId = Annotated[str | None, PlainValidator(correlation_id)]
_Version = Annotated[object, PlainValidator(version)]
_SaleAmount = Annotated[int, PlainValidator(sale_amount)]
_Currency = Annotated[str | None, PlainValidator(currency)]
_OnCredit = Annotated[bool, PlainValidator(sold_on_credit)]
_Time = Annotated[int | Ahead | None, PlainValidator(moment)]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class OrderCompleted(_Model):
    """`data` of an order that was completed."""

    customer_id: _Id
    reference: _Id = Field(validation_alias="order_id")
    amount_minor: _SaleAmount = Field(validation_alias="total_amount")
    currency: _Currency = None
    on_credit: _OnCredit = Field(default=False, validation_alias="payment_method")
    pos_transaction_id: _OptionalId = None
    own_time: _Time = Field(default=None, validation_alias="completed_at")


class OrderCancelled(_Model):
    """`data` of a cancellation: its customer is found through the sale, whatever it says itself [A4]."""

    reference: _Id = Field(validation_alias="order_id")
    own_time: _Time = Field(default=None, validation_alias="cancelled_at")


class PosCompleted(_Model):
    """`data` of a sale at a till, which may be anonymous."""

    customer_id: Annotated[str | None, PlainValidator(id_or_anonymous)] = None
    reference: _Id = Field(validation_alias="transaction_id")
    amount_minor: _SaleAmount = Field(validation_alias=AliasPath("totals", "total_amount"))
    currency: _Currency = None
    on_credit: _OnCredit = Field(default=False, validation_alias="payment_method")
    own_time: _Time = Field(default=None, validation_alias="completed_at")


class PaymentReceived(_Model):
    """`data` of a payment."""

    customer_id: _Id
    reference: Annotated[str, PlainValidator(payment_reference)] = Field(
        default="", validation_alias="payment_reference"
    )
    amount_minor: Annotated[int, PlainValidator(payment_amount)] = Field(validation_alias="amount")
    currency: _Currency = None
    order_id: _OptionalId = None
    own_time: _Time = Field(default=None, validation_alias="paid_at")


_Data = TypeVar("_Data", bound=_Model)


class Envelope(_Model, Generic[_Data]):
    """What every message has around its data; `event` is read before, because it says what the data must be."""

    event_id: _OptionalId = None
    version: _Version = None
    timestamp: _Time = None
    organization_id: _OptionalId = None
    correlation_id: _CorrelationId = None
    service: str | None = None
    data: _Data


ACCEPTED: dict[str, tuple[EventType, type[Envelope[Any]]]] = {
    EventType.ORDER_COMPLETED.value: (EventType.ORDER_COMPLETED, Envelope[OrderCompleted]),
    EventType.ORDER_CANCELLED.value: (EventType.ORDER_CANCELLED, Envelope[OrderCancelled]),
    EventType.POS_COMPLETED.value: (EventType.POS_COMPLETED, Envelope[PosCompleted]),
    EventType.PAYMENT_RECEIVED.value: (EventType.PAYMENT_RECEIVED, Envelope[PaymentReceived]),
}
"""The types other services may send; commands [C9] never come in as messages."""
