"""From a bell to messages: which actors concern which customers, in how many bundles. Pure."""

from collections.abc import Iterator, Mapping, Sequence

from customer_actors.domain.routing import ACTORS, ROUTES


def plan(bell: Mapping[str, Sequence[int]], bundle_size: int) -> Iterator[tuple[str, list[int]]]:
    """(actor, customers) for every message to send: one for a small batch, several disjoint ones for a large one.

    Message count is what limits the broker, so a bell of up to `bundle_size` customers is never split.
    """
    customers_of: dict[str, set[int]] = {}
    for routing_key, customers in bell.items():
        for actor in ROUTES.get(routing_key, ACTORS):  # a type of a newer version may concern anybody
            customers_of.setdefault(actor, set()).update(customers)
    for actor, wanted in customers_of.items():
        for bundle in bundles(sorted(wanted), bundle_size):
            yield actor, bundle


def bundles(customers: Sequence[int], bundle_size: int) -> Iterator[list[int]]:
    """Disjoint runs of at most `bundle_size` customers."""
    for start in range(0, len(customers), bundle_size):
        yield list(customers[start : start + bundle_size])
