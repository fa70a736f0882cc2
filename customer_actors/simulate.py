"""A seeded, realistic shop as JSON lines: the same plan gives the same bytes.

`_Shop` decides what happens and in which order it is reported, `_Publisher` writes it with the habits of real
publishers. The envelope's timestamp is the moment of sending and only moves forward; a late event shows in its data's
own time. Every sound line carries one of the two, so no result depends on the hour a stream is received [A7].
"""

import heapq
import json
from collections import deque
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import accumulate, count, cycle, pairwise
from math import nextafter
from random import Random
from typing import Any, Final, NamedTuple

from customer_actors.domain.envelope import DEFAULT_ORGANIZATION
from customer_actors.domain.events import EPOCH, Channel, EventType, from_us, to_us
from customer_actors.errors import UsageError


class ShopPlan(NamedTuple):
    """What to simulate; `events` is the exact number of lines, shares are fractions of them unless said otherwise."""

    customers: int
    """Size of the customer base over all organizations; lower numbers buy more, and not everyone has bought yet."""
    events: int
    seed: int
    duplicates: float = 0.03
    """Exact re-sends of an earlier line."""
    malformed: float = 0.005
    organizations: int = 1
    """Each is a shop of its own, with the SAME ids as the others [A9]."""
    credit_share: float = 0.1
    """Share of the sales to named customers that is sold on credit."""
    end_at: datetime = datetime(2025, 6, 30, 18, tzinfo=UTC)
    """Aware; the window's end. Fixed, so that a seed gives the same bytes on any day."""
    days: int = 365
    conflict: float = 0.001
    """Sales re-sent under the same id with another amount [A3]."""


HOUR_US: Final = 3_600_000_000
DAY_US: Final = 24 * HOUR_US
MONTH_WEIGHTS: Final = (80, 78, 90, 95, 100, 98, 85, 82, 100, 105, 130, 160)
WEEKDAY_WEIGHTS: Final = (90, 85, 90, 95, 120, 140, 80)
POS_SHARE: Final = 0.45
ANONYMOUS_SHARE: Final = 0.2
TWIN_SHARE: Final = 0.06
LATE_SHARE: Final = 0.02
CANCELLED_SHARE: Final = 0.05
CANCELLED_FIRST_SHARE: Final = 0.005
PREPAID_SHARE: Final = 0.05
MINIMAL_SHARE: Final = 0.1
SPARSE_SHARE: Final = 0.2
RECENT: Final = 4096

Json = dict[str, Any]
NOBODY: Final[tuple[Json, ...]] = ({}, {"customer_id": None}, {"customer_id": ""})
SPOILED_DATA: Final[dict[str, Json]] = {
    "not a number": {"total_amount": float("nan")},
    "negative amount": {"total_amount": -19.9},
    "naive timestamp": {"completed_at": "2025-01-31T10:00:00"},
    "deep nesting": {"attributes": json.loads("[" * 30 + "]" * 30)},
    "long id": {"order_id": "O-" + "0" * 64},
}
MALFORMATIONS: Final = (*SPOILED_DATA, "no customer", "unknown event", "truncated")

_NAIVE_EPOCH = EPOCH.replace(tzinfo=None)
_spaced = json.JSONEncoder(check_circular=False).encode
_compact = json.JSONEncoder(check_circular=False, separators=(",", ":")).encode


def simulate(plan: ShopPlan) -> Iterator[str]:
    """The plan's JSON lines, without newline, exactly as publishers would send them; memory does not grow with them.

    Raises UsageError at once, before the first line, when the plan is impossible.
    """
    for name in ("customers", "events", "organizations", "days"):
        if getattr(plan, name) < 1:
            raise UsageError(f"{name} must be at least 1")
    for name in ("duplicates", "malformed", "conflict", "credit_share"):
        if not 0 <= getattr(plan, name) <= 1:
            raise UsageError(f"{name} must be between 0 and 1")
    if plan.customers < plan.organizations:
        raise UsageError("customers must be at least as many as organizations")
    if plan.end_at.tzinfo is None or plan.days > (plan.end_at - EPOCH).days:
        raise UsageError("end_at must carry a time zone and be at least that many days after 1970-01-01")
    return _lines(plan)


