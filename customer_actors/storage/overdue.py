"""What the sweep looks for: customers whose bell nobody answered, and holds whose message was lost."""

from customer_actors.domain.routing import ACTORS, AFTER, ROUTES
from customer_actors.groups.sweep import Overdue
from customer_actors.storage.actors import Stores
from customer_actors.storage.bells import PAGE, remove_bells, unanswered

HELD_GRACE_US = 10_000_000
"""A held group's own message comes first; the sweep rings only when it is this late."""


def overdue(stores: Stores, now_us: int, grace_us: int, after: int = 0) -> Overdue:
    """What is behind among the customers of a page of bells older than the grace, and which bells are answered."""
    bells = unanswered(stores.database, now_us - grace_us, after)
    concerned: dict[str, set[int]] = {}
    for _, bell in bells:
        for routing_key, customers in bell.items():
            for actor in ROUTES.get(routing_key, ACTORS):
                for rung in (actor, *AFTER.get(actor, ())):
                    concerned.setdefault(rung, set()).update(customers)
    behind = {actor: stores.of(actor).behind(sorted(customers)) for actor, customers in concerned.items()}
    waiting = {customer for customers in behind.values() for customer in customers}
    answered = [n for n, bell in bells if not any(waiting.intersection(customers) for customers in bell.values())]
    rows = stores.database.query(
        "SELECT actor, customer FROM held_group WHERE next_try_us < ? ORDER BY next_try_us LIMIT 500",
        (now_us - HELD_GRACE_US,),
    )
    last_bell = bells[-1][0] if len(bells) == PAGE else 0
    return Overdue(behind, answered, [(actor, customer) for actor, customer in rows], last_bell)


def forget_answered(stores: Stores, now_us: int) -> None:
    """Remove every bell whose customers are through or held: what the sweep does, for a process without workers."""
    after = None
    while after != 0:
        found = overdue(stores, now_us + 1, 0, after or 0)
        remove_bells(stores.database, found.answered)
        after = found.last_bell


def all_behind(stores: Stores) -> dict[str, list[int]]:
    """Every customer any actor is behind for, by actor: a comparison of all heads, for start-up only."""
    return {actor: stores.of(actor).all_behind() for actor in ACTORS}
