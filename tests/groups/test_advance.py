"""The loop and the round against a store in memory: who is locked, read, folded, held and looked at again."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

import pytest

from customer_actors.errors import DataFault
from customer_actors.groups.advance import (
    ERROR_LIMIT,
    TRACEBACK_LIMIT,
    Advancing,
    Hold,
    Report,
    Round,
    advance,
    fold_round,
)


class Event(NamedTuple):
    customer: int
    position: int


@dataclass
class Memory:
    """Streams, positions and locks of some groups; a round is `fold_round` over them."""

    heads: dict[int, int]
    limit: int = 100
    positions: dict[int, int] = field(default_factory=dict)
    held: dict[int, int] = field(default_factory=dict)
    elsewhere: set[int] = field(default_factory=set)
    """Groups whose rows somebody else has locked."""
    bad: set[tuple[int, int]] = field(default_factory=set)
    """Events whose fold raises."""
    folded: list[tuple[int, int]] = field(default_factory=list)
    noted: list[tuple[set[int], set[int]]] = field(default_factory=list)
    """(tried, failed) of every round, as told before it was saved."""
    asked: list[list[int]] = field(default_factory=list)
    """Groups of every round."""
    after_commit: Callable[[], None] = lambda: None
    """What happens between the commit of a round and the look at the heads."""
    open: bool = False

    @contextmanager
    def transaction(self) -> Iterator[None]:
        assert not self.open
        self.open, before = True, (dict(self.positions), dict(self.held))
        try:
            yield
        except Exception:
            self.positions, self.held = before
            raise
        finally:
            self.open = False

    def lock(self, groups: Sequence[int]) -> dict[int, int]:
        assert self.open
        free = [g for g in groups if g in self.heads and g not in self.elsewhere and g not in self.held]
        return {group: self.positions.get(group, 0) for group in sorted(free)}

    def read(self, positions: dict[int, int], limit: int) -> list[Event]:
        assert self.open
        return [
            Event(group, position + step)
            for group, position in positions.items()
            for step in range(1, limit + 1)
            if position + step <= self.heads[group]
        ]

    def load(self, events: Sequence[Event]) -> "Memory":
        assert events
        return self

    def fold(self, event: Event) -> None:
        if (event.customer, event.position) in self.bad:
            raise ValueError(f"event {event.position}")
        self.folded.append((event.customer, event.position))

    def note(self, tried: Iterable[int], failed: Iterable[int]) -> None:
        assert self.open
        self.noted.append((set(tried), set(failed)))

    def save(self, positions: dict[int, int], holds: Sequence[Hold]) -> None:
        assert self.open
        self.positions.update(positions)
        self.held.update({hold.group: hold.position for hold in holds})

    def round(self, groups: Sequence[int], now_us: int) -> Round:
        self.asked.append(list(groups))
        done = fold_round(self, groups, self.limit)
        self.after_commit()
        return done

    def behind(self, groups: Sequence[int]) -> list[int]:
        assert not self.open, "whoever looks at the heads must hold no lock"
        return [g for g in groups if g not in self.held and self.positions.get(g, 0) < self.heads.get(g, 0)]


def run(memory: Advancing, *groups: int, budget_s: float = 60) -> Report:
    return advance(memory, groups, now_us=lambda: 0, budget_s=budget_s)


# --- the loop -------------------------------------------------------------------------------------------------------


def test_every_group_is_advanced_to_its_head_in_order() -> None:
    memory = Memory({1: 3, 2: 5})
    report = run(memory, 2, 1, 2)
    assert memory.positions == {1: 3, 2: 5}
    assert memory.folded == [(1, 1), (1, 2), (1, 3), *((2, n) for n in range(1, 6))]
    assert (report.applied, report.rounds, report.moved, report.held, report.remaining) == (8, 1, {1, 2}, [], [])


def test_nothing_to_do_is_one_look_and_no_group_is_none() -> None:
    assert run(Memory({1: 0}), 1) == Report(rounds=1)
    assert run(Memory({1: 0})) == Report()
    assert run(Memory({}), 7) == Report()


def test_a_hot_group_takes_only_its_share_of_a_round_and_only_it_goes_round_again() -> None:
    memory = Memory({1: 9, 2: 1, 3: 2}, limit=6)
    report = run(memory, 1, 2, 3)
    assert memory.asked == [[1, 2, 3], [1], [1]]
    assert memory.folded[:5] == [(1, 1), (1, 2), (2, 1), (3, 1), (3, 2)]
    assert (report.applied, report.rounds) == (12, 2 + 1)


def test_what_some_groups_do_not_need_of_a_round_is_for_those_with_more() -> None:
    memory = Memory({1: 9, 2: 1}, limit=8)
    run(memory, 1, 2)
    assert memory.folded[:8] == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 1), (1, 5), (1, 6), (1, 7)]
    assert memory.asked == [[1, 2], [1]]


def test_a_round_of_more_groups_than_events_still_takes_one_of_each() -> None:
    memory = Memory({1: 2, 2: 2, 3: 2}, limit=1)
    run(memory, 1, 2, 3)
    assert memory.positions == {1: 2, 2: 2, 3: 2}
    assert memory.folded[:3] == [(1, 1), (2, 1), (3, 1)]


def test_events_that_arrive_before_the_look_are_taken_by_whoever_holds_the_group() -> None:
    """Their own bell found the row locked, so nobody else will come."""
    memory = Memory({1: 1})
    arrivals = iter([3, 4])

    def arrive() -> None:
        memory.heads[1] = next(arrivals, 4)

    memory.after_commit = arrive
    report = run(memory, 1)
    assert memory.positions == {1: 4}
    assert report.applied == 4


def test_a_round_that_found_no_events_still_looks_once_more() -> None:
    memory = Memory({1: 0})
    arrivals = iter([2])

    def arrive() -> None:
        memory.heads[1] = next(arrivals, 2)

    memory.after_commit = arrive
    assert run(memory, 1).applied == 2


def test_a_group_locked_elsewhere_is_left_to_its_holder() -> None:
    memory = Memory({1: 2, 2: 2}, elsewhere={2})
    report = run(memory, 1, 2)
    assert memory.asked == [[1, 2], [2]]
    assert (memory.positions, report.moved, report.remaining) == ({1: 2}, {1}, [])


def test_a_group_that_comes_free_while_others_are_advanced_is_taken_along() -> None:
    memory = Memory({1: 3, 2: 3}, limit=1, elsewhere={2})

    def free() -> None:
        memory.elsewhere = set()

    memory.after_commit = free
    run(memory, 1, 2)
    assert memory.positions == {1: 3, 2: 3}


def test_time_used_up_ends_the_loop_after_a_whole_round_and_names_who_waits() -> None:
    memory, clock = Memory({1: 5, 2: 1}, limit=2), count()
    report = advance(memory, [1, 2], now_us=lambda: 0, budget_s=1.5, monotonic=lambda: float(next(clock)))
    assert (memory.asked, report.remaining) == ([[1, 2], [1]], [1])
    assert memory.positions == {1: 3, 2: 1}


def test_time_used_up_in_the_last_round_leaves_nobody_waiting() -> None:
    assert run(Memory({1: 5}), 1, budget_s=-1).remaining == []


def test_each_round_is_told_the_time_anew() -> None:
    told: list[int] = []

    class Told(Memory):
        def round(self, groups: Sequence[int], now_us: int) -> Round:
            told.append(now_us)
            return super().round(groups, now_us)

    clock = count(10)
    advance(Told({1: 3}, limit=1), [1], now_us=lambda: next(clock))
    assert told == [10, 11, 12]


# --- failures -------------------------------------------------------------------------------------------------------


def test_an_event_that_raises_holds_its_group_keeps_what_was_before_and_passes_over_what_is_behind() -> None:
    memory = Memory({1: 4, 2: 2}, bad={(1, 3)})
    report = run(memory, 1, 2)
    assert (memory.positions, memory.held) == ({1: 2, 2: 2}, {1: 3})
    assert memory.folded == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert (report.applied, report.moved) == (4, {1, 2})
    (hold,) = report.held
    assert (hold.group, hold.position, hold.error) == (1, 3, "ValueError: event 3")
    assert hold.traceback.endswith("ValueError: event 3\n")


def test_a_group_that_fails_at_once_has_not_moved() -> None:
    memory = Memory({1: 4}, bad={(1, 1)})
    report = run(memory, 1)
    assert (memory.positions, report.moved, report.applied, len(report.held)) == ({}, set(), 0, 1)


def test_what_saving_raises_keeps_nothing_of_the_round_and_reaches_the_caller() -> None:
    class Unsaved(Memory):
        def save(self, positions: dict[int, int], holds: Sequence[Hold]) -> None:
            super().save(positions, holds)
            raise ConnectionError("away")

    memory = Unsaved({1: 4}, bad={(1, 3)})
    with pytest.raises(ConnectionError):
        run(memory, 1)
    assert (memory.positions, memory.held, memory.open) == ({}, {}, False)


class Refusing(Memory):
    """A database that refuses what some events make of their groups, however many others are saved with them."""

    refused: frozenset[tuple[int, int]] = frozenset()

    def save(self, positions: dict[int, int], holds: Sequence[Hold]) -> None:
        before = self.positions.copy()
        super().save(positions, holds)
        for group, position in self.refused:
            if before.get(group, 0) < position <= self.positions.get(group, 0):
                raise DataFault("refused")


@pytest.mark.parametrize("limit", [1, 3, 4, 100])
def test_data_the_store_refuses_holds_its_group_alone_at_its_event(limit: int) -> None:
    memory = Refusing(dict.fromkeys(range(1, 8), 6), limit=limit)
    memory.refused = frozenset({(2, 1), (5, 4), (7, 6)})
    report = run(memory, *range(1, 8))
    assert memory.held == {2: 1, 5: 4, 7: 6}
    assert memory.positions == {1: 6, 3: 6, 4: 6, 5: 3, 6: 6, 7: 5}
    assert sorted(hold[:2] for hold in report.held) == [(2, 1), (5, 4), (7, 6)]
    assert report.applied == sum(memory.positions.values())
    assert report.moved == set(memory.positions)


def test_refused_data_and_an_event_that_raises_hold_their_groups_side_by_side() -> None:
    memory = Refusing({1: 4, 2: 4, 3: 4}, bad={(1, 2), (3, 1)})
    memory.refused = frozenset({(2, 3)})
    report = run(memory, 1, 2, 3)
    assert (memory.held, memory.positions) == ({1: 2, 2: 3, 3: 1}, {1: 1, 2: 2})
    assert sorted(hold[:2] for hold in report.held) == [(1, 2), (2, 3), (3, 1)]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_is_no_failure_of_the_event(stop: type[BaseException]) -> None:
    class Interrupted(Memory):
        def fold(self, event: Event) -> None:
            raise stop

    memory = Interrupted({1: 1})
    with pytest.raises(stop):
        run(memory, 1)
    assert memory.held == {}


class MuteError(Exception):
    def __str__(self) -> str:
        raise RuntimeError


def test_a_hold_keeps_a_bounded_text_that_every_database_can_store() -> None:
    for error in (ValueError("x" * 9_000), ValueError("a\0b"), ValueError("half \ud800"), MuteError(), ValueError()):
        hold = Hold.of(1, 2, error)
        for text, limit in ((hold.error, ERROR_LIMIT), (hold.traceback, TRACEBACK_LIMIT)):
            assert 0 < len(text) <= limit
            assert "\0" not in text
            assert text.encode().decode() == text
        assert hold.error.startswith(f"{type(error).__name__}: ")


def test_who_was_tried_and_who_failed_is_told_of_every_round() -> None:
    memory = Memory({1: 2, 2: 2, 3: 1}, bad={(2, 2), (3, 1)})
    run(memory, 1, 2, 3)
    assert memory.noted[0] == ({1, 2}, {2, 3})
