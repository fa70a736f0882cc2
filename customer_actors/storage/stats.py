"""Statistics rows [S1]."""

from collections.abc import Sequence
from typing import ClassVar

from customer_actors.domain import routing
from customer_actors.domain.events import SALE_TYPES, Event, EventType
from customer_actors.domain.stats import Stats, fold
from customer_actors.groups.advance import Hold
from customer_actors.storage.database import Columns, columns
from customer_actors.storage.operators import skipped_sales
from customer_actors.storage.stream_store import StreamStore

STATE = columns(
    "stats_state",
    "customer bigint",
    "position bigint, sales_order bigint, sales_pos bigint, total_spent_minor bigint, cancelled_orders bigint, "
    "first_purchase_at_us bigint, last_purchase_at_us bigint",
)

_SALES = ", ".join(f"'{type_.value}'" for type_ in sorted(SALE_TYPES))
_SKIPPED = (
    "EXISTS (SELECT 1 FROM operator_action a WHERE a.action = 'skip' AND a.customer = {customer} "
    f"AND a.position = {{event}}.position AND a.actor = '{routing.STATS}')"
)
_BOUNDS = f"""
    SELECT {{customer}} AS customer, min(e.occurred_at_us) AS first, max(e.occurred_at_us) AS last FROM event e
    WHERE e.customer = {{customer}} AND e.position <= {{position}} AND e.type IN ({_SALES})
    AND NOT CAST(e.already_cancelled AS boolean) AND NOT {_SKIPPED.format(event="e", customer="{customer}")}
    AND e.position NOT IN (
        SELECT c.sale_position FROM event c WHERE c.customer = {{customer}} AND c.position <= {{position}}
        AND c.type = '{EventType.ORDER_CANCELLED.value}' AND c.sale_position IS NOT NULL
        AND NOT {_SKIPPED.format(event="c", customer="{customer}")})
"""
_UP_TO = columns("event", "customer bigint, position bigint")


class StatsStore(StreamStore):
    actor: ClassVar[str] = routing.STATS
    state: ClassVar[Columns] = STATE

    def load(self, events: Sequence[Event]) -> "_Work":
        cancellations = [
            (event.customer, event.sale_position)
            for event in events
            if event.type == EventType.ORDER_CANCELLED and event.sale_position is not None
        ]
        skipped = skipped_sales(self.database, self.actor, cancellations) if cancellations else set()
        return _Work(self, {event.customer: Stats(*self.rows[event.customer][2:]) for event in events}, skipped)


class _Work:
    def __init__(self, store: StatsStore, states: dict[int, Stats], skipped: set[tuple[int, int]]) -> None:
        self.store = store
        self.states = states
        self.skipped = skipped

    def fold(self, event: Event) -> None:
        if event.type == EventType.ORDER_CANCELLED and (event.customer, event.sale_position) in self.skipped:
            return  # the sale was never counted, so there is nothing to undo
        self.states[event.customer] = fold(self.states[event.customer], event)

    def save(self, positions: dict[int, int], holds: Sequence[Hold]) -> None:
        self._read_bounds_again(positions)
        rows = [(group, position, *self.states[group][:6]) for group, position in positions.items()]
        self.store.database.update(STATE, rows)
        self.store.hold(holds)

    def _read_bounds_again(self, positions: dict[int, int]) -> None:
        """First and last purchase after a cancellation took one: one look at the stream per customer and round."""
        stale = [(group, position) for group, position in positions.items() if self.states[group].bounds_stale]
        for group, first, last in self.store.database.for_each(_UP_TO, _BOUNDS, stale):
            self.states[group] = self.states[group]._replace(
                first_purchase_at_us=first, last_purchase_at_us=last, bounds_stale=False
            )
