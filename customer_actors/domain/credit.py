"""The credit account of one customer: usages, payments, and which payment pays which usage [C1-C7].

A fold reads the ledger and returns what changes; only `Facts.apply` writes. Each event has one short body that
says what it records; `_settle` then moves the money, by the one rule there is for that [C2].
"""

import json
from collections.abc import Iterator, Mapping
from datetime import date, timedelta
from typing import Any, Final

from customer_actors.domain.credit_book import Account, Allocation, Facts, Payment, Result, Usage
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


def fold(account: Account, event: Event, rules: Rules, ledger: Facts) -> Result:
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
            return _suspended(account, event, rules, ledger)
        case EventType.CREDIT_LIFTED:
            return _lifted(account, event, rules, ledger)
        case _:
            return Result(account)


def _sold(account: Account, event: Event, rules: Rules, ledger: Facts) -> Result:
    """A completed sale is a fact: it is recorded without an account, suspended or over the limit [C3, C4]."""
    if not event.on_credit or event.already_cancelled:
        return Result(account)
    if ledger.usage_of(*_sale_of(event)) is not None:
        return Result(account, duplicate=True)
    return _use(account, event, rules, ledger)


def _charged(account: Account, event: Event, rules: Rules, ledger: Facts) -> Result:
    """A charge is a request, so it can be refused [C4]."""
    if event.already_cancelled:
        return Result(account, refused="the order was cancelled before")
    used = named_usages(event, ledger)
    if used:
        same = used[0].amount_minor == event.amount_minor
        return Result(account, duplicate=same, refused=None if same else "the order used credit of another amount")
    if account.status is None:
        return Result(account, refused=NO_ACCOUNT)
    if account.status == SUSPENDED:
        return Result(account, refused="the credit account is suspended")
    if _over_limit(account, event.amount_minor):
        return Result(account, refused="the amount is more than the credit available")
    return _use(account, event, rules, ledger)


