"""Decoding: the documented messages, their ids and amounts, and the reasons of a refusal [A1, A2, A6]."""

import json
from typing import Any

import pytest

from customer_actors.domain.envelope import DecodePolicy
from customer_actors.domain.events import EventType, Message
from tests.domain.messages import (
    ABSENT,
    CANCELLED,
    ORDER,
    PAYMENT,
    POS,
    RECEIVED_AT_US,
    accepted,
    message,
    rejected,
    with_amount,
    with_extra,
)

# --- the documented messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("type_", "expected"),
    [
        (ORDER, {"customer_id": "c-1", "reference": "o-1", "amount_minor": 12990}),
        (CANCELLED, {"customer_id": None, "reference": "o-1", "amount_minor": 0}),
        (POS, {"customer_id": "c-1", "reference": "t-1", "amount_minor": 1230}),
        (PAYMENT, {"customer_id": "c-1", "reference": "p-1", "amount_minor": 5000}),
    ],
)
@pytest.mark.parametrize("named_by", ["event", "routing key", "both"])
def test_the_smallest_documented_message_of_each_type_is_read(
    type_: str, expected: dict[str, Any], named_by: str
) -> None:
    body = json.dumps(message(type_, event=ABSENT if named_by == "routing key" else type_))
    outcome = accepted(body.encode(), None if named_by == "event" else type_)
    assert outcome == Message(
        type=EventType(type_),
        organization_id="default",
        currency=None,
        occurred_at_us=RECEIVED_AT_US,
        received_at_us=RECEIVED_AT_US,
        payload=body,
        **expected,
    )
    assert isinstance(outcome.type, EventType)


def test_every_optional_field_is_read_where_it_belongs() -> None:
    envelope: dict[str, Any] = {
        "event_id": "e-1",
        "version": "1.0",
        "timestamp": "2025-06-01T11:00:00Z",
        "organization_id": "org-1",
        "correlation_id": "",
        "service": "shop",
    }
    order = accepted(
        message(ORDER, {"currency": "EUR", "payment_method": "credit", "pos_transaction_id": "t-9"}, **envelope)
    )
    assert (order.organization_id, order.currency, order.on_credit) == ("org-1", "EUR", True)
    assert (order.pos_transaction_id, order.order_id) == ("t-9", None)
    pos = accepted(message(POS, {"currency": "USD", "payment_method": "credit"}, **envelope))
    assert (pos.currency, pos.on_credit) == ("USD", True)
    payment = accepted(message(PAYMENT, {"currency": "EUR", "order_id": "o-7"}, **envelope))
    assert (payment.currency, payment.order_id, payment.on_credit) == ("EUR", "o-7", False)


@pytest.mark.parametrize("version", [1, 1.0, "1.0"])
def test_a_version_may_be_written_as_a_number_or_a_string(version: object) -> None:
    accepted(message(ORDER, version=version))


def test_null_means_absent_for_every_optional_field() -> None:
    nothing: dict[str, Any] = dict.fromkeys(
        ("event_id", "version", "timestamp", "organization_id", "correlation_id", "service")
    )
    optional = {
        ORDER: ("currency", "payment_method", "pos_transaction_id", "completed_at"),
        CANCELLED: ("cancelled_at", "customer_id"),
        POS: ("currency", "payment_method", "customer_id", "completed_at"),
        PAYMENT: ("currency", "order_id", "paid_at"),
    }
    for type_, fields in optional.items():
        with_null = message(type_, dict.fromkeys(fields), **nothing) | {"event": None}
        without = message(type_, dict.fromkeys(fields, ABSENT))
        assert accepted(with_null, type_)._replace(payload="") == accepted(without, type_)._replace(payload="")


@pytest.mark.parametrize("customer_id", [ABSENT, None, ""])
def test_a_pos_sale_without_a_customer_is_anonymous(customer_id: object) -> None:
    assert accepted(message(POS, {"customer_id": customer_id})).customer_id is None


@pytest.mark.parametrize("customer_id", ["c-1", "", 7, True, {"id": 1}, "x" * 65])
def test_a_customer_in_a_cancellation_is_not_read_at_all(customer_id: object) -> None:
    assert accepted(message(CANCELLED, {"customer_id": customer_id, "total_amount": "?"})).customer_id is None


