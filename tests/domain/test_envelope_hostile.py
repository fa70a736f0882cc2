"""Decoding: the table "Input that must not hurt", and anything at all."""

import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from customer_actors.domain.envelope import MAX_BODY_BYTES, DecodePolicy, Received, decode
from customer_actors.domain.events import EventType, Message, Rejected
from tests.domain.messages import (
    ABSENT,
    CANCELLED,
    DATA,
    ORDER,
    OWN_TIME,
    PAYMENT,
    POS,
    RECEIVED_AT_US,
    VALID,
    accepted,
    message,
    read,
    rejected,
    with_amount,
    with_extra,
)


def nested(depth: int, opening: str = '{"a":', closing: str = "}") -> bytes:
    """A valid message, `depth` objects or lists deep altogether."""
    inner = opening * (depth - 2) + "1" + closing * (depth - 2)
    return VALID.replace('"order_id"', f'"extra": {inner}, "order_id"').encode()


REFUSED = {
    "empty body": (b"", "bad_json"),
    "blank body": (b" \n", "bad_json"),
    "BOM alone": (b"\xef\xbb\xbf", "bad_json"),
    "two BOMs": (b"\xef\xbb\xbf\xef\xbb\xbf" + VALID.encode(), "bad_json"),
    "not UTF-8": (VALID.replace("c-1", "ü").encode("latin-1"), "bad_encoding"),
    "UTF-16": (VALID.encode("utf-16"), "bad_encoding"),
    "surrogate bytes": (VALID.encode().replace(b"c-1", b"\xed\xa0\x80"), "bad_encoding"),
    "truncated": (VALID[:-1].encode(), "bad_json"),
    "truncated string": (b'{"event": "order.comp', "bad_json"),
    "two documents": ((VALID + VALID).encode(), "bad_json"),
    "two lines": ((VALID + "\n" + VALID).encode(), "bad_json"),
    "comment": (VALID.replace("{", "{/**/", 1).encode(), "bad_json"),
    "trailing comma": (VALID.replace("}}", "},}").encode(), "bad_json"),
    "scalar": (b"42", "not_an_object"),
    "string": (json.dumps(VALID).encode(), "not_an_object"),
    "null": (b"null", "not_an_object"),
    "list": (f"[{VALID}]".encode(), "not_an_object"),
    "deep list": (b"[" * 300 + b"]" * 300, "not_an_object"),
    "21 deep": (nested(21), "bad_depth"),
    "21 deep in lists": (nested(21, "[", "]"), "bad_depth"),
    "6,000 deep": (nested(6_000), "bad_depth"),
    "6,000 deep in lists": (nested(6_000, "[", "]"), "bad_depth"),
    "30,000 deep, unclosed": (b"[" * 30_000, "bad_depth"),
    "100,000 deep": (b"[" * 100_000 + b"]" * 100_000, "too_large"),
    "over 64 KiB": (VALID.encode().ljust(MAX_BODY_BYTES + 1), "too_large"),
    "over 64 KiB of rubbish": (b"\xff" * (MAX_BODY_BYTES + 1), "too_large"),
    "integer of 5,000 digits": (with_extra("9" * 5_000), "bad_json"),
    "amount of 5,000 digits": (with_amount(ORDER, "9" * 5_000), "bad_json"),
    "id of 5,000 digits": (VALID.replace('"c-1"', "9" * 5_000).encode(), "bad_json"),
    "1e400": (with_amount(ORDER, "1e400"), "bad_amount"),
    "exponent of 30 digits": (with_amount(ORDER, "1e" + "9" * 30), "bad_json"),
    "NaN": (with_amount(ORDER, "NaN"), "bad_json"),
    "Infinity": (with_amount(ORDER, "Infinity"), "bad_json"),
    "-Infinity": (with_amount(ORDER, "-Infinity"), "bad_json"),
    "NaN in an extra field": (with_extra("NaN"), "bad_json"),
    "duplicate key": (VALID.replace('"order_id"', '"total_amount": 1, "order_id"').encode(), "bad_json"),
    "duplicate key, escaped": (VALID.replace('"order_id"', r'"total\u005famount": 1, "order_id"').encode(), "bad_json"),
    "duplicate key in an extra field": (with_extra('[{"a": 1, "a": 1}]'), "bad_json"),
    "NUL in an id": (VALID.replace("c-1", r"c\u0000").encode(), "bad_text"),
    "NUL in a key": (with_extra(r'{"a\u0000": 1}'), "bad_text"),
    "NUL in an extra field": (with_extra(r'["\u0000"]'), "bad_text"),
    "NUL in the organization": (VALID.replace("org-1", r"\u0000").encode(), "bad_text"),
    "raw NUL": (VALID.replace("c-1", "c\0").encode(), "bad_json"),
    "raw line feed": (VALID.replace("c-1", "c\n1").encode(), "bad_json"),
    "lone high surrogate": (VALID.replace("c-1", r"\ud83d").encode(), "bad_text"),
    "lone low surrogate": (with_extra(r'"\uDE00"'), "bad_text"),
    "surrogates the wrong way round": (with_extra(r'"\uDE00\uD83D"'), "bad_text"),
    "lone surrogate in a key": (with_extra(r'{"\udfff": 1}'), "bad_text"),
    "event type unknown": (VALID.replace(ORDER, "order.shipped").encode(), "unknown_type"),
    "event type empty": (VALID.replace(ORDER, "").encode(), "unknown_type"),
    "event type in capitals": (VALID.replace(ORDER, "Order.Completed").encode(), "unknown_type"),
    "event missing in a file": (json.dumps(message(ORDER, event=ABSENT)).encode(), "unknown_type"),
    "event of a wrong kind": (json.dumps(message(ORDER, event=7)).encode(), "bad_field"),
    "data missing": (json.dumps(message(ORDER) | {"data": None}).encode(), "bad_field"),
    "data a list": (json.dumps(message(ORDER) | {"data": [DATA[ORDER]]}).encode(), "bad_field"),
    "data a string": (json.dumps(message(ORDER) | {"data": json.dumps(DATA[ORDER])}).encode(), "bad_field"),
    "no data": (b'{"event": "order.completed"}', "bad_field"),
    "empty object": (b"{}", "unknown_type"),
    "no customer": (json.dumps(message(ORDER, {"customer_id": ABSENT})).encode(), "bad_field"),
    "no customer of a payment": (json.dumps(message(PAYMENT, {"customer_id": ABSENT})).encode(), "bad_field"),
    "no order": (json.dumps(message(CANCELLED, {"order_id": ABSENT})).encode(), "bad_field"),
    "no totals": (json.dumps(message(POS, {"totals": ABSENT})).encode(), "bad_field"),
    "totals a number": (json.dumps(message(POS, {"totals": 12})).encode(), "bad_field"),
    "totals a list": (json.dumps(message(POS, {"totals": [{"total_amount": 12}]})).encode(), "bad_field"),
    "totals empty": (json.dumps(message(POS, {"totals": {}})).encode(), "bad_field"),
    "payment method of a wrong kind": (json.dumps(message(ORDER, {"payment_method": 1})).encode(), "bad_field"),
    "version of a wrong kind": (json.dumps(message(ORDER, version=[1])).encode(), "bad_field"),
    "version a boolean": (json.dumps(message(ORDER, version=True)).encode(), "bad_field"),
    "service of a wrong kind": (json.dumps(message(ORDER, service=1)).encode(), "bad_field"),
    "correlation id of a wrong kind": (json.dumps(message(ORDER, correlation_id={})).encode(), "bad_id"),
}


