"""Folds that fail for some events, seeded: the workers of a day on which a little of everything goes wrong.

`python -m tests.faults.poison dramatiq ARGUMENTS…` becomes the product's workers with these folds. POISON_SEED decides
which events fail. One in a hundred fails transiently, on its first try or its first two; one in a thousand is poison
and fails for ever. Which, and for which actors, depends on the event alone: every process and every repetition decides
the same. Retries come a hundred times sooner than the product's; how many there are is the product's.
"""

import os
import sys
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Final

from customer_actors.domain.events import Event
from customer_actors.groups import failure
from tests.faults.entry import become

SEED: Final = "POISON_SEED"
"""Variable with the seed."""
POISON_PER_100_000: Final = 100
TRANSIENT_PER_100_000: Final = 1_000
_FIRST_DELAY_S: Final = 0.05
_MAX_DELAY_S: Final = 3.0


class PoisonedError(Exception):
    """Nobody can fold this event."""


class TransientError(Exception):
    """Nobody can fold this event just now."""


def _draw(seed: str, of: str, type_: str, reference: str) -> int:
    """0..99,999, always the same for the same event."""
    return zlib.crc32(f"{seed}|{of}|{type_}|{reference}".encode()) % 100_000


def is_poison(seed: str, type_: str, reference: str, actor: str) -> bool:
    """Whether the event is poison for this actor: one in two is for everybody, the others for one actor."""
    if _draw(seed, "poison", type_, reference) >= POISON_PER_100_000:
        return False
    only = _draw(seed, "for whom", type_, reference) % 6
    return only >= 3 or ("stats", "loyalty", "credit")[only] == actor


def failing_tries(seed: str, type_: str, reference: str) -> int:
    """How often the event fails before it can be folded: 0, 1 or 2."""
    if _draw(seed, "transient", type_, reference) >= TRANSIENT_PER_100_000:
        return 0
    return 1 + _draw(seed, "how often", type_, reference) % 2


def poisoned() -> None:
    """Patch the stream actors of this process, and the clock of retries."""
    from customer_actors.storage.actors import STREAM_STORES

    failure.FIRST_DELAY_S, failure.MAX_DELAY_S = _FIRST_DELAY_S, _MAX_DELAY_S
    for store in STREAM_STORES.values():
        store.load = _failing(store.load, os.environ[SEED])  # type: ignore[method-assign]


def _failing(load: Callable[..., Any], seed: str) -> Callable[..., Any]:
    def failing(self: Any, events: Sequence[Event]) -> Any:
        work = load(self, events)
        fold = work.fold

        def raising(event: Event) -> None:
            if is_poison(seed, event.type, event.reference, self.actor):
                raise PoisonedError("poison (made by the fault suite)")
            tries = failing_tries(seed, event.type, event.reference)
            if tries and _attempts(self, event) < tries:
                raise TransientError("not now (made by the fault suite)")
            fold(event)

        work.fold = raising
        return work

    return failing


def _attempts(store: Any, event: Event) -> int:
    """What the database has counted: a process would forget it when killed."""
    sql = "SELECT attempts FROM held_group WHERE actor = ? AND customer = ? AND position = ?"
    rows = store.database.execute(sql, (store.actor, event.customer, event.position)).fetchall()
    return int(rows[0][0]) if rows else 0


if __name__ == "__main__":
    poisoned()
    become(*sys.argv[1:])
