"""The rules of admission as one sequential program over plain lists, and the state that comes out of them.

The model shares nothing with the real admission and folds but the vocabulary (`Message`, `Event`, `Rules`), and it is
slow on purpose: a registry is a list that is searched, and every state is computed again from the whole stream.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date

from customer_actors.domain.events import Channel, Event, EventType, Message, Outcome, Rejected
from customer_actors.domain.rules import Rules
from tests.model.stream import State, state_of_stream

__all__ = ["ReferenceModel", "State", "state_of_stream"]


@dataclass
class _Sale:
    """One sale under all the names it is known by [A5]; without a customer while only anonymous messages told of it."""

    names: list[tuple[Channel, str]]
    amount_minor: int
    customer_id: str | None = None
    cancelled: bool = False
    event: Event | None = None


@dataclass
class _Organization:
    """Everything one organization ever sent that was not quarantined [A9]."""

    currency: str | None
    sales: list[_Sale] = field(default_factory=list)
    charges: list[Message] = field(default_factory=list)
    cancelled_orders: list[str] = field(default_factory=list)
    """Orders cancelled before they were completed: the tombstones, and those that were only charged."""
    payments: list[Message] = field(default_factory=list)
    redemptions: list[Message] = field(default_factory=list)
    streams: dict[str, list[Event]] = field(default_factory=dict)

    def sale(self, channel: Channel, reference: str | None) -> _Sale | None:
        found = [sale for sale in self.sales if (channel, reference) in sale.names]
        return found[0] if found else None


class ReferenceModel:
    """Receives messages one by one and can tell every customer's state at any time.

    `currency` is the setting of that name; unset, each organization's is the first one it sends [A6].
    """

    def __init__(self, rules: Rules, *, currency: str | None = None) -> None:
        self._rules = rules
        self._currency = currency
        self._organizations: dict[str, _Organization] = {}

    def receive(self, message: Message | Rejected) -> Outcome:
        """Judge one message and let it enter its customer's stream if the rules say so [A1-A6, A9]."""
        if isinstance(message, Rejected):
            return Outcome.QUARANTINED
        organization = self._organizations.setdefault(message.organization_id, _Organization(self._currency))
        if message.currency is not None and organization.currency not in (None, message.currency):
            return Outcome.QUARANTINED
        outcome = _judge(organization, message)
        if outcome not in (Outcome.DUPLICATE, Outcome.QUARANTINED) and organization.currency is None:
            organization.currency = message.currency
        return outcome

    def state(self, organization_id: str, customer_id: str, today: date) -> State:
        """What `show --json` prints of this customer, without `held` and `segment.calculated_at`.

        Raises KeyError for a customer that never was in a stream.
        """
        stream = self._organizations[organization_id].streams[customer_id]
        names = {"organization_id": organization_id, "customer_id": customer_id}
        return {**names, **state_of_stream(stream, self._rules, today)}

    def customers(self) -> list[tuple[str, str]]:
        """(organization, customer) of every stream, sorted."""
        return sorted((name, customer) for name, book in self._organizations.items() for customer in book.streams)


def _judge(organization: _Organization, message: Message) -> Outcome:
    match message.type:
        case EventType.ORDER_COMPLETED:
            return _order_completed(organization, message)
        case EventType.POS_COMPLETED:
            return _pos_completed(organization, message)
        case EventType.ORDER_CANCELLED:
            return _order_cancelled(organization, message)
        case EventType.PAYMENT_RECEIVED:
            return _paid(organization, message)
        case EventType.LOYALTY_REDEEMED:
            return _redeemed(organization, message)
        case EventType.CREDIT_CHARGED:
            return _charged(organization, message)
        case _:
            _enter(organization, message, message.customer_id)
            return Outcome.ACCEPTED


def _order_completed(organization: _Organization, message: Message) -> Outcome:
    known = organization.sale(Channel.ORDER, message.reference)
    if known is not None:
        same = (known.customer_id, known.amount_minor) == (message.customer_id, message.amount_minor)
        return Outcome.DUPLICATE if same else Outcome.QUARANTINED
    twin = organization.sale(Channel.POS, message.pos_transaction_id)
    if twin is not None and twin.amount_minor != message.amount_minor:
        return Outcome.QUARANTINED
    if twin is not None and twin.customer_id is not None:
        return _order_of_a_named_pos_sale(organization, message, twin)
    if twin is None:
        twin = _Sale([], message.amount_minor)
        organization.sales.append(twin)
        if message.pos_transaction_id is not None:
            twin.names.append((Channel.POS, message.pos_transaction_id))
    twin.names.append((Channel.ORDER, message.reference))
    twin.customer_id = message.customer_id
    twin.cancelled = message.reference in organization.cancelled_orders
    twin.event = _enter(organization, message, message.customer_id, already_cancelled=twin.cancelled)
    return Outcome.SUPPRESSED if twin.cancelled else Outcome.ACCEPTED


