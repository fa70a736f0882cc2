"""Histories for property tests: lists of messages over few ids, so that they meet, repeat and contradict each other.

Behind every history stands a small book of what happened in each organization: which order is whose, of what amount,
and which POS sale it is. A message is a view of one page of the book; some are bent afterwards and contradict it.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from hypothesis import strategies as st

from customer_actors.domain.events import SALE_TYPES, EventType, Message
from tests.model.stream import AFTER_ALL, BEFORE_ALL

ORGANIZATIONS: Final = ("org-1", "org-1", "org-1", "org-2")
"""Customers, orders and references have the same names in both; most messages go to the first."""
CUSTOMERS: Final = ("c1", "c1", "c1", "c2", "c2", "c3", "c4")
ORDERS: Final = ("1", "2", "3", "4")
TRANSACTIONS: Final = ("1", "2", "3")
"""The same texts as the orders' on purpose: an equal id is not an equal sale [A4]."""
PAYMENTS: Final = {"p1": 5_000, "p2": 12_550, "p3": 60_000}
"""Payment reference -> amount in minor units."""
LIMITS: Final = {"c1": 60_000, "c2": 20_000, "c3": 0, "c4": 100_000}
"""Customer -> limit the account is opened with, in minor units."""
AMOUNTS: Final = (0, 999, 5_000, 10_000, 25_050, 60_000, 120_000, 550_000)

EXTERNAL: Final = frozenset(
    {EventType.ORDER_COMPLETED, EventType.ORDER_CANCELLED, EventType.POS_COMPLETED, EventType.PAYMENT_RECEIVED}
)
UNKEYED: Final = frozenset(
    {
        EventType.CREDIT_OPENED,
        EventType.CREDIT_CHARGED,
        EventType.CREDIT_LIMIT_CHANGED,
        EventType.CREDIT_SUSPENDED,
        EventType.CREDIT_LIFTED,
    }
)
"""Types without a business key: each message of these is an event of its own."""

BY_NIGHT: Final = tuple(f'{{"automatic": true, "as_of": "{as_of}"}}' for as_of in (BEFORE_ALL, AFTER_ALL))
BY_HAND: Final = '{"automatic": false}'

START_US: Final = 1_717_200_000_000_000
"""2024-06-01 00:00 UTC."""
SECOND_US: Final = 1_000_000
HOUR_US: Final = 3_600 * SECOND_US


class Sale(NamedTuple):
    """What a sale was, whichever of its names a message uses."""

    customer_id: str
    amount_minor: int
    occurred_at_us: int
    on_credit: bool


class Book(NamedTuple):
    """What happened in one organization."""

    organization_id: str
    transactions: dict[str, Sale]
    orders: dict[str, Sale]
    twins: dict[str, str | None]
    """Order -> the POS transaction it is, if any [A5]; two orders may name one."""


_TIMES: Final = st.sampled_from([START_US + step * 7 * HOUR_US for step in range(6)])

_SALES: Final = st.builds(
    Sale,
    customer_id=st.sampled_from(CUSTOMERS),
    amount_minor=st.sampled_from(AMOUNTS),
    occurred_at_us=_TIMES,
    on_credit=st.sampled_from((False, False, True)),
)


@st.composite
def _books(draw: st.DrawFn, organization_id: str) -> Book:
    transactions = {transaction: draw(_SALES) for transaction in TRANSACTIONS}
    twins = {order: draw(st.sampled_from((None, *TRANSACTIONS))) for order in ORDERS}
    orders = {order: draw(_SALES) if twin is None else transactions[twin] for order, twin in twins.items()}
    return Book(organization_id, transactions, orders, twins)


