"""How far apart batches begin."""

from customer_actors.ingest.spacing import Spacing

AGE_S = 0.015


def spacing(*took_s: float) -> float:
    between = Spacing(AGE_S)
    for seconds in took_s:
        between.took(seconds)
    return between.seconds


def test_quick_batches_are_an_age_apart() -> None:
    assert spacing() == AGE_S
    assert spacing(0.004, 0.005, 0.003, 0.004) == AGE_S


def test_on_a_busy_machine_ingest_takes_a_third_of_the_time() -> None:
    assert spacing(0.03, 0.02, 0.025, 0.03) == 3 * 0.02


def test_a_batch_that_met_a_pause_says_nothing() -> None:
    assert spacing(0.004, 0.9, 0.005, 0.6) == AGE_S


def test_what_is_long_ago_does_not_count() -> None:
    assert spacing(0.001, 0.03, 0.02, 0.025, 0.03) == 3 * 0.02


def test_it_is_bounded_unless_more_was_asked_for() -> None:
    assert spacing(2.0, 2.0, 2.0, 2.0) == 0.1
    asked_for = Spacing(0.4)
    asked_for.took(2.0)
    assert asked_for.seconds == 0.4
