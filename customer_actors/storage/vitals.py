"""The few figures by which health is judged, cheap enough to be asked every few seconds on a busy database [G24]."""

from collections.abc import Iterator
from itertools import islice
from typing import Final, NamedTuple

from customer_actors.domain.routing import ACTORS, BIT, SEGMENTATION, STATS
from customer_actors.storage.bells import PAGE, unanswered
from customer_actors.storage.database import Database, columns
from customer_actors.storage.views import STATES

CHUNK: Final = 1_000
"""Customers of old bells looked at together: one that waits is enough to be late, and behind it nobody is asked for."""
MOST_CUSTOMERS: Final = 10_000
MOST_PAGES: Final = 20
"""Of bells. So many that stay, though everybody is through, are of busy customers or of a sweep that stands still."""
MOST_HELD: Final = 1_000_001
RECENT_US: Final = 24 * 60 * 60 * 1_000_000

_CUSTOMER: Final = columns("customer", "customer bigint")


class Vitals(NamedTuple):
    """What waits, and for how long."""

    oldest_us: int | None
    """Receipt of an event that waits longer than was asked for, about the oldest one; None: no event does."""
    held: int
    parked: int
    quarantined: int
    """Within the last 24 hours, not resolved."""


def vitals(database: Database, now_us: int, max_lag_us: int) -> Vitals:
    """The figures of this moment; the schema must be current."""
    held = {actor: _held(database, actor) for actor in ACTORS}
    quarantined = "SELECT count(*) FROM quarantine WHERE first_seen_us > ? AND resolved_us IS NULL"
    return Vitals(
        oldest_us=_oldest(database, now_us - max_lag_us),
        held=sum(tried_again for tried_again, _ in held.values()),
        parked=sum(parked for _, parked in held.values()),
        quarantined=database.query(quarantined, (now_us - RECENT_US,))[0][0],
    )


def _oldest(database: Database, before_us: int) -> int | None:
    """Whoever waits has a bell, so only the customers of old bells are looked at. An old bell alone says nothing: of
    a busy customer some event always waits, and its bells stay until none does."""
    customers = _customers_of_old_bells(database, before_us)
    while chunk := list(islice(customers, CHUNK)):
        late = [
            received_at_us
            for actor in ACTORS
            for (received_at_us,) in database.for_each(_CUSTOMER, _first_waiting(actor), [(each,) for each in chunk])
            if received_at_us < before_us
        ]
        if late:
            oldest: int = min(late)
            return oldest
    return None


def _customers_of_old_bells(database: Database, before_us: int) -> Iterator[int]:
    """Each once, those of the oldest bell first."""
    seen: set[int] = set()
    after = 0
    for _ in range(MOST_PAGES):
        bells = unanswered(database, before_us, after)
        for _, bell in bells:
            new = {number for numbers in bell.values() for number in numbers} - seen
            seen |= new
            yield from sorted(new)
            if len(seen) >= MOST_CUSTOMERS:
                return
        if len(bells) < PAGE:
            return
        after = bells[-1][0]


def _first_waiting(actor: str) -> str:
    table = STATES[actor].table
    if actor == SEGMENTATION:  # it follows the statistics
        behind, end, bit = "stats_state f ON f.customer = s.customer AND f.position > s.position", "f.position", STATS
    else:
        behind, end, bit = f"customer f ON f.id = s.customer AND f.head_{actor} > s.position", f"f.head_{actor}", actor
    return (
        f"SELECT e.received_at_us FROM {table} s JOIN {behind} JOIN event e ON e.customer = s.customer "
        f"AND e.position > s.position AND e.position <= {end} AND (e.concerns & {BIT[bit]}) <> 0 "
        "WHERE s.customer = {customer} AND s.held_position IS NULL ORDER BY e.position LIMIT 1"
    )


def _held(database: Database, actor: str) -> tuple[int, int]:
    """Customers this actor will try again, and those that wait for a person: parked, or with details that were lost.

    The flag decides: details may outlive a hold.
    """
    all_held = (
        f"SELECT h.next_try_us FROM {STATES[actor].table} s "
        "LEFT JOIN held_group h ON h.actor = ? AND h.customer = s.customer WHERE s.held_position IS NOT NULL LIMIT ?"
    )
    rows = database.query(f"SELECT count(next_try_us), count(*) FROM ({all_held}) held", (actor, MOST_HELD))
    tried_again, every = rows[0]
    return tried_again, every - tried_again
