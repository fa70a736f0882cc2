"""When a held group is tried again."""

from random import Random

import pytest

from customer_actors.groups.alarm import WINDOW_S
from customer_actors.groups.failure import (
    FIRST_DELAY_S,
    MAX_ATTEMPTS,
    MAX_DELAY_S,
    MAX_UNCHARGED_DELAY_S,
    next_try_us,
    uncharged_try_us,
)

NOW_US = 1_717_200_000_000_000
SEEDS = 200


class Always(Random):
    """Jitter that always comes out the same."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self._value = value

    def random(self) -> float:
        return self._value


def delays_s(jitter: Random) -> list[float]:
    """Of all attempts but the last."""
    tries = [next_try_us(attempts, NOW_US, jitter) for attempts in range(1, MAX_ATTEMPTS)]
    return [(at_us - NOW_US) / 1_000_000 for at_us in tries if at_us is not None]


def test_delays_double_from_the_first_to_the_longest() -> None:
    assert (FIRST_DELAY_S, MAX_DELAY_S, MAX_ATTEMPTS) == (5, 300, 10)
    assert delays_s(Always(0)) == [5, 10, 20, 40, 80, 160, 300, 300, 300]


def test_jitter_takes_up_to_a_quarter_and_never_adds() -> None:
    assert delays_s(Always(1)) == [3.75, 7.5, 15, 30, 60, 120, 225, 225, 225]
    longest, shortest = delays_s(Always(0)), delays_s(Always(1))
    for seed in range(SEEDS):
        for least, delay_s, most in zip(shortest, delays_s(Random(seed)), longest, strict=True):
            assert least <= delay_s <= most


def test_groups_held_together_are_not_tried_together() -> None:
    assert len({next_try_us(3, NOW_US, Random(seed)) for seed in range(SEEDS)}) > SEEDS // 2


@pytest.mark.parametrize("attempts", [MAX_ATTEMPTS, MAX_ATTEMPTS + 1, 1_000])
def test_attempts_used_up_park(attempts: int) -> None:
    assert next_try_us(attempts, NOW_US, Random(1)) is None


def test_every_delay_lies_well_under_the_half_hour_after_which_a_broker_takes_its_messages_back() -> None:
    assert max(delays_s(Always(0))) <= 300


def test_the_clock_shifts_the_try_and_nothing_else() -> None:
    for attempts in range(1, MAX_ATTEMPTS):
        here, tomorrow = (next_try_us(attempts, now_us, Random(7)) for now_us in (NOW_US, NOW_US + 86_400_000_000))
        assert here is not None
        assert tomorrow == here + 86_400_000_000


def test_without_a_count_the_pause_is_as_long_as_the_hold_so_far_within_bounds() -> None:
    assert MAX_UNCHARGED_DELAY_S < WINDOW_S
    for held_s, delay_s in [(0, FIRST_DELAY_S), (3, FIRST_DELAY_S), (20, 20), (41, 40), (10**6, 40)]:
        since_us = NOW_US - held_s * 1_000_000
        assert uncharged_try_us(since_us, NOW_US, Always(0)) == NOW_US + delay_s * 1_000_000
        assert uncharged_try_us(since_us, NOW_US, Always(1)) == NOW_US + delay_s * 750_000
    assert uncharged_try_us(NOW_US + 10**9, NOW_US, Always(0)) == NOW_US + FIRST_DELAY_S * 1_000_000  # a clock was set
