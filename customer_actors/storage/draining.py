"""Advancing customers in this process until they are through or held, for commands where no worker is."""

from collections.abc import Callable, Iterable, Mapping, Sequence

from customer_actors.domain.routing import ACTORS, AFTER, ROUTES
from customer_actors.groups.advance import Hold, advance
from customer_actors.storage.actors import Stores


def drain(stores: Stores, actor: str, customers: Sequence[int], clock: Callable[[], int]) -> list[tuple[str, Hold]]:
    """Advance an actor and whoever follows it; returns what they were held at.

    A customer whose row somebody else has is left to them: they look again before they end. Who follows is advanced
    for all of them: also a skip moved this actor's position.

    Raises:
        Outage: what was committed stays; the bells of the rest are still there.
    """
    held: list[tuple[str, Hold]] = []
    waiting = list(customers)
    while waiting:
        report = advance(stores.of(actor), waiting, now_us=clock)
        held.extend((actor, hold) for hold in report.held)
        waiting = report.remaining
    for following in AFTER.get(actor, ()):
        held.extend(drain(stores, following, customers, clock))
    return held


def drain_bell(stores: Stores, bell: Mapping[str, Iterable[int]], clock: Callable[[], int]) -> list[tuple[str, Hold]]:
    """Advance everybody a bell names, for every actor its events concern."""
    held: list[tuple[str, Hold]] = []
    for actor in ACTORS:
        keys = [key for key in bell if actor in ROUTES.get(key, ACTORS)]
        held.extend(drain(stores, actor, sorted({customer for key in keys for customer in bell[key]}), clock))
    return held
