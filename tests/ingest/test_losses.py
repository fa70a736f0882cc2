"""When lost connections are too many in a row, and outages last too long."""

from customer_actors.ingest.losses import GAP_S, MOST, WINDOW_S, Losses, Outages


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


def failed(*at_s: float) -> Outages:
    outages = Outages()
    for number, now_s in enumerate(at_s):
        outages.failed(f"reason {number}", now_s)
    return outages


def test_outages_that_follow_each_other_for_longer_than_the_window_say_how_long_and_the_last_reason() -> None:
    assert failed(0, 30, WINDOW_S - 1).alarming(WINDOW_S) is None
    outages = failed(0, 30, WINDOW_S)
    assert outages.alarming(WINDOW_S + 5) == "nothing can be committed for 65 s: reason 2"
    assert outages.in_a_row == 3


def test_a_commit_ends_an_outage() -> None:
    outages = failed(0, WINDOW_S)
    outages.committed()
    assert (outages.alarming(WINDOW_S), outages.in_a_row) == (None, 0)
    outages.failed("again", WINDOW_S + 1)
    assert outages.alarming(WINDOW_S + 1) is None


def test_one_outage_before_a_time_without_messages_says_nothing_and_an_old_one_is_over() -> None:
    assert failed(0).alarming(WINDOW_S + 1) is None
    assert failed(0, GAP_S).alarming(GAP_S) is None
    assert failed(0, WINDOW_S).alarming(WINDOW_S + GAP_S) is None


def test_tries_that_each_wait_for_a_statements_limit_still_follow_each_other() -> None:
    assert failed(0, 70, 140).alarming(141) == "nothing can be committed for 141 s: reason 2"


def test_a_database_that_was_away_is_no_alarm_though_nothing_is_committed_after_it() -> None:
    outages = failed(0, 30, WINDOW_S)
    outages.failed("away", WINDOW_S + 1, away=True)
    assert (outages.alarming(WINDOW_S + 1), outages.in_a_row) == (None, 4)
    outages.failed("no grant", WINDOW_S + 2)
    assert outages.alarming(WINDOW_S + 2) is None