def _lines(plan: ShopPlan) -> Iterator[str]:
    rng = Random(plan.seed)
    agenda = _Agenda(plan.events, rng)
    shops = [_Shop(plan, index, rng, agenda) for index in range(plan.organizations)]
    recent: deque[str] = deque(maxlen=RECENT)
    malformations = cycle(MALFORMATIONS)  # in turn, so that a short stream shows them all
    for sent_us in _moments(plan, rng):
        shop = shops[int(rng.random() * len(shops))]
        draw = rng.random() - plan.malformed
        if draw < 0:
            line = shop.malformed(next(malformations), sent_us)
        elif draw < plan.duplicates and recent:
            line = recent[int(rng.random() * len(recent))]
        elif draw < plan.duplicates + plan.conflict and shop.sold:
            line = shop.conflict(sent_us)
        else:
            line = (agenda.due() or shop.next)(sent_us)
            recent.append(line)
        agenda.line += 1
        yield line


def _moments(plan: ShopPlan, rng: Random) -> Iterator[int]:
    """One sending time per line, in microseconds, ascending, denser on weekends and before Christmas."""
    start_us = to_us(plan.end_at) - plan.days * DAY_US
    days = [from_us(start_us + day * DAY_US) for day in range(plan.days)]
    until = list(accumulate(MONTH_WEIGHTS[day.month - 1] * WEEKDAY_WEIGHTS[day.weekday()] for day in days))
    bounds = (0, *(plan.events * weight // until[-1] for weight in until))
    for day, (first, last) in enumerate(pairwise(bounds)):
        for line in range(last - first):
            yield start_us + day * DAY_US + int((line + rng.random()) * DAY_US / (last - first))


class _Agenda:
    """Lines that follow from earlier ones, by the line number they are due at; what is due after the end is dropped."""

    def __init__(self, events: int, rng: Random) -> None:
        self.line = 0
        self.soon = min(events // 50 + 1, 500)  # reaches in lines, capped so that memory stays bounded
        self.days = min(events // 20 + 1, 10_000)
        self.weeks = min(events // 6 + 1, 100_000)
        self._rng = rng
        self._sequence = count()
        self._heap: list[tuple[int, int, Callable[[int], str]]] = []

    def within(self, lines: int, follow_up: Callable[[int], str]) -> None:
        """Has `follow_up` called with its sending time, 1 to `lines` lines from now."""
        due = self.line + 1 + int(self._rng.random() * lines)
        heapq.heappush(self._heap, (due, next(self._sequence), follow_up))

    def due(self) -> Callable[[int], str] | None:
        return heapq.heappop(self._heap)[2] if self._heap and self._heap[0][0] <= self.line else None


class _Sale(NamedTuple):
    channel: Channel
    reference: str
    customer: str | None
    cents: int
    on_credit: bool = False
    transaction: str | None = None  # the till's, which this order says it is [A5]


class _Shop:
    """One organization: what its customers do, and in which order the publishers report it."""

    def __init__(self, plan: ShopPlan, index: int, rng: Random, agenda: _Agenda) -> None:
        self.sold: deque[_Sale] = deque(maxlen=RECENT)
        self._credit_share = plan.credit_share
        self._window_us = plan.days * DAY_US
        self._start_us = to_us(plan.end_at) - self._window_us
        self._random = rng.random
        self._lognormal = rng.lognormvariate
        self._agenda = agenda
        self._publisher = _Publisher(f"org-{index + 1}" if index else DEFAULT_ORGANIZATION, rng)
        self._numbers = count(1)
        # Zipf-like weights (rank + shift) ** -1.5, drawn by the inverse of their sum: no table of a million customers.
        self._customers = plan.customers // plan.organizations + (index < plan.customers % plan.organizations)
        self._shift = self._customers / 30
        self._head = self._shift**-0.5
        self._body = self._head - (self._customers + self._shift) ** -0.5

    def next(self, sent_us: int) -> str:
        """The line of something new: a till sale, a web order, or now and then a deposit."""
        draw = self._random()
        if draw < POS_SHARE:
            return self._till_sale(sent_us)
        if draw < 0.995:
            return self._web_order(sent_us)
        return self._publisher.payment(self._id("P"), self._customer(sent_us), self._cents() + 1, None, sent_us)

    def conflict(self, sent_us: int) -> str:
        """A sale already reported, with another amount [A3]."""
        sale = self.sold[int(self._random() * len(self.sold))]
        return self._publisher.sale(sale._replace(cents=sale.cents + 100), sent_us, sent_us)

    def malformed(self, kind: str, sent_us: int) -> str:
        """A line the decoder must refuse, under an order id nobody else uses."""
        return self._publisher.malformed(kind, self._id("O"), self._customer(sent_us), sent_us)

    def _id(self, letter: str) -> str:
        return f"{letter}-{next(self._numbers):08d}"

    def _customer(self, sent_us: int) -> str:
        """A heavy-tailed draw among those active now: people come and go, so recency spreads over all classes [R1]."""
        progress = (sent_us - self._start_us) / self._window_us
        for _ in range(8):
            root = self._head - self._random() * self._body
            number = int(1 / (root * root) - self._shift) + 1
            # Multiples of irrational numbers spread evenly: everyone's time with the shop, without a table.
            joined = number * 0.6180339887 % 1 * 1.15 - 0.2
            if joined <= progress <= joined + 0.2 + 1.2 * (number * 0.7548776662 % 1) ** 2:
                break
        return f"C{min(number, self._customers):06d}"

    def _cents(self) -> int:
        draw = self._random()
        cents = int(self._lognormal(8.1, 0.9)) + 1 if draw < 0.998 else 0  # now and then a gift
        return cents // 100 * 100 + 99 if draw < 0.6 else cents

    def _report(self, sale: _Sale, occurred_us: int | None, sent_us: int) -> str:
        """The sale's line; `occurred_us` None: it happens as it is sent."""
        if sale.customer is not None:
            self.sold.append(sale)
        return self._publisher.sale(sale, sent_us if occurred_us is None else occurred_us, sent_us)

    def _web_order(self, sent_us: int) -> str:
        on_credit = self._random() < self._credit_share
        sale = _Sale(Channel.ORDER, self._id("O"), self._customer(sent_us), self._cents(), on_credit)
        draw = self._random() - CANCELLED_FIRST_SHARE
        if draw < 0:  # [A4]
            self._agenda.within(self._agenda.soon, partial(self._report, sale, sent_us))
            return self._publisher.cancellation(sale, sent_us)
        if draw < CANCELLED_SHARE:
            self._agenda.within(self._agenda.days, partial(self._publisher.cancellation, sale))
        return self._sell(sale, sent_us)

    def _till_sale(self, sent_us: int) -> str:
        customer = self._customer(sent_us) if self._random() >= ANONYMOUS_SHARE else None
        on_credit = customer is not None and self._random() < self._credit_share
        till = _Sale(Channel.POS, self._id("T"), customer, self._cents(), on_credit)
        if self._random() >= TWIN_SHARE:
            return self._sell(till, sent_us)
        # One sale reported twice, by the till (named or not) and as an order, in either order [A5].
        buyer = customer or self._customer(sent_us)
        order = _Sale(Channel.ORDER, self._id("O"), buyer, till.cents, on_credit, till.reference)
        first, second = (till, order) if self._random() < 0.7 else (order, till)
        self._agenda.within(self._agenda.soon, partial(self._report, second, sent_us))
        if self._random() < CANCELLED_SHARE:
            self._agenda.within(self._agenda.days, partial(self._publisher.cancellation, order))
        return self._report(first, sent_us, sent_us)

    def _sell(self, sale: _Sale, sent_us: int) -> str:
        """The sale's line, with the payments it will lead to; prepaid, the payment is the line and the sale follows."""
        if sale.on_credit and sale.customer is not None and sale.cents > 1:
            named = sale.reference if sale.channel is Channel.ORDER and self._random() < 0.5 else None
            if self._random() < PREPAID_SHARE:
                self._agenda.within(self._agenda.soon, partial(self._report, sale, None))
                return self._publisher.payment(self._id("P"), sale.customer, sale.cents, named, sent_us)
            full, half = sale.cents, sale.cents // 2
            habits = ((full,), (full,), (full,), (half, full - half), (half, full - half), (half,), (full + 500,), ())
            for cents in habits[int(self._random() * len(habits))]:
                pay = partial(self._publisher.payment, self._id("P"), sale.customer, cents, named)
                self._agenda.within(self._agenda.weeks, pay)
        late_us = int(self._random() * 10 * DAY_US) if self._random() < LATE_SHARE else 0
        return self._report(sale, max(self._start_us, sent_us - late_us), sent_us)


class _Publisher:
    """Writes envelopes as the order, till and payment services of one organization do, each with its own habits."""

    def __init__(self, organization_id: str, rng: Random) -> None:
        self._organization_id = organization_id
        self._random = rng.random
        self._getrandbits = rng.getrandbits

    def sale(self, sale: _Sale, occurred_us: int, sent_us: int) -> str:
        random = self._random
        amount = self._amount(sale.cents)
        stamp = _stamp(sent_us, sale.channel)
        timed = occurred_us != sent_us or random() < 0.8
        if sale.channel is Channel.ORDER:
            data: Json = {"order_id": sale.reference, "customer_id": sale.customer, "total_amount": amount}
            if sale.transaction is not None:
                data["pos_transaction_id"] = sale.transaction
        else:
            data = {"transaction_id": sale.reference, "totals": {"total_amount": amount}}
            data |= {"customer_id": sale.customer} if sale.customer else NOBODY[int(random() * len(NOBODY))]
        if timed:
            data["completed_at"] = stamp if occurred_us == sent_us else _stamp(occurred_us, sale.channel)
        if random() < 0.5:
            data["currency"] = "EUR"
        if sale.on_credit or random() < 0.3:
            data["payment_method"] = "credit" if sale.on_credit else "card"
        if sale.channel is Channel.ORDER:
            return _spaced(self._envelope(EventType.ORDER_COMPLETED, data, stamp, timed))
        return _compact(self._envelope(EventType.POS_COMPLETED, data, stamp, timed))

    def cancellation(self, sale: _Sale, sent_us: int) -> str:
        stamp = _stamp(sent_us)
        data: Json = {"order_id": sale.reference, "cancelled_at": stamp}
        if self._random() < 0.1:
            data["customer_id"] = sale.customer
        return _spaced(self._envelope(EventType.ORDER_CANCELLED, data, stamp, True))

    def payment(self, reference: str, customer: str, cents: int, order_id: str | None, sent_us: int) -> str:
        draw, stamp = self._random(), _stamp(sent_us)
        data: Json = {"customer_id": customer, "amount": self._amount(cents), "payment_reference": reference}
        if draw < 0.03:  # the event_id has to be the key [A2]
            data["payment_reference"] = ""
        elif draw < 0.7:
            data["paid_at"] = stamp
        if order_id is not None:
            data["order_id"] = order_id
        return _spaced(self._envelope(EventType.PAYMENT_RECEIVED, data, stamp, "paid_at" in data))

    def malformed(self, kind: str, reference: str, customer: str, sent_us: int) -> str:
        """One order, sound but for what `kind` (of MALFORMATIONS) says."""
        data = {"order_id": reference, "total_amount": 19.9, **SPOILED_DATA.get(kind, {})}
        if kind != "no customer":
            data["customer_id"] = customer
        type_ = "order.archived" if kind == "unknown event" else EventType.ORDER_COMPLETED
        line = _spaced(self._envelope(type_, data, _stamp(sent_us), False))
        return line[:-20] if kind == "truncated" else line

    def _envelope(self, type_: str, data: Json, stamp: str, minimal_allowed: bool) -> Json:
        """Full, sparse, or, where the event needs neither the envelope's time nor its event_id, minimal."""
        draw = self._random()
        body: Json = {"event": type_}
        if draw > MINIMAL_SHARE or not minimal_allowed:
            body = {"event_id": f"{self._getrandbits(128):032x}", "event": type_, "timestamp": stamp}
        if draw > MINIMAL_SHARE + SPARSE_SHARE:
            body["version"] = "1.0"
            body["organization_id"] = self._organization_id
            body["correlation_id"] = f"{self._getrandbits(64):016x}" if draw < 0.8 else None
            body["service"] = type_.partition(".")[0] + "-service"
        elif self._organization_id != DEFAULT_ORGANIZATION:
            body["organization_id"] = self._organization_id
        body["data"] = data
        if self._random() < 0.08:
            body["trace"] = {"sampled": True, "parent": None}
            data["note"] = "Gift for Zoë"
        return body

    def _amount(self, cents: int) -> float | str:
        """Mostly a JSON number; some publishers send text, some the noise of binary sums [A6]."""
        draw = self._random()
        if draw < 0.06:
            return f"{cents / 100:.2f}"
        return nextafter(cents / 100, 1e9) if draw < 0.1 and cents else cents / 100


def _stamp(us: int, channel: Channel = Channel.ORDER) -> str:
    """RFC 3339 in milliseconds; tills write their local offset, everyone else Z."""
    shift_us, zone = (2 * HOUR_US, "+02:00") if channel is Channel.POS else (0, "Z")
    # Not from_us: without a zone and keywords it takes half the time, and every line needs it.
    return (_NAIVE_EPOCH + timedelta(0, 0, us + shift_us)).isoformat("T", "milliseconds") + zone
