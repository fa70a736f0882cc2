"""Recency, frequency and monetary scores of one customer, and the segment they name [R1-R5]."""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta
from itertools import pairwise, product
from types import MappingProxyType
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from customer_actors.domain.events import to_us

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
    as_of: date | None = None
    """The business date the snapshot was taken for."""


class Scores(NamedTuple):
    """Scores from 1 to 5, 5 best, and the segment's code."""

    recency: int
    frequency: int
    monetary: int
    code: str


def cut_places(n: int) -> tuple[int, int, int, int]:
    """Where in n ascending values the cuts stand, counted from 1: ceil(k*n/5) for k = 1..4 [R2]."""
    first, second, third, fourth = ((k * n + 4) // 5 for k in (1, 2, 3, 4))
    return first, second, third, fourth


def quintiles(n: int, values: Sequence[int]) -> Quintiles | None:
    """The four values at `cut_places(n)` as cuts [R2].

    None when the fixed cuts apply: too few values, or cuts that are not strictly increasing [R3].
    """
    if n < FEWEST_CUSTOMERS or any(low >= high for low, high in pairwise(values)):
        return None
    first, second, third, fourth = values
    return first, second, third, fourth


def quintile_cuts(sorted_values: Sequence[int]) -> Quintiles | None:
    """The cuts of all customers' ascending values, or None where the fixed cuts apply [R2, R3]."""
    n = len(sorted_values)
    return quintiles(n, [sorted_values[place - 1] for place in cut_places(n)]) if n else None


def days_since(last_purchase: date, as_of: date) -> int:
    """Days between two business dates, none for a purchase after the as-of date [R1]."""
    return max(0, (as_of - last_purchase).days)


def score(
    as_of: date, last_purchase: date, orders: int, total_spent_minor: int, cuts: Cuts, currency_decimals: int
) -> Scores:
    """Scores and code of a customer with at least one active sale (without one there is no segment, R5) [R1-R4].

    Both dates are business dates. The total is in minor units, of which 10**currency_decimals are one unit.
    """
    return Scale(cuts, currency_decimals).scores(days_since(last_purchase, as_of), orders, total_spent_minor)


class Scale:
    """The cuts in force in each dimension, the fixed ones where the snapshot has none [R3]."""

    def __init__(self, cuts: Cuts, currency_decimals: int) -> None:
        self.recency = cuts.recency or FIXED_RECENCY
        self.frequency = cuts.frequency or FIXED_FREQUENCY
        self.monetary = cuts.monetary or _fixed_monetary(currency_decimals)

    def scores(self, days: int, orders: int, total_spent_minor: int) -> Scores:
        """Scores and code of a customer's inputs: equal values always score equal [R2, R4]."""
        return scores_of(
            5 - bisect_left(self.recency, days),
            1 + bisect_left(self.frequency, orders),
            1 + bisect_left(self.monetary, total_spent_minor),
        )


class Sieve:
    """A scale on one as-of date, to find among many customers those whose scores or code are no longer right [R7].

    The same scores as `Scale.scores`, for a fraction of the time: the cuts of recency are moments, so that no date is
    calculated per customer.
    """

    def __init__(self, scale: Scale, as_of: date, zone: ZoneInfo) -> None:
        self._scale = scale
        self._moments = sorted(day_start_us(as_of - timedelta(days), zone) for days in scale.recency)

    def scores(self, last_purchase_us: int, orders: int, total_spent_minor: int) -> Scores:
        """Scores and code of a customer whose last purchase was at this moment."""
        return _SCORES[
            1 + bisect_right(self._moments, last_purchase_us),
            1 + bisect_left(self._scale.frequency, orders),
            1 + bisect_left(self._scale.monetary, total_spent_minor),
        ]


def day_start_us(day: date, zone: ZoneInfo) -> int:
    """The first moment of a business date, in microseconds since the epoch."""
    return to_us(datetime(day.year, day.month, day.day, tzinfo=zone))


def scores_of(recency: int, frequency: int, monetary: int) -> Scores:
    """Three scores from 1 to 5 with the code they name."""
    return _SCORES[recency, frequency, monetary]


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


def _fixed_monetary(currency_decimals: int) -> Quintiles:
    """The fixed cuts in minor units: a total of exactly 100 units is no longer below 100, so the cut is one less."""
    first, second, third, fourth = (units * 10**currency_decimals - 1 for units in FIXED_MONETARY_UNITS)
    return first, second, third, fourth


_SCORES: Final = {
    scores: Scores(*scores, code_of(*scores)) for scores in product(range(1, 6), range(1, 6), range(1, 6))
}
"""The map is total: 125 cells [R4]."""
