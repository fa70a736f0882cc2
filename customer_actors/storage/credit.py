"""Credit accounts with their usages, payments and allocations [C1-C5]."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from customer_actors.domain import routing
from customer_actors.domain.credit import fold, names_of
from customer_actors.domain.credit_book import Account, Allocation, Ledger, Payment, Usage
from customer_actors.domain.events import SALE_TYPES, Channel, Event, EventType
from customer_actors.groups.advance import Hold
from customer_actors.storage.database import Columns, Database, columns
from customer_actors.storage.stream_store import StreamStore

STATE = columns(
    "credit_state",
    "customer bigint",
    "position bigint, status text, automatic boolean, limit_minor bigint, terms_days int, used_minor bigint, "
    "unapplied_minor bigint, suspense_minor bigint",
)
_USAGE_VALUES = (
    "amount_minor bigint, outstanding_minor bigint, due_date text, cancelled_position bigint, over_limit boolean, "
    "no_account boolean"
)
USAGE = columns("credit_usage", "customer bigint, position bigint", "channel text, reference text, " + _USAGE_VALUES)
USAGE_BY_SALE = columns(
    "credit_usage", "customer bigint, channel text, reference text", "position bigint, " + _USAGE_VALUES
)
USAGE_CHANGES = columns(
    "credit_usage", "customer bigint, position bigint", "outstanding_minor bigint, cancelled_position bigint"
)
PAYMENT = columns(
    "credit_payment",
    "customer bigint, position bigint",
    "reference text, amount_minor bigint, unapplied_minor bigint, order_id text, sale_position bigint",
)
PAYMENT_CHANGES = columns("credit_payment", "customer bigint, position bigint", "unapplied_minor bigint")
ALLOCATION = columns(
    "credit_allocation",
    "customer bigint, usage_position bigint, payment_position bigint, position bigint",
    "amount_minor bigint",
)
_CUSTOMER = columns("credit_state", "customer bigint")
_OPEN_USAGES = (
    f"SELECT {', '.join(USAGE.names)} FROM credit_usage WHERE customer = {{customer}} AND outstanding_minor > 0"
)
_OPEN_PAYMENTS = (
    f"SELECT {', '.join(PAYMENT.names)} FROM credit_payment WHERE customer = {{customer}} AND unapplied_minor > 0"
)
_USAGE_AT = columns("credit_usage", "customer bigint, usage_position bigint")
_ALLOCATED = (
    "SELECT customer, payment_position, usage_position, CAST(sum(amount_minor) AS bigint) FROM credit_allocation "
    "WHERE customer = {customer} AND usage_position = {usage_position} "
    "GROUP BY customer, payment_position, usage_position"
)

_MONEY_MOVES = frozenset({EventType.PAYMENT_RECEIVED, EventType.ORDER_CANCELLED, EventType.CREDIT_OPENED})
"""Events that may pay usages made before them."""


class CreditStore(StreamStore):
    actor: ClassVar[str] = routing.CREDIT
    state: ClassVar[Columns] = STATE

    def load(self, events: Sequence[Event]) -> "_Work":
        groups = {event.customer for event in events}
        books = {group: _Book(Account(*self.rows[group][2:])) for group in groups}
        _load_facts(self.database, events, books)
        for book in books.values():
            book.stored = set(book.ledger.usages), set(book.ledger.payments)
        return _Work(self, books)


@dataclass
class _Book:
    """One customer's account and ledger during a round, and what changed in it."""

    account: Account
    ledger: Ledger = field(default_factory=Ledger)
    stored: tuple[set[int], set[int]] = field(default_factory=lambda: (set(), set()))
    """Positions of the usages and payments that are rows already."""
    usages: set[int] = field(default_factory=set)
    payments: set[int] = field(default_factory=set)
    allocations: list[Allocation] = field(default_factory=list)


