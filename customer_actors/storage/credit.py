"""Credit accounts with their usages, payments and allocations [C1-C5]."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Final, NamedTuple

from customer_actors.domain import routing
from customer_actors.domain.credit import fold, named_usages, names_of
from customer_actors.domain.credit_book import Account, Allocation, Ledger, Payment, Usage
from customer_actors.domain.events import SALE_TYPES, Channel, Event, EventType
from customer_actors.groups.advance import Hold
from customer_actors.storage.database import Columns, Database, Row, columns
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
_USAGE_AT = columns("credit_usage", "customer bigint, usage_position bigint")
_ALLOCATED = (
    "SELECT customer, payment_position, usage_position, CAST(sum(amount_minor) AS bigint) FROM credit_allocation "
    "WHERE customer = {customer} AND usage_position = {usage_position} "
    "GROUP BY customer, payment_position, usage_position"
)


class _Oldest(NamedTuple):
    """How to read the first rows of a customer that have something left."""

    over: Columns
    sql: str
    """Of the rows behind a key, in the order of the rule."""
    start: tuple[object, ...]
    key: Callable[[Row], Row]
    left: int
    """Where in a row the amount left stands."""


_OPEN_USAGES = _Oldest(
    columns("credit_usage", "customer bigint, due_date text, position bigint"),
    f"SELECT {', '.join(USAGE.names)} FROM credit_usage WHERE customer = {{customer}} AND outstanding_minor > 0 "
    "AND (due_date, position) > ({due_date}, {position}) ORDER BY due_date, position LIMIT %d",
    ("", 0),
    lambda row: (row[0], row[6], row[1]),
    5,
)
_IDLE_PAYMENTS = _Oldest(
    columns("credit_payment", "customer bigint, position bigint"),
    f"SELECT {', '.join(PAYMENT.names)} FROM credit_payment WHERE customer = {{customer}} AND unapplied_minor > 0 "
    "AND position + 0 > {position} ORDER BY position + 0 LIMIT %d",
    (0,),
    lambda row: (row[0], row[1]),
    4,
)
_FIRST_LOOK: Final = 32
"""Rows; every further look takes eight times as many."""

Ledgers = Mapping[int, Ledger]
"""By customer."""


class CreditStore(StreamStore):
    actor: ClassVar[str] = routing.CREDIT
    state: ClassVar[Columns] = STATE

    def load(self, events: Sequence[Event]) -> "_Work":
        groups = {event.customer for event in events}
        books = {group: _Book(Account(*self.rows[group][2:])) for group in groups}
        _load_facts(self.database, events, books, {group: book.ledger for group, book in books.items()})
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


def _load_facts(database: Database, events: Sequence[Event], books: dict[int, _Book], ledgers: Ledgers) -> None:
    """Everything `fold` may need for these events, set-wise [see domain.credit_book.Ledger].

    Of open usages and idle payments only as many as the events can reach, so that a round costs what it moves, however
    much is open.
    """
    by_sale = {(e.customer, e.channel or Channel.ORDER.value, e.reference) for e in events if e.type in _NAMES_SALE}
    by_sale |= {(e.customer, *name) for e in events if e.type in _NAMES_ORDER for name in names_of(e)}
    by_sale |= {(e.customer, Channel.ORDER.value, e.order_id) for e in events if e.order_id is not None}
    at_sale = {(e.customer, e.sale_position) for e in events if e.sale_position is not None}
    take_named(database, ledgers, by_sale, at_sale)
    ending = {
        (event.customer, usage.position): usage
        for event in events
        if event.type == EventType.ORDER_CANCELLED
        for usage in named_usages(event, ledgers[event.customer])
        if usage.cancelled_position is None
    }
    spent: set[tuple[int, int]] = set()
    for customer, payment, usage, net in database.for_each(_USAGE_AT, _ALLOCATED, sorted(ending)):
        ledgers[customer].put_allocated(payment, usage, net)
        spent.add((customer, payment))
    _take_payments(ledgers, database.select(PAYMENT, sorted(spent)))
    take_reached(database, ledgers, *_reach(events, {g: book.account for g, book in books.items()}, ending))


def _reach(
    events: Sequence[Event], accounts: Mapping[int, Account], ending: Mapping[tuple[int, int], Usage]
) -> tuple[dict[int, int], dict[int, int]]:
    """By customer: the most money that may look for open usages, and the most use that may look for idle money.

    Of a usage that ends, a part is money that is free again and the rest is use that is gone: both move the reach. One
    minor unit more than all that can be paid reaches the oldest usage that stays open.
    """
    money, use = Counter[int](), Counter[int]()
    for group, account in accounts.items():
        money[group], use[group] = account.unapplied_minor + account.suspense_minor, account.used_minor
    for event in events:
        money[event.customer] += event.amount_minor if event.type == EventType.PAYMENT_RECEIVED else 0
        money[event.customer] += event.type in _LOOKS_AT_OLDEST
        use[event.customer] += event.amount_minor if event.type in _NAMES_SALE else 0
    for (group, _), usage in ending.items():
        money[group] += usage.amount_minor
    moving = {group for group, account in accounts.items() if account.status is not None}
    moving |= {event.customer for event in events if event.type == EventType.CREDIT_OPENED}
    return (
        {group: money[group] for group in moving if accounts[group].used_minor},
        {group: use[group] for group in moving if accounts[group].unapplied_minor or accounts[group].suspense_minor},
    )


def take_reached(database: Database, ledgers: Ledgers, money: Mapping[int, int], use: Mapping[int, int]) -> None:
    """Load, by customer, the oldest idle payments that together are so much use, and the oldest open usages that
    together are so much money; and the usages of the orders that any payment there is meant for [C2]."""
    _take_payments(ledgers, _oldest(database, _IDLE_PAYMENTS, use))
    idle = [(group, payment) for group in money for payment in ledgers[group].payments.values()]
    by_sale = {(group, Channel.ORDER.value, p.order_id) for group, p in idle if p.order_id is not None}
    take_named(database, ledgers, by_sale, {(group, p.sale_position) for group, p in idle if p.sale_position})
    _take_usages(ledgers, _oldest(database, _OPEN_USAGES, money))


def take_named(
    database: Database,
    ledgers: Ledgers,
    by_sale: Iterable[tuple[int, str, str]],
    at_sale: Iterable[tuple[int, int]],
) -> None:
    """Load usages by (customer, channel, reference) and by (customer, position)."""
    rows = database.select(USAGE_BY_SALE, sorted(by_sale))
    _take_usages(
        ledgers,
        [(customer, position, channel, reference, *rest) for customer, channel, reference, position, *rest in rows],
    )
    _take_usages(ledgers, database.select(USAGE, sorted(at_sale)))


def _oldest(database: Database, what: _Oldest, wanted: Mapping[int, int]) -> list[Row]:
    """The first rows of each customer whose amounts left reach the one wanted, or all there are."""
    rows: list[Row] = []
    wanting = {group: amount for group, amount in wanted.items() if amount > 0}
    behind: dict[int, Row] = {group: (group, *what.start) for group in wanting}
    limit = _FIRST_LOOK
    while wanting:
        found = database.for_each(what.over, what.sql % limit, [behind[group] for group in sorted(wanting)])
        found.sort(key=what.key)
        for row in found:
            wanting[row[0]] -= row[what.left]
            behind[row[0]] = what.key(row)
        many = Counter(row[0] for row in found)
        wanting = {group: amount for group, amount in wanting.items() if amount > 0 and many[group] == limit}
        rows += found
        limit *= 8
    return rows


_NAMES_ORDER = frozenset({EventType.ORDER_CANCELLED, EventType.CREDIT_CHARGED})
_LOOKS_AT_OLDEST = frozenset({EventType.CREDIT_SUSPENDED, EventType.CREDIT_LIFTED})
_NAMES_SALE = SALE_TYPES | {EventType.CREDIT_CHARGED}


def _take_usages(ledgers: Ledgers, rows: Iterable[Row]) -> None:
    for customer, *values in rows:
        ledgers[customer].put_usage(Usage(*values))


def _take_payments(ledgers: Ledgers, rows: Iterable[Row]) -> None:
    for customer, *values in rows:
        ledgers[customer].put_payment(Payment(*values))


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
