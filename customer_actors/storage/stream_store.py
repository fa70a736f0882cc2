"""What the state tables of the stream actors share: lock, read behind the position, hold, compare with the head."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import ClassVar

from customer_actors.domain.events import Event
from customer_actors.domain.routing import BIT
from customer_actors.groups.advance import Hold, Round, Work, fold_round
from customer_actors.groups.alarm import MassFailure
from customer_actors.storage import holds
from customer_actors.storage.append import EVENT
from customer_actors.storage.database import Columns, Database, Row, columns
from customer_actors.storage.rules import RulesBook

_AFTER = columns("event", "customer bigint, position bigint")
_EVENTS_AFTER = (
    f"SELECT {', '.join('e.' + name for name in EVENT.names)} FROM event e WHERE e.customer = {{customer}} "
    "AND e.position > {position} AND (e.concerns & %d) <> 0 ORDER BY e.position LIMIT %d"
)


class StreamStore(ABC):
    """One actor's state rows in one database. Short-lived: made for one advance, by one thread."""

    actor: ClassVar[str]
    state: ClassVar[Columns]
    """The state table: key customer, then position, then the state's own columns in the order of its tuple."""

    def __init__(self, database: Database, rules: RulesBook, round_events: int = 2_000) -> None:
        self.database = database
        self.rules = rules
        self.round_events = round_events
        self.alarm = MassFailure()
        """Replaced by the one all stores of a process share."""
        self.now_us = 0
        self.retrying = False
        self.rows: dict[int, Row] = {}
        """The rows locked in this round, by customer."""

    @property
    def table(self) -> str:
        return self.state.table

    def round(self, groups: Sequence[int], now_us: int) -> Round:
        """One round of `advance`."""
        self.now_us, self.retrying = now_us, False
        return fold_round(self, groups, self.round_events)

    def retry(self, group: int, now_us: int) -> Round:
        """Try a held group again if its time has come; locks nothing otherwise."""
        self.now_us, self.retrying = now_us, True
        return fold_round(self, [group], self.round_events)

    def transaction(self) -> AbstractContextManager[None]:
        return self.database.transaction()

    def lock(self, groups: Sequence[int]) -> dict[int, int]:
        """Lock the rows nobody else holds; a held group is recognized on the locked row itself."""
        if self.retrying:
            rows = holds.lock_due(self.database, self.actor, self.state, groups, self.now_us)
        else:
            rows = self.database.lock_groups(self.state, groups, "held_position IS NULL")
        self.rows = {row[0]: row for row in rows}
        return {row[0]: row[1] for row in rows}

    def read(self, positions: dict[int, int], limit: int) -> list[Event]:
        """Events after each position that concern this actor, at most `limit` per customer, in stream order."""
        sql = _EVENTS_AFTER % (BIT[self.actor], limit)
        rows = self.database.for_each(_AFTER, sql, list(positions.items()))
        rows.sort(key=_by_position)
        return [Event._make(row) for row in rows]

    @abstractmethod
    def load(self, events: Sequence[Event]) -> Work[Event]:
        """The locked states with the facts these events name."""

    def note(self, tried: Iterable[int], failed: Iterable[int]) -> None:
        """Tell the alarm, so that this very round is charged or not by what it knows of it."""
        went_on, failures = set(tried), set(failed)
        if self.retrying:
            failures -= holds.charged(self.database, self.actor, failures - went_on)
        self.alarm.note(self.actor, went_on, failures, self.now_us / 1_000_000)

    def hold(self, failed: Sequence[Hold]) -> None:
        """Hold the groups whose event failed, in the round's transaction."""
        anew = holds.hold(self.database, self.actor, self.table, failed, self.now_us, self.alarm)
        if self.retrying:
            holds.settle(self.database, self.actor, list(self.rows), failed, self.now_us, anew)

    def behind(self, groups: Sequence[int]) -> list[int]:
        """Those of the groups whose head is past the position, and that are not held."""
        sql = (
            f"SELECT c.id FROM customer c JOIN {self.table} s ON s.customer = c.id "
            f"WHERE c.id = {{customer}} AND c.head_{self.actor} > s.position AND s.held_position IS NULL LIMIT 1"
        )
        with self.database.reading():
            rows = self.database.for_each(_GROUP, sql, [(group,) for group in groups])
        return [row[0] for row in rows]

    def all_behind(self) -> list[int]:
        """As `behind`, over all customers: for start-up and for waiting until everybody is through."""
        rows = self.database.query(
            f"SELECT c.id FROM customer c JOIN {self.table} s ON s.customer = c.id "
            f"WHERE c.head_{self.actor} > s.position AND s.held_position IS NULL ORDER BY c.id"
        )
        return [row[0] for row in rows]


_GROUP = columns("customer", "customer bigint")


def _by_position(row: Row) -> tuple[int, int]:
    return row[0], row[1]
