"""Loyalty rows and their append-only ledger [L1-L7]."""

from collections import defaultdict
from collections.abc import Sequence
from typing import ClassVar

from customer_actors.domain import routing
from customer_actors.domain.events import Event, EventType
from customer_actors.domain.loyalty import Entry, Loyalty, fold
from customer_actors.groups.advance import Hold
from customer_actors.storage.database import Columns, columns
from customer_actors.storage.stream_store import StreamStore

STATE = columns("loyalty_state", "customer bigint", "position bigint, points bigint, lifetime_points bigint, tier text")
ENTRY = columns(
    "loyalty_entry",
    "customer bigint, position bigint",
    "kind text, points bigint, sale_position bigint, tier text, multiplier text, points_per_unit text",
)
_EARNING = columns("loyalty_entry", "customer bigint, position bigint", "points bigint")


class LoyaltyStore(StreamStore):
    actor: ClassVar[str] = routing.LOYALTY
    state: ClassVar[Columns] = STATE

    def load(self, events: Sequence[Event]) -> "_Work":
        named = [
            (event.customer, event.sale_position)
            for event in events
            if event.type == EventType.ORDER_CANCELLED and event.sale_position is not None
        ]
        earned: dict[int, dict[int, int]] = defaultdict(dict)
        for customer, position, points in self.database.select(_EARNING, named):
            earned[customer][position] = points
        return _Work(self, {event.customer: Loyalty(*self.rows[event.customer][2:]) for event in events}, earned)


class _Work:
    def __init__(self, store: LoyaltyStore, states: dict[int, Loyalty], earned: dict[int, dict[int, int]]) -> None:
        self.store = store
        self.states = states
        self.earned = earned
        self.entries: list[tuple[int, Entry]] = []

    def fold(self, event: Event) -> None:
        group = event.customer
        result = fold(self.states[group], event, self.store.rules[event.rules], self.earned[group])
        self.states[group] = result.state
        if result.entry is not None:
            self.entries.append((group, result.entry))
            self.earned[group][event.position] = result.entry.points

    def save(self, positions: dict[int, int], holds: Sequence[Hold]) -> None:
        self.store.database.insert(ENTRY, [(group, *entry) for group, entry in self.entries])
        self.store.database.update(STATE, [(group, at, *self.states[group]) for group, at in positions.items()])
        self.store.hold(holds)
