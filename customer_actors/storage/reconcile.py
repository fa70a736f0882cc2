"""Cached credit figures compared with the rows beneath them: over a chunk without locks, and one by one [C1, C8].

A usage's outstanding is its amount less what is allocated to it, 0 once cancelled; a payment's unapplied is its amount
less what is allocated from it; an account's figures are the sums of these.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import date
from typing import Any, Final, NamedTuple

from customer_actors.storage.database import Database, Row, columns
from customer_actors.storage.drift import LIFT, SUSPEND, Ageing, Drift
from customer_actors.storage.job_runs import Chunk


def _here(name: str) -> str:
    """Both conditions: the range finds the rows of a dense chunk, the numbers those of one organization among many."""
    return (
        f"{name} BETWEEN ? AND ? AND {name} IN "
        "(SELECT id FROM customer WHERE organization_id = ? AND id BETWEEN ? AND ?)"
    )


def _parameters(chunk: Chunk) -> list[Any]:
    """For one `_here`."""
    return [chunk.first, chunk.last, chunk.organization_id, chunk.first, chunk.last]


_OUTSTANDING: Final = "CASE WHEN u.cancelled_position IS NULL THEN u.amount_minor - coalesce(a.net, 0) ELSE 0 END"
_UNAPPLIED: Final = "p.amount_minor - coalesce(a.net, 0)"


def _usages(wanted: str, allocations: str, usages: str) -> str:
    """Usages whose outstanding is wrong, or that are cancelled with money still allocated to them."""
    return (
        f"SELECT {wanted} FROM credit_usage u LEFT JOIN (SELECT customer, usage_position, "
        f"CAST(sum(amount_minor) AS bigint) AS net FROM credit_allocation WHERE {allocations} "
        "GROUP BY customer, usage_position) a ON a.customer = u.customer AND a.usage_position = u.position "
        f"WHERE {usages} AND (u.outstanding_minor <> {_OUTSTANDING} "
        "OR (u.cancelled_position IS NOT NULL AND coalesce(a.net, 0) <> 0))"
    )


def _payments(wanted: str, allocations: str, payments: str) -> str:
    """Payments whose unapplied is wrong."""
    return (
        f"SELECT {wanted} FROM credit_payment p LEFT JOIN (SELECT customer, payment_position, "
        f"CAST(sum(amount_minor) AS bigint) AS net FROM credit_allocation WHERE {allocations} "
        "GROUP BY customer, payment_position) a ON a.customer = p.customer AND a.payment_position = p.position "
        f"WHERE {payments} AND p.unapplied_minor <> {_UNAPPLIED}"
    )


_SUSPECT: Final = (
    _usages("DISTINCT u.customer", _here("customer"), _here("u.customer")),
    _payments("DISTINCT p.customer", _here("customer"), _here("p.customer")),
)
_SUSPECT_ACCOUNTS: Final = (
    "SELECT s.customer FROM credit_state s "
    "LEFT JOIN (SELECT customer, sum(outstanding_minor) AS open FROM credit_usage WHERE outstanding_minor > 0 "
    f"AND {_here('customer')} GROUP BY customer) u ON u.customer = s.customer "
    "LEFT JOIN (SELECT customer, sum(unapplied_minor) AS idle FROM credit_payment WHERE unapplied_minor > 0 "
    f"AND {_here('customer')} GROUP BY customer) p ON p.customer = s.customer "
    f"WHERE {_here('s.customer')} AND (s.used_minor <> coalesce(u.open, 0) "
    "OR s.unapplied_minor <> CASE WHEN s.status IS NULL THEN 0 ELSE coalesce(p.idle, 0) END "
    "OR s.suspense_minor <> CASE WHEN s.status IS NULL THEN coalesce(p.idle, 0) ELSE 0 END "
    "OR (s.status IS NOT NULL AND u.open > 0 AND p.idle > 0))"
)


def suspects(database: Database, chunk: Chunk) -> list[int]:
    """Customers of a chunk whose figures do not add up, or whose money lies idle beside open usages; nothing is locked.

    An account's figures are compared with the cached figures of its rows: whoever has a wrong one of these is found by
    the other two looks.
    """
    here = _parameters(chunk)
    found = [row for sql in _SUSPECT for row in database.query(sql, here * 2)]
    found += database.query(_SUSPECT_ACCOUNTS, here * 3)
    return sorted({customer for (customer,) in found})


_CREDIT_CUSTOMERS: Final = (
    "SELECT c.organization_id, c.id FROM customer c JOIN credit_state s ON s.customer = c.id WHERE (c.head_credit > 0 "
    "OR s.status IS NOT NULL OR s.used_minor <> 0 OR s.unapplied_minor <> 0 OR s.suspense_minor <> 0)"
)
"""Those with an account, a usage or a payment, and those who have none but figures all the same."""
_CHUNKS: Final = (
    "SELECT organization_id, min(id), max(id) FROM (SELECT organization_id, id, "
    f"(row_number() OVER (PARTITION BY organization_id ORDER BY id) - 1) / ? AS part FROM ({_CREDIT_CUSTOMERS}) c) r "
    "GROUP BY organization_id, part ORDER BY organization_id, part"
)


def chunks(database: Database, customers_each: int) -> list[Chunk]:
    """The credit customers of every organization."""
    rows = database.execute(_CHUNKS, (customers_each,)).fetchall()
    return [Chunk(number, *row) for number, row in enumerate(rows, start=1)]


def examined(database: Database, chunk: Chunk) -> int:
    """How many credit customers a chunk has."""
    sql = f"SELECT count(*) FROM ({_CREDIT_CUSTOMERS} AND c.organization_id = ? AND c.id BETWEEN ? AND ?) r"
    count: int = database.query(sql, (chunk.organization_id, chunk.first, chunk.last))[0][0]
    return count


# --- one customer ------------------------------------------------------------------------------------------------

_ONE: Final = columns("credit_state", "customer bigint")
_USAGES_OF_ONE: Final = _usages(
    f"u.customer, u.position, u.outstanding_minor, {_OUTSTANDING}, u.amount_minor, "
    "CASE WHEN u.cancelled_position IS NULL THEN 0 ELSE coalesce(a.net, 0) END",
    "customer = {customer}",
    "u.customer = {customer}",
)
_PAYMENTS_OF_ONE: Final = _payments(
    f"p.customer, p.position, p.unapplied_minor, {_UNAPPLIED}, p.amount_minor",
    "customer = {customer}",
    "p.customer = {customer}",
)
_SUMS_OF_ONE: Final = (
    "SELECT s.customer, s.status, s.used_minor, s.unapplied_minor, s.suspense_minor, "
    "(SELECT CAST(coalesce(sum(outstanding_minor), 0) AS bigint) FROM credit_usage "
    "WHERE customer = {customer} AND outstanding_minor > 0), "
    "(SELECT CAST(coalesce(sum(unapplied_minor), 0) AS bigint) FROM credit_payment "
    "WHERE customer = {customer} AND unapplied_minor > 0) FROM credit_state s WHERE s.customer = {customer}"
)


class Sums(NamedTuple):
    """An account's three figures as they must be, in minor units."""

    used: int
    unapplied: int
    suspense: int


