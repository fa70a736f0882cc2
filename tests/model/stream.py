"""What one customer's stream comes to: every rule about a single customer, computed from the list of its events.

Nothing is kept between events that could be computed again: a balance is a sum over the ledger so far, and credit is no
allocation of money but the difference of what was used and what was paid, which is what it must come to [C1].
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from math import floor
from typing import Any

from customer_actors.domain.events import Channel, Event, EventType
from customer_actors.domain.rules import Rules

State = dict[str, Any]

SALES: dict[str, Channel] = {EventType.ORDER_COMPLETED: Channel.ORDER, EventType.POS_COMPLETED: Channel.POS}
"""Type of a sale's event -> its channel."""

BEFORE_ALL, AFTER_ALL = date(2000, 1, 1), date(2090, 1, 1)
"""Dates of nights: nothing is overdue for too long on the one, everything open is on the other [C7]."""


def state_of_stream(events: Sequence[Event], rules: Rules, today: date) -> State:
    """The state of one customer whose whole stream, in position order, is `events`.

    As `ReferenceModel.state`, without the two ids. `position` is the number of events, so a gap in the stream shows.
    The segment is scored with the fixed cuts [R3] as of `today`, a business date.
    """
    sales = _active_sales(events)
    return {
        "position": len(events),
        "stats": _stats(events, sales, rules),
        "loyalty": _loyalty(events, rules),
        "segment": _segment(sales, rules, today),
        "credit": _credit(events, rules),
    }


def _is_sale(event: Event) -> bool:
    return event.type in SALES and not event.already_cancelled


def _active_sales(events: Sequence[Event]) -> list[Event]:
    undone = [event.sale_position for event in events if event.type == EventType.ORDER_CANCELLED]
    return [event for event in events if _is_sale(event) and event.position not in undone]


def _stats(events: Sequence[Event], sales: Sequence[Event], rules: Rules) -> State:
    """[S1]. An order that was only charged when it was cancelled counts once its completion arrives."""
    total = sum(sale.amount_minor for sale in sales)
    times = [sale.occurred_at_us for sale in sales]
    undone = [event for event in events if event.type == EventType.ORDER_CANCELLED and event.sale_position is not None]
    arrived_cancelled = [event for event in events if event.type in SALES and event.already_cancelled]
    return {
        "orders": len(sales),
        "total_spent": _money(total, rules),
        "average_order_value": _money(floor(Fraction(total, len(sales)) + Fraction(1, 2)) if sales else 0, rules),
        "first_purchase_at": _time(min(times)) if times else None,
        "last_purchase_at": _time(max(times)) if times else None,
        "cancelled_orders": len(undone) + len(arrived_cancelled),
        "by_channel": {
            "order": len([sale for sale in sales if sale.type == EventType.ORDER_COMPLETED]),
            "pos": len([sale for sale in sales if sale.type == EventType.POS_COMPLETED]),
        },
    }


def _loyalty(events: Sequence[Event], rules: Rules) -> State:
    """[L1-L7]. The ledger is (kind, position of the sale, points)."""
    ledger: list[tuple[str, int | None, int]] = []
    for event in events:
        if _is_sale(event):
            ledger.append(("earning", event.position, _points(event, _lifetime(ledger), rules)))
        elif event.type == EventType.ORDER_CANCELLED:
            undone = ("earning", event.sale_position)
            earned = sum(points for kind, position, points in ledger if (kind, position) == undone)
            ledger.append(("reversal", event.sale_position, -earned))
        elif event.type == EventType.LOYALTY_REDEEMED and 0 < event.amount_minor <= _balance(ledger):
            ledger.append(("redemption", None, -event.amount_minor))
    return {
        "points_balance": max(0, _balance(ledger)),
        "points_debt": max(0, -_balance(ledger)),
        "lifetime_points": _lifetime(ledger),
        "tier": [tier.name for tier in rules.tiers if tier.threshold <= _lifetime(ledger)][-1],
    }


def _balance(ledger: Sequence[tuple[str, int | None, int]]) -> int:
    return sum(points for _, _, points in ledger)