@pytest.mark.parametrize(("body", "code"), REFUSED.values(), ids=REFUSED)
def test_a_message_that_would_hurt_is_refused(body: bytes, code: str) -> None:
    assert rejected(body).code == code


def test_a_giant_integer_is_refused_whatever_the_interpreter_allows() -> None:
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        assert rejected(with_extra("9" * 4_301)).code == "bad_json"
    finally:
        sys.set_int_max_str_digits(limit)


@pytest.mark.parametrize("command", [type_.value for type_ in EventType if type_.value not in DATA])
def test_no_other_service_can_send_a_command(command: str) -> None:
    assert rejected(message(ORDER, event=command)).code == "unknown_type"
    assert rejected(message(ORDER, event=ABSENT), routing_key=command).code == "unknown_type"


@pytest.mark.parametrize("routing_key", [CANCELLED, "order.shipped", "customer_order_queue", ""])
def test_a_routing_key_that_contradicts_the_body_is_refused(routing_key: str) -> None:
    assert rejected(message(ORDER), routing_key=routing_key).code == "type_mismatch"


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "UTF-16", "base64", "x" * 200])
def test_a_content_encoding_is_refused_whatever_the_body(encoding: str) -> None:
    assert rejected(VALID.encode(), content_encoding=encoding).code == "bad_encoding"
    assert rejected(b"\x1f\x8b\x08\x00", content_encoding=encoding).code == "bad_encoding"


