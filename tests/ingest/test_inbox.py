"""What a batch is made of: every connection has its share, in order of arrival."""

import time
from typing import Final

import pytest

from customer_actors.domain.envelope import Received
from customer_actors.ingest.link import Delivery, Inbox, Link

SIZE: Final = 80


def nobody(*_: object) -> None:
    """Told of everything."""


def link(inbox: Inbox, queue: str) -> Link:
    """One that never connects."""
    return Link(queue, 100, inbox, nobody, nobody)


def put(inbox: Inbox, at: Link, *tags: int) -> None:
    for tag in tags:
        inbox.put(Delivery(at, tag, Received.of(b"{}", "order.completed", 0, None)), urgent=False)


def taken(inbox: Inbox) -> list[tuple[str, int]]:
    return [(delivery.link.queue, delivery.tag) for delivery in inbox.take(time.monotonic())]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Monotonic seconds: what the inbox takes for the time."""
    now_s = [1_000.0]
    monkeypatch.setattr("customer_actors.ingest.link.time.monotonic", lambda: now_s[0])
    return now_s


def test_a_trickle_is_in_the_next_batch_and_the_flood_comes_in_small_ones_for_a_second(clock: list[float]) -> None:
    inbox = Inbox(SIZE)
    flood, trickle = link(inbox, "flood"), link(inbox, "trickle")
    put(inbox, flood, *range(1, 301))
    put(inbox, trickle, 1, 2)
    assert taken(inbox) == [*[("flood", tag) for tag in range(1, 9)], ("trickle", 1), ("trickle", 2)]
    assert taken(inbox) == [("flood", tag) for tag in range(9, 19)]
    clock[0] += 1.5
    assert taken(inbox) == [("flood", tag) for tag in range(19, 19 + SIZE)]


def test_a_flood_alone_has_full_batches() -> None:
    inbox = Inbox(SIZE)
    put(inbox, link(inbox, "flood"), *range(1, 301))
    assert [len(taken(inbox)) for _ in range(4)] == [SIZE, SIZE, SIZE, 60]


def test_two_floods_share_full_batches_and_keep_their_own_order() -> None:
    inbox = Inbox(SIZE)
    one, other = link(inbox, "one"), link(inbox, "other")
    put(inbox, one, *range(1, 161))
    put(inbox, other, *range(1, 161))
    batches = [taken(inbox) for _ in range(4)]
    assert [len(batch) for batch in batches] == [SIZE] * 4
    assert {sum(queue == "one" for queue, _ in batch) for batch in batches} == {SIZE // 2}
    for name in ("one", "other"):
        assert [tag for batch in batches for queue, tag in batch if queue == name] == [*range(1, 161)]


def test_in_a_batch_what_arrived_first_comes_first_whatever_its_queue() -> None:
    inbox = Inbox(SIZE)
    one, other = link(inbox, "one"), link(inbox, "other")
    put(inbox, one, 1)
    put(inbox, other, 1, 2)
    put(inbox, one, 2)
    assert taken(inbox) == [("one", 1), ("other", 1), ("other", 2), ("one", 2)]


def test_no_batch_is_larger_than_asked_and_nobody_starves_in_the_smallest() -> None:
    inbox = Inbox(1)
    links = [link(inbox, name) for name in ("a", "b", "c")]
    for tag in (1, 2, 3):
        for each in links:
            put(inbox, each, tag)
    batches = [taken(inbox) for _ in range(9)]
    assert [len(batch) for batch in batches] == [1] * 9
    assert [batch[0][0] for batch in batches] == ["a", "b", "c"] * 3
    assert taken(inbox) == []


FLOOD: Final = range(1, 301)


def paced(inbox: Inbox, *customers: str | None, took_s: float = 0.01) -> list[tuple[str, int]]:
    """What is taken next and then committed, about these customers in turn."""
    batch = inbox.take(time.monotonic())
    inbox.pace(batch, [customers[number % len(customers)] for number in range(len(batch))], took_s)
    return [(delivery.link.queue, delivery.tag) for delivery in batch]


def test_a_flood_of_one_customer_rests_beside_a_trickle_and_then_brings_little(clock: list[float]) -> None:
    inbox = Inbox(SIZE)
    flood, trickle = link(inbox, "flood"), link(inbox, "trickle")
    put(inbox, flood, *FLOOD)
    put(inbox, trickle, 1)
    assert paced(inbox, "hot", took_s=0.02) == [*[("flood", tag) for tag in range(1, 10)], ("trickle", 1)]
    put(inbox, trickle, 2)
    assert taken(inbox) == [("trickle", 2)]
    clock[0] += 0.079
    put(inbox, trickle, 3)
    assert taken(inbox) == [("trickle", 3)]
    clock[0] += 0.002
    put(inbox, trickle, 4)
    assert taken(inbox) == [("flood", 10), ("flood", 11), ("trickle", 4)]


def test_it_is_as_fast_as_ever_when_nobody_else_has_come_for_a_second(clock: list[float]) -> None:
    inbox = Inbox(SIZE)
    flood, trickle = link(inbox, "flood"), link(inbox, "trickle")
    put(inbox, flood, *FLOOD)
    put(inbox, trickle, 1)
    paced(inbox, "hot")
    clock[0] += 1.5
    paced(inbox, "hot")
    assert len(paced(inbox, "hot")) == SIZE


@pytest.mark.parametrize("customers", [("a", "b"), (None,)])
def test_a_flood_of_many_customers_or_of_nobody_does_not_rest(clock: list[float], customers: tuple[str | None]) -> None:
    inbox = Inbox(SIZE)
    flood, trickle = link(inbox, "flood"), link(inbox, "trickle")
    put(inbox, flood, *FLOOD)
    put(inbox, trickle, 1)
    paced(inbox, *customers)
    assert taken(inbox) == [("flood", tag) for tag in range(10, 20)]


def test_a_trickle_of_one_customer_does_not_rest(clock: list[float]) -> None:
    inbox = Inbox(SIZE)
    flood, trickle = link(inbox, "flood"), link(inbox, "trickle")
    put(inbox, flood, *FLOOD)
    put(inbox, trickle, 1, 2)
    paced(inbox, "c")
    put(inbox, trickle, 3)
    assert taken(inbox) == [("trickle", 3)]


def test_a_resting_flood_alone_is_waited_for_and_taken() -> None:
    inbox = Inbox(SIZE)
    flood, trickle = link(inbox, "flood"), link(inbox, "trickle")
    put(inbox, flood, *FLOOD)
    put(inbox, trickle, 1)
    paced(inbox, "hot", took_s=0.005)
    batches = [taken(inbox) for _ in range(3)]
    assert [("flood", 10), ("flood", 11)] in batches


def test_two_floods_of_one_customer_each_do_not_rest() -> None:
    inbox = Inbox(SIZE)
    for name in ("one", "other"):
        put(inbox, link(inbox, name), *FLOOD)
    assert [len(paced(inbox, "hot")) for _ in range(3)] == [SIZE] * 3
