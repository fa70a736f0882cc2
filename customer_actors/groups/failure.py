"""When a held group is tried again. Pure: the database keeps attempts and next try, messages are the clock."""

import random

MAX_ATTEMPTS = 10
"""Attempts after which a held group is parked: it waits for a person."""
FIRST_DELAY_S = 5.0
MAX_DELAY_S = 300.0
"""Delayed messages sit unacknowledged in a worker, so no delay is longer than five minutes."""


def next_try_us(attempts: int, now_us: int, jitter: random.Random) -> int | None:
    """When to try again after so many failed attempts (exponential, up to a quarter less by jitter); None = parked."""
    if attempts >= MAX_ATTEMPTS:
        return None
    delay_s = min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** (attempts - 1))
    return now_us + int(delay_s * (1 - jitter.random() / 4) * 1_000_000)