def _lifetime(ledger: Sequence[tuple[str, int | None, int]]) -> int:
    return sum(points for kind, _, points in ledger if kind != "redemption")


def _points(sale: Event, lifetime_before: int, rules: Rules) -> int:
    tier_before = [tier for tier in rules.tiers if tier.threshold <= lifetime_before][-1]
    units = Fraction(sale.amount_minor, 10**rules.currency_decimals)
    return floor(units * Fraction(rules.points_per_unit) * Fraction(tier_before.multiplier))


def _segment(sales: Sequence[Event], rules: Rules, today: date) -> State | None:
    """[R1, R3, R4, R5] with the fixed cuts."""
    if not sales:
        return None
    last = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=max(sale.occurred_at_us for sale in sales))
    days = max(0, (today - last.astimezone(rules.zone).date()).days)
    orders = len(sales)
    total = Fraction(sum(sale.amount_minor for sale in sales), 10**rules.currency_decimals)
    recency = 5 if days <= 30 else 4 if days <= 60 else 3 if days <= 90 else 2 if days <= 180 else 1
    frequency = 1 if orders == 1 else 2 if orders == 2 else 3 if orders <= 4 else 4 if orders <= 9 else 5
    monetary = 1 if total < 100 else 2 if total < 500 else 3 if total < 1000 else 4 if total < 5000 else 5
    code = _code(recency, frequency, monetary)
    return {"code": code, "recency": recency, "frequency": frequency, "monetary": monetary}


def _code(recency: int, frequency: int, monetary: int) -> str:
    if recency >= 4 and frequency >= 4 and monetary >= 4:
        return "champions"
    if recency >= 3 and (frequency >= 4 or (frequency == 3 and monetary >= 3)):
        return "loyal"
    if recency >= 4 and frequency == 1:
        return "new"
    if recency >= 3:
        return "potential_loyalist"
    if recency == 2 and (frequency >= 3 or monetary >= 3):
        return "at_risk"
    if recency == 1 and (frequency >= 4 or monetary >= 4):
        return "at_risk"
    return "lost"


@dataclass
class _Usage:
    """Credit that was used for (channel, reference)."""

    channel: Channel
    reference: str
    amount_minor: int
    cancelled: bool = False


@dataclass
class _Account:
    limit_minor: int
    suspended: bool = False
    automatically: bool = False


@dataclass
class _Credit:
    """What the events so far made of one customer's credit; amounts in minor units."""

    account: _Account | None = None
    usages: list[_Usage] = field(default_factory=list)
    payments_minor: list[int] = field(default_factory=list)

    def owed_minor(self) -> int:
        """Usages not cancelled minus payments: negative when the customer has money here [C1]."""
        return sum(usage.amount_minor for usage in self.usages if not usage.cancelled) - sum(self.payments_minor)

    def use(self, event: Event, channel: Channel) -> None:
        """One usage per (channel, order) [C4]."""
        if (channel, event.reference) not in [(usage.channel, usage.reference) for usage in self.usages]:
            self.usages.append(_Usage(channel, event.reference, event.amount_minor))


def _credit(events: Sequence[Event], rules: Rules) -> State | None:
    """[C1-C5, C7]. Null without account, payment and active usage: what was cancelled never was, in any order [A4]."""
    credit = _Credit()
    for event in events:
        _credit_after(credit, event, events)
    if credit.account is None:
        active = [usage for usage in credit.usages if not usage.cancelled]
        if not active and not credit.payments_minor:
            return None
        used, suspense = sum(usage.amount_minor for usage in active), sum(credit.payments_minor)
        figures = {"used": used, "unapplied": 0, "suspense": suspense}
        absent = {"status": None, "limit": None, "available": None}
        return {**absent, **{name: _money(minor, rules) for name, minor in figures.items()}}
    used, limit = max(0, credit.owed_minor()), credit.account.limit_minor
    unapplied = max(0, -credit.owed_minor())
    figures = {"limit": limit, "used": used, "available": limit - used, "unapplied": unapplied, "suspense": 0}
    status = "suspended" if credit.account.suspended else "active"
    return {"status": status, **{name: _money(minor, rules) for name, minor in figures.items()}}