@pytest.mark.parametrize("encoding", [None, "", "identity", "utf-8", "UTF-8", "utf8"])
def test_a_content_encoding_that_changes_nothing_is_accepted(encoding: str | None) -> None:
    accepted(VALID.encode(), content_encoding=encoding)


HARMLESS = {
    "UTF-8 BOM": b"\xef\xbb\xbf" + VALID.encode(),
    "space around": b" \r\n\t" + VALID.encode() + b" \r\n",
    "20 deep": nested(20),
    "20 deep in lists": nested(20, "[", "]"),
    "wide": with_extra("[" + ",".join(["{}"] * 500) + "]"),
    "64 KiB": VALID.encode().ljust(MAX_BODY_BYTES),
    "braces in a string": with_extra('"' + "{[" * 500 + '"'),
    "integer of 4,300 digits": with_extra("9" * 4_300),
    "1e400 in an extra field": with_extra("1e400"),
    "escaped emoji": with_extra(r'"\ud83d\ude00"'),
    "escaped backslash before u0000": with_extra(r'"\\u0000 \\ud800"'),
    "__proto__": with_extra('{"__proto__": {"total_amount": 1}, "__class__": "x", "model_config": {}}'),
    "same key in two objects": with_extra('[{"total_amount": 1}, {"total_amount": 1}]'),
}


@pytest.mark.parametrize("body", HARMLESS.values(), ids=HARMLESS)
def test_what_only_looks_dangerous_is_accepted_as_it_is(body: bytes) -> None:
    outcome = accepted(body)
    assert (outcome.organization_id, outcome.customer_id, outcome.amount_minor) == ("org-1", "c-1", 12990)
    assert outcome.payload.encode() == body.removeprefix(b"\xef\xbb\xbf")


@pytest.mark.parametrize(
    "text",
    [
        "a\r\nb",
        "\x1b[31mred\x1b[0m",
        "<script>alert(1)</script>",
        "'; DROP TABLE event; --",
        "{0.__class__}",
        "%s%n%(x)s",
        "__proto__",
        '=cmd|" /C calc"!A0',
        "${jndi:ldap://x}",
        "\u202egnp.exe",
        "\ufeff",
        "\x7f\x01",
        "😀",
    ],
    ids=ascii,
)
def test_text_meant_for_another_program_is_plain_data(text: str) -> None:
    body = message(ORDER, {"customer_id": text, "order_id": text, "note": text}, organization_id=text, service=text)
    outcome = accepted(body)
    assert (outcome.organization_id, outcome.customer_id, outcome.reference) == (text, text, text)
    assert json.loads(outcome.payload) == body
    refusal = rejected(body | {"timestamp": text})
    assert (refusal.code, refusal.organization_id) == ("bad_time", text)
    assert refusal.reason.isprintable()


