"""Statistics follow the active sales, whatever comes late, twice or undone [S1]."""

from collections.abc import Sequence
from decimal import ROUND_HALF_UP, Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from customer_actors.domain.events import Channel, Event, EventType
from customer_actors.domain.stats import Stats, average_order_value_minor, fold

BLANK = Event(1, 1, "", "O-1", None, 0, 0, 0, 1, 1, False, False, None, None, None, None)


def sale(amount: int, at: int, channel: Channel = Channel.ORDER, already_cancelled: bool = False) -> Event:
    type_ = EventType.POS_COMPLETED if channel is Channel.POS else EventType.ORDER_COMPLETED
    return BLANK._replace(
        type=type_, channel=channel, amount_minor=amount, occurred_at_us=at, already_cancelled=already_cancelled
    )


def cancellation(amount: int, sale_at: int, channel: Channel = Channel.ORDER) -> Event:
    """Of a sale; it happens long after the sale, so that mistaking one time for the other shows."""
    return BLANK._replace(
        type=EventType.ORDER_CANCELLED,
        channel=channel,
        amount_minor=amount,
        occurred_at_us=sale_at + 1_000_000,
        sale_position=1,
        sale_occurred_at_us=sale_at,
    )


def folded(*events: Event, state: Stats | None = None) -> Stats:
    state = state or Stats()
    for event in events:
        state = fold(state, event)
    return state


CASES = [
    ("a customer without a sale has zeros and no dates", [], Stats()),
    ("a sale counts in its channel", [sale(500, 10)], Stats(1, 0, 500, 0, 10, 10)),
    ("a sale at the till counts in its channel", [sale(500, 10, Channel.POS)], Stats(0, 1, 500, 0, 10, 10)),
    ("a sale of zero is a sale", [sale(0, 10)], Stats(1, 0, 0, 0, 10, 10)),
    ("a late sale moves first, not last", [sale(5, 10), sale(7, 3)], Stats(2, 0, 12, 0, 3, 10)),
    ("a sale in between moves neither", [sale(5, 3), sale(5, 9), sale(5, 6)], Stats(3, 0, 15, 0, 3, 9)),
    ("the epoch itself is a date", [sale(5, 0), sale(5, 9)], Stats(2, 0, 10, 0, 0, 9)),
    ("cancelled before completed counts as cancelled only", [sale(5, 10, already_cancelled=True)], Stats(0, 0, 0, 1)),
    ("cancelling the only sale leaves no dates, exactly", [sale(5, 10), cancellation(5, 10)], Stats(0, 0, 0, 1)),
    (
        "cancelling the first sale makes the dates stale",
        [sale(5, 3), sale(7, 9), cancellation(5, 3)],
        Stats(1, 0, 7, 1, 3, 9, bounds_stale=True),
    ),
    (
        "cancelling the last sale makes the dates stale",
        [sale(5, 3), sale(7, 9), cancellation(7, 9)],
        Stats(1, 0, 5, 1, 3, 9, bounds_stale=True),
    ),
    (
        "cancelling a sale in between does not",
        [sale(5, 3), sale(6, 6), sale(7, 9), cancellation(6, 6)],
        Stats(2, 0, 12, 1, 3, 9),
    ),
    (
        "a sale at the till is taken back from the till",
        [sale(5, 3), sale(6, 6, Channel.POS), sale(7, 9), cancellation(6, 6, Channel.POS)],
        Stats(2, 0, 12, 1, 3, 9),
    ),
    (
        "stale stays stale through a cancellation in between",
        [sale(5, 3), sale(6, 6), sale(7, 9), cancellation(5, 3), cancellation(6, 6)],
        Stats(1, 0, 7, 2, 3, 9, bounds_stale=True),
    ),
    (
        "stale stays stale through a further sale",
        [sale(5, 3), sale(7, 9), cancellation(5, 3), sale(1, 5)],
        Stats(2, 0, 8, 1, 3, 9, bounds_stale=True),
    ),
    (
        "stale ends when no sale is left",
        [sale(5, 3), sale(7, 9), cancellation(5, 3), cancellation(7, 9)],
        Stats(0, 0, 0, 2),
    ),
]


