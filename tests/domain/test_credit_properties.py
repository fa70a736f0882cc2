"""Any sequence of credit events keeps the books balanced and follows C2, to the cent [C1-C5, invariants]."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from customer_actors.domain.credit import fold, named_usages
from customer_actors.domain.credit_book import Account, Ledger, Payment, Result, Usage
from customer_actors.domain.events import Event, EventType
from customer_actors.domain.rules import Rules

RULES = Rules()
DAY_US = 86_400_000_000
Row = TypeVar("Row", Usage, Payment)
BLANK = Event(1, 0, "", "", None, 0, 0, 0, 1, 4, False, False, None, None, None, None)


class Step(NamedTuple):
    """One thing somebody tries. Order n may be till sale n, whose id is the same text as that of order n + 1."""

    action: str
    number: int
    amount: int
    day: int


ACTIONS = ["order", "till", "till", "charge", "cancel", "cancel", "pay", "pay", "open", "limit", "suspend", "lift"]
STEPS = st.lists(
    st.builds(Step, st.sampled_from(ACTIONS), st.integers(0, 3), st.integers(0, 30), st.integers(0, 3)),
    min_size=8,
    max_size=40,
)
"""Few numbers, days and small amounts, so that everything meets everything."""


class Model:
    """What a plain reading expects: the active usages and the sum of payments, nothing about which pays which.

    It also plays admission: which step becomes an event, and what the event is told about the sale.
    """

    def __init__(self) -> None:
        self.active: dict[tuple[str, str], int] = {}
        self.paid = 0
        self.limit: int | None = None
        self.suspended = False
        self.seen: dict[tuple[str, str], int | None] = {}
        """(channel, reference) that completed or was charged -> position of the completed sale."""
        self.cancelled: set[str] = set()

    def event(self, step: Step, position: int) -> Event | None:
        """The event of a step, expectations updated; None when admission lets nothing through."""
        blank = BLANK._replace(position=position, occurred_at_us=step.day * DAY_US, amount_minor=step.amount)
        order, till = ("order", str(step.number)), ("pos", str(step.number + 1))
        match step.action:
            case "order" | "till":
                return self._sold(order if step.action == "order" else till, order, blank)
            case "charge":
                return self._charged(order, blank)
            case "cancel":
                return self._cancelled(order, till, blank)
            case "pay":
                self.paid += step.amount + 1
                named = str(step.number) if step.day else None
                return blank._replace(type=EventType.PAYMENT_RECEIVED, amount_minor=step.amount + 1, order_id=named)
            case "open":
                self.limit = step.amount if self.limit is None else self.limit
                return blank._replace(type=EventType.CREDIT_OPENED)
            case "limit":
                self.limit = None if self.limit is None else step.amount
                return blank._replace(type=EventType.CREDIT_LIMIT_CHANGED)
            case "suspend":
                self.suspended = self.limit is not None
                return blank._replace(type=EventType.CREDIT_SUSPENDED)
            case _:
                self.suspended = False
                return blank._replace(type=EventType.CREDIT_LIFTED)

    def _sold(self, sale: tuple[str, str], order: tuple[str, str], blank: Event) -> Event | None:
        if self.seen.get(sale) is not None:
            return None
        type_ = EventType.ORDER_COMPLETED if sale == order else EventType.POS_COMPLETED
        event = blank._replace(type=type_, channel=sale[0], reference=sale[1], on_credit=True)
        if order[1] in self.cancelled:
            return event._replace(already_cancelled=True)
        self.seen[sale] = blank.position
        self.active.setdefault(sale, blank.amount_minor)
        return event

    def _charged(self, order: tuple[str, str], blank: Event) -> Event:
        late = order[1] in self.cancelled
        self.seen.setdefault(order, None)
        if self.limit is not None and not self.suspended and not late and order not in self.active:
            available = self.limit - sum(self.active.values()) + self.paid
            if blank.amount_minor <= available:
                self.active[order] = blank.amount_minor
        return blank._replace(
            type=EventType.CREDIT_CHARGED, channel="order", reference=order[1], already_cancelled=late
        )

    def _cancelled(self, order: tuple[str, str], till: tuple[str, str], blank: Event) -> Event | None:
        """A till sale is the order's own when the order itself never completed."""
        if order[1] in self.cancelled:
            return None
        self.cancelled.add(order[1])
        sale = till if self.seen.get(till) is not None and self.seen.get(order) is None else order
        if sale not in self.seen:
            return None
        self.active.pop(order, None)
        self.active.pop(sale, None)
        return blank._replace(
            type=EventType.ORDER_CANCELLED,
            channel=sale[0],
            reference=order[1],
            sale_position=self.seen[sale],
            on_credit=True,
        )


