"""The credit account's part of a customer's story [C1-C7]."""

from collections import Counter
from typing import Final

from customer_actors.domain.credit import detail_of, fold
from customer_actors.domain.credit_book import Account, Facts, Result, Usage
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


class CreditTeller:
    """Folds what concerns the credit actor, and tells it."""

    def __init__(self, facts: Facts, decimals: int) -> None:
        self.account = Account()
        self.ledger = facts
        self._decimals = decimals

    def take(self, event: Event, rules: Rules) -> Told:
        """Fold one event and tell what it did; when folding raises, nothing has changed."""
        before = self.account
        result = fold(before, event, rules, self.ledger)
        self.account = result.account
        self.ledger.apply(result)
        return self._told(event, before, result)

    def balance(self) -> Figures:
        """The account after the last event."""
        return credit_figures(self.account, self._decimals)

    def figures(self) -> Figures:
        """The account, and what the rows beneath it add up to."""
        usages = sum(usage.outstanding_minor for usage in self.ledger.open_usages())
        payments = sum(payment.unapplied_minor for payment in self.ledger.idle_payments())
        return {
            **self.balance(),
            "terms_days": self.account.terms_days,
            "automatic": self.account.automatic,
            "usages_outstanding": amount_text(usages, self._decimals),
            "payments_unapplied": amount_text(payments, self._decimals),
        }

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
                return Told(rule, APPLIED, f"limit {self._amount(old)} -> {self._amount(new)}{_signature(event)}")
            case EventType.CREDIT_SUSPENDED:
                how = "automatically" if result.account.automatic else "by hand"
                return Told(rule, APPLIED, f"suspended {how}{_signature(event)}")
            case EventType.CREDIT_LIFTED:
                return Told(rule, APPLIED, f"suspension lifted{_signature(event)}")
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
        parts = [f"{self._amount(paid[at])} to {_sale(self.ledger.usages[at])}" for at in list(paid)[:MOST_NAMED]]
        if len(paid) > MOST_NAMED:
            others = list(paid.values())[MOST_NAMED:]
            parts.append(f"{self._amount(sum(others))} to {len(others)} others")
        rest = result.account.unapplied_minor - unapplied_before
        return ", ".join(parts + [f"{self._amount(rest)} unapplied"] * (rest > 0))

    def _amount(self, minor: int) -> str:
        return amount_text(minor, self._decimals)


def _sale(usage: Usage) -> str:
    return f"{usage.channel} {usage.reference}"


def _signature(event: Event) -> str:
    """Who asked for it and why, as far as that is known."""
    detail = detail_of(event)
    by, reason = detail.get("by"), detail.get("reason")
    return f" by {by}" * (by is not None) + f": {reason}" * (reason is not None)
