"""How a customer's figures and what became of an event are told.

Amounts are text with the currency's digits, counts and points are integers, times are RFC 3339 in UTC and end in Z.
"""

from typing import Any, Final, NamedTuple

from customer_actors.domain.credit_book import Account
from customer_actors.domain.events import Event, EventType, iso
from customer_actors.domain.loyalty import Loyalty
from customer_actors.domain.stats import Stats, average_order_value_minor

Figures = dict[str, Any]
"""Figures by name, under the names and in the order of `show --json`."""

APPLIED: Final = "applied"
NO_EFFECT: Final = "none"
DUPLICATE: Final = "duplicate"
REFUSED: Final = "refused"
WAITS: Final = "waits"
FAILED: Final = "failed"
SKIPPED: Final = "skipped"


class Skip(NamedTuple):
    """Who let an actor step over an event, and why."""

    operator: str
    reason: str


class Told(NamedTuple):
    """What one actor made of one event."""

    rule: str
    """Tags of the rules that decided; empty when nothing was decided."""
    outcome: str
    """One of the outcomes above."""
    effect: str
    """In words. Holds ids as they came: escape it wherever it is shown."""


def amount_text(minor: int, decimals: int) -> str:
    """An amount in minor units with exactly `decimals` digits: 5 and 2 give "0.05"."""
    sign, digits = "-" if minor < 0 else "", f"{abs(minor):0{decimals + 1}d}"
    return f"{sign}{digits[:-decimals]}.{digits[-decimals:]}" if decimals else sign + digits


def event_amount(event: Event, decimals: int) -> str | int | None:
    """An event's amount: money as text, points as an integer, None where there is none."""
    if event.type == EventType.LOYALTY_REDEEMED:
        return event.amount_minor
    if event.type in (EventType.CREDIT_SUSPENDED, EventType.CREDIT_LIFTED):
        return None
    return amount_text(event.amount_minor, decimals)


def stats_figures(stats: Stats, decimals: int) -> Figures:
    """Statistics [S1]."""
    first, last = stats.first_purchase_at_us, stats.last_purchase_at_us
    return {
        "orders": stats.orders,
        "total_spent": amount_text(stats.total_spent_minor, decimals),
        "average_order_value": amount_text(average_order_value_minor(stats), decimals),
        "first_purchase_at": None if first is None else iso(first),
        "last_purchase_at": None if last is None else iso(last),
        "cancelled_orders": stats.cancelled_orders,
        "by_channel": {"order": stats.sales_order, "pos": stats.sales_pos},
    }


def loyalty_figures(loyalty: Loyalty) -> Figures:
    """Points and tier [L4, L5]."""
    return {
        "points_balance": loyalty.points_balance,
        "points_debt": loyalty.points_debt,
        "lifetime_points": loyalty.lifetime_points,
        "tier": loyalty.tier,
    }


def credit_figures(account: Account, decimals: int) -> Figures:
    """The credit account; status, limit and available are None without one [C1, C3]."""
    limit = account.limit_minor
    return {
        "status": account.status,
        "limit": None if limit is None else amount_text(limit, decimals),
        "used": amount_text(account.used_minor, decimals),
        "available": None if limit is None else amount_text(limit - account.used_minor, decimals),
        "unapplied": amount_text(account.unapplied_minor, decimals),
        "suspense": amount_text(account.suspense_minor, decimals),
    }
