"""Who owes what, which money pays it, and what a request may do [C1-C7]."""

import json
from collections.abc import Sequence
from datetime import date, timedelta

import pytest

from customer_actors.domain.credit import fold, usage_status
from customer_actors.domain.credit_book import Account, Allocation, Ledger, Result, Usage
from customer_actors.domain.events import Channel, Event, EventType
from customer_actors.domain.rules import Rules

RULES = Rules(timezone="Europe/Berlin", default_terms_days=14)
DAY_US = 86_400_000_000
BLANK = Event(1, 0, "", "", None, 0, 0, 0, 1, 4, False, False, None, None, None, None)


def sale(reference: str, amount: int, channel: Channel = Channel.ORDER, day: int = 0, late: bool = False) -> Event:
    """A completed sale on credit; late: its cancellation came before it."""
    type_ = EventType.POS_COMPLETED if channel is Channel.POS else EventType.ORDER_COMPLETED
    at = day * DAY_US
    return BLANK._replace(
        type=type_, reference=reference, channel=channel, amount_minor=amount, occurred_at_us=at, on_credit=True
    )._replace(already_cancelled=late)


def charge(order: str, amount: int, late: bool = False) -> Event:
    return sale(order, amount, late=late)._replace(type=EventType.CREDIT_CHARGED)


def cancel(order: str, sale_position: int | None = None, channel: Channel = Channel.ORDER) -> Event:
    return BLANK._replace(
        type=EventType.ORDER_CANCELLED, reference=order, channel=channel, sale_position=sale_position, on_credit=True
    )


def pay(amount: int, order: str | None = None) -> Event:
    return BLANK._replace(type=EventType.PAYMENT_RECEIVED, reference="P", amount_minor=amount, order_id=order)


def opened(limit: int = 1000, terms: int | None = None) -> Event:
    detail = None if terms is None else json.dumps({"terms_days": terms, "by": "someone"})
    return BLANK._replace(type=EventType.CREDIT_OPENED, amount_minor=limit, detail=detail)


def limit_to(limit: int) -> Event:
    return BLANK._replace(type=EventType.CREDIT_LIMIT_CHANGED, amount_minor=limit)


def suspend(by_night: bool, as_of: str = "2100-01-01") -> Event:
    detail = json.dumps({"automatic": True, "as_of": as_of}) if by_night else None
    return BLANK._replace(type=EventType.CREDIT_SUSPENDED, detail=detail)


def lift(by_night: bool, as_of: str = "1970-01-01") -> Event:
    return BLANK._replace(type=EventType.CREDIT_LIFTED, detail=json.dumps({"automatic": by_night, "as_of": as_of}))


class Books:
    """One customer's account and ledger, folded event by event at positions 1, 2, 3, …"""

    def __init__(self, *events: Event) -> None:
        self.account, self.ledger, self.position = Account(), Ledger(), 0
        for event in events:
            self.take(event)

    def take(self, event: Event) -> Result:
        self.position += 1
        result = fold(self.account, event._replace(position=self.position), RULES, self.ledger)
        self.account = result.account
        self.ledger.apply(result)
        return result

    @property
    def money(self) -> tuple[int, int, int]:
        return self.account.used_minor, self.account.unapplied_minor, self.account.suspense_minor

    @property
    def allocated(self) -> dict[tuple[int, int], int]:
        """(payment, usage) -> net."""
        return {(p, usage): net for usage, paid in self.ledger.paid_by.items() for p, net in paid.items()}

    @property
    def open(self) -> dict[str, int]:
        return {u.reference: u.outstanding_minor for u in self.ledger.usages.values() if u.outstanding_minor}


POS = Channel.POS
TWO_DUE = [opened(), sale("new", 50, day=9), sale("old", 50, day=1)]

