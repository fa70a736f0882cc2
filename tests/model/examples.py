"""Short ways to write messages down and to run them through the model, for examples computed by hand."""

from datetime import date
from decimal import Decimal

from customer_actors.domain.events import EventType, Message, Outcome, Rejected
from customer_actors.domain.rules import Rules
from tests.model.reference import ReferenceModel, State

JUNE_1_US = 1_717_200_000_000_000
"""2024-06-01 00:00 UTC, when everything happens unless told otherwise."""
DAY_US = 86_400_000_000
TODAY = date(2024, 6, 1)


def message(
    type_: EventType,
    customer_id: str | None,
    reference: str = "",
    amount: str = "0",
    *,
    twin: str | None = None,
    on_credit: bool = False,
    at_us: int = JUNE_1_US,
    currency: str | None = None,
    organization_id: str = "org-1",
    detail: str | None = None,
) -> Message:
    return Message(
        type=type_,
        organization_id=organization_id,
        customer_id=customer_id,
        reference=reference,
        amount_minor=int(Decimal(amount) * 100),
        currency=currency,
        occurred_at_us=at_us,
        received_at_us=at_us,
        payload="{}",
        on_credit=on_credit,
        pos_transaction_id=twin,
        detail=detail,
    )


def order(
    reference: str,
    amount: str,
    *,
    customer_id: str = "c1",
    twin: str | None = None,
    on_credit: bool = False,
    at_us: int = JUNE_1_US,
    currency: str | None = None,
    organization_id: str = "org-1",
) -> Message:
    sale = message(EventType.ORDER_COMPLETED, customer_id, reference, amount, twin=twin, on_credit=on_credit)
    return sale._replace(occurred_at_us=at_us, currency=currency, organization_id=organization_id)


def pos(reference: str, amount: str, *, customer_id: str | None = "c1", on_credit: bool = False) -> Message:
    return message(EventType.POS_COMPLETED, customer_id, reference, amount, on_credit=on_credit)


def cancellation(reference: str) -> Message:
    return message(EventType.ORDER_CANCELLED, None, reference)


def payment(reference: str, amount: str, *, customer_id: str = "c1") -> Message:
    return message(EventType.PAYMENT_RECEIVED, customer_id, reference, amount)


def opened(limit: str) -> Message:
    return message(EventType.CREDIT_OPENED, "c1", amount=limit)


def limit_changed(limit: str) -> Message:
    return message(EventType.CREDIT_LIMIT_CHANGED, "c1", amount=limit)


def charge(order_id: str, amount: str, *, customer_id: str = "c1") -> Message:
    return message(EventType.CREDIT_CHARGED, customer_id, order_id, amount)


def suspended(detail: str | None = None) -> Message:
    return message(EventType.CREDIT_SUSPENDED, "c1", detail=detail)


def lifted(detail: str | None = None) -> Message:
    return message(EventType.CREDIT_LIFTED, "c1", detail=detail)


def redemption(reference: str, points: int, *, customer_id: str = "c1") -> Message:
    return message(EventType.LOYALTY_REDEEMED, customer_id, reference)._replace(amount_minor=points)


def outcomes(*messages: Message | Rejected, currency: str | None = None) -> list[Outcome]:
    model = ReferenceModel(Rules(), currency=currency)
    return [model.receive(each) for each in messages]


def state_after(*messages: Message, rules: Rules | None = None, today: date = TODAY) -> State:
    """Of customer c1 of org-1."""
    model = ReferenceModel(rules or Rules())
    for each in messages:
        model.receive(each)
    return model.state("org-1", "c1", today)


def figures(section: State, names: str) -> list[object]:
    return [section[name] for name in names.split()]