@pytest.mark.parametrize("method", ["card", "Credit", "credit ", ""])
def test_only_the_word_credit_means_sold_on_credit(method: str) -> None:
    assert accepted(message(ORDER, {"payment_method": method})).on_credit is False


# --- ids and references ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "text"),
    [("  c 1 ", "  c 1 "), (7, "7"), (0, "0"), (-3, "-3"), (10**40, "1" + "0" * 40), ("ü" * 64, "ü" * 64)],
)
def test_ids_are_opaque_and_integers_become_their_decimal_text(value: object, text: str) -> None:
    outcome = accepted(message(ORDER, {"customer_id": value, "order_id": value}, organization_id=value))
    assert (outcome.customer_id, outcome.reference, outcome.organization_id) == (text, text, text)


@pytest.mark.parametrize(
    "value",
    [{"id": 1}, ["c-1"], True, False, 1.0, 1.5, 1e2, "", "  ", "\t\n", "x" * 65, 10**64],
    ids=lambda value: ascii(value)[:12],
)
@pytest.mark.parametrize(
    ("type_", "field"),
    [
        (ORDER, "customer_id"),
        (ORDER, "order_id"),
        (ORDER, "pos_transaction_id"),
        (CANCELLED, "order_id"),
        (POS, "customer_id"),
        (POS, "transaction_id"),
        (PAYMENT, "customer_id"),
        (PAYMENT, "order_id"),
        (ORDER, "organization_id"),
        (ORDER, "event_id"),
    ],
)
def test_what_is_no_id_is_refused_and_named(type_: str, field: str, value: object) -> None:
    in_envelope = field in {"organization_id", "event_id"}
    if (type_, field, value) == (POS, "customer_id", ""):
        return  # anonymous, see above
    change: dict[str, Any] = {field: value}
    outcome = rejected(message(type_, **change) if in_envelope else message(type_, change))
    assert outcome.code == "bad_id"
    assert outcome.reason.startswith(f"{field} must " if in_envelope else f"data.{field} must ")


@pytest.mark.parametrize(
    ("reference", "event_id", "expected"),
    [
        ("  p 1\n", "e-1", "p 1"),
        (77, "e-1", "77"),
        ("x" * 64 + "  ", ABSENT, "x" * 64),
        (ABSENT, "e-1", "event:e-1"),
        (None, "e-1", "event:e-1"),
        ("", 9, "event:9"),
        (" \t ", "e-1", "event:e-1"),
        (ABSENT, "e" * 64, "event:" + "e" * 64),
    ],
)
def test_a_payment_is_known_by_its_trimmed_reference_else_by_its_event(
    reference: object, event_id: object, expected: str
) -> None:
    assert accepted(message(PAYMENT, {"payment_reference": reference}, event_id=event_id)).reference == expected


@pytest.mark.parametrize(
    ("reference", "code"),
    [
        (ABSENT, "bad_reference"),
        (None, "bad_reference"),
        ("  ", "bad_reference"),
        ("x" * 65, "bad_reference"),
        (True, "bad_id"),
        (1.5, "bad_id"),
        ({}, "bad_id"),
        ([], "bad_id"),
    ],
)
def test_a_payment_that_nothing_identifies_is_refused(reference: object, code: str) -> None:
    outcome = rejected(message(PAYMENT, {"payment_reference": reference}, organization_id="org-1"))
    assert (outcome.code, outcome.organization_id) == (code, "org-1")
    assert "data.payment_reference" in outcome.reason


# --- money -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("literal", "minor"),
    [
        ("0.30000000000000004", 30),
        ("19.999999999999998", 2000),
        ('"12.30"', 1230),
        ("12.3", 1230),
        ("1E2", 10000),
        ("1e11", 10_000_000_000_000),
        ("999999999999", 99_999_999_999_900),
        ("0.000000000000000000000000000000000000001e39", 100),
    ],
)
def test_amounts_are_read_from_their_text(literal: str, minor: int) -> None:
    for type_ in (ORDER, POS, PAYMENT):
        assert accepted(with_amount(type_, literal)).amount_minor == minor


