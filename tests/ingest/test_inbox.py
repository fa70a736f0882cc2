"""What a batch is made of: every connection has its share, in order of arrival."""

import threading
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


@pytest.mark.timeout(30)
def test_then_a_small_batch_is_full_and_waits_for_no_more(clock: list[float]) -> None:
    """Else what comes faster than a small batch in each spacing would pile up until a large one were full."""
    inbox = Inbox(SIZE)
    flood, trickle = link(inbox, "flood"), link(inbox, "trickle")
    put(inbox, flood, *range(1, 61))
    put(inbox, trickle, 1)
    assert len(taken(inbox)) == SIZE // 8
    assert len(inbox.take(clock[0] + 3600)) == SIZE // 8


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


IN_A_ROW: Final = 13 * SIZE
"""More than a thousand: from then on a flood of one customer is one."""
REST: Final = range(IN_A_ROW + 1, IN_A_ROW + 301)


def paced(inbox: Inbox, *customers: str | None) -> list[tuple[str, int]]:
    """What is taken next and then committed, about these customers in turn."""
    batch = inbox.take(time.monotonic())
    inbox.pace(batch, [customers[number % len(customers)] for number in range(len(batch))])
    return [(delivery.link.queue, delivery.tag) for delivery in batch]


def flooded(inbox: Inbox, *customers: str | None) -> tuple[Link, Link]:
    """A flood of these customers, of which more than a thousand are through, and a trickle that has begun beside it:
    the first small batch is through as well."""
    flood, trickle = link(inbox, "flood"), link(inbox, "trickle")
    put(inbox, flood, *range(1, REST.stop))
    for _ in range(IN_A_ROW // SIZE):
        assert len(paced(inbox, *customers)) == SIZE
    put(inbox, trickle, 1)
    begun = [*[("flood", tag) for tag in range(REST.start, REST.start + 9)], ("trickle", 1)]
    assert paced(inbox, *customers) == begun
    return flood, trickle


def largely_flooded(inbox: Inbox) -> tuple[Link, Link]:
    """The same with large batches; the trickle has come, and no small batch is taken yet."""
    flood, trickle = link(inbox, "flood"), link(inbox, "trickle")
    put(inbox, flood, *range(1, 5_001))
    for _ in range(2):
        paced(inbox, "hot")
    put(inbox, trickle, 1)
    return flood, trickle


NEXT: Final = [("flood", tag) for tag in range(REST.start + 9, REST.stop)]
"""Of the flood, after that."""


def test_a_flood_of_one_customer_goes_alone_only_when_nobody_has_come_for_a_tenth_of_a_second(
    clock: list[float],
) -> None:
    inbox = Inbox(SIZE)
    flooded(inbox, "hot")
    clock[0] += 0.099
    assert paced(inbox) == []
    clock[0] += 0.002
    assert paced(inbox, "hot") == NEXT[:10]
    assert paced(inbox) == []


@pytest.mark.parametrize("after_s", [0.0, 0.02, 0.05, 0.09])
def test_meanwhile_it_rides_along_with_the_others_a_little_at_a_time(clock: list[float], after_s: float) -> None:
    inbox = Inbox(10 * SIZE)
    _, trickle = largely_flooded(inbox)
    assert len(paced(inbox, "hot")) == 10 * SIZE // 8
    for tag in range(2, 20):
        clock[0] += after_s
        put(inbox, trickle, tag)
        batch = paced(inbox, "hot")
        assert batch[-1] == ("trickle", tag)
        assert [queue for queue, _ in batch[:-1]] == ["flood"] * 24


def test_in_the_smallest_batches_one_rides_along(clock: list[float]) -> None:
    inbox = Inbox(8)
    flood, trickle = link(inbox, "flood"), link(inbox, "trickle")
    put(inbox, flood, *range(1, 2_001))
    for _ in range(130):
        paced(inbox, "hot")
    put(inbox, trickle, 1)
    assert paced(inbox, "hot") == [("flood", 1_041)]
    clock[0] += 0.09
    assert paced(inbox, "c") == [("flood", 1_042), ("trickle", 1)]


def test_whoever_rides_along_takes_nobody_s_room(clock: list[float]) -> None:
    inbox = Inbox(10 * SIZE)
    _, trickle = largely_flooded(inbox)
    paced(inbox, "hot")
    put(inbox, trickle, *range(2, 302))
    assert [queue for queue, _ in taken(inbox)].count("trickle") == 10 * SIZE // 8


def test_full_batches_stay_as_large_as_asked_although_one_rides_along(clock: list[float]) -> None:
    inbox = Inbox(10 * SIZE)
    flood, trickle = largely_flooded(inbox)
    paced(inbox, "hot")
    clock[0] += 0.95
    paced(inbox, "hot")
    clock[0] += 0.06  # nobody hurries any more, and the flood still rests
    put(inbox, trickle, *range(2, 1_002))
    assert flood.rests(clock[0])
    assert [queue for queue, _ in taken(inbox)] == ["trickle"] * (10 * SIZE)


def test_its_messages_are_taken_in_order_however_they_are_taken(clock: list[float]) -> None:
    inbox = Inbox(10 * SIZE)
    _, trickle = largely_flooded(inbox)
    took: list[int] = []
    for tag in range(2, 60):
        clock[0] += (0.03, 0.11)[tag % 2]
        put(inbox, trickle, *([tag] if tag % 3 else []))
        took += [at for queue, at in paced(inbox, "hot") if queue == "flood"]
    assert took == [*range(took[0], took[0] + len(took))]
    assert len(took) > 2_000


def test_it_is_as_fast_as_ever_when_nobody_else_has_come_for_a_second(clock: list[float]) -> None:
    inbox = Inbox(SIZE)
    flooded(inbox, "hot")
    clock[0] += 1.5
    assert paced(inbox, "hot") == NEXT[:SIZE]
    assert paced(inbox, "hot") == NEXT[SIZE : 2 * SIZE]


@pytest.mark.parametrize("customers", [("a", "b"), (None,)])
def test_a_flood_of_many_customers_or_of_nobody_does_not_rest(clock: list[float], customers: tuple[str | None]) -> None:
    inbox = Inbox(SIZE)
    flooded(inbox, *customers)
    assert taken(inbox) == NEXT[:10]


def test_messages_about_nobody_do_not_hide_a_flood_of_one(clock: list[float]) -> None:
    inbox = Inbox(SIZE)
    flood, trickle = link(inbox, "flood"), link(inbox, "trickle")
    put(inbox, flood, *range(1, 3_001))
    for _ in range(30):
        paced(inbox, "hot", None, "hot")
    put(inbox, trickle, 1)
    assert len(paced(inbox, "hot", None)) == SIZE // 8
    assert paced(inbox) == []


def test_a_backlog_grouped_by_customer_does_not_rest(clock: list[float]) -> None:
    inbox = Inbox(SIZE)
    flood, trickle = link(inbox, "flood"), link(inbox, "trickle")
    put(inbox, flood, *range(1, 2_001))
    put(inbox, trickle, 1)
    batches = [paced(inbox, f"c{number // 50}") for number in range(150)]
    assert [len(batch) for batch in batches] == [10] * 150


def test_a_trickle_of_one_customer_does_not_rest(clock: list[float]) -> None:
    inbox = Inbox(SIZE)
    flood, trickle = link(inbox, "flood"), link(inbox, "trickle")
    for tag in range(1, 1_201):
        put(inbox, trickle, tag)
        assert paced(inbox, "c") == [("trickle", tag)]
    put(inbox, flood, *range(1, 301))
    put(inbox, trickle, *range(1_201, 1_212))
    assert paced(inbox, "c") == [*[("flood", tag) for tag in range(1, 6)], *[("trickle", 1_201 + n) for n in range(5)]]
    assert len(paced(inbox, "c")) == 10


def test_a_lost_connection_keeps_nothing_back(clock: list[float]) -> None:
    inbox = Inbox(10 * SIZE)
    flood, _ = largely_flooded(inbox)
    paced(inbox, "hot")
    flood.alive = False
    assert len(taken(inbox)) == 10 * SIZE // 8


def test_a_resting_flood_is_waited_for_just_as_long_as_it_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("customer_actors.ingest.link.LOOK_S", 60.0)
    inbox = Inbox(SIZE)
    flooded(inbox, "hot")
    began_s = time.monotonic()
    assert taken(inbox) == NEXT[:10]
    assert time.monotonic() - began_s < 30


def test_a_trickle_wakes_who_waits_for_a_resting_flood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("customer_actors.ingest.link.LOOK_S", 60.0)
    inbox = Inbox(SIZE)
    flood, trickle = flooded(inbox, "hot")
    flood.rests_until_s = time.monotonic() + 60
    timer = threading.Timer(0.01, put, (inbox, trickle, 2))
    timer.start()
    began_s = time.monotonic()
    assert inbox.take(time.monotonic() + 0.05)[-1].link is trickle
    assert time.monotonic() - began_s < 30
    timer.join()


def test_two_floods_of_one_customer_each_do_not_rest() -> None:
    inbox = Inbox(SIZE)
    for name in ("one", "other"):
        put(inbox, link(inbox, name), *range(1, 1_501))
    assert [len(paced(inbox, "hot")) for _ in range(30)] == [SIZE] * 30
