"""Recency, frequency and monetary scores of one customer, and the segment they name [R1-R5]."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from datetime import date
from itertools import pairwise
from types import MappingProxyType
from typing import Final, NamedTuple

Quintiles = tuple[int, int, int, int]
"""Four strictly increasing cuts: they divide the values into five scores."""

FEWEST_CUSTOMERS: Final = 100
"""With fewer values a dimension keeps its fixed cuts [R3]."""

FIXED_RECENCY: Final = (30, 60, 90, 180)
"""Days: <=30 scores 5, <=60 4, <=90 3, <=180 2, else 1 [R3]."""
FIXED_FREQUENCY: Final = (1, 2, 4, 9)
"""Orders: 1 scores 1, 2 2, 3-4 3, 5-9 4, >=10 5 [R3]."""
FIXED_MONETARY_UNITS: Final = (100, 500, 1000, 5000)
"""Units of currency: <100 scores 1, <500 2, <1000 3, <5000 4, else 5 [R3]."""

HEALTH: Final[Mapping[str, int]] = MappingProxyType(
    {"champions": 5, "loyal": 4, "potential_loyalist": 3, "new": 3, "at_risk": 2, "lost": 1}
)
"""Code -> how healthy the relation is, 5 best [R4]."""


class Cuts(NamedTuple):
    """The numbered snapshot of one organization's cuts; None in a dimension means the fixed cuts [R2, R3]."""

    number: int | None = None
    """None: no snapshot yet."""
    recency: Quintiles | None = None
    """Days since the last purchase."""
    frequency: Quintiles | None = None
    """Orders."""
    monetary: Quintiles | None = None
    """Total spent, in minor units."""


class Scores(NamedTuple):
    """Scores from 1 to 5, 5 best, and the segment's code."""

    recency: int
    frequency: int
    monetary: int
    code: str


def quintile_cuts(sorted_values: Sequence[int]) -> Quintiles | None:
    """The values at the positions ceil(k*n/5), k = 1..4, of all customers' ascending values [R2].

    None when the fixed cuts apply: too few values, or cuts that are not strictly increasing [R3].
    """
    n = len(sorted_values)
    if n < FEWEST_CUSTOMERS:
        return None
    first, second, third, fourth = (sorted_values[(k * n + 4) // 5 - 1] for k in (1, 2, 3, 4))
    cuts = (first, second, third, fourth)
    return cuts if all(low < high for low, high in pairwise(cuts)) else None


def score(
    as_of: date, last_purchase: date, orders: int, total_spent_minor: int, cuts: Cuts, currency_decimals: int
) -> Scores:
    """Scores and code of a customer with at least one active sale (without one there is no segment, R5) [R1-R4].

    Both dates are business dates. The total is in minor units, of which 10**currency_decimals are one unit.
    """
    days = max(0, (as_of - last_purchase).days)
    recency = 5 - _cuts_below(days, cuts.recency or FIXED_RECENCY)
    frequency = 1 + _cuts_below(orders, cuts.frequency or FIXED_FREQUENCY)
    monetary = 1 + _cuts_below(total_spent_minor, cuts.monetary or _fixed_monetary(currency_decimals))
    return Scores(recency, frequency, monetary, code_of(recency, frequency, monetary))


def code_of(recency: int, frequency: int, monetary: int) -> str:
    """The segment of three scores from 1 to 5; the first match counts [R4]."""
    if recency >= 4 and frequency >= 4 and monetary >= 4:
        return "champions"
    if recency >= 3 and (frequency >= 4 or (frequency == 3 and monetary >= 3)):
        return "loyal"
    if recency >= 4 and frequency == 1:
        return "new"
    if recency >= 3:
        return "potential_loyalist"
    if (recency == 2 and max(frequency, monetary) >= 3) or (recency == 1 and max(frequency, monetary) >= 4):
        return "at_risk"
    return "lost"


def _cuts_below(value: int, cuts: Quintiles) -> int:
    """How many cuts are smaller than the value: equal values always score equal [R2]."""
    return bisect_left(cuts, value)


def _fixed_monetary(currency_decimals: int) -> Quintiles:
    """The fixed cuts in minor units: a total of exactly 100 units is no longer below 100, so the cut is one less."""
    first, second, third, fourth = (units * 10**currency_decimals - 1 for units in FIXED_MONETARY_UNITS)
    return first, second, third, fourth
