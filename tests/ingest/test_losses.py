"""When lost connections are too many in a row."""

from customer_actors.ingest.losses import MOST, WINDOW_S, Losses


def lost(times: int, every_s: float = 1.0, queue: str = "orders") -> Losses:
    losses = Losses()
    for number in range(times):
        losses.lost(queue, f"reason {number}", number * every_s)
    return losses


def test_a_few_losses_say_nothing_and_one_more_says_queue_count_and_last_reason() -> None:
    assert lost(MOST).alarming(MOST) == {}
    assert lost(MOST + 1).alarming(MOST) == {"orders": "5 connections lost in a row, the last one: reason 4"}


def test_a_message_that_gets_through_begins_anew() -> None:
    losses = lost(MOST + 1)
    losses.through("orders")
    assert losses.alarming(MOST) == {}
    losses.lost("orders", "again", MOST + 1)
    assert losses.alarming(MOST + 1) == {}


def test_losses_far_apart_are_not_in_a_row_and_old_ones_are_over() -> None:
    assert lost(20, every_s=WINDOW_S).alarming(20 * WINDOW_S) == {}
    assert lost(MOST + 1).alarming(MOST + WINDOW_S) == {}


def test_each_queue_counts_by_itself() -> None:
    losses = lost(MOST + 1, queue="tills")
    losses.lost("orders", "once", MOST)
    assert list(losses.alarming(MOST)) == ["tills"]
