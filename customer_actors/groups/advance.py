"""The one loop that moves actors along the streams.

A round locks some groups' state rows, reads their events after the position, folds, saves, commits; then, holding no
lock, it compares heads with positions and goes round with the groups that wait. It ends only when none waits or a round
could lock none: whoever holds those rows looks again before it ends, so nobody is stranded.
"""

import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

from customer_actors.errors import DataFault

ERROR_LIMIT = 500
TRACEBACK_LIMIT = 4_000
"""Characters kept of an error and, from its end, of its traceback."""


class Positioned(Protocol):
    """What the engine knows of an event."""

    @property
    def customer(self) -> int: ...
    @property
    def position(self) -> int: ...


E = TypeVar("E", bound=Positioned)
E_contra = TypeVar("E_contra", bound=Positioned, contravariant=True)


class Hold(NamedTuple):
    """A group whose event failed for one actor: everything before it is kept, everything behind it waits."""

    group: int
    position: int
    error: str
    traceback: str

    @classmethod
    def of(cls, group: int, position: int, error: Exception) -> "Hold":
        """The hold for what a fold raised, as text that any database can store."""
        try:
            text = f"{type(error).__name__}: {error}"
        except Exception:
            text = f"{type(error).__name__}: (its text cannot be read)"
        lines = "".join(traceback.format_exception(error))
        return cls(group, position, storable(text)[:ERROR_LIMIT], storable(lines)[-TRACEBACK_LIMIT:])


class Round(NamedTuple):
    """What one round did."""

    locked: int
    applied: int = 0
    held: tuple[Hold, ...] = ()
    moved: tuple[int, ...] = ()
    """Groups whose state changed."""


class Advancing(Protocol):
    """An actor as the loop sees it."""

    def round(self, groups: Sequence[int], now_us: int) -> Round:
        """Lock what can be locked of these groups, advance it, commit."""

    def behind(self, groups: Sequence[int]) -> list[int]:
        """Those of the groups that still wait and are not held, read without any lock."""


class Work(Protocol[E_contra]):
    """The locked states of one round and the facts its events name."""

    def fold(self, event: E_contra) -> None:
        """Apply one event in memory, completely or (raising) not at all."""

    def save(self, positions: dict[int, int], holds: Sequence[Hold]) -> None:
        """Write states, facts and positions; set the held position of the holds."""


class Store(Protocol[E]):
    """One stream actor's state rows in one database."""

    def transaction(self) -> AbstractContextManager[None]: ...

    def lock(self, groups: Sequence[int]) -> dict[int, int]:
        """Group -> position of the rows locked; others' rows and held ones are left out."""

    def read(self, positions: dict[int, int], limit: int) -> list[E]:
        """Events after each position that concern the actor, at most `limit` per group, by (group, position)."""

    def load(self, events: Sequence[E]) -> Work[E]:
        """The work of a round on the rows locked."""

    def note(self, tried: Iterable[int], failed: Iterable[int]) -> None:
        """Told before saving which groups were tried and which failed; the same groups may be told again."""


@dataclass
class Report:
    """What an advance did, for the log and for the caller that must ring others."""

    applied: int = 0
    rounds: int = 0
    moved: set[int] = field(default_factory=set)
    held: list[Hold] = field(default_factory=list)
    remaining: list[int] = field(default_factory=list)
    """Groups that still wait because the time was up: the caller rings itself for them."""


def advance(
    actor: Advancing,
    groups: Sequence[int],
    *,
    now_us: Callable[[], int],
    budget_s: float = 2.0,
    monotonic: Callable[[], float] = time.monotonic,
) -> Report:
    """Advance one actor for these groups until none waits, none can be locked, or about `budget_s` is used up."""
    report, deadline = Report(), monotonic() + budget_s
    waiting = sorted(set(groups))
    while waiting:
        done = actor.round(waiting, now_us())
        if not done.locked:
            break
        report.rounds += 1
        report.applied += done.applied
        report.moved.update(done.moved)
        report.held.extend(done.held)
        waiting = actor.behind(waiting)
        if waiting and monotonic() > deadline:
            report.remaining = waiting
            break
    return report


def fold_round(store: Store[E], groups: Sequence[int], limit: int) -> Round:
    """One round of a stream actor over the rows `store.lock` can get, of about `limit` events.

    When the database refuses the data itself, the round is halved until the one event is found; its group is held.
    """
    try:
        return _round(store, groups, limit)
    except DataFault as fault:
        if len(groups) > 1:
            middle = len(groups) // 2
            return _both(fold_round(store, groups[:middle], limit), fold_round(store, groups[middle:], limit))
        return fold_round(store, groups, limit // 2) if limit > 1 else _hold_next(store, groups, fault)


def _both(one: Round, other: Round) -> Round:
    return Round(one.locked + other.locked, one.applied + other.applied, one.held + other.held, one.moved + other.moved)


def _hold_next(store: Store[E], groups: Sequence[int], fault: DataFault) -> Round:
    """Hold a group at its next event, which the database refuses."""
    with store.transaction():
        events = store.read(store.lock(groups), 1)
        holds = [Hold.of(event.customer, event.position, fault) for event in events]
        failed = [hold.group for hold in holds]
        store.note(failed, failed)
        store.load(events).save({}, holds)
        return Round(len(holds), 0, tuple(holds))


def _round(store: Store[E], groups: Sequence[int], limit: int) -> Round:
    with store.transaction():
        positions = store.lock(groups)
        if not positions:
            return Round(0)
        events = _read(store, positions, limit)
        if not events:
            return Round(len(positions))
        work = store.load(events)
        reached, holds = _fold_all(work, events)
        store.note(reached, [hold.group for hold in holds])
        work.save(reached, holds)
        applied = len(events) if not holds else sum(reached.get(e.customer, 0) >= e.position for e in events)
        return Round(len(positions), applied, tuple(holds), tuple(reached))


def _read(store: Store[E], positions: dict[int, int], limit: int) -> list[E]:
    """About `limit` events, evenly; what some groups do not need of their share is for those with more."""
    events: list[E] = []
    after = positions
    while after:
        each = max(1, (limit - len(events)) // len(after))
        found = store.read(after, each)
        events += found
        last = {event.customer: event.position for event in found}
        many = Counter(event.customer for event in found)
        after = {group: last[group] for group in last if many[group] == each}
        if len(events) + len(after) > limit:
            break
    return events


def _fold_all(work: Work[E], events: Sequence[E]) -> tuple[dict[int, int], list[Hold]]:
    """Fold in order; what an event raises holds its group alone. Returns the positions reached and the holds."""
    reached: dict[int, int] = {}
    holds: dict[int, Hold] = {}
    for event in events:
        group = event.customer
        if group in holds:
            continue
        try:
            work.fold(event)
        except Exception as error:
            holds[group] = Hold.of(group, event.position, error)
        else:
            reached[group] = event.position
    return reached, list(holds.values())


def storable(text: str) -> str:
    """Text from outside without what PostgreSQL cannot hold: NUL and lone surrogates are escaped."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")
