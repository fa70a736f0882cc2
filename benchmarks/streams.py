"""The streams every subject gets: sound events only, so that all subjects have the same effects to make.

A customer buys either online or at the till, so that all events that move its points stand in one queue and in one
order. Cancellations name an order some hundred lines back. The same shape, size and seed give the same lines.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any, Final, NamedTuple

from customer_actors.domain.events import EventType
from customer_actors.domain.rules import DEFAULT_TIERS

CREDIT_SHARE: Final = 0.1
CANCELLED_SHARE: Final = 0.05
PAYMENT_SHARE: Final = 0.08
CANCELLED_AFTER: Final = 300
"""Lines between an order and its cancellation, at least."""
START: Final = datetime(2025, 1, 1, tzinfo=UTC)

Choice = Callable[[Random], int]


def uniform(customers: int) -> Choice:
    """Everybody buys equally often."""
    return lambda rng: rng.randrange(customers)


def heavy(customers: int) -> Choice:
    """A few buy most, as in real shops: a tenth of the customers makes 46 % of the events, a hundredth 22 %."""
    return lambda rng: int(customers * rng.random() ** 3)


def hot(customers: int) -> Choice:
    """Every second event is of one customer, an online one."""
    return lambda rng: 0 if rng.random() < 0.5 else rng.randrange(customers)


def single(_: int) -> Choice:
    """One customer only."""
    return lambda rng: 0


SHAPES: Final[dict[str, Callable[[int], Choice]]] = {"uniform": uniform, "heavy": heavy, "hot": hot, "single": single}


def lines(shape: str, events: int, seed: int = 1, spread: int = 1) -> list[str]:
    """`events` JSON lines in publishing order, with one customer per ten events.

    References differ from seed to seed. `spread` is the distance between two customers' numbers.
    """
    choose = SHAPES[shape](max(10, events // 10))
    return [json.dumps(event) for event in _events(lambda rng: choose(rng) * spread, events, seed)]


def _events(choose: Choice, events: int, seed: int) -> Iterator[dict[str, Any]]:
    rng = Random(seed)
    orders: list[str] = []
    cancelled = 0
    for number in range(events):
        customer, draw = choose(rng), rng.random()
        if draw < CANCELLED_SHARE and cancelled < len(orders) and _far(orders[cancelled], number):
            data: dict[str, Any] = {"order_id": orders[cancelled]}
            yield _event(EventType.ORDER_CANCELLED, number, data)
            cancelled += rng.randrange(1, 12)
            continue
        data = {"customer_id": f"C{customer:07d}"}
        amount = round(rng.lognormvariate(3.5, 0.8), 2)
        if draw < CANCELLED_SHARE + PAYMENT_SHARE:
            data |= {"amount": amount, "payment_reference": f"P-{seed}-{number:09d}"}
            yield _event(EventType.PAYMENT_RECEIVED, number, data)
            continue
        if rng.random() < CREDIT_SHARE:
            data["payment_method"] = "credit"
        if customer % 2:
            data |= {"transaction_id": f"T-{seed}-{number:09d}", "totals": {"total_amount": amount}}
            yield _event(EventType.POS_COMPLETED, number, data)
        else:
            data |= {"order_id": f"O-{seed}-{number:09d}", "total_amount": amount}
            orders.append(data["order_id"])
            yield _event(EventType.ORDER_COMPLETED, number, data)


def _far(order_id: str, number: int) -> bool:
    return number - int(order_id.rpartition("-")[2]) >= CANCELLED_AFTER


def _event(type_: EventType, number: int, data: dict[str, Any]) -> dict[str, Any]:
    stamp = (START + timedelta(seconds=number)).isoformat()
    return {"event": type_.value, "timestamp": stamp, "organization_id": "default", "data": data}


class Truth(NamedTuple):
    """What the effects must add up to, amounts in minor units. Nothing but `points` depends on the order."""

    sales: int
    cancelled: int
    spent_minor: int
    """Of sales that are not cancelled."""
    usages: int
    payments: int
    paid_minor: int
    segments: int
    """Customers with a sale that is not cancelled."""
    points: dict[str, int]
    """Lifetime points by customer, when its events are applied in order."""

    @property
    def sums(self) -> tuple[int, ...]:
        """What every subject is compared by."""
        return self[:-1]


def truth(stream: Sequence[str]) -> Truth:
    """Fold the lines in the plainest way there is."""
    sold: dict[str, tuple[str, int, int]] = {}
    points: dict[str, int] = {}
    active: Counter[str] = Counter()
    spent = cancelled = usages = payments = paid = 0
    for line in stream:
        event = json.loads(line)
        data = event["data"]
        match event["event"]:
            case EventType.PAYMENT_RECEIVED:
                payments += 1
                paid += round(data["amount"] * 100)
            case EventType.ORDER_CANCELLED:
                customer, amount, earned = sold[data["order_id"]]
                cancelled += 1
                spent -= amount
                active[customer] -= 1
                points[customer] -= earned
            case _:
                customer = data["customer_id"]
                amount = round((data.get("total_amount") or data["totals"]["total_amount"]) * 100)
                before = points.get(customer, 0)
                multiplier = next(t.multiplier for t in reversed(DEFAULT_TIERS) if t.threshold <= before)
                earned = int(amount * multiplier / 100)
                points[customer] = before + earned
                sold[data.get("order_id") or data["transaction_id"]] = customer, amount, earned
                spent += amount
                active[customer] += 1
                usages += "payment_method" in data
    segments = sum(sales > 0 for sales in active.values())
    return Truth(len(sold), cancelled, spent, usages, payments, paid, segments, points)
