"""When a held group is tried again. Pure: the database keeps attempts and next try, messages are the clock."""

import random

MAX_ATTEMPTS = 10
"""Attempts after which a held group is parked: it waits for a person."""
FIRST_DELAY_S = 5.0
MAX_DELAY_S = 300.0
"""Delayed messages sit unacknowledged in a worker, so no delay is longer than five minutes."""

MAX_UNCHARGED_DELAY_S = 40.0
"""Less than the window of `alarm`: everybody is tried again within it, so a mass failure is known while it lasts."""


def next_try_us(attempts: int, now_us: int, jitter: random.Random) -> int | None:
    """When to try again after so many failed attempts (exponential, up to a quarter less by jitter); None = parked."""
    if attempts >= MAX_ATTEMPTS:
        return None
    delay_s = min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** (attempts - 1))
    return now_us + int(delay_s * (1 - jitter.random() / 4) * 1_000_000)


def uncharged_try_us(since_us: int, now_us: int, jitter: random.Random) -> int:
    """When to try again after a failure that charged no attempt.

    Without a count it waits as long as the group is held already: first as after a first attempt, then twice as long
    each time, up to `MAX_UNCHARGED_DELAY_S`.
    """
    delay_s = min(MAX_UNCHARGED_DELAY_S, max(FIRST_DELAY_S, (now_us - since_us) / 1_000_000))
    return now_us + int(delay_s * (1 - jitter.random() / 4) * 1_000_000)
