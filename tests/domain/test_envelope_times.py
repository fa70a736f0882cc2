"""Decoding: when an event happened [A7]."""

import json
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from customer_actors.domain.envelope import DecodePolicy
from customer_actors.domain.events import to_us
from tests.domain.messages import (
    ORDER,
    OWN_TIME,
    RECEIVED_AT,
    RECEIVED_AT_US,
    accepted,
    message,
    rejected,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2025-06-01T11:00:00Z", datetime(2025, 6, 1, 11, tzinfo=UTC)),
        ("2025-06-01t11:00:00z", datetime(2025, 6, 1, 11, tzinfo=UTC)),
        ("2025-06-01 11:00:00Z", datetime(2025, 6, 1, 11, tzinfo=UTC)),
        ("2025-06-01T13:30:00+02:30", datetime(2025, 6, 1, 11, tzinfo=UTC)),
        ("2025-05-31T13:00:00-22:00", datetime(2025, 6, 1, 11, tzinfo=UTC)),
        ("2025-06-01T11:00:00-00:00", datetime(2025, 6, 1, 11, tzinfo=UTC)),
        ("2025-06-01T11:00:00.5Z", datetime(2025, 6, 1, 11, 0, 0, 500_000, tzinfo=UTC)),
        ("2025-06-01T11:00:00.1234569Z", datetime(2025, 6, 1, 11, 0, 0, 123_456, tzinfo=UTC)),
        ("2025-06-01T11:00:00." + "9" * 5000 + "+00:00", datetime(2025, 6, 1, 11, 0, 0, 999_999, tzinfo=UTC)),
        ("2024-02-29T00:00:00Z", datetime(2024, 2, 29, tzinfo=UTC)),
        ("2016-12-31T23:59:60Z", datetime(2016, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
        ("2017-01-01T00:59:60.75+01:00", datetime(2016, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)),
        ("1970-01-01T00:00:00Z", datetime(1970, 1, 1, tzinfo=UTC)),
        ("1970-01-01T01:00:00+01:00", datetime(1970, 1, 1, tzinfo=UTC)),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_time_is_read_to_the_microsecond(text: str, expected: datetime) -> None:
    for type_, field in OWN_TIME.items():
        outcome = accepted(message(type_, {field: text}))
        assert (outcome.occurred_at_us, outcome.detail) == (to_us(expected), None)


NOT_A_TIME = [
    "2025-06-01T11:00:00",
    "2025-06-01",
    "2025-06-01T11:00Z",
    "2025-06-01T11Z",
    "20250601T110000Z",
    "2025-W22-7T11:00:00Z",
    "2025-152T11:00:00Z",
    "2025-06-01T11:00:00,5Z",
    "2025-06-01T11:00:00.Z",
    "2025-06-01T11:00:00+0200",
    "2025-06-01T11:00:00+02",
    "2025-06-01T11:00:00+02:00:30",
    "2025-06-01T11:00:00+99:99",
    "2025-06-01T11:00:00+24:00",
    "2025-06-01T11:00:00+02:60",
    "2025-06-01T11:00:00 Z",
    " 2025-06-01T11:00:00Z",
    "2025-06-01T11:00:00Z\n",
    "2025-06-01_11:00:00Z",
    "2025-6-1T11:00:00Z",
    "\uff12025-06-01T11:00:00Z",
    "2025-13-01T11:00:00Z",
    "2025-02-29T11:00:00Z",
    "2025-06-01T24:00:00Z",
    "2025-06-01T11:60:00Z",
    "2025-06-01T11:00:61Z",
    "2025-06-01T11:00:60Z",
    "2025-06-01T23:59:60+02:00",
    "0000-01-01T00:00:00Z",
    "0001-01-01T00:00:00+23:59",
    "1969-12-31T23:59:59.999999Z",
    "9999-12-31T23:59:59Z",
    "9999-12-31T23:59:59-23:59",
    "20000-01-01T00:00:00Z",
    "-2025-06-01T11:00:00Z",
    "infinity",
    "now",
    "",
    1748775600,
    1748775600.5,
    True,
    {"year": 2025},
    ["2025-06-01T11:00:00Z"],
]


@pytest.mark.parametrize("value", NOT_A_TIME, ids=str)
def test_what_is_no_time_is_refused_also_when_another_one_is_used(value: object) -> None:
    for type_, field in OWN_TIME.items():
        own = rejected(message(type_, {field: value}, timestamp="2025-06-01T11:00:00Z"))
        assert own.code == "bad_time"
        assert own.reason.startswith(f"data.{field} must ")
    for data in ({}, {"completed_at": "2025-06-01T11:00:00Z"}):
        envelope = rejected(message(ORDER, data, timestamp=value))
        assert envelope.code == "bad_time"
        assert envelope.reason.startswith("timestamp must ")


def test_the_own_time_comes_before_the_envelopes_and_that_before_receipt() -> None:
    own, envelope = "1970-01-01T00:00:00Z", "2025-06-01T11:00:00Z"
    for type_, field in OWN_TIME.items():
        assert accepted(message(type_, {field: own}, timestamp=envelope)).occurred_at_us == 0
        assert accepted(message(type_, timestamp=envelope)).occurred_at_us == RECEIVED_AT_US - 3_600_250_000
        assert accepted(message(type_)).occurred_at_us == RECEIVED_AT_US


def test_another_types_time_is_an_extra_field() -> None:
    assert accepted(message(ORDER, {"paid_at": "?", "cancelled_at": 7})).occurred_at_us == RECEIVED_AT_US


@pytest.mark.parametrize("ahead", [timedelta(microseconds=1), timedelta(hours=24)])
def test_a_time_up_to_a_day_ahead_is_clamped_and_kept_as_written(ahead: timedelta) -> None:
    text = (RECEIVED_AT + ahead).isoformat()
    for outcome in (accepted(message(ORDER, {"completed_at": text})), accepted(message(ORDER, timestamp=text))):
        assert outcome.occurred_at_us == RECEIVED_AT_US
        assert json.loads(outcome.detail or "") == {"occurred_at": text}


def test_a_time_exactly_at_receipt_is_not_clamped() -> None:
    outcome = accepted(message(ORDER, {"completed_at": RECEIVED_AT.isoformat()}))
    assert (outcome.occurred_at_us, outcome.detail) == (RECEIVED_AT_US, None)


def test_a_time_more_than_a_day_ahead_is_refused() -> None:
    text = (RECEIVED_AT + timedelta(hours=24, microseconds=1)).isoformat()
    assert rejected(message(ORDER, {"completed_at": text})).code == "bad_time"


def test_a_time_without_a_zone_is_utc_if_the_settings_say_so() -> None:
    body = message(ORDER, timestamp="2025-06-01 11:00:00.25")
    assert rejected(body).code == "bad_time"
    outcome = accepted(body, policy=DecodePolicy(naive_timestamps="utc"))
    assert outcome.occurred_at_us == to_us(datetime(2025, 6, 1, 11, 0, 0, 250_000, tzinfo=UTC))


@given(
    moment=st.datetimes(datetime(1970, 1, 3), datetime(2025, 5, 30)),
    offset=st.integers(-23 * 60 - 59, 23 * 60 + 59),
)
def test_every_time_survives_being_written_down(moment: datetime, offset: int) -> None:
    aware = moment.replace(tzinfo=timezone(timedelta(minutes=offset)))
    assert accepted(message(ORDER, timestamp=aware.isoformat())).occurred_at_us == to_us(aware)