def _credit_after(credit: _Credit, event: Event, events: Sequence[Event]) -> None:
    match event.type:
        case EventType.ORDER_COMPLETED | EventType.POS_COMPLETED:
            if event.on_credit and not event.already_cancelled:
                credit.use(event, SALES[event.type])
        case EventType.ORDER_CANCELLED:
            _cancel_usages(credit, event, events)
        case EventType.PAYMENT_RECEIVED:
            credit.payments_minor.append(event.amount_minor)
        case EventType.CREDIT_OPENED:
            if credit.account is None:
                credit.account = _Account(event.amount_minor)
        case EventType.CREDIT_CHARGED:
            known = _sold_on_credit(credit, event, events)
            if credit.account is not None and not known and _may_charge(credit, credit.account, event, events):
                credit.use(event, Channel.ORDER)
        case EventType.CREDIT_LIMIT_CHANGED:
            if credit.account is not None:
                credit.account.limit_minor = event.amount_minor
        case EventType.CREDIT_SUSPENDED | EventType.CREDIT_LIFTED:
            if credit.account is not None:
                _suspend_or_lift(credit, credit.account, event)


def _sold_on_credit(credit: _Credit, charge: Event, events: Sequence[Event]) -> bool:
    """Whether the order is one with a sale that has a usage, under whatever name [A5, C4]."""
    keys = [(SALES[sale.type], sale.reference) for sale in events if sale.position == charge.sale_position]
    return any((usage.channel, usage.reference) in keys for usage in credit.usages)


def _cancel_usages(credit: _Credit, event: Event, events: Sequence[Event]) -> None:
    """Those of the sale that is cancelled and of the order that is named, which may have been charged [C5]."""
    keys = [(SALES[sale.type], sale.reference) for sale in events if sale.position == event.sale_position]
    keys.append((Channel.ORDER, event.reference))
    for usage in credit.usages:
        if (usage.channel, usage.reference) in keys:
            usage.cancelled = True


def _may_charge(credit: _Credit, account: _Account, charge: Event, events: Sequence[Event]) -> bool:
    """Not over the limit, not when suspended [C4], not for an order that admission or the stream says is cancelled."""
    over_the_limit = charge.amount_minor > account.limit_minor - credit.owed_minor()
    earlier = [event for event in events if event.position < charge.position and event.reference == charge.reference]
    cancelled = [event for event in earlier if event.type == EventType.ORDER_CANCELLED]
    arrived_cancelled = [e for e in earlier if e.type == EventType.ORDER_COMPLETED and e.already_cancelled]
    order_is_cancelled = charge.already_cancelled or cancelled or arrived_cancelled
    return not (over_the_limit or account.suspended or order_is_cancelled)


def _suspend_or_lift(credit: _Credit, account: _Account, event: Event) -> None:
    """By hand goes before by night: the night never lifts what a person suspended [C7].

    The night suspends who is late and lifts who is not. This model keeps no due dates: its nights are before all of
    them, so that nobody is late, or after all of them, so that everybody is who owes anything.
    """
    detail = json.loads(event.detail or "{}")
    automatic = bool(detail.get("automatic", False))
    if automatic:
        as_of = date.fromisoformat(detail["as_of"])
        if BEFORE_ALL < as_of < AFTER_ALL:
            raise ValueError(f"this model cannot tell who is late on {as_of}")
        late = as_of >= AFTER_ALL and credit.owed_minor() > 0
        if late != (event.type == EventType.CREDIT_SUSPENDED):
            return
    if event.type == EventType.CREDIT_SUSPENDED:
        account.automatically = automatic and (account.automatically or not account.suspended)
        account.suspended = True
    elif account.automatically or not automatic:
        account.suspended = False


def _money(minor: int, rules: Rules) -> str:
    return f"{Decimal(minor).scaleb(-rules.currency_decimals):.{rules.currency_decimals}f}"


def _time(us: int) -> str:
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=us)
    fraction = f".{moment.microsecond:06d}" if moment.microsecond else ""
    return f"{moment:%Y-%m-%dT%H:%M:%S}{fraction}Z"