@st.composite
def messages(
    draw: st.DrawFn,
    *,
    max_size: int = 30,
    external_only: bool = False,
    conflict_free: bool = False,
    named_twins: bool = False,
) -> list[Message]:
    """Histories in order of receipt: early cancellations, twins, anonymous sales, repetitions, conflicts, commands.

    A command other than `credit.opened` comes only after a message that surely made its customer [C9].

    `external_only`: only the four types that other services send.

    `conflict_free`: only histories of which docs/rules.md 7 says that with all multipliers 1.0 every order of arrival
    ends in the same customers and the same states, all but `position` (a cancellation that comes first is no event of
    its own).
    These are the histories in which
    - each key always has one content: customer, amount, also `occurred_at`, sold on credit and the POS sale named,
      which admission does not compare and the first message decides;
    - an order and the POS sale it is agree in that content, and no message of that POS sale names the customer, since
      the first that does decides the channel [A5];
    - one currency occurs, or none;
    - the only command is `credit.opened`, with one limit and terms per customer: what a charge or a redemption may do
      depends on what came before it, limits and suspensions on which came last.

    `named_twins`, with `conflict_free`: POS sales that orders name may name their customers too. Then `by_channel`
    depends on the order of arrival as well, but not its sum.
    """
    books = {organization_id: draw(_books(organization_id)) for organization_id in sorted(set(ORGANIZATIONS))}
    kinds = _kinds(external_only=external_only, conflict_free=conflict_free)
    history: list[Message] = []
    for _ in range(draw(st.integers(0, max_size))):
        book = books[draw(st.sampled_from(ORGANIZATIONS))]
        message = draw(st.sampled_from(kinds))(draw, book)._replace(currency=draw(st.sampled_from((None, "EUR"))))
        if message.type not in SALE_TYPES:
            message = message._replace(occurred_at_us=draw(_TIMES))
        if conflict_free and not named_twins and _names_a_twin(book, message):
            message = message._replace(customer_id=None)
        if not conflict_free and draw(st.integers(0, 4)) == 0:
            message = _bent(draw, message)
        history.extend(_introduction(draw, history, message))
        history.append(message)
    return [_received(index, message) for index, message in enumerate(history)]


@st.composite
def shuffled_with_duplicates(draw: st.DrawFn, messages: Sequence[Message]) -> list[Message]:
    """Every message at least once, some again, as a broker may deliver them: in any order.

    Only messages with a business key are repeated; a command without one happens as often as it is sent. Shuffling may
    bring a command before its customer, so a caller who has to check that [C9] shuffles histories without commands.
    """
    keyed = [message for message in messages if message.type not in UNKEYED]
    repeated = draw(st.lists(st.sampled_from(keyed), max_size=len(keyed))) if keyed else []
    return draw(st.permutations([*messages, *repeated]))


_Kind = Callable[[st.DrawFn, Book], Message]


def _kinds(*, external_only: bool, conflict_free: bool) -> list[_Kind]:
    """What messages are drawn from, the frequent ones more than once."""
    external: list[_Kind] = [_order, _order, _order, _cancellation, _cancellation, _pos, _pos, _anonymous, _payment]
    if external_only:
        return external
    if conflict_free:
        return [*external, _opened]
    return [*external, _cancellation, _opened, _charge, _charge, _limit, _suspended, _lifted, _redemption, _redemption]


def _message(type_: EventType, book: Book, customer_id: str | None, reference: str, amount_minor: int) -> Message:
    return Message(
        type=type_,
        organization_id=book.organization_id,
        customer_id=customer_id,
        reference=reference,
        amount_minor=amount_minor,
        currency=None,
        occurred_at_us=START_US,
        received_at_us=START_US,
        payload="{}",
    )


def _order(draw: st.DrawFn, book: Book) -> Message:
    order = draw(st.sampled_from(ORDERS))
    sale = book.orders[order]
    message = _message(EventType.ORDER_COMPLETED, book, sale.customer_id, order, sale.amount_minor)
    return message._replace(
        occurred_at_us=sale.occurred_at_us, on_credit=sale.on_credit, pos_transaction_id=book.twins[order]
    )


def _cancellation(draw: st.DrawFn, book: Book) -> Message:
    return _message(EventType.ORDER_CANCELLED, book, None, draw(st.sampled_from(ORDERS)), 0)


def _pos(draw: st.DrawFn, book: Book) -> Message:
    transaction = draw(st.sampled_from(TRANSACTIONS))
    sale = book.transactions[transaction]
    message = _message(EventType.POS_COMPLETED, book, sale.customer_id, transaction, sale.amount_minor)
    return message._replace(occurred_at_us=sale.occurred_at_us, on_credit=sale.on_credit)


def _anonymous(draw: st.DrawFn, book: Book) -> Message:
    return _pos(draw, book)._replace(customer_id=None)


def _payment(draw: st.DrawFn, book: Book) -> Message:
    reference, customer_id = draw(st.sampled_from(list(PAYMENTS))), draw(st.sampled_from(CUSTOMERS))
    order_id = draw(st.sampled_from((None, *ORDERS)))
    message = _message(EventType.PAYMENT_RECEIVED, book, customer_id, reference, PAYMENTS[reference])
    return message._replace(order_id=order_id)


