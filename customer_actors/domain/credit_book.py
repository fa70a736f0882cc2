"""What a credit account consists of: usages, payments, and which payment pays which usage [C1-C5]."""

from dataclasses import dataclass, field
from typing import NamedTuple


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


@dataclass
class Ledger:
    """The facts a fold may read; mutable only through `apply`.

    Needed for an event: every usage with something outstanding, every payment with something unapplied, the usages a
    cancellation names with their allocations and the payments of these, and the usage a sale or charge would repeat.
    """

    usages: dict[int, Usage] = field(default_factory=dict)
    """By position, like the payments."""
    payments: dict[int, Payment] = field(default_factory=dict)
    allocated: dict[tuple[int, int], int] = field(default_factory=dict)
    """(payment_position, usage_position) -> net amount in minor units."""

    def apply(self, result: Result) -> None:
        """Take over what one event changed."""
        self.usages.update((usage.position, usage) for usage in result.usages)
        self.payments.update((payment.position, payment) for payment in result.payments)
        for _, payment, usage, amount_minor in result.allocations:
            self.allocated[payment, usage] = self.allocated.get((payment, usage), 0) + amount_minor

    def knows(self, channel: str, reference: str) -> bool:
        """Whether a usage of this sale exists, cancelled or not [C4]."""
        return any(usage.reference == reference and usage.channel == channel for usage in self.usages.values())