MONEY_CASES: list[tuple[str, Sequence[Event], tuple[int, int, int], dict[str, int]]] = [
    # claim, events, (used, unapplied, suspense), outstanding by reference
    ("a sale not on credit uses none", [sale("A", 9)._replace(on_credit=False)], (0, 0, 0), {}),
    ("a sale cancelled before uses none", [opened(), sale("A", 9, late=True)], (0, 0, 0), {}),
    ("a charge and a credit sale of one order are one", [opened(), charge("A", 9), sale("A", 9)], (9, 0, 0), {"A": 9}),
    ("an order and a till sale of one id are two", [sale("A", 9), sale("A", 8, POS)], (17, 0, 0), {"A": 8}),
    ("the oldest due date is paid first", [*TWO_DUE, pay(60)], (40, 0, 0), {"new": 40}),
    ("the order named is paid first", [*TWO_DUE, pay(60, "new")], (40, 0, 0), {"old": 40}),
    ("an order named but paid leaves it to the oldest", [*TWO_DUE, *[pay(50, "new")] * 2], (0, 0, 0), {}),
    ("an unknown order named leaves it to the oldest", [*TWO_DUE, pay(60, "what")], (40, 0, 0), {"new": 40}),
    (
        "only an order can be named",
        [opened(), sale("A", 9), sale("B", 8, POS), pay(8, "B")],
        (9, 0, 0),
        {"A": 1, "B": 8},
    ),
    ("equal due dates go by position", [opened(), sale("Z", 9), sale("A", 9), pay(10)], (8, 0, 0), {"A": 8}),
    ("what is left is unapplied", [*TWO_DUE, pay(130)], (0, 30, 0), {}),
    ("the next usage consumes it at once", [opened(), pay(30), sale("A", 50)], (20, 0, 0), {"A": 20}),
    ("and leaves the rest", [opened(), pay(30), charge("A", 10)], (0, 20, 0), {}),
    ("a suspended account takes money", [opened(), sale("A", 9), suspend(False), pay(20)], (0, 11, 0), {}),
    (
        "without an account money waits in suspense",
        [sale("A", 9), pay(20), sale("B", 5)],
        (14, 0, 20),
        {"A": 9, "B": 5},
    ),
    ("and adds up there", [pay(20), pay(3)], (0, 0, 23), {}),
    ("opening drains the suspense", [sale("A", 9), pay(20), sale("B", 5), opened()], (0, 6, 0), {}),
    ("opening has the order named first", [sale("A", 9), sale("B", 9), pay(9, "B"), opened()], (9, 0, 0), {"A": 9}),
    ("cancelling an open usage frees the credit", [opened(), sale("A", 9), cancel("A", 2)], (0, 0, 0), {}),
    ("without an account too", [sale("A", 9), sale("B", 5), cancel("A", 1)], (5, 0, 0), {"B": 5}),
    ("cancelling a paid usage frees the money", [opened(), sale("A", 9), pay(9), cancel("A", 2)], (0, 9, 0), {}),
    ("which pays the oldest open one", [*TWO_DUE, pay(60), cancel("old", 3)], (0, 10, 0), {}),
    ("a charge is cancelled without a sale", [opened(), charge("A", 9), cancel("A")], (0, 0, 0), {}),
    ("cancelling an unknown order changes nothing", [opened(), sale("A", 9), cancel("B", 7)], (9, 0, 0), {"A": 9}),
    ("a till sale is cancelled by its position", [sale("T", 9, POS), cancel("A", 1, POS)], (0, 0, 0), {}),
    ("never by equal text", [sale("A", 9, POS), sale("T", 8, POS), cancel("A", 2, POS)], (9, 0, 0), {"A": 9}),
    (
        "a till sale and a charge of its order end together",
        [opened(), sale("T", 9, POS), charge("A", 8), sale("B", 7), cancel("A", 2, POS)],
        (7, 0, 0),
        {"B": 7},
    ),
    (
        "and both free the money of one payment",
        [opened(), sale("T", 9, POS), charge("A", 8), pay(17), cancel("A", 2, POS)],
        (0, 17, 0),
        {},
    ),
]


@pytest.mark.parametrize(
    ("events", "money", "still_open"), [c[1:] for c in MONEY_CASES], ids=[c[0] for c in MONEY_CASES]
)
def test_money(events: Sequence[Event], money: tuple[int, int, int], still_open: dict[str, int]) -> None:
    books = Books(*events)
    assert (books.money, books.open) == (money, still_open)
    assert sum(payment.unapplied_minor for payment in books.ledger.payments.values()) == sum(money[1:])


def test_unapplied_money_is_consumed_in_arrival_order() -> None:
    books = Books(opened(), pay(5), pay(7), sale("A", 9))
    assert books.allocated == {(2, 4): 5, (3, 4): 4}
    assert [payment.unapplied_minor for payment in books.ledger.payments.values()] == [0, 3]


def test_a_second_payment_naming_a_paid_order_leaves_no_empty_move_there() -> None:
    events = [sale("A", 9), sale("B", 9), pay(9, "B"), pay(5, "B")]
    assert Books(*events, opened()).allocated == {(3, 2): 9, (4, 1): 5}


def test_a_cancellation_returns_one_row_per_usage_and_payment_and_both_moves_of_the_money() -> None:
    books = Books(opened(), sale("A", 9), sale("B", 9), pay(4), pay(8))
    assert books.allocated == {(4, 2): 4, (5, 2): 5, (5, 3): 3}
    result = books.take(cancel("A", 2))
    assert [(u.position, u.outstanding_minor, u.cancelled_position) for u in result.usages] == [(2, 0, 6), (3, 0, None)]
    assert [(p.position, p.unapplied_minor) for p in result.payments] == [(4, 0), (5, 3)]
    assert result.allocations == (
        Allocation(6, 4, 2, -4),
        Allocation(6, 5, 2, -5),
        Allocation(6, 4, 3, 4),
        Allocation(6, 5, 3, 2),
    )


