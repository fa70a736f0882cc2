"""What stands in the database, counted: for the summary of a run."""

from typing import NamedTuple

from customer_actors.storage.database import Database


class Held(NamedTuple):
    """A customer that waits for one actor, behind an event that failed."""

    organization_id: str
    customer_id: str
    actor: str
    position: int
    attempts: int
    parked: bool
    """Attempts exhausted: waits for a person."""
    error: str


def held_customers(database: Database) -> list[Held]:
    """Everybody held or parked, by organization, customer and actor."""
    rows = database.query(
        "SELECT c.organization_id, c.customer_id, h.actor, h.position, h.attempts, h.next_try_us IS NULL, h.error "
        "FROM held_group h JOIN customer c ON c.id = h.customer ORDER BY 1, 2, 3"
    )
    return [Held._make((*row[:5], bool(row[5]), row[6])) for row in rows]


def due_holds(database: Database, now_us: int) -> list[tuple[str, int]]:
    """(actor, customer's number) of the held groups whose next try has come."""
    sql = "SELECT actor, customer FROM held_group WHERE next_try_us <= ? ORDER BY next_try_us"
    return [(actor, customer) for actor, customer in database.query(sql, (now_us,))]


def segment_counts(database: Database) -> dict[str, int]:
    """Customers per segment code; those without an active sale have none [R5]."""
    sql = "SELECT code, count(*) FROM customer_segment WHERE code IS NOT NULL GROUP BY code"
    return dict(database.query(sql))


class TierTotals(NamedTuple):
    """Customers of one tier, and what they have together [L4, L5]."""

    customers: int
    points_balance: int
    points_debt: int


def tier_totals(database: Database) -> dict[str, TierTotals]:
    """Totals per tier; customers who never earned a point stand in the lowest."""
    rows = database.query(
        "SELECT tier, count(*), CAST(sum(CASE WHEN points > 0 THEN points ELSE 0 END) AS bigint), "
        "CAST(sum(CASE WHEN points < 0 THEN -points ELSE 0 END) AS bigint) FROM loyalty_state GROUP BY tier"
    )
    return {tier: TierTotals(*totals) for tier, *totals in rows}


class CreditTotals(NamedTuple):
    """All credit of the database, amounts in minor units [C1, C3]."""

    accounts: int
    limit_minor: int
    used_minor: int
    """Of accounts."""
    unapplied_minor: int
    used_without_account_minor: int
    suspense_minor: int
    """Money that waits for an account to be opened."""


def credit_totals(database: Database) -> CreditTotals:
    """The sums over all customers."""
    rows = database.query(
        "SELECT count(status), CAST(COALESCE(sum(limit_minor), 0) AS bigint), "
        "CAST(COALESCE(sum(CASE WHEN status IS NOT NULL THEN used_minor END), 0) AS bigint), "
        "CAST(COALESCE(sum(unapplied_minor), 0) AS bigint), "
        "CAST(COALESCE(sum(CASE WHEN status IS NULL THEN used_minor END), 0) AS bigint), "
        "CAST(COALESCE(sum(suspense_minor), 0) AS bigint) FROM credit_state"
    )
    return CreditTotals(*rows[0])
