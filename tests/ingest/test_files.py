"""Lines become messages as they arrive, in order, and whoever takes them is never stuck."""

import io
import os
import threading
from collections.abc import Iterator
from itertools import count

import pytest

from customer_actors.domain.envelope import MAX_BODY_BYTES, DecodePolicy, Received, decode
from customer_actors.domain.events import Rejected
from customer_actors.ingest.files import batches, numbered_lines, received_lines
from tests.servers.process import wait_until


def messages(number: int) -> Iterator[Received]:
    return (Received(b"%d" % n, None, n) for n in range(number))


def bodies(found: list[list[Received]]) -> list[bytes]:
    return [message.body for batch in found for message in batch]


def test_every_line_that_is_not_blank_is_a_message_with_its_time_of_receipt() -> None:
    clock = count(7).__next__
    lines = io.BytesIO(b'{"a": 1}\r\n\n  \n{"b": 2}\n{"c": 3}')
    assert list(received_lines(lines, clock)) == [
        Received(b'{"a": 1}', None, 7),
        Received(b'{"b": 2}', None, 8),
        Received(b'{"c": 3}', None, 9),
    ]


def test_lines_are_numbered_as_an_editor_numbers_them() -> None:
    assert list(numbered_lines(io.BytesIO(b"\na\n\nb\n"))) == [(2, b"a"), (4, b"b")]


def test_an_endless_line_is_cut_and_refused_and_the_next_one_is_read() -> None:
    endless, longest = b"x" * (3 * MAX_BODY_BYTES), b"y" * MAX_BODY_BYTES
    first, second, third = received_lines(io.BytesIO(endless + b"\n" + longest + b"\r\nz\n"), lambda: 0)
    assert len(first.body) == MAX_BODY_BYTES + 2
    refused = decode(first, DecodePolicy())
    assert isinstance(refused, Rejected)
    assert refused.code == "too_large"
    assert second.body == longest
    assert third.body == b"z"


def test_batches_keep_the_order_and_are_never_larger_than_asked() -> None:
    found = list(batches(messages(1_000), 64, 1.0))
    assert bodies(found) == [b"%d" % n for n in range(1_000)]
    assert max(map(len, found)) == 64


def test_nothing_to_read_gives_no_batch() -> None:
    assert list(batches(messages(0), 10, 1.0)) == []


def test_a_message_is_handed_over_although_the_next_one_does_not_come() -> None:
    more = threading.Event()

    def trickle() -> Iterator[Received]:
        yield from messages(1)
        more.wait(20)
        yield from messages(2)

    found = batches(trickle(), 100, 0.01)
    assert bodies([next(found)]) == [b"0"]
    more.set()
    assert bodies(list(found)) == [b"0", b"1"]


def test_while_nothing_comes_empty_batches_let_the_caller_look_around_and_leave() -> None:
    ours, theirs = os.pipe()
    with open(ours, "rb") as lines:
        found = batches(received_lines(lines, lambda: 0), 10, 0.01)
        assert [next(found), next(found)] == [[], []]
        found.close()
        os.close(theirs)


def test_what_reading_raises_comes_behind_the_messages_before_it() -> None:
    def failing() -> Iterator[Received]:
        yield from messages(3)
        raise OSError("unplugged")

    found: list[list[Received]] = []
    with pytest.raises(OSError, match="unplugged"):
        found.extend(batches(failing(), 2, 1.0))
    assert bodies(found) == [b"0", b"1", b"2"]


def test_reading_is_only_a_little_ahead() -> None:
    drawn = count()
    endless = (Received(b"", None, next(drawn)) for _ in count())
    found = batches(endless, 10, 1.0)
    next(found)
    found.close()
    wait_until(lambda: not any(thread.name == "lines" for thread in threading.enumerate()))
    assert next(drawn) <= 10 + 2 * 10 + 2
