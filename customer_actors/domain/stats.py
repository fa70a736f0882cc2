"""Purchase statistics of one customer over active (not cancelled) sales [S1]."""

from typing import NamedTuple

from customer_actors.domain.events import Channel, Event, EventType


class Stats(NamedTuple):
    """Counts, amounts in minor units, times in microseconds since the epoch (None without an active sale)."""

    sales_order: int = 0
    """Active sales of the channel `order`."""
    sales_pos: int = 0
    """Active sales of the channel `pos`."""
    total_spent_minor: int = 0
    cancelled_orders: int = 0
    first_purchase_at_us: int | None = None
    last_purchase_at_us: int | None = None
    bounds_stale: bool = False
    """A cancellation took the first or the last sale: whoever reads both bounds again from the stream clears this."""

    @property
    def orders(self) -> int:
        """Active sales of both channels."""
        return self.sales_order + self.sales_pos


def average_order_value_minor(stats: Stats) -> int:
    """Spent per active sale in minor units, half up; 0 when there is none [S1]."""
    orders = stats.orders
    return (2 * stats.total_spent_minor + orders) // (2 * orders) if orders else 0


def fold(state: Stats, event: Event) -> Stats:
    """The statistics after one event; an event that is neither sale nor cancellation changes nothing [S1]."""
    match event.type:
        case EventType.ORDER_COMPLETED | EventType.POS_COMPLETED:
            return _sold(state, event)
        case EventType.ORDER_CANCELLED:
            return _cancelled(state, event)
        case _:
            return state


def _sold(state: Stats, event: Event) -> Stats:
    if event.already_cancelled:  # its cancellation came first [A4]
        return state._replace(cancelled_orders=state.cancelled_orders + 1)
    at = event.occurred_at_us
    first, last = state.first_purchase_at_us, state.last_purchase_at_us
    return _count(state, event, 1)._replace(
        first_purchase_at_us=at if first is None else min(first, at),
        last_purchase_at_us=at if last is None else max(last, at),
    )


def _cancelled(state: Stats, event: Event) -> Stats:
    if event.sale_position is None:  # the order was charged but never completed: there is no sale to undo
        return state
    left = _count(state, event, -1)._replace(cancelled_orders=state.cancelled_orders + 1)
    if left.orders == 0:
        return left._replace(first_purchase_at_us=None, last_purchase_at_us=None, bounds_stale=False)
    took_bound = event.sale_occurred_at_us in (state.first_purchase_at_us, state.last_purchase_at_us)
    return left._replace(bounds_stale=state.bounds_stale or took_bound)


def _count(state: Stats, event: Event, sign: int) -> Stats:
    """One sale more or less, in the channel the sale was made in."""
    spent = state.total_spent_minor + sign * event.amount_minor
    if event.channel == Channel.POS:
        return state._replace(sales_pos=state.sales_pos + sign, total_spent_minor=spent)
    return state._replace(sales_order=state.sales_order + sign, total_spent_minor=spent)
