"""Any sequence of credit events keeps the books balanced and follows C2, to the cent [C1-C5, invariants]."""

from collections import Counter
from copy import deepcopy
from typing import NamedTuple

from hypothesis import given, settings
from hypothesis import strategies as st

from customer_actors.domain.credit import fold
from customer_actors.domain.credit_book import Account, Ledger, Payment, Result, Usage
from customer_actors.domain.events import Event, EventType
from customer_actors.domain.rules import Rules

RULES = Rules()
DAY_US = 86_400_000_000
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


def least(full: Ledger, event: Event) -> Ledger:
    """Only what the driver promises to load for an event, nothing closed or spent besides, and in no useful order."""
    cancels = event.type == EventType.ORDER_CANCELLED
    sale = ("order" if cancels else event.channel, event.reference)
    named = {p for p, u in full.usages.items() if (u.channel, u.reference) == sale or p == event.sale_position}
    allocated = {pair: net for pair, net in full.allocated.items() if cancels and pair[1] in named}
    touched = {payment for payment, _ in allocated}
    return Ledger(
        {p: usage for p, usage in reversed(full.usages.items()) if usage.outstanding_minor or p in named},
        {p: payment for p, payment in reversed(full.payments.items()) if payment.unapplied_minor or p in touched},
        allocated,
    )


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
    for (payment, usage), net in ledger.allocated.items():
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
        before = deepcopy(facts)
        result = fold(account, event, RULES, facts)
        assert facts == before
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
