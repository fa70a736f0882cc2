"""Messages between actors: ours pass as they are, everything else is refused without a word of it."""

import json
import pickle
import time
from contextlib import suppress
from typing import Any

import dramatiq
import pytest
from dramatiq.errors import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from customer_actors.actors.encoding import LARGEST, MalformedError, StrictEncoder, refusal

SECRET = "C-4711"
GOOD: dict[str, Any] = {
    "queue_name": "stats",
    "actor_name": "stats",
    "args": [[1, 2]],
    "kwargs": {},
    "options": {},
    "message_id": "m",
    "message_timestamp": 1,
}

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def decoded(**changed: object) -> Any:
    return StrictEncoder().decode(json.dumps(GOOD | changed).encode())


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def test_what_dramatiq_sends_is_taken_as_it_is() -> None:
    message: dramatiq.Message[Any] = dramatiq.Message("stats", "stats", ([1, 2],), {}, {})
    retried = message.copy(
        queue_name="stats.DQ",
        options={"retries": 3, "traceback": "x", "requeue_timestamp": now_ms(), "eta": now_ms() + 300_000},
    )
    for each in (message, retried):
        fields = StrictEncoder().decode(StrictEncoder().encode(each.asdict()))
        assert dramatiq.Message(**fields) == each


@pytest.mark.parametrize(
    "changed",
    [
        {"options": None},
        {"options": []},
        {"options": {"retries": "1"}},
        {"options": {"retries": None}},
        {"options": {"retries": True}},
        {"options": {"retries": -1}},
        {"options": {"retries": 10**30}},
        {"options": {"traceback": 1}},
        {"options": {"eta": "soon"}},
        {"options": {"eta": None}},
        {"options": {"eta": 1.5}},
        {"options": {"eta": 10**18}},
        {"options": {"throws": SECRET}},
        {"options": {"pipe_target": {}}},
        {"options": {SECRET: 1}},
        {"queue_name": "loyalty"},
        {"queue_name": ""},
        {"queue_name": None},
        {"queue_name": "stats.XQ.DQ"},
        {"actor_name": ["stats"]},
        {"args": {SECRET: 1}},
        {"args": SECRET},
        {"args": None},
        {"kwargs": {SECRET: 1}},
        {"kwargs": None},
        {"message_id": 1},
        {"message_id": SECRET * 100},
        {"message_timestamp": SECRET},
        {SECRET: 1},
    ],
    ids=str,
)
def test_a_field_of_another_shape_is_refused(changed: dict[str, object]) -> None:
    with pytest.raises(MalformedError) as refused:
        decoded(**changed)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("field", sorted(GOOD))
def test_a_missing_field_is_refused(field: str) -> None:
    with pytest.raises(MalformedError, match=f"{field}: missing"):
        StrictEncoder().decode(json.dumps({name: value for name, value in GOOD.items() if name != field}).encode())


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{}", b"null", b"[]", b"1", b'"text"', b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 5_000, b'{"a": NaN}'),
        pickle.dumps(GOOD),
    ],
    ids=lambda body: repr(body[:10]),
)
def test_a_body_that_is_no_message_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedError):
        StrictEncoder().decode(body)


@given(st.binary() | values.map(lambda value: json.dumps(value).encode()))
def test_no_body_makes_decoding_raise_anything_else(body: bytes) -> None:
    with pytest.raises(DecodeError):
        StrictEncoder().decode(body)


@given(st.dictionaries(st.sampled_from(sorted(GOOD)), values))
def test_no_field_makes_decoding_raise_anything_else(changed: dict[str, object]) -> None:
    with suppress(MalformedError):
        decoded(**changed)


def bundle(customers: list[int]) -> None: ...


def bell(customers_of: dict[str, list[int]]) -> None: ...


def night(job: str, number: int, dry: bool = False) -> None: ...


@pytest.mark.parametrize(
    ("work", "args"),
    [
        *((bundle, ([],)), (bundle, ([1, LARGEST],)), (bell, ({},)), (bell, ({"order.completed": [1]},))),
        *((night, ("a", 1)), (night, ("a", 1, True))),
    ],
)
def test_arguments_of_the_right_types_are_taken(work: Any, args: tuple[Any, ...]) -> None:
    assert refusal(work, args) is None


@pytest.mark.parametrize(
    ("work", "args"),
    [
        *((bundle, args) for args in ((), ([1], [1]), ({"a": 1},), ("1",), (["1"],), ([True],), ([1.0],), (None,))),
        *((bundle, ([number],)) for number in (LARGEST + 1, -LARGEST - 2, 10**30)),
        *((bell, args) for args in (([1],), ({"a": "1"},), ({"a": [None]},), ({"a": [2**63]},))),
        *((night, args) for args in (("a",), (1, 1), ("a", "1"), ("a", 1, 1), ("a", 1, True, 1))),
    ],
)
def test_arguments_of_other_types_are_refused(work: Any, args: tuple[Any, ...]) -> None:
    assert str(refusal(work, args)).startswith("arguments")
