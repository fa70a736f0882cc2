"""The simulated shop: deterministic, complete in its kinds, and what publishers would really send."""

import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import islice, pairwise
from typing import Any

import pytest

from customer_actors.domain.envelope import DecodePolicy, Received, decode
from customer_actors.domain.events import Message, Rejected, to_us
from customer_actors.errors import UsageError
from customer_actors.simulate import MALFORMATIONS, ShopPlan, simulate

PLAN = ShopPlan(customers=800, events=5_000, seed=7)
LINES = tuple(simulate(PLAN))
END_US = to_us(PLAN.end_at)

OPTIONAL_TEXTS = ("event_id", "version", "timestamp", "organization_id", "correlation_id", "service")
IDS = {
    "order.completed": ("order_id", "customer_id"),
    "order.cancelled": ("order_id",),
    "pos.transaction.completed": ("transaction_id",),
    "payment.received": ("customer_id",),
}
KINDS = {
    *(f"malformed: {kind}" for kind in MALFORMATIONS),
    "duplicate",
    "conflict",
    "web order",
    "cancelled before completion",
    "cancelled after completion",
    "till sale to a customer",
    "till sale to nobody: absent",
    "till sale to nobody: null",
    "till sale to nobody: empty",
    "order after its till sale",
    "order after its anonymous till sale",
    "order before its till sale",
    "late",
    "web order on credit",
    "till sale on credit",
    "payment naming no order",
    "payment before its sale",
    "payment in full",
    "payment in part",
    "payment of too much",
    "payment without reference",
    "amount as text",
    "amount with float noise",
    "amount of zero",
    "minimal envelope",
    "full envelope",
    "unknown extra field",
    "time with an offset",
}


def malformation(line: str) -> str | None:
    """What is wrong with a line, told from its text alone; None when it is sound."""
    if "NaN" in line:
        return "not a number"
    try:
        body = json.loads(line)
    except ValueError:
        return "truncated"
    data = body["data"]
    if body["event"] not in IDS:
        return "unknown event"
    if body["event"] == "order.completed" and not data.get("customer_id"):
        return "no customer"
    if "[" * 25 in line:
        return "deep nesting"
    if len(data.get("order_id") or "") > 64:
        return "long id"
    if "completed_at" in data and datetime.fromisoformat(data["completed_at"]).tzinfo is None:
        return "naive timestamp"
    return "negative amount" if amount_of(data) < 0 else None


def amount_of(data: dict[str, Any]) -> Decimal:
    raw = data.get("totals", data).get("total_amount", data.get("amount", 0))
    return Decimal(str(raw)).quantize(Decimal("0.01"))


class Census:
    """Counts the kinds of lines in a stream, knowing nothing of how it was made."""

    def __init__(self, lines: tuple[str, ...]) -> None:
        self.kinds: Counter[str] = Counter()
        self._seen: set[str] = set()
        self._sales: dict[str, Decimal] = {}
        self._cancelled: set[str] = set()
        self._tills: dict[str, str | None] = {}
        self._awaited_tills: set[str] = set()
        self._paid: Counter[str] = Counter()
        for line in lines:
            wrong = malformation(line)
            if wrong is not None:
                self.kinds[f"malformed: {wrong}"] += 1
            elif line in self._seen:
                self.kinds["duplicate"] += 1
            else:
                self._seen.add(line)
                self._count(json.loads(line))

    def _count(self, body: dict[str, Any]) -> None:
        data = body["data"]
        self._form(body, data)
        match body["event"]:
            case "order.completed":
                self._sale(data["order_id"], data, self._order)
            case "pos.transaction.completed":
                self._sale(data["transaction_id"], data, self._till_sale)
            case "order.cancelled" if data["order_id"] in self._sales:
                self.kinds["cancelled after completion"] += 1
            case "order.cancelled":
                self._cancelled.add(data["order_id"])
            case "payment.received":
                self._payment(data)

    def _form(self, body: dict[str, Any], data: dict[str, Any]) -> None:
        raw = data.get("totals", data).get("total_amount", data.get("amount"))
        occurred = data.get("completed_at")
        self.kinds["amount as text"] += isinstance(raw, str)
        self.kinds["amount with float noise"] += isinstance(raw, float) and len(repr(raw).partition(".")[2]) > 2
        self.kinds["amount of zero"] += raw == 0
        self.kinds["minimal envelope"] += body.keys() == {"event", "data"}
        self.kinds["full envelope"] += all(body.get(name) for name in OPTIONAL_TEXTS)
        self.kinds["unknown extra field"] += "trace" in body and "note" in data
        self.kinds["time with an offset"] += occurred is not None and not occurred.endswith("Z")
        if occurred and body.get("timestamp") and data.get("order_id") not in self._cancelled:
            age = datetime.fromisoformat(body["timestamp"]) - datetime.fromisoformat(occurred)
            self.kinds["late"] += age > timedelta(hours=1)

    def _sale(self, reference: str, data: dict[str, Any], count: Callable[[dict[str, Any]], None]) -> None:
        amount = amount_of(data)
        if self._sales.setdefault(reference, amount) != amount:
            self.kinds["conflict"] += 1
        else:
            count(data)

    def _order(self, data: dict[str, Any]) -> None:
        self.kinds["web order"] += 1
        self.kinds["web order on credit"] += data.get("payment_method") == "credit"
        self.kinds["cancelled before completion"] += data["order_id"] in self._cancelled
        if self._paid[data["order_id"]]:
            self.kinds["payment before its sale"] += 1
        till = data.get("pos_transaction_id")
        if till in self._tills:
            self.kinds[f"order after its {'' if self._tills[till] else 'anonymous '}till sale"] += 1
        elif till is not None:
            self._awaited_tills.add(till)

    def _till_sale(self, data: dict[str, Any]) -> None:
        customer = data.get("customer_id", "absent")
        anonymous = {"absent": "absent", None: "null", "": "empty"}.get(customer)
        self.kinds[f"till sale to nobody: {anonymous}" if anonymous else "till sale to a customer"] += 1
        self.kinds["till sale on credit"] += data.get("payment_method") == "credit"
        self.kinds["order before its till sale"] += data["transaction_id"] in self._awaited_tills
        self._tills[data["transaction_id"]] = None if anonymous else customer

    def _payment(self, data: dict[str, Any]) -> None:
        self.kinds["payment without reference"] += not data["payment_reference"]
        order = data.get("order_id")
        if order is None:
            self.kinds["payment naming no order"] += 1
            return
        self._paid[order] += 1
        due, paid = self._sales.get(order), amount_of(data)
        if due is not None:
            size = "in full" if paid == due else "in part" if paid < due else "of too much"
            self.kinds[f"payment {size}"] += 1