def copy_of(ledger: Ledger) -> Ledger:
    """The same rows, taken over one by one."""
    return ledger_of(
        ledger.usages.values(),
        ledger.payments.values(),
        {(payment, usage): net for usage, paid in ledger.paid_by.items() for payment, net in paid.items()},
    )


def ledger_of(usages: Iterable[Usage], payments: Iterable[Payment], allocated: dict[tuple[int, int], int]) -> Ledger:
    ledger = Ledger()
    for usage in usages:
        ledger.put_usage(usage)
    for payment in payments:
        ledger.put_payment(payment)
    for (payment_position, usage_position), net in allocated.items():
        ledger.put_allocated(payment_position, usage_position, net)
    return ledger


def least(full: Ledger, event: Event) -> Ledger:
    """Only what is promised to be loaded for an event [see Ledger], nothing besides, and in no useful order."""
    sale = full.usage_of(event.channel or "order", event.reference)
    named = {usage.position for usage in named_usages(event, full)} | ({sale.position} if sale else set())
    cancels = event.type == EventType.ORDER_CANCELLED
    allocated = {
        (payment, usage): net
        for usage, paid in full.paid_by.items()
        for payment, net in paid.items()
        if cancels and usage in named
    }
    payments = {p for p, _ in allocated} | reached(
        full.idle_payments(), lambda p: p.unapplied_minor, use_of(event, full)
    )
    money = sum(net for (_, u), net in allocated.items() if full.usages[u].cancelled_position is None)
    if event.type == EventType.PAYMENT_RECEIVED:
        money += event.amount_minor
    if event.type == EventType.CREDIT_OPENED:
        money += sum(payment.unapplied_minor for payment in full.payments.values())
    ended = [u for u in full.usages.values() if cancels and u.position in named]
    still_open = (u for u in full.open_usages() if u not in ended)
    usages = named | reached(still_open, lambda u: u.outstanding_minor, money)
    meant = [full.payments[p].order_id for p in payments] + [event.order_id]
    usages |= {usage.position for order in meant if (usage := full.usage_of("order", order)) is not None}
    return ledger_of(
        (u for p, u in reversed(full.usages.items()) if p in usages),
        (row for p, row in reversed(full.payments.items()) if p in payments),
        allocated,
    )


def use_of(event: Event, full: Ledger) -> int:
    """What idle money may have to pay."""
    if event.type == EventType.CREDIT_OPENED:
        return sum(usage.outstanding_minor for usage in full.usages.values())
    uses = event.type in {EventType.ORDER_COMPLETED, EventType.POS_COMPLETED, EventType.CREDIT_CHARGED}
    return event.amount_minor if uses else 0


def reached(rows: Iterable[Row], left: Callable[[Row], int], amount: int) -> set[int]:
    """The positions of the first rows that together are that much."""
    found = set()
    for row in rows:
        if amount <= 0:
            break
        amount -= left(row)
        found.add(row.position)
    return found


def cent_by_cent(idle: dict[int, Payment], due: dict[int, Usage]) -> Counter[tuple[int, int]]:
    """C2 read literally: each cent, in arrival order, to the open order its payment names, else to the oldest usage."""
    moved: Counter[tuple[int, int]] = Counter()
    left = {position: usage.outstanding_minor for position, usage in due.items()}
    for position in sorted(idle):
        for _ in range(idle[position].unapplied_minor):
            still = [due[p] for p in left if left[p]]
            if not still:
                return moved
            named = [u for u in still if (u.channel, u.reference) == ("order", idle[position].order_id)]
            target = (named or sorted(still, key=lambda u: (u.due_date, u.position)))[0].position
            left[target] -= 1
            moved[position, target] += 1
    return moved


def assert_moves_follow_the_rule(result: Result, ledger: Ledger) -> None:
    """Taking this event's moves back gives the moment before the money moved; the rule must lead to the same moves."""
    moves = Counter({(a.payment_position, a.usage_position): a.amount_minor for a in result.allocations if a[3] > 0})
    idle, due = dict(ledger.payments), dict(ledger.usages)
    for (payment, usage), amount in moves.items():
        idle[payment] = idle[payment]._replace(unapplied_minor=idle[payment].unapplied_minor + amount)
        due[usage] = due[usage]._replace(outstanding_minor=due[usage].outstanding_minor + amount)
    assert moves == (cent_by_cent(idle, due) if result.account.status else Counter())


