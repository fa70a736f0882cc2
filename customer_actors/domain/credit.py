"""The credit account of one customer: usages, payments, and which payment pays which usage [C1-C7].

A fold reads the ledger and returns what changes; only `Ledger.apply` writes. Each event has one short body that
says what it records; `_settle` then moves the money, by the one rule there is for that [C2].
"""

import json
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import date, timedelta
from typing import Any, Final

from customer_actors.domain.credit_book import Account, Allocation, Ledger, Payment, Result, Usage
from customer_actors.domain.events import Channel, Event, EventType, business_date
from customer_actors.domain.rules import Rules

ACTIVE: Final = "active"
SUSPENDED: Final = "suspended"
NO_ACCOUNT: Final = "there is no credit account"


def usage_status(usage: Usage, today: date) -> str:
    """`cancelled`, `paid`, `overdue` or `pending` on a business date: computed on reading, never stored [C6]."""
    if usage.cancelled_position is not None:
        return "cancelled"
    if usage.outstanding_minor == 0:
        return "paid"
    return "overdue" if usage.due_date < today.isoformat() else "pending"


def fold(account: Account, event: Event, rules: Rules, ledger: Ledger) -> Result:
    """The account and the rows one event changes; an event that is not about credit changes nothing.

    Raises KeyError or ValueError when the ledger or the event's detail lacks what it must hold.
    """
    match event.type:
        case EventType.ORDER_COMPLETED | EventType.POS_COMPLETED:
            return _sold(account, event, rules, ledger)
        case EventType.CREDIT_CHARGED:
            return _charged(account, event, rules, ledger)
        case EventType.ORDER_CANCELLED:
            return _cancelled(account, event, ledger)
        case EventType.PAYMENT_RECEIVED:
            return _paid(account, event, ledger)
        case EventType.CREDIT_OPENED:
            return _opened(account, event, rules, ledger)
        case EventType.CREDIT_LIMIT_CHANGED:
            return _limit_changed(account, event)
        case EventType.CREDIT_SUSPENDED:
            return _suspended(account, event)
        case EventType.CREDIT_LIFTED:
            return _lifted(account, event)
        case _:
            return Result(account)


def _sold(account: Account, event: Event, rules: Rules, ledger: Ledger) -> Result:
    """A completed sale is a fact: it is recorded without an account, suspended or over the limit [C3, C4]."""
    if not event.on_credit or event.already_cancelled:
        return Result(account)
    if ledger.knows(*_sale_of(event)):
        return Result(account, duplicate=True)
    return _use(account, event, rules, ledger)


def _charged(account: Account, event: Event, rules: Rules, ledger: Ledger) -> Result:
    """A charge is a request, so it can be refused [C4]."""
    if event.already_cancelled:
        return Result(account, refused="the order was cancelled before")
    used = next((usage for usage in ledger.usages.values() if _is_of(event, usage)), None)
    if used is not None:
        same = used.amount_minor == event.amount_minor
        return Result(account, duplicate=same, refused=None if same else "the order used credit of another amount")
    if account.status is None:
        return Result(account, refused=NO_ACCOUNT)
    if account.status == SUSPENDED:
        return Result(account, refused="the credit account is suspended")
    if _over_limit(account, event.amount_minor):
        return Result(account, refused="the amount is more than the credit available")
    return _use(account, event, rules, ledger)


def _cancelled(account: Account, event: Event, ledger: Ledger) -> Result:
    """The order's usages end; the money that paid them is free again and finds others [C5]."""
    ended = {
        usage.position: usage
        for usage in ledger.usages.values()
        if usage.cancelled_position is None and _is_of(event, usage)
    }
    released = tuple(
        Allocation(event.position, payment, usage, -net)
        for (payment, usage), net in sorted(ledger.allocated.items())
        if usage in ended
    )
    freed: dict[int, Payment] = {}
    for _, position, _, amount_minor in released:
        payment = freed[position] if position in freed else ledger.payments[position]
        freed[position] = payment._replace(unapplied_minor=payment.unapplied_minor - amount_minor)
    account = account._replace(
        used_minor=account.used_minor - sum(usage.outstanding_minor for usage in ended.values()),
        unapplied_minor=account.unapplied_minor - sum(allocation.amount_minor for allocation in released),
    )
    usages = tuple(u._replace(outstanding_minor=0, cancelled_position=event.position) for u in ended.values())
    return _settle(Result(account, usages, tuple(freed.values()), released), event.position, ledger)


def _paid(account: Account, event: Event, ledger: Ledger) -> Result:
    """Money is always taken: by the account, even a suspended one, else into suspense [C2, C3]."""
    amount = event.amount_minor
    payment = Payment(event.position, event.reference, amount, amount, event.order_id, event.sale_position)
    if account.status is None:
        account = account._replace(suspense_minor=account.suspense_minor + amount)
    else:
        account = account._replace(unapplied_minor=account.unapplied_minor + amount)
    return _settle(Result(account, payments=(payment,)), event.position, ledger)


def _opened(account: Account, event: Event, rules: Rules, ledger: Ledger) -> Result:
    """Opening drains the suspense in arrival order; what pays nothing becomes unapplied [C3]."""
    asked = _detail(event).get("terms_days")
    terms = rules.default_terms_days if asked is None else asked
    if account.status is not None:
        if (account.limit_minor, account.terms_days) == (event.amount_minor, terms):
            return Result(account, duplicate=True)
        return Result(account, refused="a credit account exists, with another limit or other terms")
    opened = Account(
        status=ACTIVE,
        limit_minor=event.amount_minor,
        terms_days=terms,
        used_minor=account.used_minor,
        unapplied_minor=account.suspense_minor,
    )
    return _settle(Result(opened), event.position, ledger)