def received(line: str, at_us: int = END_US) -> Message | Rejected:
    return decode(Received(line.encode(), None, at_us), DecodePolicy())


def sound(lines: tuple[str, ...]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines if malformation(line) is None]


def test_the_same_plan_gives_the_same_bytes() -> None:
    assert tuple(simulate(PLAN)) == LINES


def test_another_seed_gives_another_stream() -> None:
    other = set(simulate(PLAN._replace(seed=8)))
    assert not other & set(LINES)


@pytest.mark.parametrize("events", [1, 2, 137, 5_000])
@pytest.mark.parametrize("organizations", [1, 3])
@pytest.mark.parametrize("days", [1, 400])
def test_a_stream_has_exactly_the_planned_number_of_lines(events: int, organizations: int, days: int) -> None:
    plan = ShopPlan(customers=3, events=events, seed=1, organizations=organizations, days=days)
    assert sum(1 for _ in simulate(plan)) == events


def test_a_line_holds_no_line_break() -> None:
    assert not [line for line in LINES if "\n" in line or "\r" in line]


def test_every_sound_line_is_an_envelope() -> None:
    for body in sound(LINES):
        data = body["data"]
        assert all(isinstance(body.get(name), str | None) for name in OPTIONAL_TEXTS), body
        assert all(isinstance(data[name], str) and 0 < len(data[name]) <= 64 for name in IDS[body["event"]]), body
        assert body["event"] == "order.cancelled" or isinstance(
            data.get("totals", data).get("total_amount", data.get("amount")), int | float | str
        ), body
        assert body["event"] != "payment.received" or data["payment_reference"] or body["event_id"], body


def test_five_thousand_lines_hold_every_kind() -> None:
    kinds = Census(LINES).kinds
    assert {kind for kind, times in kinds.items() if times} == KINDS


def test_shares_of_lines_are_as_planned() -> None:
    kinds = Census(tuple(simulate(PLAN._replace(events=20_000, duplicates=0.2, malformed=0.1, conflict=0.05)))).kinds
    spoiled = sum(times for kind, times in kinds.items() if kind.startswith("malformed"))
    assert kinds["duplicate"] == pytest.approx(4_000, rel=0.1)
    assert spoiled == pytest.approx(2_000, rel=0.1)
    assert kinds["conflict"] == pytest.approx(1_000, rel=0.15)


def test_about_one_web_order_in_twenty_is_cancelled_and_one_in_two_hundred_before_it_completes() -> None:
    kinds = Census(tuple(simulate(PLAN._replace(events=20_000)))).kinds
    assert kinds["cancelled after completion"] / kinds["web order"] == pytest.approx(0.05, rel=0.25)
    assert kinds["cancelled before completion"] / kinds["web order"] == pytest.approx(0.005, rel=0.5)