def assert_rows_add_up(account: Account, ledger: Ledger) -> None:
    """Every cached figure follows from the rows beneath it [C1]."""
    by_payment, by_usage = Counter[int](), Counter[int]()
    for usage, paid in ledger.paid_by.items():
        for payment, net in paid.items():
            assert net >= 0
            by_payment[payment] += net
            by_usage[usage] += net
    for position, payment_row in ledger.payments.items():
        assert payment_row.unapplied_minor == payment_row.amount_minor - by_payment[position] >= 0
    for position, usage_row in ledger.usages.items():
        cancelled = usage_row.cancelled_position is not None
        assert usage_row.outstanding_minor == (0 if cancelled else usage_row.amount_minor - by_usage[position]) >= 0
        assert not cancelled or by_usage[position] == 0
    assert account.used_minor == sum(usage.outstanding_minor for usage in ledger.usages.values())
    idle = sum(payment.unapplied_minor for payment in ledger.payments.values())
    assert (account.unapplied_minor, account.suspense_minor) == ((idle, 0) if account.status else (0, idle))


@settings(deadline=None, max_examples=300)
@given(STEPS)
def test_the_books_balance_after_every_event(steps: list[Step]) -> None:
    account, ledger, model = Account(), Ledger(), Model()
    for position, step in enumerate(steps, start=1):
        event = model.event(step, position)
        if event is None:
            continue
        facts = least(ledger, event)
        before = copy_of(facts)
        result = fold(account, event, RULES, facts)
        assert vars(facts) == vars(before)
        assert fold(account, event, RULES, ledger) == result
        for rows in (result.usages, result.payments):
            assert len({row.position for row in rows}) == len(rows)
        assert len({allocation[1:3] for allocation in result.allocations}) == len(result.allocations)
        assert all(allocation.amount_minor for allocation in result.allocations)
        account = result.account
        ledger.apply(result)
        assert_moves_follow_the_rule(result, ledger)
        assert_rows_add_up(account, ledger)
        used = sum(model.active.values())
        assert account.limit_minor == model.limit
        if account.status is None:
            assert (account.used_minor, account.unapplied_minor, account.suspense_minor) == (used, 0, model.paid)
        else:
            assert account.used_minor == max(0, used - model.paid)
            assert account.unapplied_minor == max(0, model.paid - used)
            assert account.suspense_minor == 0


class Counting(Ledger):
    """Counts the rows a fold looks at."""

    looks = 0

    def usage_of(self, channel: str, reference: str | None) -> Usage | None:
        self.looks += 1
        return super().usage_of(channel, reference)

    def open_usages(self, changed: Iterable[Usage] = ()) -> Iterator[Usage]:
        for usage in super().open_usages(changed):
            self.looks += 1
            yield usage

    def idle_payments(self, changed: Iterable[Payment] = ()) -> Iterator[Payment]:
        for payment in super().idle_payments(changed):
            self.looks += 1
            yield payment


@pytest.mark.parametrize("order", [None, "7"], ids=["oldest first", "a named one first"])
def test_no_event_looks_at_more_of_the_ledger_than_it_moves(order: str | None) -> None:
    """A look at everything per event would make a long history take the square of its length."""
    sale = BLANK._replace(type=EventType.ORDER_COMPLETED, channel="order", amount_minor=100, on_credit=True)
    pay = BLANK._replace(type=EventType.PAYMENT_RECEIVED, amount_minor=100, order_id=order)
    events = [BLANK._replace(type=EventType.CREDIT_OPENED, amount_minor=5)]
    events += [sale._replace(reference=str(n), occurred_at_us=n * DAY_US) for n in range(60)]
    events += [pay] * 30
    events += [BLANK._replace(type=EventType.ORDER_CANCELLED, reference=str(n), on_credit=True) for n in range(20)]
    events += [pay] * 90
    events += [sale._replace(type=EventType.CREDIT_CHARGED, reference=f"C{n}", amount_minor=9) for n in range(50)]
    account, ledger, most = Account(), Counting(), 0
    for position, event in enumerate(events, start=1):
        ledger.looks = 0
        result = fold(account, event._replace(position=position), RULES, ledger)
        most = max(most, ledger.looks)
        account = result.account
        ledger.apply(result)
    assert account.used_minor == 0 < account.unapplied_minor
    assert most <= 7  # a cancellation: its names, what paid it, the order that is for, and the oldest usages