def test_a_usage_is_cancelled_once() -> None:
    books = Books(opened(), charge("A", 9), cancel("A"))
    assert books.take(cancel("A")) == Result(books.account)


@pytest.mark.parametrize(
    ("account", "at_us", "due"),
    [
        ([], 0, "1970-01-15"),  # the default terms of the rules
        ([opened()], 0, "1970-01-15"),
        ([opened(terms=30)], 0, "1970-01-31"),
        ([opened(terms=0)], 0, "1970-01-01"),
        ([opened(terms=0)], DAY_US - 3_600_000_001, "1970-01-01"),
        ([opened(terms=0)], DAY_US - 3_600_000_000, "1970-01-02"),  # midnight in Berlin, 23:00 in UTC
    ],
)
def test_due_is_the_business_date_plus_the_terms(account: list[Event], at_us: int, due: str) -> None:
    usages = Books(*account).take(sale("A", 9)._replace(occurred_at_us=at_us)).usages
    assert [usage.due_date for usage in usages] == [due]


CHARGE_CASES: list[tuple[Sequence[Event], Event, str]] = [
    # Read downwards: the first reason counts.
    ([opened(10), charge("A", 9), cancel("A")], charge("A", 9, late=True), "cancelled"),
    ([], charge("A", 9, late=True), "cancelled"),
    ([sale("A", 9)], charge("A", 9), "duplicate"),
    ([opened(10), sale("A", 9), suspend(False)], charge("A", 9), "duplicate"),
    ([opened(10), sale("A", 9)], charge("A", 9), "duplicate"),
    ([opened(10), sale("T", 9, POS)], charge("A", 9)._replace(sale_position=2), "duplicate"),
    ([], charge("A", 9), "no credit account"),
    ([pay(50)], charge("A", 9), "no credit account"),
    ([opened(10), suspend(False)], charge("A", 99), "suspended"),
    ([opened(20), sale("L", 1), suspend(True)], charge("A", 9), "suspended"),
    ([opened(10)], charge("A", 11), "more than"),
    ([opened(10), sale("B", 4)], charge("A", 7), "more than"),
    ([opened(10), pay(5)], charge("A", 16), "more than"),
    ([opened(10), sale("B", 9), limit_to(5)], charge("A", 0), "more than"),  # available is negative
    ([opened(0)], charge("A", 1), "more than"),
    ([opened(10)], charge("A", 10), "applied"),
    ([opened(10), sale("B", 4)], charge("A", 6), "applied"),
    ([opened(10), pay(5)], charge("A", 15), "applied"),
    ([opened(0), pay(5)], charge("A", 5), "applied"),
    ([opened(11), sale("L", 1), suspend(True), lift(True)], charge("A", 10), "applied"),
    ([opened(10), sale("A", 9, POS)], charge("A", 1), "applied"),
]


@pytest.mark.parametrize(("before", "event", "outcome"), CHARGE_CASES)
def test_a_charge_is_decided_by_the_first_reason(before: Sequence[Event], event: Event, outcome: str) -> None:
    books = Books(*before)
    account = books.account
    result = books.take(event)
    if outcome == "applied":
        (usage,) = result.usages
        assert (usage.position, usage.channel, usage.reference) == (books.position, "order", "A")
        assert not usage.over_limit
        assert (result.refused, result.duplicate) == (None, False)
    elif outcome == "duplicate":
        assert result == Result(account, duplicate=True)
    else:
        assert result == Result(account, refused=result.refused)
        assert outcome in (result.refused or "")


@pytest.mark.parametrize(
    ("before", "amount", "over_limit", "no_account"),
    [
        ([], 9, False, True),
        ([opened(10)], 10, False, False),
        ([opened(10)], 11, True, False),
        ([opened(10), pay(1)], 11, False, False),
        ([opened(10), sale("B", 9), limit_to(5)], 1, True, False),
        ([opened(10), suspend(False)], 10, False, False),
    ],
)
def test_a_sale_is_recorded_and_flagged(before: list[Event], amount: int, over_limit: bool, no_account: bool) -> None:
    (usage,) = (u for u in Books(*before).take(sale("A", amount)).usages if u.reference == "A")
    assert (usage.amount_minor, usage.over_limit, usage.no_account) == (amount, over_limit, no_account)


NONE, BY_HAND, BY_NIGHT = (None, False), ("suspended", False), ("suspended", True)
RUNNING = ("active", False)