def _limit_changed(account: Account, event: Event) -> Result:
    if account.status is None:
        return Result(account, refused=NO_ACCOUNT)
    return Result(account._replace(limit_minor=event.amount_minor))


def _suspended(account: Account, event: Event) -> Result:
    """A person's suspension outranks the nightly run's, never the other way round [C7]."""
    automatic = bool(_detail(event).get("automatic"))
    if account.status is None:
        return Result(account, refused=NO_ACCOUNT)
    if account.status == SUSPENDED and (automatic or not account.automatic):
        return Result(account, duplicate=True)
    return Result(account._replace(status=SUSPENDED, automatic=automatic))


def _lifted(account: Account, event: Event) -> Result:
    """The nightly run lifts only what it suspended itself [C7]."""
    if account.status is None:
        return Result(account, refused=NO_ACCOUNT)
    if account.status == ACTIVE:
        return Result(account, duplicate=True)
    if _detail(event).get("automatic") and not account.automatic:
        return Result(account, refused="the account was suspended by hand")
    return Result(account._replace(status=ACTIVE, automatic=False))


def _use(account: Account, event: Event, rules: Rules, ledger: Ledger) -> Result:
    """A new usage; unapplied money pays it at once [C2, C4]."""
    terms = rules.default_terms_days if account.terms_days is None else account.terms_days
    channel, reference = _sale_of(event)
    usage = Usage(
        position=event.position,
        channel=channel,
        reference=reference,
        amount_minor=event.amount_minor,
        outstanding_minor=event.amount_minor,
        due_date=(business_date(event.occurred_at_us, rules.zone) + timedelta(days=terms)).isoformat(),
        over_limit=_over_limit(account, event.amount_minor),
        no_account=account.status is None,
    )
    used = account._replace(used_minor=account.used_minor + event.amount_minor)
    return _settle(Result(used, usages=(usage,)), event.position, ledger)


def _sale_of(event: Event) -> tuple[str, str]:
    """(channel, reference) of the sale that uses credit; a charge is always of an order [C4]."""
    return event.channel or Channel.ORDER.value, event.reference


def _over_limit(account: Account, amount_minor: int) -> bool:
    """Whether an amount is more than limit - used + unapplied; without an account there is no limit [C4]."""
    if account.limit_minor is None:
        return False
    return amount_minor > account.limit_minor - account.used_minor + account.unapplied_minor


def _is_of(event: Event, usage: Usage) -> bool:
    """Whether a usage is of the sale or order that a charge or cancellation names, by any of its names [A5]."""
    return usage.position == event.sale_position or (usage.channel, usage.reference) in names_of(event)


def names_of(event: Event) -> list[tuple[str, str]]:
    """(channel, reference) under which a charged or cancelled order may have used credit [A5], never across [A4]."""
    names = [(Channel.ORDER.value, event.reference)]
    if event.sale_reference is not None:
        names.append((event.channel or Channel.ORDER.value, event.sale_reference))
    return names


def _detail(event: Event) -> dict[str, Any]:
    detail: dict[str, Any] = json.loads(event.detail) if event.detail else {}
    return detail


def _settle(draft: Result, position: int, ledger: Ledger) -> Result:
    """Let idle money pay open usages [C2]; nothing without an account [C3].

    Every event that brings money, use or an account ends here, so that afterwards one of the two is exhausted.
    """
    if draft.account.status is None:
        return draft
    payments = ledger.payments | {payment.position: payment for payment in draft.payments}
    idle = sorted(payment for payment in payments.values() if payment.unapplied_minor)
    if not idle:
        return draft
    usages = ledger.usages | {usage.position: usage for usage in draft.usages}
    due = sorted((u for u in usages.values() if u.outstanding_minor), key=lambda u: (u.due_date, u.position))
    moved = [Allocation(position, payment, usage, amount) for payment, usage, amount in _moves(idle, due)]
    for _, payment, usage, amount in moved:
        payments[payment] = payments[payment]._replace(unapplied_minor=payments[payment].unapplied_minor - amount)
        usages[usage] = usages[usage]._replace(outstanding_minor=usages[usage].outstanding_minor - amount)
    total = sum(allocation.amount_minor for allocation in moved)
    used, unapplied = draft.account.used_minor - total, draft.account.unapplied_minor - total
    changed_usages = {usage.position for usage in draft.usages} | {move.usage_position for move in moved}
    changed_payments = {payment.position for payment in draft.payments} | {move.payment_position for move in moved}
    return Result(
        draft.account._replace(used_minor=used, unapplied_minor=unapplied),
        usages=tuple(usages[changed] for changed in sorted(changed_usages)),
        payments=tuple(payments[changed] for changed in sorted(changed_payments)),
        allocations=draft.allocations + tuple(moved),
    )


def _moves(idle: Sequence[Payment], due: Sequence[Usage]) -> Iterator[tuple[int, int, int]]:
    """(payment position, usage position, amount): each payment the order it names first, then the oldest first [C2]."""
    outstanding = {usage.position: usage.outstanding_minor for usage in due}
    of_order: dict[str | None, int] = {u.reference: u.position for u in due if u.channel == Channel.ORDER}
    queue = deque(outstanding)
    for payment in idle:
        left = payment.unapplied_minor
        named = of_order.get(payment.order_id)
        if named is None and payment.sale_position in outstanding:
            named = payment.sale_position
        while left and queue:
            target, named = queue[0] if named is None else named, None
            amount = min(left, outstanding[target])
            if amount:  # nothing left to pay where another payment named that order before
                yield payment.position, target, amount
            left -= amount
            outstanding[target] -= amount
            if not outstanding[queue[0]]:
                queue.popleft()