def test_a_plan_without_disturbances_has_none() -> None:
    kinds = Census(tuple(simulate(PLAN._replace(duplicates=0, malformed=0, conflict=0, credit_share=0)))).kinds
    assert not {kind for kind in kinds if kind.startswith("malformed")}
    absent = ("duplicate", "conflict", "web order on credit", "till sale on credit")
    assert [kinds[kind] for kind in absent] == [0, 0, 0, 0]


def test_sending_times_move_forward_through_the_window() -> None:
    lines = tuple(simulate(PLAN._replace(duplicates=0)))
    times = [datetime.fromisoformat(body["timestamp"]) for body in sound(lines) if "timestamp" in body]
    assert all(earlier <= later for earlier, later in pairwise(times))
    assert PLAN.end_at - timedelta(days=PLAN.days, seconds=1) <= times[0] <= PLAN.end_at - timedelta(days=PLAN.days - 2)
    assert PLAN.end_at - timedelta(days=1) <= times[-1] <= PLAN.end_at


def test_the_window_ends_when_the_caller_says() -> None:
    end = datetime(2031, 2, 3, 4, tzinfo=UTC)
    last = [body["timestamp"] for body in sound(tuple(simulate(PLAN._replace(end_at=end)))) if "timestamp" in body][-1]
    assert end - timedelta(days=1) <= datetime.fromisoformat(last) <= end


def test_last_purchases_spread_over_all_recency_classes_even_those_of_good_customers() -> None:
    times: dict[str, list[int]] = {}
    for message in map(received, LINES):
        if isinstance(message, Message) and message.customer_id and message.type.endswith(".completed"):
            times.setdefault(message.customer_id, []).append(message.occurred_at_us)
    for at_least in (1, 6):
        days = [(END_US - max(sales)) // 86_400_000_000 for sales in times.values() if len(sales) >= at_least]
        classes = Counter(sum(day <= cut for cut in (30, 60, 90, 180)) + 1 for day in days)  # the fixed cuts of R3
        assert classes.keys() == {1, 2, 3, 4, 5}
        assert min(classes.values()) > len(days) / 25


def test_a_few_customers_buy_a_lot_and_many_once_or_twice() -> None:
    customers = (body["data"].get("customer_id") for body in sound(LINES) if body["event"].endswith(".completed"))
    sales = sorted(Counter(filter(None, customers)).values(), reverse=True)
    assert sum(sales[: len(sales) // 10]) > 0.4 * sum(sales)
    assert sum(count <= 2 for count in sales) > len(sales) / 4


def test_organizations_use_the_same_ids_for_different_things() -> None:
    lines = tuple(simulate(PLAN._replace(organizations=3, malformed=0)))
    orders: dict[str, set[str]] = {}
    for body in sound(lines):
        if body["event"] == "order.completed":
            orders.setdefault(body.get("organization_id", "default"), set()).add(body["data"]["order_id"])
    assert orders.keys() == {"default", "org-2", "org-3"}
    assert orders["default"] & orders["org-2"] & orders["org-3"]


def test_the_decoder_accepts_every_line_of_a_plan_without_malformed_ones() -> None:
    lines = simulate(PLAN._replace(malformed=0, organizations=2))
    assert not [(line, message) for line in lines if isinstance(message := received(line), Rejected)]


def test_the_decoder_refuses_exactly_the_malformed_lines() -> None:
    plan = PLAN._replace(malformed=0.1)
    for line in simulate(plan):
        assert isinstance(received(line), Rejected) == (malformation(line) is not None), line


def test_the_decoder_refuses_every_line_of_a_plan_of_malformed_ones() -> None:
    assert all(isinstance(received(line), Rejected) for line in simulate(PLAN._replace(malformed=1, duplicates=0)))


def test_no_time_depends_on_when_a_line_is_received() -> None:
    a_year_later_us = END_US + 365 * 86_400_000_000
    for line in LINES:
        now, later = received(line), received(line, a_year_later_us)
        if isinstance(now, Message) and isinstance(later, Message):
            assert now.occurred_at_us == later.occurred_at_us, line


def test_a_billion_lines_are_made_as_they_are_read() -> None:
    assert len(list(islice(simulate(ShopPlan(customers=10_000_000, events=10**9, seed=1)), 100))) == 100


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"customers": 0}, "customers"),
        ({"events": 0}, "events"),
        ({"organizations": 0}, "organizations"),
        ({"days": -1}, "days"),
        ({"duplicates": 1.5}, "duplicates"),
        ({"malformed": -0.1}, "malformed"),
        ({"conflict": 2}, "conflict"),
        ({"credit_share": -1}, "credit_share"),
        ({"customers": 2, "organizations": 3}, "customers"),
        ({"days": 40_000}, "end_at"),
        ({"end_at": datetime(2025, 1, 1)}, "end_at"),
    ],
)
def test_an_impossible_plan_is_refused_before_the_first_line(change: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError, match=named):
        simulate(PLAN._replace(**change))
