"""What a skip means for the events behind it, on both databases: a skipped sale was never there."""

from typing import Any

import pytest

from customer_actors.domain import routing
from customer_actors.domain.events import EventType
from customer_actors.storage import stats
from tests.model.examples import JUNE_1_US, cancellation, opened, order, payment
from tests.storage.holding import held, position, sales
from tests.storage.support import Storage
from tests.storage.test_triage import HOUR_US, Break, break_fold, skip

__all__ = ["break_fold"]


def at(reference: str, hours: int) -> Any:
    return order(reference, "10", on_credit=True, at_us=JUNE_1_US + hours * HOUR_US)


def stats_row(storage: Storage) -> tuple[Any, ...]:
    """(orders, spent, cancelled, hours of the first and of the last purchase)."""
    sql = (
        "SELECT sales_order, total_spent_minor, cancelled_orders, first_purchase_at_us, last_purchase_at_us "
        "FROM stats_state WHERE customer = ?"
    )
    *counts, first, last = storage.database.query(sql, (storage.number(),))[0]
    return (*counts, (first - JUNE_1_US) // HOUR_US, (last - JUNE_1_US) // HOUR_US)


@pytest.mark.parametrize("actor", routing.STREAM_ACTORS)
def test_the_cancellation_of_a_skipped_sale_does_nothing_but_move_the_position(
    storage: Storage, break_fold: Break, actor: str
) -> None:
    break_fold(actor, (EventType.ORDER_COMPLETED, "bad"))
    storage.settle(opened("1000"), payment("p", "15"), at("1", 1), at("bad", 0), at("3", 2))
    skip(storage, actor, 4)
    table = f"{actor}_state"
    sql = f"SELECT * FROM {table} WHERE customer = ?"
    before = storage.database.query(sql, (storage.number(),))[0]
    storage.settle(cancellation("bad"))
    after = storage.database.query(sql, (storage.number(),))[0]
    assert (before[1], after[1]) == (5, 6)
    assert (after[0], *after[2:]) == (before[0], *before[2:])
    assert held(storage) == []


def test_sale_and_cancellation_in_one_round_after_the_skip(storage: Storage, break_fold: Break) -> None:
    break_fold("stats", (EventType.ORDER_COMPLETED, "bad"))
    storage.settle(at("1", 1), at("bad", 0), at("3", 2), cancellation("bad"), cancellation("1"))
    skip(storage, "stats", 2)
    assert position(storage, "stats") == (5, None)
    assert stats_row(storage) == (1, 1000, 1, 2, 2)


def test_bounds_read_again_leave_out_a_skipped_sale(storage: Storage, break_fold: Break) -> None:
    break_fold("stats", "bad")
    storage.settle(at("1", 1), at("bad", 0), at("3", 2), at("4", 3))
    skip(storage, "stats", 2)
    storage.settle(cancellation("1"))
    assert stats_row(storage) == (2, 2000, 1, 2, 3)


def test_bounds_read_again_count_a_sale_whose_cancellation_was_skipped(storage: Storage, break_fold: Break) -> None:
    break_fold("stats", (EventType.ORDER_CANCELLED, "1"))
    storage.settle(at("1", 1), at("2", 2), at("3", 3), cancellation("1"))
    skip(storage, "stats", 4)
    assert stats_row(storage) == (3, 3000, 0, 1, 3)
    storage.settle(cancellation("3"))
    assert stats_row(storage) == (2, 2000, 1, 1, 2)


def test_a_skip_of_another_actor_changes_nothing_for_this_one(storage: Storage, break_fold: Break) -> None:
    break_fold("loyalty", "2")
    storage.settle(at("1", 1), at("2", 0), at("3", 2))
    skip(storage, "loyalty", 2)
    storage.settle(cancellation("2"))
    assert stats_row(storage) == (2, 2000, 1, 1, 2)
    assert storage.value("SELECT points FROM loyalty_state") == 20


def test_skips_are_asked_for_only_when_a_round_holds_cancellations(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[tuple[int, int]]] = []

    def skipped_sales(_: Any, actor: str, cancellations: list[tuple[int, int]]) -> set[tuple[int, int]]:
        asked.append(cancellations)
        return set()

    monkeypatch.setattr(stats, "skipped_sales", skipped_sales)
    storage.settle(*sales("1", "2"))
    assert asked == []
    storage.settle(cancellation("2"))
    assert asked == [[(storage.number(), 2)]]