LATE = (opened(), sale("L", 9))
STATUS_CASES: list[tuple[Sequence[Event], Event, tuple[str | None, bool], str]] = [
    ([], opened(), RUNNING, "applied"),
    ([opened(5, 7)], opened(5, 7), RUNNING, "duplicate"),
    ([opened(5)], opened(5, 14), RUNNING, "duplicate"),  # 14 days are the default
    ([opened(5), suspend(False)], opened(5), BY_HAND, "duplicate"),
    ([opened(5, 7)], opened(6, 7), RUNNING, "refused"),
    ([opened(5, 7)], opened(5), RUNNING, "refused"),
    ([], limit_to(5), NONE, "refused"),
    ([opened()], limit_to(0), RUNNING, "applied"),
    ([opened(7)], limit_to(7), RUNNING, "duplicate"),
    ([*LATE, suspend(True)], limit_to(5), BY_NIGHT, "applied"),
    ([], suspend(False), NONE, "refused"),
    ([opened()], suspend(False), BY_HAND, "applied"),
    (LATE, suspend(True), BY_NIGHT, "applied"),
    ([*LATE, suspend(True)], suspend(True), BY_NIGHT, "duplicate"),
    ([*LATE, suspend(True)], suspend(False), BY_HAND, "applied"),
    ([opened(), suspend(False)], suspend(False), BY_HAND, "duplicate"),
    ([opened(), suspend(False)], suspend(True), BY_HAND, "duplicate"),
    ([], lift(False), NONE, "refused"),
    ([opened()], lift(False), RUNNING, "duplicate"),
    ([opened()], lift(True), RUNNING, "duplicate"),
    ([*LATE, suspend(True)], lift(True), RUNNING, "applied"),
    ([*LATE, suspend(True)], lift(False), RUNNING, "applied"),
    ([opened(), suspend(False)], lift(False), RUNNING, "applied"),
    ([opened(), suspend(False)], lift(True), BY_HAND, "refused"),
    ([*LATE, suspend(True), suspend(False)], lift(True), BY_HAND, "refused"),
    ([*LATE, suspend(False), lift(False), suspend(True)], lift(True), RUNNING, "applied"),
    # What the night saw is looked at again.
    ([opened()], suspend(True), RUNNING, "refused"),
    ([*LATE, pay(9)], suspend(True), RUNNING, "refused"),
    ([*LATE, pay(8)], suspend(True), BY_NIGHT, "applied"),
    ([*LATE, cancel("L")], suspend(True), RUNNING, "refused"),
    ([*LATE, suspend(True), pay(9)], lift(True, "2100-01-01"), RUNNING, "applied"),
    ([*LATE, suspend(True)], lift(True, "2100-01-01"), BY_NIGHT, "refused"),
    ([*LATE, suspend(True)], lift(False), RUNNING, "applied"),
]


@pytest.mark.parametrize(("before", "event", "status", "outcome"), STATUS_CASES)
def test_status(before: Sequence[Event], event: Event, status: tuple[str | None, bool], outcome: str) -> None:
    books = Books(*before)
    account = books.account
    result = books.take(event)
    assert (result.account.status, result.account.automatic) == status
    assert (result.duplicate, result.refused is not None) == (outcome == "duplicate", outcome == "refused")
    if outcome != "applied":
        assert result.account == account


def test_opening_and_changing_set_limit_and_terms() -> None:
    books = Books(opened(5, 7))
    assert (books.account.limit_minor, books.account.terms_days) == (5, 7)
    books.take(limit_to(9))
    assert (books.account.limit_minor, books.account.terms_days) == (9, 7)


@pytest.mark.parametrize(
    ("outstanding", "cancelled", "due", "status"),
    [
        (0, 9, "2026-02-28", "cancelled"),
        (0, None, "2026-02-28", "paid"),
        (1, None, "2026-02-28", "overdue"),
        (1, None, "2026-03-01", "pending"),  # due today
        (1, None, "2026-03-02", "pending"),
    ],
)
def test_usage_status_is_read_from_the_date(outstanding: int, cancelled: int | None, due: str, status: str) -> None:
    usage = Usage(1, "order", "A", 5, outstanding, due, cancelled)
    assert usage_status(usage, date(2026, 3, 1)) == status


def test_a_redemption_is_not_about_credit() -> None:
    books = Books(opened(), sale("A", 9))
    assert books.take(BLANK._replace(type=EventType.LOYALTY_REDEEMED, amount_minor=5)) == Result(books.account)


@pytest.mark.parametrize(("days", "status"), [(30, "active"), (31, "suspended")])
def test_late_means_more_days_than_the_rules_of_the_event_say(days: int, status: str) -> None:
    books = Books(*LATE)
    due = date.fromisoformat(next(books.ledger.open_usages()).due_date)
    books.take(suspend(True, (due + timedelta(days=days)).isoformat()))
    assert books.account.status == status