class Checked(NamedTuple):
    """What is wrong with some customers, and how it is put right."""

    drift: list[Drift]
    usages: list[Row]
    """(customer, position, outstanding) to set."""
    payments: list[Row]
    """(customer, position, unapplied) to set."""
    sums: dict[int, Sums]
    """What every one of the customers must have; those with money idle beside open usages are settled after that."""
    wrong: list[int]
    """Customers whose account's figures must be set."""
    unsettled: list[int]


def check(database: Database, customers: Sequence[int], repaired: bool) -> Checked:
    """Look at customers one by one; they must be locked if anything is to be repaired.

    A figure that its column could not hold comes from facts that cannot be; it stays, and is reported as not repaired.
    """
    keys = [(customer,) for customer in customers]
    checked = Checked([], [], [], {}, [], [])
    found, usages, payments, sums, wrong, unsettled = checked
    open_more, idle_more = Counter[int](), Counter[int]()
    for customer, position, stored, expected, amount, left_over in database.for_each(_ONE, _USAGES_OF_ONE, keys):
        if left_over:
            found.append(Drift(customer, f"usage[{position}].allocated", left_over, 0, False))
        if stored != expected:
            possible = 0 <= expected <= amount
            found.append(Drift(customer, f"usage[{position}].outstanding", stored, expected, possible and repaired))
            if possible:
                usages.append((customer, position, expected))
                open_more[customer] += expected - stored
    for customer, position, stored, expected, amount in database.for_each(_ONE, _PAYMENTS_OF_ONE, keys):
        possible = 0 <= expected <= amount
        found.append(Drift(customer, f"payment[{position}].unapplied", stored, expected, possible and repaired))
        if possible:
            payments.append((customer, position, expected))
            idle_more[customer] += expected - stored
    for customer, status, used, unapplied, suspense, open_minor, idle_minor in database.for_each(
        _ONE, _SUMS_OF_ONE, keys
    ):
        idle = idle_minor + idle_more[customer]
        must = Sums(open_minor + open_more[customer], *((0, idle) if status is None else (idle, 0)))
        stored_sums = Sums(used, unapplied, suspense)
        sums[customer] = must
        found += [
            Drift(customer, field, stored, expected, repaired)
            for field, stored, expected in zip(Sums._fields, stored_sums, must, strict=True)
            if stored != expected
        ]
        if must != stored_sums:
            wrong.append(customer)
        if status is not None and must.used and must.unapplied:
            unsettled.append(customer)
    return checked


# --- ageing ------------------------------------------------------------------------------------------------------

_LATE: Final = (
    "SELECT s.customer, s.status, u.oldest, c.customer_id, s.position >= c.head_credit FROM credit_state s "
    "JOIN customer c ON c.id = s.customer "
    "LEFT JOIN (SELECT customer, min(due_date) AS oldest FROM credit_usage WHERE outstanding_minor > 0 "
    f"AND {_here('customer')} GROUP BY customer) u ON u.customer = s.customer "
    f"WHERE {_here('s.customer')} AND s.held_position IS NULL AND ((s.status = 'active' AND u.oldest < ?) "
    "OR (s.status = 'suspended' AND s.automatic AND (u.oldest IS NULL OR u.oldest >= ?))) ORDER BY s.customer"
)


class Aged(NamedTuple):
    """Who is to be suspended or lifted."""

    customer: int
    customer_id: str
    ageing: Ageing
    at_head: bool
    """Whether everything that concerns the account is folded; else the next event may change the answer."""


def aged(database: Database, chunk: Chunk, cutoff: date) -> list[Aged]:
    """Whom to suspend, because something open was due before `cutoff`, and whom to lift, because nothing is [C7].

    A suspension by hand stays, and held customers are left out: what they wait for may be the money.
    """
    rows = database.query(_LATE, [*_parameters(chunk) * 2, cutoff.isoformat(), cutoff.isoformat()])
    return [
        Aged(customer, customer_id, Ageing(customer, SUSPEND if status == "active" else LIFT, oldest), bool(at_head))
        for customer, status, oldest, customer_id, at_head in rows
    ]