# --- anything at all ---------------------------------------------------------------------------------------------

_ROUTING_KEYS = st.one_of(st.none(), st.sampled_from([*DATA, "credit.opened", "?"]))
_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    st.characters(categories=["Cs"]),
    st.sampled_from(
        [
            "",
            "1e5",
            "credit",
            "EUR",
            "2025-06-01T11:00:00Z",
            "2025-05-31T23:59:60Z",
            "-0",
            "9999-12-31T23:59:59-23:59",
            "infinity",
        ]
    ),
)
_JSON = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=8
)
_ENVELOPE_FIELDS = ["event_id", "event", "version", "timestamp", "organization_id", "correlation_id", "service", "data"]
_DATA_FIELDS = sorted(
    {"customer_id", "currency", "payment_method", "order_id", "pos_transaction_id", "totals", *OWN_TIME.values()}
    | {field for data in DATA.values() for field in data}
)


def check(outcome: Message | Rejected) -> None:
    """What everything behind decoding relies on."""
    if isinstance(outcome, Rejected):
        assert outcome.code.isidentifier()
        assert outcome.reason.isprintable()
        assert outcome.reason.isascii()
        assert len(outcome.reason) < 300
        return
    assert isinstance(outcome, Message)
    assert isinstance(outcome.payload.encode(), bytes)
    assert isinstance(outcome.amount_minor, int)
    assert 0 <= outcome.amount_minor < 10**14
    assert 0 <= outcome.occurred_at_us <= outcome.received_at_us == RECEIVED_AT_US
    assert outcome.customer_id is not None or outcome.type in {CANCELLED, POS}
    ids = (outcome.organization_id, outcome.customer_id, outcome.pos_transaction_id, outcome.order_id)
    for text in (*(id_ for id_ in ids if id_ is not None), outcome.reference.removeprefix("event:")):
        assert text.strip()
        assert len(text) <= 64
        assert "\0" not in text
        assert isinstance(text.encode(), bytes)


@given(body=st.binary(), routing_key=_ROUTING_KEYS)
def test_arbitrary_bytes_end_as_a_value(body: bytes, routing_key: str | None) -> None:
    check(read(body, routing_key))


@given(document=_JSON, routing_key=_ROUTING_KEYS, ascii_only=st.booleans())
def test_arbitrary_json_ends_as_a_value(document: object, routing_key: str | None, ascii_only: bool) -> None:
    check(read(json.dumps(document, ensure_ascii=ascii_only).encode(errors="surrogatepass"), routing_key))


@given(
    type_=st.sampled_from(sorted(DATA)),
    envelope=st.dictionaries(st.sampled_from(_ENVELOPE_FIELDS), _JSON, max_size=2),
    data=st.dictionaries(st.sampled_from(_DATA_FIELDS), _JSON, max_size=2),
    naive=st.sampled_from(["reject", "utc"]),
)
def test_arbitrary_values_in_known_fields_end_as_a_value(
    type_: str, envelope: dict[str, Any], data: dict[str, Any], naive: str
) -> None:
    document = message(type_, data) | envelope
    check(read(document, type_, policy=DecodePolicy(naive_timestamps=naive)))


@given(position=st.integers(0, len(VALID)), change=st.binary(max_size=3), removed=st.integers(0, 3))
def test_a_damaged_message_ends_as_a_value(position: int, change: bytes, removed: int) -> None:
    body = VALID.encode()
    check(read(body[:position] + change + body[position + removed :], ORDER))


def test_a_body_too_large_is_cut_but_refused_with_its_true_size() -> None:
    received = Received.of(b"x" * 20_000_000, "order.completed", 0, None)
    assert len(received.body) == MAX_BODY_BYTES
    refused = decode(received, DecodePolicy())
    assert isinstance(refused, Rejected)
    assert (refused.code, "20000000" in refused.reason) == ("too_large", True)
