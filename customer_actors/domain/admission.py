"""What a received message becomes [A1-A5, A9], decided in memory over the registry rows a batch names.

The caller loads the rows (locked), calls `admit` in delivery order, and writes what changed. Nothing here does I/O, so
the order of two racing messages is decided by the row locks alone and the decision itself can be tested as a table.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

from customer_actors.domain.events import Channel, EventType, Message, Outcome, Rejected

SaleKey = tuple[str, str, str]
"""(organization_id, channel, order or transaction id) [A2]."""
PaymentKey = tuple[str, str, str]
"""(organization_id, customer_id, payment reference) [A2]."""
CommandKey = tuple[str, str]
"""(organization_id, redemption reference) [L6]."""


@dataclass(slots=True)
class Sale:
    """Registry row of one sale key: what is known of that order or till transaction so far."""

    organization_id: str
    channel: str
    reference: str
    customer_id: str | None = None
    amount_minor: int | None = None
    """None until a completion was seen (a tombstone or a charge alone has none)."""
    sold_channel: str | None = None
    """Channel of the first message that named a customer [A5], and its id; None while nobody did."""
    sold_reference: str | None = None
    position: int | None = None
    """Where the sale stands in its customer's stream."""
    occurred_at_us: int | None = None
    on_credit: bool = False
    """A credit usage may exist: sold on credit, or charged."""
    cancelled: bool = False
    alias: str | None = None
    """An order row that is one with a POS sale: that sale's transaction id [A5]."""
    charged: bool = False
    """A charge named this order: its cancellation concerns that customer [C4]."""

    @property
    def key(self) -> SaleKey:
        return (self.organization_id, self.channel, self.reference)

    @property
    def blank(self) -> bool:
        """Nothing is known: the key was looked up and not claimed."""
        return self.amount_minor is None and not self.charged and not self.cancelled


class Redemption(NamedTuple):
    """Registry row of a redemption reference."""

    customer_id: str
    points: int


@dataclass(slots=True)
class Registry:
    """The registry rows a batch names, as they are while the batch is decided. Missing = never seen."""

    sales: dict[SaleKey, Sale] = field(default_factory=dict)
    payments: dict[PaymentKey, int] = field(default_factory=dict)
    """Payment key -> amount in minor units."""
    redemptions: dict[CommandKey, Redemption] = field(default_factory=dict)
    currencies: dict[str, str] = field(default_factory=dict)
    """Organization -> its currency, once known [A6]."""
    default_currency: str | None = None
    """The configured one, of organizations whose currency is not known yet."""

    def sale(self, organization_id: str, channel: str, reference: str) -> Sale:
        key = (organization_id, channel, reference)
        sale = self.sales.get(key)
        if sale is None:
            sale = self.sales[key] = Sale(*key)
        return sale

    def meaning(self, sale: Sale) -> Sale:
        """The row that stands for the sale: the POS row an order is one with, else the row itself [A5]."""
        return sale if sale.alias is None else self.sale(sale.organization_id, Channel.POS, sale.alias)


@dataclass(slots=True)
class Draft:
    """An event that still lacks its position; positions are given after all outcomes are known."""

    type: EventType
    customer_id: str
    message: Message
    channel: str | None = None
    amount_minor: int = 0
    on_credit: bool = False
    already_cancelled: bool = False
    sale: Sale | None = None
    """A sale's own row (its position is written there) or the sale a cancellation or charge refers to."""
    founds_sale: bool = False
    """This event IS the sale: its position becomes the sale's."""


class Decision(NamedTuple):
    """One message's outcome."""

    outcome: Outcome
    draft: Draft | None = None
    rejected: Rejected | None = None
    customer_id: str | None = None
    """Whom to ring: set for duplicates too, since their bell may have been lost in a crash."""
    on_credit: bool = False


def _conflict(message: Message, what: str) -> Decision:
    reason = f"{what}; the first message stands. Correct the publisher, or use a new id for a new business fact."
    return Decision(Outcome.QUARANTINED, rejected=Rejected("conflict", reason, message.organization_id))


def _duplicate(sale: Sale) -> Decision:
    return Decision(Outcome.DUPLICATE, customer_id=sale.customer_id, on_credit=sale.on_credit)


