"""Loyalty points and tiers of one customer [L1-L7]."""

from collections.abc import Mapping
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache
from typing import NamedTuple

from customer_actors.domain.events import Event, EventType
from customer_actors.domain.rules import Rules, Tier


class Loyalty(NamedTuple):
    """What the ledger's entries add up to."""

    points: int = 0
    """Sum of the ledger; negative when points were spent and their sale was cancelled afterwards [L5]."""
    lifetime_points: int = 0
    """Earnings and reversals only; decides the tier [L4]."""
    tier: str = "bronze"

    @property
    def points_balance(self) -> int:
        """Points that can be redeemed [L5]."""
        return max(0, self.points)

    @property
    def points_debt(self) -> int:
        """Points that new earnings pay first [L5]."""
        return max(0, -self.points)


class Entry(NamedTuple):
    """One line of the append-only ledger; never of zero points [L3]."""

    position: int
    """The event that made it."""
    kind: str
    """`earn`, `reverse` or `redeem`."""
    points: int
    """Signed: what it adds to the sum."""
    sale_position: int | None = None
    """The sale earned by or reversed."""
    tier: str | None = None
    """Of an earning: the tier held before the sale, with the multiplier and rate that were used [L1, L2]."""
    multiplier: str | None = None
    points_per_unit: str | None = None


class Result(NamedTuple):
    """What one event makes of the state."""

    state: Loyalty
    entry: Entry | None = None
    refused: str | None = None
    """Why a redemption was refused, as a short sentence [L6]."""


def tier_of(lifetime_points: int, rules: Rules) -> Tier:
    """The tier with the highest threshold <= lifetime_points: exactly 500 is silver [L4]."""
    for tier in reversed(rules.tiers):
        if tier.threshold <= lifetime_points:
            return tier
    return rules.tiers[0]


def fold(state: Loyalty, event: Event, rules: Rules, earned: Mapping[int, int]) -> Result:
    """The state after one event, and the ledger entry it made; every other event changes nothing [L7].

    `earned` gives the points of the earning at a sale's position, for the sales that cancellations name. A sale
    missing there earned nothing, so nothing is reversed.
    """
    match event.type:
        case EventType.ORDER_COMPLETED | EventType.POS_COMPLETED:
            return _sold(state, event, rules)
        case EventType.ORDER_CANCELLED:
            return _cancelled(state, event, rules, earned)
        case EventType.LOYALTY_REDEEMED:
            return _redeemed(state, event)
        case _:
            return Result(state)


def _sold(state: Loyalty, event: Event, rules: Rules) -> Result:
    if event.already_cancelled:  # its only effect is on the statistics [A4]
        return Result(state)
    # By these rules and not by the stored name: tiers may have been renamed since.
    tier = tier_of(state.lifetime_points, rules)
    numerator, denominator = _points_per_minor(rules.points_per_unit, tier.multiplier, rules.currency_decimals)
    points = event.amount_minor * numerator // denominator
    position = event.position
    entry = Entry(position, "earn", points, position, tier.name, str(tier.multiplier), str(rules.points_per_unit))
    return Result(_award(state, points, rules), entry if points else None)


def _cancelled(state: Loyalty, event: Event, rules: Rules, earned: Mapping[int, int]) -> Result:
    sale = event.sale_position
    points = 0 if sale is None else earned.get(sale, 0)
    if not points:
        return Result(state)
    return Result(_award(state, -points, rules), Entry(event.position, "reverse", -points, sale))


def _redeemed(state: Loyalty, event: Event) -> Result:
    asked = event.amount_minor
    if asked <= 0:
        return Result(state, refused="only a positive number of points can be redeemed")
    if asked > state.points_balance:
        return Result(state, refused=f"{asked} points asked, {state.points_balance} available")
    return Result(state._replace(points=state.points - asked), Entry(event.position, "redeem", -asked))


def _award(state: Loyalty, points: int, rules: Rules) -> Loyalty:
    """Points added (or, negative, taken back), then the tier evaluated once [L2]."""
    lifetime_points = state.lifetime_points + points
    return Loyalty(state.points + points, lifetime_points, tier_of(lifetime_points, rules).name)


@lru_cache(maxsize=256)
def _points_per_minor(points_per_unit: Decimal, multiplier: Decimal, currency_decimals: int) -> tuple[int, int]:
    """Points for one minor unit as an exact ratio of integers: the floor over the amount is the only one [L1]."""
    ratio = Fraction(points_per_unit) * Fraction(multiplier) / 10**currency_decimals
    return ratio.numerator, ratio.denominator