@pytest.mark.parametrize(
    "literal",
    [
        "true",
        "false",
        "null",
        "[1]",
        '{"value":1}',
        '""',
        '"1,000.00"',
        '"1_000"',
        r'"\uff11\uff12"',
        r'"\u002012"',
        '"NaN"',
        '"infinity"',
        '"1e400"',
        "0.005",
        "12.345",
        "-1",
        "-0.01",
        "-0",
        "-0.0",
        '"-0"',
        "-1e-400",
        "9223372036854775808",
        "1000000000000",
        "1e12",
        "1e400",
        "1e999999999",
        '"1e99999999999999999999"',
    ],
)
def test_what_is_no_amount_is_refused_and_named(literal: str) -> None:
    names = {ORDER: "data.total_amount", POS: "data.totals.total_amount", PAYMENT: "data.amount"}
    for type_, name in names.items():
        outcome = rejected(with_amount(type_, literal))
        assert outcome.code == "bad_amount"
        assert outcome.reason.startswith(f"{name} must ")


@pytest.mark.parametrize("literal", ["0", "0.00", '"0"', "1e-999999999"])
def test_a_sale_of_zero_is_a_sale_and_a_payment_of_zero_is_none(literal: str) -> None:
    assert accepted(with_amount(ORDER, literal)).amount_minor == 0
    assert accepted(with_amount(POS, literal)).amount_minor == 0
    assert rejected(with_amount(PAYMENT, literal)).code == "bad_amount"


@pytest.mark.parametrize(("decimals", "minor"), [(0, 12), (2, 1200), (3, 12000)])
def test_the_minor_unit_follows_the_settings(decimals: int, minor: int) -> None:
    policy = DecodePolicy(currency_decimals=decimals)
    assert accepted(with_amount(ORDER, "12.0"), policy=policy).amount_minor == minor


@pytest.mark.parametrize(
    "currency", ["eur", "EU", "EURO", "", "E1R", " EUR", "ÄÖÜ", "\uff25\uff35\uff32", 978, True, ["EUR"]]
)
def test_a_currency_has_three_capital_letters(currency: object) -> None:
    for type_ in (ORDER, POS, PAYMENT):
        outcome = rejected(message(type_, {"currency": currency}))
        assert outcome.code == "bad_currency"
        assert outcome.reason.startswith("data.currency ")


# --- reasons -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "the body is not one JSON document: it is empty"),
        (message(ORDER, {"order_id": ABSENT}), "data.order_id is missing"),
        (message(POS, {"totals": 5}), "data.totals.total_amount is missing"),
        (message(ORDER, {"order_id": None}), "data.order_id must be a string or an integer; it is null"),
        (message(ORDER) | {"data": 5}, "data must be a JSON object; it is 5"),
        (message(ORDER, service=5), "service must be a string; it is 5"),
        (
            with_amount(ORDER, "0.005"),
            "data.total_amount must have at most 2 decimal places; round it before sending; it is 0.005",
        ),
        (
            message(ORDER, {"order_id": "ü" * 65}),
            'data.order_id must have at most 64 characters; it is "' + r"\u00fc" * 9 + r"\u..",
        ),
        (with_extra(r'{"b": ["", "\u0000"]}'), "data.extra.b.1 holds a NUL or half a surrogate pair; send proper text"),
        (with_extra(r'{"\u0000": 1}'), r"data.extra.\u0000 holds a NUL or half a surrogate pair; send proper text"),
        (with_extra('{"k": 1, "k": 2}'), 'the key "k" stands twice in one object; send it once'),
    ],
)
def test_a_reason_names_the_field_and_what_to_do(body: bytes | dict[str, Any], reason: str) -> None:
    assert rejected(body).reason.startswith(reason)


@pytest.mark.parametrize(
    ("organization_id", "expected"),
    [("org-1", "org-1"), (5, "5"), (None, "default"), (ABSENT, "default"), ("", None), ([], None), ("x" * 65, None)],
)
def test_a_refused_message_keeps_its_organization_if_that_can_be_read(
    organization_id: object, expected: str | None
) -> None:
    assert rejected(message(ORDER, event="?", organization_id=organization_id)).organization_id == expected


def test_an_organization_with_a_nul_is_not_readable() -> None:
    assert rejected(with_extra("1").replace(b"org-1", rb"\u0000")).organization_id is None
    assert rejected(with_extra(r'"\u0000"')).organization_id == "org-1"