def admit(message: Message, registry: Registry) -> Decision:
    """Decide one message against everything decided before it, and note it in the registry."""
    organization_id, currency = message.organization_id, message.currency
    known = registry.currencies.get(organization_id, registry.default_currency)
    if currency is not None and known is not None and currency != known:
        reason = f"currency is {currency}, but organization {organization_id} uses {known}; send amounts in {known}"
        return Decision(Outcome.QUARANTINED, rejected=Rejected("currency", reason, organization_id))
    decision = _JUDGES[message.type](message, registry)
    settled = known or currency
    if settled is not None and decision.outcome not in (Outcome.QUARANTINED, Outcome.DUPLICATE):
        registry.currencies.setdefault(organization_id, settled)
    return decision


def _order_completed(message: Message, registry: Registry) -> Decision:
    organization_id, customer_id = message.organization_id, message.customer_id
    assert customer_id is not None
    order = registry.sale(organization_id, Channel.ORDER, message.reference)
    if order.amount_minor is not None:
        if order.customer_id != customer_id:
            return _conflict(message, f"order {order.reference} was already received for another customer")
        if order.amount_minor != message.amount_minor:
            return _conflict(message, f"order {order.reference} was already received with another amount")
        return _duplicate(registry.meaning(order))
    if message.pos_transaction_id is None:
        return _found_sale(message, order, order, customer_id)
    return _order_naming_pos(message, registry, order, customer_id)


def _order_naming_pos(message: Message, registry: Registry, order: Sale, customer_id: str) -> Decision:
    """An order and the POS sale it names are one sale, whichever came first [A5]."""
    assert message.pos_transaction_id is not None
    pos = registry.sale(message.organization_id, Channel.POS, message.pos_transaction_id)
    if pos.amount_minor is not None and pos.amount_minor != message.amount_minor:
        return _conflict(
            message, f"POS transaction {pos.reference}, named by order {order.reference}, has another amount"
        )
    if pos.customer_id is not None and pos.customer_id != customer_id:
        return _conflict(
            message, f"POS transaction {pos.reference}, named by order {order.reference}, has another customer"
        )
    order.alias = pos.reference
    order.customer_id, order.amount_minor = customer_id, message.amount_minor
    pos.on_credit = pos.on_credit or order.on_credit
    if pos.customer_id is None:
        pos.cancelled = order.cancelled
        return _found_sale(message, order, pos, customer_id)
    if order.cancelled and not pos.cancelled:
        # The cancellation came before anything linked the order to this sale; the completion brings both together.
        pos.cancelled = True
        draft = _cancellation(message, pos, customer_id)
        return Decision(Outcome.SUPPRESSED, draft, customer_id=customer_id, on_credit=pos.on_credit)
    return _duplicate(pos)


def _pos_completed(message: Message, registry: Registry) -> Decision:
    pos = registry.sale(message.organization_id, Channel.POS, message.reference)
    if pos.amount_minor is None and message.customer_id is None:
        pos.amount_minor = message.amount_minor
        return Decision(Outcome.ANONYMOUS)
    if pos.amount_minor is not None:
        if pos.amount_minor != message.amount_minor:
            return _conflict(message, f"POS transaction {pos.reference} was already received with another amount")
        if message.customer_id is None:
            return _duplicate(pos)
        if pos.customer_id is not None:
            if pos.customer_id != message.customer_id:
                return _conflict(message, f"POS transaction {pos.reference} was already received for another customer")
            return _duplicate(pos)
    assert message.customer_id is not None
    return _found_sale(message, pos, pos, message.customer_id)


def _found_sale(message: Message, named: Sale, sale: Sale, customer_id: str) -> Decision:
    """The first message that names the customer of a sale: it enters the stream and founds the sale [A4, A5]."""
    channel = named.channel
    sale.customer_id, sale.amount_minor = customer_id, message.amount_minor
    sale.sold_channel, sale.sold_reference = channel, named.reference
    sale.occurred_at_us = message.occurred_at_us
    credit_event = message.on_credit and not sale.cancelled
    sale.on_credit = sale.on_credit or credit_event
    draft = Draft(
        message.type,
        customer_id,
        message,
        channel,
        message.amount_minor,
        on_credit=credit_event,
        already_cancelled=sale.cancelled,
        sale=sale,
        founds_sale=True,
    )
    outcome = Outcome.SUPPRESSED if sale.cancelled else Outcome.ACCEPTED
    return Decision(outcome, draft, customer_id=customer_id, on_credit=credit_event)


