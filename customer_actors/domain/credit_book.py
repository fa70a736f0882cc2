"""What a credit account consists of: usages, payments, and which payment pays which usage [C1-C5]."""

import heapq
from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar


class Account(NamedTuple):
    """Amounts in minor units; without an account limit and terms are None."""

    status: str | None = None
    """None without an account, else `active` or `suspended`."""
    automatic: bool = False
    """Suspended by the nightly run, which alone may lift it unasked [C7]."""
    limit_minor: int | None = None
    terms_days: int | None = None
    used_minor: int = 0
    """Outstanding of all usages not cancelled [C1]."""
    unapplied_minor: int = 0
    """Money received that pays no usage [C1]."""
    suspense_minor: int = 0
    """Money received while there is no account [C3]."""


class Usage(NamedTuple):
    """Credit used by one sale or charge; one per (channel, reference) [C4]."""

    position: int
    """The event that made it."""
    channel: str
    reference: str
    amount_minor: int
    outstanding_minor: int
    """What is not paid yet; 0 once cancelled."""
    due_date: str
    """ISO date in the business time zone, so that text order is date order."""
    cancelled_position: int | None = None
    over_limit: bool = False
    """A completed sale is recorded even over the limit."""
    no_account: bool = False
    """Sold on credit to a customer without an account [C3]."""


class Payment(NamedTuple):
    """Money received."""

    position: int
    """The event that brought it: payments are spent in this order."""
    reference: str
    amount_minor: int
    unapplied_minor: int
    """The part that pays no usage; without an account all of it, in suspense [C3]."""
    order_id: str | None
    """The order it is meant for [C2]."""
    sale_position: int | None = None
    """Where the sale of that order stood when the money came, if it was known."""


class Allocation(NamedTuple):
    """Money moved from a payment to a usage, or back."""

    position: int
    """The event at which it moved."""
    payment_position: int
    usage_position: int
    amount_minor: int
    """Negative: released by a cancellation [C5]."""


class Result(NamedTuple):
    """What one event makes of the account: new or changed rows, each usage and payment at most once."""

    account: Account
    usages: tuple[Usage, ...] = ()
    payments: tuple[Payment, ...] = ()
    allocations: tuple[Allocation, ...] = ()
    duplicate: bool = False
    """Nothing changed, because what the event asks for is so already."""
    refused: str | None = None
    """Nothing changed, and why, as a short sentence."""


class Facts(ABC):
    """The facts a fold may read, in the orders the rules ask for; a fold changes them only through `apply`.

    Nothing in them is found by searching, so that an event costs what it touches, however long the customer's history.
    They need not be complete. Needed for an event: the usages it names, with their allocations and the payments of
    these for a cancellation; as many of the oldest open usages as its money can reach, and as many of the oldest idle
    payments as its usage can take; the usages that those payments name; and the oldest usage that is still open for an
    automatic suspension or lifting.
    """

    usages: Mapping[int, Usage]
    """By position, like the payments."""
    payments: Mapping[int, Payment]
    paid_by: Mapping[int, Mapping[int, int]]
    """Usage -> payment -> net amount in minor units."""

    @abstractmethod
    def put_usage(self, usage: Usage) -> None:
        """Take over a new or changed usage."""

    @abstractmethod
    def put_payment(self, payment: Payment) -> None:
        """Take over a new or changed payment."""

    @abstractmethod
    def put_allocated(self, payment_position: int, usage_position: int, amount_minor: int) -> None:
        """Add money moved, net of what was there."""

    @abstractmethod
    def usage_of(self, channel: str, reference: str | None) -> Usage | None:
        """The usage of this sale, cancelled or not [C4]."""

    @abstractmethod
    def open_keys(self) -> Iterable[tuple[str, int]]:
        """(due date, position) of every usage with something outstanding, ascending."""

    @abstractmethod
    def idle_keys(self) -> Iterable[int]:
        """The position of every payment with something unapplied, ascending."""

    @abstractmethod
    def between(self, after: int, up_to: int) -> tuple[dict[int, Usage], dict[int, Payment]]:
        """The usages and payments with positions behind `after` and not behind `up_to`."""

    def apply(self, result: Result) -> None:
        """Take over what one event changed."""
        for usage in result.usages:
            self.put_usage(usage)
        for payment in result.payments:
            self.put_payment(payment)
        for _, payment_position, usage_position, amount_minor in result.allocations:
            self.put_allocated(payment_position, usage_position, amount_minor)

    def open_usages(self, changed: Iterable[Usage] = ()) -> Iterator[Usage]:
        """What something is outstanding of, oldest first [C2], as it will be once `changed` is applied."""
        new = {usage.position: usage for usage in changed}
        coming = sorted((usage.due_date, usage.position) for usage in new.values() if usage.outstanding_minor)
        staying = (key for key in self.open_keys() if key[1] not in new)
        for _, position in heapq.merge(staying, coming):
            yield new[position] if position in new else self.usages[position]

    def idle_payments(self, changed: Iterable[Payment] = ()) -> Iterator[Payment]:
        """What something is unapplied of, in arrival order, as it will be once `changed` is applied."""
        new = {payment.position: payment for payment in changed}
        coming = sorted(payment.position for payment in new.values() if payment.unapplied_minor)
        staying = (position for position in self.idle_keys() if position not in new)
        for position in heapq.merge(staying, coming):
            yield new[position] if position in new else self.payments[position]


_Key = TypeVar("_Key", int, tuple[str, int])


class Ledger(Facts):
    """Facts in memory."""

    def __init__(self) -> None:
        self.usages: dict[int, Usage] = {}
        self.payments: dict[int, Payment] = {}
        self.paid_by: dict[int, Counter[int]] = {}
        self._by_sale: dict[tuple[str, str | None], int] = {}
        self._open: list[tuple[str, int]] = []
        self._idle: list[int] = []

    def put_usage(self, usage: Usage) -> None:
        old = self.usages.get(usage.position)
        was_open = old is not None and old.outstanding_minor > 0
        _keep(self._open, (usage.due_date, usage.position), was_open, usage.outstanding_minor > 0)
        self.usages[usage.position] = usage
        self._by_sale[usage.channel, usage.reference] = usage.position

    def put_payment(self, payment: Payment) -> None:
        old = self.payments.get(payment.position)
        was_idle = old is not None and old.unapplied_minor > 0
        _keep(self._idle, payment.position, was_idle, payment.unapplied_minor > 0)
        self.payments[payment.position] = payment

    def put_allocated(self, payment_position: int, usage_position: int, amount_minor: int) -> None:
        self.paid_by.setdefault(usage_position, Counter())[payment_position] += amount_minor

    def usage_of(self, channel: str, reference: str | None) -> Usage | None:
        position = self._by_sale.get((channel, reference))
        return None if position is None else self.usages[position]

    def open_keys(self) -> Iterable[tuple[str, int]]:
        return self._open

    def idle_keys(self) -> Iterable[int]:
        return self._idle

    def between(self, after: int, up_to: int) -> tuple[dict[int, Usage], dict[int, Payment]]:
        return (
            {position: usage for position, usage in self.usages.items() if after < position <= up_to},
            {position: payment for position, payment in self.payments.items() if after < position <= up_to},
        )


def _keep(ordered: list[_Key], key: _Key, was_in: bool, is_in: bool) -> None:
    """Bring a sorted list up to date with whether a key belongs in it."""
    if is_in and not was_in:
        insort(ordered, key)
    elif was_in and not is_in:
        del ordered[bisect_left(ordered, key)]