def _order_of_a_named_pos_sale(organization: _Organization, message: Message, twin: _Sale) -> Outcome:
    """The order is a second name for a sale that stands in a stream; it may bring its own cancellation along [A5]."""
    if twin.customer_id != message.customer_id:
        return Outcome.QUARANTINED
    twin.names.append((Channel.ORDER, message.reference))
    if message.reference not in organization.cancelled_orders or twin.cancelled:
        return Outcome.DUPLICATE
    _cancel(organization, message, twin)
    return Outcome.SUPPRESSED


def _pos_completed(organization: _Organization, message: Message) -> Outcome:
    sale = organization.sale(Channel.POS, message.reference)
    known = sale is not None
    if sale is None:
        sale = _Sale([(Channel.POS, message.reference)], message.amount_minor)
        organization.sales.append(sale)
    if sale.amount_minor != message.amount_minor:
        return Outcome.QUARANTINED
    if message.customer_id is None:
        return Outcome.DUPLICATE if known else Outcome.ANONYMOUS
    if sale.customer_id is None:
        sale.customer_id = message.customer_id
        sale.event = _enter(organization, message, message.customer_id)
        return Outcome.ACCEPTED
    return Outcome.DUPLICATE if sale.customer_id == message.customer_id else Outcome.QUARANTINED


def _order_cancelled(organization: _Organization, message: Message) -> Outcome:
    sale = organization.sale(Channel.ORDER, message.reference)
    if sale is not None:
        if sale.cancelled:
            return Outcome.DUPLICATE
        _cancel(organization, message, sale)
        return Outcome.ACCEPTED
    if message.reference in organization.cancelled_orders:
        return Outcome.DUPLICATE
    organization.cancelled_orders.append(message.reference)
    charges = [charge for charge in organization.charges if charge.reference == message.reference]
    if not charges:
        return Outcome.SUPPRESSED
    _enter(organization, message, charges[0].customer_id)
    return Outcome.ACCEPTED


def _charged(organization: _Organization, message: Message) -> Outcome:
    charges = [charge for charge in organization.charges if charge.reference == message.reference]
    sale = organization.sale(Channel.ORDER, message.reference)
    owners = [charge.customer_id for charge in charges] if sale is None else [sale.customer_id]
    if any(owner != message.customer_id for owner in owners):
        return Outcome.QUARANTINED
    organization.charges.append(message)
    cancelled = message.reference in organization.cancelled_orders or (sale is not None and sale.cancelled)
    of = sale.event if sale is not None else None
    _enter(organization, message, message.customer_id, already_cancelled=cancelled, of=of)
    return Outcome.ACCEPTED


def _paid(organization: _Organization, message: Message) -> Outcome:
    """A payment's reference is used once per customer [A2]."""
    payments = [payment for payment in organization.payments if payment.customer_id == message.customer_id]
    return _first_or_again(organization, message, payments, organization.payments)


def _redeemed(organization: _Organization, message: Message) -> Outcome:
    """A redemption's reference is used once per organization, refused or not [L6]."""
    return _first_or_again(organization, message, organization.redemptions, organization.redemptions)


def _first_or_again(
    organization: _Organization, message: Message, rivals: Sequence[Message], seen: list[Message]
) -> Outcome:
    """The first with its reference among `rivals` enters; again it is a duplicate, with other content a conflict."""
    for rival in rivals:
        if rival.reference == message.reference:
            same = (rival.customer_id, rival.amount_minor) == (message.customer_id, message.amount_minor)
            return Outcome.DUPLICATE if same else Outcome.QUARANTINED
    seen.append(message)
    _enter(organization, message, message.customer_id)
    return Outcome.ACCEPTED


def _cancel(organization: _Organization, message: Message, sale: _Sale) -> None:
    sale.cancelled = True
    _enter(organization, message._replace(type=EventType.ORDER_CANCELLED), sale.customer_id, of=sale.event)


def _enter(
    organization: _Organization,
    message: Message,
    customer_id: str | None,
    *,
    already_cancelled: bool = False,
    of: Event | None = None,
) -> Event:
    """Append to the customer's stream at the next position; the customer is made on first sight [A8, A9].

    What the stream itself can tell (the channel, amount and time of the sale that is cancelled or charged) is left out.
    """
    if customer_id is None:
        raise ValueError(f"{message.type} enters no stream without a customer")
    stream = organization.streams.setdefault(customer_id, [])
    event = Event(
        customer=0,
        position=len(stream) + 1,
        type=message.type,
        reference=message.reference,
        channel=None,
        amount_minor=message.amount_minor,
        occurred_at_us=message.occurred_at_us,
        received_at_us=message.received_at_us,
        rules=1,
        concerns=0,  # not looked at: here every rule is asked about every event
        on_credit=message.on_credit,
        already_cancelled=already_cancelled,
        sale_position=of.position if of is not None else None,
        sale_occurred_at_us=None,
        order_id=message.order_id,
        detail=message.detail,
    )
    stream.append(event)
    return event