def _order_cancelled(message: Message, registry: Registry) -> Decision:
    order = registry.sale(message.organization_id, Channel.ORDER, message.reference)
    sale = registry.meaning(order)
    if sale.cancelled:
        return _duplicate(sale)
    if sale.customer_id is None:
        order.cancelled = True  # the tombstone: its completion will find the order already cancelled [A4]
        order.occurred_at_us = message.occurred_at_us
        return Decision(Outcome.SUPPRESSED)
    order.cancelled = sale.cancelled = True
    draft = _cancellation(message, sale, sale.customer_id)
    return Decision(Outcome.ACCEPTED, draft, customer_id=sale.customer_id, on_credit=sale.on_credit)


def _cancellation(message: Message, sale: Sale, customer_id: str) -> Draft:
    return Draft(
        EventType.ORDER_CANCELLED,
        customer_id,
        message,
        sale.sold_channel or Channel.ORDER,
        sale.amount_minor or 0,
        on_credit=sale.on_credit,
        sale=sale,
    )


def _payment_received(message: Message, registry: Registry) -> Decision:
    assert message.customer_id is not None
    key = (message.organization_id, message.customer_id, message.reference)
    amount_minor = registry.payments.get(key)
    if amount_minor is None:
        registry.payments[key] = message.amount_minor
        draft = Draft(message.type, message.customer_id, message, amount_minor=message.amount_minor)
        order = registry.sales.get((message.organization_id, Channel.ORDER.value, message.order_id or ""))
        if order is not None and order.customer_id == message.customer_id:
            # The order may be one with a till sale: the money is meant for that sale's usage [A5, C2].
            draft.sale = registry.meaning(order)
            draft.channel = draft.sale.sold_channel
        return Decision(Outcome.ACCEPTED, draft, customer_id=message.customer_id)
    if amount_minor != message.amount_minor:
        return _conflict(message, f"payment {message.reference} was already received with another amount")
    return Decision(Outcome.DUPLICATE, customer_id=message.customer_id)


def _credit_charged(message: Message, registry: Registry) -> Decision:
    """A charge registers its order, so that the cancellation finds it [C4].

    It is a request, and may be asked again after a refusal: each one enters the stream and the fold decides. It does
    not make the order its customer's: a completion may still come for another.
    """
    customer_id = message.customer_id
    assert customer_id is not None
    order = registry.sale(message.organization_id, Channel.ORDER, message.reference)
    sale = registry.meaning(order)
    if order.customer_id not in (None, customer_id):
        return _conflict(message, f"order {order.reference} belongs to another customer")
    order.customer_id, order.charged = customer_id, True
    order.on_credit = sale.on_credit = True
    draft = Draft(
        message.type,
        customer_id,
        message,
        Channel.ORDER,
        message.amount_minor,
        already_cancelled=sale.cancelled,
        sale=sale,
    )
    return Decision(Outcome.ACCEPTED, draft, customer_id=customer_id)


def _loyalty_redeemed(message: Message, registry: Registry) -> Decision:
    assert message.customer_id is not None
    key = (message.organization_id, message.reference)
    wanted, known = Redemption(message.customer_id, message.amount_minor), registry.redemptions.get(key)
    if known is None:
        registry.redemptions[key] = wanted
        return _into_stream(message)
    if known != wanted:
        return _conflict(message, f"redemption {message.reference} was already requested with other content")
    return Decision(Outcome.DUPLICATE, customer_id=message.customer_id)


def _into_stream(message: Message) -> Decision:
    """An event without a sale: a payment, or a command whose effect the fold decides [C9]."""
    assert message.customer_id is not None
    draft = Draft(message.type, message.customer_id, message, amount_minor=message.amount_minor)
    return Decision(Outcome.ACCEPTED, draft, customer_id=message.customer_id)


def _account_command(message: Message, registry: Registry) -> Decision:
    return _into_stream(message)


_JUDGES = {
    EventType.ORDER_COMPLETED: _order_completed,
    EventType.ORDER_CANCELLED: _order_cancelled,
    EventType.POS_COMPLETED: _pos_completed,
    EventType.PAYMENT_RECEIVED: _payment_received,
    EventType.CREDIT_OPENED: _account_command,
    EventType.CREDIT_CHARGED: _credit_charged,
    EventType.CREDIT_LIMIT_CHANGED: _account_command,
    EventType.CREDIT_SUSPENDED: _account_command,
    EventType.CREDIT_LIFTED: _account_command,
    EventType.LOYALTY_REDEEMED: _loyalty_redeemed,
}
