"""What operators did, and why: recorded in the transaction that does it [G21]. A skip is part of the history."""

from collections.abc import Sequence
from typing import NamedTuple

from customer_actors.storage.database import Database, columns


class Skip(NamedTuple):
    """Who let an actor step over an event, why and when (microseconds since the epoch)."""

    operator: str
    reason: str
    at_us: int


class Action(NamedTuple):
    """One thing an operator did; what it concerned is None where it concerned many."""

    operator: str
    action: str
    """`skip`, `release` or `quarantine retry`."""
    reason: str
    actor: str | None = None
    customer: int | None = None
    position: int | None = None
    detail: str | None = None
    """In words: how many it concerned, or which."""


_OF_CUSTOMER = columns("operator_action", "customer bigint")
_SKIPS = (
    "SELECT customer, position, actor, operator, reason, at_us FROM operator_action "
    "WHERE action = 'skip' AND customer = {customer}"
)


def record(database: Database, action: Action, now_us: int) -> None:
    """Record an action; call it inside the transaction that carries it out."""
    database.execute(
        "INSERT INTO operator_action (at_us, operator, action, reason, actor, customer, position, detail) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (now_us, *action),
    )


def skips_of(database: Database, customers: Sequence[int]) -> dict[tuple[int, int, str], Skip]:
    """(customer, position, actor) -> the skip, for all skips of these customers."""
    with database.reading():
        rows = database.for_each(_OF_CUSTOMER, _SKIPS, [(customer,) for customer in sorted(set(customers))])
    return {(customer, position, actor): Skip(*rest) for customer, position, actor, *rest in rows}


def skipped_sales(database: Database, actor: str, cancellations: Sequence[tuple[int, int]]) -> set[tuple[int, int]]:
    """Those of the sales that cancellations name, as (customer, sale_position), that this actor skipped."""
    rows = database.for_each(_SALE, _SKIPPED.format(actor=actor), sorted(set(cancellations)))
    return {(customer, position) for customer, position in rows}


_SALE = columns("operator_action", "customer bigint, position bigint")
_SKIPPED = (
    "SELECT customer, position FROM operator_action WHERE action = 'skip' AND customer = {{customer}} "
    "AND position = {{position}} AND actor = '{actor}'"
)