def _load_facts(database: Database, events: Sequence[Event], books: dict[int, _Book]) -> None:
    """Everything `fold` may need for these events, set-wise [see domain.credit.Ledger]."""
    paying = {
        event.customer for event in events if event.type in _MONEY_MOVES and books[event.customer].account.used_minor
    }
    idle = {group for group, book in books.items() if book.account.unapplied_minor or book.account.suspense_minor}
    _take_usages(books, database.for_each(_CUSTOMER, _OPEN_USAGES, [(group,) for group in sorted(paying)]))
    _take_payments(books, database.for_each(_CUSTOMER, _OPEN_PAYMENTS, [(group,) for group in sorted(idle)]))
    by_sale = {(e.customer, e.channel or Channel.ORDER.value, e.reference) for e in events if e.type in _NAMES_SALE}
    by_sale |= {(e.customer, *name) for e in events if e.type in _NAMES_ORDER for name in names_of(e)}
    at_sale = {(e.customer, e.sale_position) for e in events if e.sale_position is not None}
    rows = database.select(USAGE_BY_SALE, sorted(by_sale))
    _take_usages(
        books,
        [(customer, position, channel, reference, *rest) for customer, channel, reference, position, *rest in rows],
    )
    _take_usages(books, database.select(USAGE, sorted(at_sale)))
    ending = sorted(
        (event.customer, usage.position)
        for event in events
        if event.type == EventType.ORDER_CANCELLED
        for usage in books[event.customer].ledger.usages.values()
        if usage.position == event.sale_position or (usage.channel, usage.reference) in names_of(event)
    )
    spent: set[tuple[int, int]] = set()
    for customer, payment, usage, net in database.for_each(_USAGE_AT, _ALLOCATED, sorted(set(ending))):
        books[customer].ledger.allocated[payment, usage] = net
        spent.add((customer, payment))
    _take_payments(books, database.select(PAYMENT, sorted(spent)))


_NAMES_ORDER = frozenset({EventType.ORDER_CANCELLED, EventType.CREDIT_CHARGED})
_NAMES_SALE = SALE_TYPES | {EventType.CREDIT_CHARGED}


def _take_usages(books: dict[int, _Book], rows: Iterable[Sequence[object]]) -> None:
    for customer, *values in rows:
        usage = Usage(*values)  # type: ignore[arg-type]
        books[customer].ledger.usages[usage.position] = usage  # type: ignore[index]


def _take_payments(books: dict[int, _Book], rows: Iterable[Sequence[object]]) -> None:
    for customer, *values in rows:
        payment = Payment(*values)  # type: ignore[arg-type]
        books[customer].ledger.payments[payment.position] = payment  # type: ignore[index]


class _Work:
    def __init__(self, store: CreditStore, books: dict[int, _Book]) -> None:
        self.store = store
        self.books = books

    def fold(self, event: Event) -> None:
        book = self.books[event.customer]
        result = fold(book.account, event, self.store.rules[event.rules], book.ledger)
        book.account = result.account
        book.ledger.apply(result)
        book.usages.update(usage.position for usage in result.usages)
        book.payments.update(payment.position for payment in result.payments)
        book.allocations.extend(result.allocations)

    def save(self, positions: dict[int, int], holds: Sequence[Hold]) -> None:
        database = self.store.database
        usages = [(g, book.ledger.usages[at]) for g, book in self.books.items() for at in sorted(book.usages)]
        payments = [(g, book.ledger.payments[at]) for g, book in self.books.items() for at in sorted(book.payments)]
        database.insert(USAGE, [(g, *u) for g, u in usages if u.position not in self.books[g].stored[0]])
        database.update(
            USAGE_CHANGES,
            [
                (g, u.position, u.outstanding_minor, u.cancelled_position)
                for g, u in usages
                if u.position in self.books[g].stored[0]
            ],
        )
        database.insert(PAYMENT, [(g, *p) for g, p in payments if p.position not in self.books[g].stored[1]])
        database.update(
            PAYMENT_CHANGES,
            [(g, p.position, p.unapplied_minor) for g, p in payments if p.position in self.books[g].stored[1]],
        )
        database.insert(
            ALLOCATION,
            [
                (g, a.usage_position, a.payment_position, a.position, a.amount_minor)
                for g, book in self.books.items()
                for a in book.allocations
            ],
        )
        database.update(STATE, [(group, at, *self.books[group].account) for group, at in positions.items()])
        self.store.hold(holds)