@pytest.mark.parametrize(("events", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_statistics_after(events: Sequence[Event], expected: Stats) -> None:
    assert folded(*events) == expected


def test_cancelling_an_order_that_was_only_charged_changes_nothing() -> None:
    state = folded(sale(5, 10))
    assert fold(state, cancellation(5, 10)._replace(sale_position=None, sale_occurred_at_us=None)) == state


@pytest.mark.parametrize("type_", [t for t in EventType if t.startswith(("payment", "credit", "loyalty"))])
def test_only_sales_and_cancellations_change_statistics(type_: EventType) -> None:
    state = folded(sale(5, 10))
    assert fold(state, BLANK._replace(type=type_, channel=Channel.ORDER, amount_minor=9, sale_position=1)) == state


@pytest.mark.parametrize(
    ("total", "orders", "average"), [(0, 0, 0), (0, 3, 0), (10, 4, 3), (9, 4, 2), (5, 2, 3), (100, 3, 33), (200, 3, 67)]
)
def test_the_average_is_rounded_half_up(total: int, orders: int, average: int) -> None:
    assert average_order_value_minor(Stats(sales_pos=orders, total_spent_minor=total)) == average


@given(st.integers(0, 10**14), st.integers(1, 10**6))
def test_the_average_agrees_with_decimal_arithmetic(total: int, orders: int) -> None:
    expected = (Decimal(total) / orders).quantize(Decimal(1), ROUND_HALF_UP)
    assert average_order_value_minor(Stats(orders, 0, total)) == expected


SALES = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 6), st.sampled_from(Channel), st.booleans(), st.integers(0, 99)),
    max_size=12,
)
"""(amount, time, channel, cancelled?, when the cancellation comes): few times, so that ties are common."""


@settings(deadline=None)
@given(SALES, st.integers(1, 5))
def test_statistics_are_count_sum_min_and_max_over_active_sales(
    sales: list[tuple[int, int, Channel, bool, int]], round_size: int
) -> None:
    stream: list[tuple[int, Event]] = [(i * 10, sale(a, at, ch)) for i, (a, at, ch, _, _) in enumerate(sales)]
    stream += [(i * 10 + d + 1, cancellation(a, at, ch)) for i, (a, at, ch, gone, d) in enumerate(sales) if gone]
    stream.sort(key=lambda pair: pair[0])
    active: list[tuple[int, int, Channel]] = []
    state = Stats()
    for number, (_, event) in enumerate(stream, start=1):
        state = fold(state, event)
        if event.sale_position is None:
            active.append((event.amount_minor, event.occurred_at_us, Channel(event.channel or "")))
        else:
            active.remove((event.amount_minor, event.sale_occurred_at_us or 0, Channel(event.channel or "")))
        first, last = min((s[1] for s in active), default=None), max((s[1] for s in active), default=None)
        if number % round_size == 0 and state.bounds_stale:  # what the driver does after a round
            state = state._replace(first_purchase_at_us=first, last_purchase_at_us=last, bounds_stale=False)
        assert (state.sales_order, state.sales_pos) == tuple(sum(s[2] is c for s in active) for c in Channel)
        assert state.orders == len(active)
        assert state.total_spent_minor == sum(s[0] for s in active)
        assert state.cancelled_orders == number - sum(e.sale_position is None for _, e in stream[:number])
        assert state.bounds_stale or (state.first_purchase_at_us, state.last_purchase_at_us) == (first, last)


@given(SALES, st.integers(0, 50), st.integers(-1, 7))
def test_completed_and_cancelled_give_the_same_in_either_order(
    sales: list[tuple[int, int, Channel, bool, int]], amount: int, at: int
) -> None:
    before = folded(*(sale(a, t, ch) for a, t, ch, _, _ in sales))
    completed_first = folded(sale(amount, at), cancellation(amount, at), state=before)
    if completed_first.bounds_stale:
        completed_first = completed_first._replace(
            first_purchase_at_us=before.first_purchase_at_us,
            last_purchase_at_us=before.last_purchase_at_us,
            bounds_stale=False,
        )
    assert completed_first == folded(sale(amount, at, already_cancelled=True), state=before)