def _cancelled(account: Account, event: Event, ledger: Facts) -> Result:
    """The order's usages end; the money that paid them is free again and finds others [C5]."""
    ended = {u.position: u for u in named_usages(event, ledger) if u.cancelled_position is None}
    released = tuple(
        Allocation(event.position, payment, usage, -net)
        for payment, usage, net in sorted(
            (payment, usage, net) for usage in ended for payment, net in ledger.paid_by.get(usage, {}).items() if net
        )
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


def _paid(account: Account, event: Event, ledger: Facts) -> Result:
    """Money is always taken: by the account, even a suspended one, else into suspense [C2, C3]."""
    amount = event.amount_minor
    payment = Payment(event.position, event.reference, amount, amount, event.order_id, event.sale_position)
    if account.status is None:
        account = account._replace(suspense_minor=account.suspense_minor + amount)
    else:
        account = account._replace(unapplied_minor=account.unapplied_minor + amount)
    return _settle(Result(account, payments=(payment,)), event.position, ledger)


def _opened(account: Account, event: Event, rules: Rules, ledger: Facts) -> Result:
    """Opening drains the suspense in arrival order; what pays nothing becomes unapplied [C3]."""
    asked = detail_of(event).get("terms_days")
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
    if account.limit_minor == event.amount_minor:
        return Result(account, duplicate=True)
    return Result(account._replace(limit_minor=event.amount_minor))


def _suspended(account: Account, event: Event, rules: Rules, ledger: Facts) -> Result:
    """A person's suspension outranks the nightly run's, never the other way round [C7].

    The nightly run looked before it appended, so its reason is looked at again: money may have come in between.
    """
    automatic = bool(detail_of(event).get("automatic"))
    if account.status is None:
        return Result(account, refused=NO_ACCOUNT)
    if account.status == SUSPENDED and (automatic or not account.automatic):
        return Result(account, duplicate=True)
    if automatic and not _too_late(event, rules, ledger):
        return Result(account, refused="nothing is overdue for too long any more")
    return Result(account._replace(status=SUSPENDED, automatic=automatic))


def _lifted(account: Account, event: Event, rules: Rules, ledger: Facts) -> Result:
    """The nightly run lifts only what it suspended itself, and only while nothing is overdue for too long [C7]."""
    if account.status is None:
        return Result(account, refused=NO_ACCOUNT)
    if account.status == ACTIVE:
        return Result(account, duplicate=True)
    if detail_of(event).get("automatic"):
        if not account.automatic:
            return Result(account, refused="the account was suspended by hand")
        if _too_late(event, rules, ledger):
            return Result(account, refused="something is overdue for too long again")
    return Result(account._replace(status=ACTIVE, automatic=False))


def _too_late(event: Event, rules: Rules, ledger: Facts) -> bool:
    """Whether the oldest open usage is more than suspend_after_days late on the date the nightly run is for [C7]."""
    as_of = date.fromisoformat(detail_of(event)["as_of"])
    oldest = next(ledger.open_usages(), None)
    return oldest is not None and oldest.due_date < suspension_cutoff(as_of, rules).isoformat()


def suspension_cutoff(as_of: date, rules: Rules) -> date:
    """An account with something open that was due before this date is suspended on `as_of` [C7]."""
    return as_of - timedelta(days=rules.suspend_after_days)


def _use(account: Account, event: Event, rules: Rules, ledger: Facts) -> Result:
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


def named_usages(event: Event, ledger: Facts) -> list[Usage]:
    """The usages of the sale or order that a charge or cancellation names, under any of its names [A5]."""
    found = {usage.position: usage for name in names_of(event) if (usage := ledger.usage_of(*name)) is not None}
    if event.sale_position is not None and event.sale_position in ledger.usages:
        found[event.sale_position] = ledger.usages[event.sale_position]
    return [found[position] for position in sorted(found)]


def names_of(event: Event) -> list[tuple[str, str]]:
    """(channel, reference) under which a charged or cancelled order may have used credit [A5], never across [A4]."""
    names = [(Channel.ORDER.value, event.reference)]
    if event.sale_reference is not None:
        names.append((event.channel or Channel.ORDER.value, event.sale_reference))
    return names


def detail_of(event: Event) -> dict[str, Any]:
    """What only some types of event carry [Message.detail]."""
    detail: dict[str, Any] = json.loads(event.detail) if event.detail else {}
    return detail


def _settle(draft: Result, position: int, ledger: Facts) -> Result:
    """Let idle money pay open usages [C2]; nothing without an account [C3].

    Every event that brings money, use or an account ends here, so that afterwards one of the two is exhausted.
    """
    if draft.account.status is None:
        return draft
    usages = {usage.position: usage for usage in draft.usages}
    payments = {payment.position: payment for payment in draft.payments}
    moved = []
    for payment, usage, amount in _moves(draft, ledger):
        paying, paid = payments.get(payment.position, payment), usages.get(usage.position, usage)
        payments[payment.position] = paying._replace(unapplied_minor=paying.unapplied_minor - amount)
        usages[usage.position] = paid._replace(outstanding_minor=paid.outstanding_minor - amount)
        moved.append(Allocation(position, payment.position, usage.position, amount))
    total = sum(allocation.amount_minor for allocation in moved)
    used, unapplied = draft.account.used_minor - total, draft.account.unapplied_minor - total
    return Result(
        draft.account._replace(used_minor=used, unapplied_minor=unapplied),
        usages=tuple(usages[changed] for changed in sorted(usages)),
        payments=tuple(payments[changed] for changed in sorted(payments)),
        allocations=draft.allocations + tuple(moved),
    )


def settle_idle(account: Account, position: int, ledger: Facts) -> Result:
    """What `_settle` would have done, for books in which money lies idle beside open usages [C8].

    Only a repair leaves them so. The moves stand at `position`, which is the last one folded.
    """
    return _settle(Result(account), position, ledger)


def _moves(draft: Result, ledger: Facts) -> Iterator[tuple[Payment, Usage, int]]:
    """(payment, usage, amount): each idle payment the order it names first, then the oldest usages first [C2]."""
    changed = {usage.position: usage for usage in draft.usages}
    left_of: dict[int, int] = {}
    idle, due = ledger.idle_payments(draft.payments), ledger.open_usages(draft.usages)
    payment = next(idle, None)
    oldest = None if payment is None else next(due, None)
    while payment is not None and oldest is not None:
        left = payment.unapplied_minor
        target: Usage | None = _named(payment, changed, ledger) or oldest
        while left and target is not None:
            outstanding = left_of.setdefault(target.position, target.outstanding_minor)
            amount = min(left, outstanding)
            if amount:  # nothing left to pay where another payment named that order before
                yield payment, target, amount
            left -= amount
            left_of[target.position] = outstanding - amount
            while oldest is not None and left_of.get(oldest.position) == 0:
                oldest = next(due, None)
            target = oldest
        payment = next(idle, None)


def _named(payment: Payment, changed: Mapping[int, Usage], ledger: Facts) -> Usage | None:
    """The open usage of the order that a payment is meant for."""
    of_order = {usage.reference: position for position, usage in changed.items() if usage.channel == Channel.ORDER}
    known = ledger.usage_of(Channel.ORDER.value, payment.order_id)
    order = of_order.get(payment.order_id or "") if known is None else known.position
    for position in (order, payment.sale_position):
        usage = None if position is None else changed.get(position) or ledger.usages.get(position)
        if usage is not None and usage.outstanding_minor:
            return usage
    return None
