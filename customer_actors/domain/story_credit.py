"""The credit account's part of a customer's story [C1-C7].

The fold looks through the whole ledger it is given, which over a long stream would take the square of its length. So
each event is given a small one: the usages and payments it names and, in the order the rule takes them [C2], as many
open usages as its money can reach or as much idle money as its usage can take. That is enough, because with an account
an event finds open usages or idle money, never both.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Final, TypeVar

from customer_actors.domain.credit import fold, names_of
from customer_actors.domain.credit_book import Account, Ledger, Payment, Result, Usage
from customer_actors.domain.events import Channel, Event, EventType
from customer_actors.domain.rules import Rules
from customer_actors.domain.telling import (
    APPLIED,
    DUPLICATE,
    NO_EFFECT,
    REFUSED,
    Figures,
    Told,
    amount_text,
    credit_figures,
)

MOST_NAMED: Final = 5
"""One payment can pay thousands of usages; so many are named, the others counted."""

_RULE: Final = {
    EventType.PAYMENT_RECEIVED.value: "C2",
    EventType.ORDER_CANCELLED.value: "C5",
    EventType.CREDIT_OPENED.value: "C9",
    EventType.CREDIT_LIMIT_CHANGED.value: "C9",
    EventType.CREDIT_SUSPENDED.value: "C7",
    EventType.CREDIT_LIFTED.value: "C7",
}
_USES: Final = "C4"
"""The rule of sales and charges."""

_ORDER: Final = Channel.ORDER.value
_Key = TypeVar("_Key", int, tuple[str, int])


class CreditTeller:
    """Folds what concerns the credit actor, and tells it."""

    def __init__(self, decimals: int) -> None:
        self.account = Account()
        self._decimals = decimals
        self.usages: dict[int, Usage] = {}
        """Every usage by position, like the payments."""
        self.payments: dict[int, Payment] = {}
        self._by_sale: dict[tuple[str, str | None], int] = {}
        """(channel, reference) -> the position of its usage."""
        self._paid_by: dict[int, Counter[int]] = {}
        """Usage -> payment -> net amount in minor units."""
        self._open: list[tuple[str, int]] = []
        """(due date, position) of every usage with something outstanding, ascending."""
        self._idle: list[int] = []
        """The position of every payment with something unapplied, ascending."""

    def take(self, event: Event, rules: Rules) -> Told:
        """Fold one event and tell what it did; when folding raises, nothing has changed."""
        before = self.account
        result = fold(before, event, rules, self._ledger(event))
        self.account = result.account
        self._apply(result)
        return self._told(event, before, result)

    def balance(self) -> Figures:
        """The account after the last event."""
        return credit_figures(self.account, self._decimals)

    def figures(self) -> Figures:
        """The account, and what the rows beneath it add up to."""
        usages = sum(self.usages[position].outstanding_minor for _, position in self._open)
        payments = sum(self.payments[position].unapplied_minor for position in self._idle)
        return {
            **self.balance(),
            "terms_days": self.account.terms_days,
            "automatic": self.account.automatic,
            "usages_outstanding": amount_text(usages, self._decimals),
            "payments_unapplied": amount_text(payments, self._decimals),
        }

    # --- the ledger of one event ---------------------------------------------------------------------------------

    def _ledger(self, event: Event) -> Ledger:
        match event.type:
            case EventType.ORDER_COMPLETED | EventType.POS_COMPLETED | EventType.CREDIT_CHARGED:
                same_sale = {self._by_sale.get((event.channel or _ORDER, event.reference)), *self._named(event)}
                return self._picked(same_sale & self.usages.keys(), self._money_for(event.amount_minor))
            case EventType.PAYMENT_RECEIVED:
                return self._picked(self._reached_by(event.amount_minor, [(event.order_id, event.sale_position)]))
            case EventType.ORDER_CANCELLED:
                return self._ledger_of_cancellation(event)
            case EventType.CREDIT_OPENED:
                return self._picked((position for _, position in self._open), self._idle)
            case _:
                return Ledger()

    def _ledger_of_cancellation(self, event: Event) -> Ledger:
        """The usages it ends, the money that paid them, and what that money reaches next [C5]."""
        ended = {position for position in self._named(event) if position in self.usages}
        allocated = {(paid, usage): net for usage in ended for paid, net in self._paid_by.get(usage, Counter()).items()}
        payments = {payment for payment, _ in allocated}
        orders = [(self.payments[payment].order_id, self.payments[payment].sale_position) for payment in payments]
        ledger = self._picked(ended | self._reached_by(sum(allocated.values()), orders, ended), payments)
        ledger.allocated = allocated
        return ledger

    def _named(self, event: Event) -> set[int]:
        """The usages of the sale that a charge or a cancellation refers to, under any of its names."""
        found = (event.sale_position, *(self._by_sale.get(name) for name in names_of(event)))
        return {position for position in found if position is not None}

    def _picked(self, usages: Iterable[int | None], payments: Iterable[int] = ()) -> Ledger:
        return Ledger(
            {position: self.usages[position] for position in usages if position is not None},
            {position: self.payments[position] for position in payments},
        )

    def _reached_by(
        self, money: int, orders: Iterable[tuple[str | None, int | None]], ended: Collection[int | None] = ()
    ) -> set[int]:
        """The usages that so much money may pay: of the orders named, and the oldest ones together as large as it."""
        if self.account.status is None:  # suspense pays nothing
            return set()
        named = (at for order, sale in orders for at in (self._by_sale.get((_ORDER, order)), sale))
        reached = {position for position in named if position is not None and position in self.usages}
        for _, position in self._open:
            if money <= 0:
                break
            if position not in ended:
                money -= self.usages[position].outstanding_minor
                reached.add(position)
        return reached

    def _money_for(self, amount: int) -> list[int]:
        """The oldest idle payments that together cover an amount."""
        spent: list[int] = []
        if self.account.status is not None:
            for position in self._idle:
                if amount <= 0:
                    break
                amount -= self.payments[position].unapplied_minor
                spent.append(position)
        return spent

    def _apply(self, result: Result) -> None:
        for usage in result.usages:
            old = self.usages.get(usage.position)
            was_open = old is not None and old.outstanding_minor > 0
            _keep(self._open, (usage.due_date, usage.position), was_open, usage.outstanding_minor > 0)
            self.usages[usage.position] = usage
            self._by_sale[usage.channel, usage.reference] = usage.position
        for payment in result.payments:
            known = self.payments.get(payment.position)
            was_idle = known is not None and known.unapplied_minor > 0
            _keep(self._idle, payment.position, was_idle, payment.unapplied_minor > 0)
            self.payments[payment.position] = payment
        for _, paying, paid, amount_minor in result.allocations:
            self._paid_by.setdefault(paid, Counter())[paying] += amount_minor

    # --- in words ------------------------------------------------------------------------------------------------

    def _told(self, event: Event, before: Account, result: Result) -> Told:
        rule = _RULE.get(event.type, _USES)
        if result.refused is not None:
            return Told(rule, REFUSED, f"refused: {result.refused}")
        if result.duplicate:
            what = f"{event.channel or _ORDER} {event.reference} has its usage" if rule == _USES else "it is so"
            return Told(rule, DUPLICATE, f"no effect, {what} already")
        match event.type:
            case EventType.PAYMENT_RECEIVED:
                return self._told_payment(event, before, result)
            case EventType.ORDER_CANCELLED:
                return self._told_cancellation(event, before, result)
            case EventType.CREDIT_OPENED:
                return self._told_opening(before, result)
            case EventType.CREDIT_LIMIT_CHANGED:
                old, new = before.limit_minor or 0, result.account.limit_minor or 0
                return Told(rule, APPLIED, f"limit {self._amount(old)} -> {self._amount(new)}")
            case EventType.CREDIT_SUSPENDED:
                return Told(rule, APPLIED, f"suspended {'automatically' if result.account.automatic else 'by hand'}")
            case EventType.CREDIT_LIFTED:
                return Told(rule, APPLIED, "suspension lifted")
            case _:
                return self._told_use(event, before, result)

    def _told_use(self, event: Event, before: Account, result: Result) -> Told:
        used = [usage for usage in result.usages if usage.position == event.position]
        if not used:
            return Told(_USES, NO_EFFECT, "no credit used")
        flags = ", over the limit" * used[0].over_limit + ", without an account" * used[0].no_account
        effect = f"{self._amount(event.amount_minor)} used for {_sale(used[0])}, due {used[0].due_date}{flags}"
        at_once = before.unapplied_minor - result.account.unapplied_minor
        if at_once:
            return Told("C4 C2", APPLIED, f"{effect}; {self._amount(at_once)} of it paid at once by unapplied money")
        return Told("C3" if used[0].no_account else _USES, APPLIED, effect)

    def _told_payment(self, event: Event, before: Account, result: Result) -> Told:
        amount = self._amount(event.amount_minor)
        if before.status is None:
            return Told("C3", APPLIED, f"{amount} kept in suspense: there is no account")
        if not result.allocations:
            return Told("C2", APPLIED, f"{amount} unapplied: nothing is open")
        return Told("C2", APPLIED, f"{amount} allocated: {self._spread(before.unapplied_minor, result)}")

    def _told_cancellation(self, event: Event, before: Account, result: Result) -> Told:
        ended = [usage for usage in result.usages if usage.cancelled_position == event.position]
        if not ended:
            return Told("C5", NO_EFFECT, "no usage to cancel")
        usages = (f"{self._amount(usage.amount_minor)} for {_sale(usage)}" for usage in ended)
        effect = f"cancelled: {' and '.join(usages)}"
        released = -sum(move.amount_minor for move in result.allocations if move.amount_minor < 0)
        if released:
            effect += f"; {self._amount(released)} released: {self._spread(before.unapplied_minor, result)}"
        return Told("C5", APPLIED, effect)

    def _told_opening(self, before: Account, result: Result) -> Told:
        account = result.account
        effect = f"account opened, limit {self._amount(account.limit_minor or 0)}, terms {account.terms_days} days"
        if not before.suspense_minor:
            return Told("C9", APPLIED, effect)
        drained = f"{self._amount(before.suspense_minor)} from suspense: {self._spread(0, result)}"
        return Told("C9 C3", APPLIED, f"{effect}; {drained}")

    def _spread(self, unapplied_before: int, result: Result) -> str:
        """Where money went: "60.00 to order O-1, 40.00 unapplied"."""
        paid = Counter[int]()
        for move in result.allocations:
            if move.amount_minor > 0:
                paid[move.usage_position] += move.amount_minor
        parts = [f"{self._amount(paid[at])} to {_sale(self.usages[at])}" for at in list(paid)[:MOST_NAMED]]
        if len(paid) > MOST_NAMED:
            others = list(paid.values())[MOST_NAMED:]
            parts.append(f"{self._amount(sum(others))} to {len(others)} others")
        rest = result.account.unapplied_minor - unapplied_before
        return ", ".join(parts + [f"{self._amount(rest)} unapplied"] * (rest > 0))

    def _amount(self, minor: int) -> str:
        return amount_text(minor, self._decimals)


def _sale(usage: Usage) -> str:
    return f"{usage.channel} {usage.reference}"


def _keep(ordered: list[_Key], key: _Key, was_in: bool, is_in: bool) -> None:
    """Bring a sorted list up to date with whether a key belongs in it."""
    if is_in and not was_in:
        insort(ordered, key)
    elif was_in and not is_in:
        del ordered[bisect_left(ordered, key)]
