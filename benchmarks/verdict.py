"""What became of a stream in a subject's tables: the same totals, nothing missing, doubled or out of order?"""

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, NamedTuple

from benchmarks.streams import Truth
from customer_actors.domain.events import EventType


class Ledger(NamedTuple):
    """Where a subject keeps its effects, as SQL."""

    sums: str
    """One row, as `Truth.sums`."""
    applied: str
    """(customer, reference, points) of every loyalty entry: of the peers in the order they were written, of ours by the
    position in the stream, whose order no actor can leave without another result (`wrong_customers`)."""
    points: str
    """(customer, lifetime points)"""
    doubles: str
    """How many effects stand there more than once."""


PEERS: Final = Ledger(
    sums="SELECT (SELECT count(*) FROM sale), (SELECT sum(cancelled) FROM customer_stats), "
    "(SELECT sum(total_spent) FROM customer_stats), (SELECT count(*) FROM credit_usage), "
    "(SELECT count(*) FROM credit_payment), (SELECT sum(amount) FROM credit_payment), "
    "(SELECT count(*) FROM segment WHERE code IS NOT NULL)",
    applied="SELECT customer_id, order_id, points FROM loyalty_ledger ORDER BY id",
    points="SELECT customer_id, lifetime_points FROM loyalty",
    doubles="SELECT (SELECT count(*) - count(DISTINCT order_id) FROM sale) + "
    "(SELECT count(*) - count(DISTINCT (order_id, points > 0)) FROM loyalty_ledger) + "
    "(SELECT count(*) - count(DISTINCT order_id) FROM credit_usage) + "
    "(SELECT count(*) - count(DISTINCT reference) FROM credit_payment)",
)

_SALES: Final = f"('{EventType.ORDER_COMPLETED.value}', '{EventType.POS_COMPLETED.value}')"
OURS: Final = Ledger(
    sums=f"SELECT (SELECT count(*) FROM event WHERE type IN {_SALES}), "
    "(SELECT sum(cancelled_orders) FROM stats_state), (SELECT sum(total_spent_minor) FROM stats_state), "
    "(SELECT count(*) FROM credit_usage), (SELECT count(*) FROM credit_payment), "
    "(SELECT sum(amount_minor) FROM credit_payment), (SELECT count(*) FROM customer_segment WHERE code IS NOT NULL)",
    applied="SELECT c.customer_id, e.reference, l.points FROM loyalty_entry l "
    "JOIN event e ON (e.customer, e.position) = (l.customer, l.position) JOIN customer c ON c.id = l.customer "
    "ORDER BY l.customer, l.position",
    points="SELECT c.customer_id, s.lifetime_points FROM loyalty_state s JOIN customer c ON c.id = s.customer",
    doubles="SELECT (SELECT count(*) - count(DISTINCT e.reference || (l.points > 0)) FROM loyalty_entry l "
    "JOIN event e ON (e.customer, e.position) = (l.customer, l.position)) + "
    "(SELECT count(*) - count(DISTINCT reference) FROM credit_usage) + "
    "(SELECT count(*) - count(DISTINCT reference) FROM credit_payment) + "
    f"(SELECT count(*) - count(DISTINCT reference) FROM event WHERE type IN {_SALES})",
)


class Verdict(NamedTuple):
    """What is wrong; nothing is when all figures are 0 and the totals equal."""

    totals_equal: bool
    inversions: int
    """Times a customer's event was applied after a later one of the same queue."""
    doubles: int
    """Effects that stand in the tables more than once."""
    missing: int
    """Effects (points of sales and cancellations) that do not stand there at all."""
    wrong_customers: int
    """Customers whose lifetime points are not those of their events in order."""

    @property
    def wrong(self) -> int:
        """Everything that is wrong, in one figure."""
        return (not self.totals_equal) + self.inversions + self.doubles + self.missing + self.wrong_customers


Rows = Callable[[str], list[tuple[Any, ...]]]
"""Runs a query in a subject's database."""


def judge(rows: Rows, ledger: Ledger, stream: Sequence[str], truth: Truth) -> Verdict:
    """Compare the tables with the stream."""
    sums = tuple(int(figure or 0) for figure in rows(ledger.sums)[0])
    applied = [(customer, reference, points) for customer, reference, points in rows(ledger.applied) if points]
    points: dict[str, int] = dict(rows(ledger.points))
    doubles = rows(ledger.doubles)[0][0]
    number_of = _numbers(stream)
    seen = {(reference, amount > 0) for _, reference, amount in applied}
    wrong = sum(points.get(customer, 0) != wanted for customer, wanted in truth.points.items())
    missing = len(number_of.keys() - seen) - _without_points(stream)
    inversions = _inversions((customer, number_of[ref, amount > 0]) for customer, ref, amount in applied)
    return Verdict(sums == truth.sums, inversions, doubles, max(0, missing), wrong)


def _numbers(stream: Sequence[str]) -> dict[tuple[str, bool], int]:
    """(reference, earning or reversal) -> line number."""
    numbers: dict[tuple[str, bool], int] = {}
    for number, line in enumerate(stream):
        event = json.loads(line)
        data = event["data"]
        if event["event"] != EventType.PAYMENT_RECEIVED:
            reference = data.get("order_id") or data["transaction_id"]
            numbers[reference, event["event"] != EventType.ORDER_CANCELLED] = number
    return numbers


def _without_points(stream: Sequence[str]) -> int:
    """Sales under one unit of currency, and their cancellations, move no points."""
    small: set[str] = set()
    count = 0
    for line in stream:
        data = json.loads(line)["data"]
        reference = data.get("order_id") or data.get("transaction_id")
        amount = data.get("total_amount") or data.get("totals", {}).get("total_amount")
        if amount is not None and amount < 1:
            small.add(reference)
            count += 1
        elif amount is None and reference in small:
            count += 1
    return count


def _inversions(applied: Iterable[tuple[str, int]]) -> int:
    last: dict[str, int] = {}
    inversions = 0
    for customer, number in applied:
        inversions += number < last.get(customer, -1)
        last[customer] = max(number, last.get(customer, -1))
    return inversions