def _opened(draw: st.DrawFn, book: Book) -> Message:
    customer_id = draw(st.sampled_from(CUSTOMERS))
    detail = '{"terms_days": 10}' if customer_id == "c1" else None
    message = _message(EventType.CREDIT_OPENED, book, customer_id, "", LIMITS[customer_id])
    return message._replace(detail=detail)


def _charge(draw: st.DrawFn, book: Book) -> Message:
    """Of an order at its amount, or of another amount: a completion's may differ from the charge's."""
    order = draw(st.sampled_from(ORDERS))
    sale = book.orders[order]
    amount_minor = draw(st.sampled_from((sale.amount_minor, sale.amount_minor, 5_000)))
    return _message(EventType.CREDIT_CHARGED, book, sale.customer_id, order, amount_minor)


def _limit(draw: st.DrawFn, book: Book) -> Message:
    amount_minor = draw(st.sampled_from((0, 10_000, 150_000)))
    return _message(EventType.CREDIT_LIMIT_CHANGED, book, draw(st.sampled_from(CUSTOMERS)), "", amount_minor)


def _suspended(draw: st.DrawFn, book: Book) -> Message:
    detail = draw(st.sampled_from((*BY_NIGHT, BY_HAND, BY_HAND)))
    message = _message(EventType.CREDIT_SUSPENDED, book, draw(st.sampled_from(CUSTOMERS)), "", 0)
    return message._replace(detail=detail)


def _lifted(draw: st.DrawFn, book: Book) -> Message:
    return _suspended(draw, book)._replace(type=EventType.CREDIT_LIFTED)


def _redemption(draw: st.DrawFn, book: Book) -> Message:
    """Of the points one order earns at the first tier: what is a debt when that order is cancelled."""
    order = draw(st.sampled_from(ORDERS))
    sale = book.orders[order]
    points = max(1, sale.amount_minor // 100)
    return _message(EventType.LOYALTY_REDEEMED, book, sale.customer_id, f"r{order}", points)


def _names_a_twin(book: Book, message: Message) -> bool:
    return message.type == EventType.POS_COMPLETED and message.reference in book.twins.values()


def _bent(draw: st.DrawFn, message: Message) -> Message:
    """The message with one field that contradicts the book, but still one that decoding lets pass."""
    fields = ["currency", "occurred_at_us"]
    if message.type != EventType.ORDER_CANCELLED:
        fields.append("amount_minor")
    if message.customer_id is not None:
        fields.append("customer_id")
    if message.type == EventType.ORDER_COMPLETED:
        fields += ["pos_transaction_id", "on_credit"]
    match draw(st.sampled_from(fields)):
        case "currency":
            return message._replace(currency="USD")
        case "occurred_at_us":
            return message._replace(occurred_at_us=message.occurred_at_us + HOUR_US + 1)
        case "amount_minor":
            positive = [amount_minor for amount_minor in AMOUNTS if amount_minor > 0]
            return message._replace(amount_minor=draw(st.sampled_from(positive)))
        case "customer_id":
            return message._replace(customer_id=draw(st.sampled_from(CUSTOMERS)))
        case "pos_transaction_id":
            return message._replace(pos_transaction_id=draw(st.sampled_from((None, *TRANSACTIONS))))
        case _:
            return message._replace(on_credit=not message.on_credit)


def _introduction(draw: st.DrawFn, history: Sequence[Message], message: Message) -> list[Message]:
    """What makes the customer of a command known: an account or a sale of its own, without a currency to object to."""
    if message.type in EXTERNAL or message.type == EventType.CREDIT_OPENED or message.customer_id is None:
        return []
    customer_id = message.customer_id
    for earlier in history:
        introduces = earlier.type == EventType.CREDIT_OPENED or earlier.reference == f"first-{customer_id}"
        same = (earlier.organization_id, earlier.customer_id) == (message.organization_id, customer_id)
        if introduces and same and earlier.currency is None:
            return []
    plain = message._replace(currency=None, detail=None)
    opened = plain._replace(type=EventType.CREDIT_OPENED, reference="", amount_minor=LIMITS[customer_id])
    order = plain._replace(type=EventType.ORDER_COMPLETED, reference=f"first-{customer_id}", amount_minor=10_000)
    return [draw(st.sampled_from((opened, order)))]


def _received(index: int, message: Message) -> Message:
    """Received one second after the other, each with a body of its own, so that only a repetition is equal."""
    return message._replace(received_at_us=START_US + 50 * HOUR_US + index * SECOND_US, payload=f'{{"n": {index}}}')
