"""The Python API behind the commands [C9]: append a request, advance its customer, and tell what became of it.

A command works with the database alone: this process advances the one customer itself, so it needs no broker, and the
sweep of the workers finds the bell row if this process dies in between.
"""

import json
import time
import uuid
from collections.abc import Callable
from typing import Final, Literal, NamedTuple

from customer_actors.actors.pipeline import now_us
from customer_actors.domain import telling
from customer_actors.domain.envelope import UNSTORABLE
from customer_actors.domain.events import EventType, Message, Outcome, business_date, iso
from customer_actors.domain.fields import DecodeError, id_
from customer_actors.domain.routing import BIT, CREDIT, LOYALTY
from customer_actors.domain.story import Story
from customer_actors.errors import UsageError
from customer_actors.groups.advance import advance
from customer_actors.ingest.intake import Intake, policies
from customer_actors.settings import Settings
from customer_actors.storage.actors import Stores
from customer_actors.storage.database import Database
from customer_actors.storage.refolding import WINDOW
from customer_actors.storage.scratch import scratch_for
from customer_actors.storage.views import Stored, events, skips, stored_customer, undone_sales

MAX_POINTS: Final = 10**12 - 1
MAX_TERMS_DAYS: Final = 3650
MAX_TEXT: Final = 500
"""Characters of a name or a reason."""
WAIT_S: Final = 10.0
"""How long a command waits for a worker that has its customer locked just now."""
_LOOK_S: Final = 0.02

Detail = dict[str, int | str]
"""What a request says beside reference and amount [Message.detail]."""


class CommandResult(NamedTuple):
    """What became of one request."""

    outcome: Literal["applied", "duplicate", "refused", "waiting"]
    """`duplicate`: it was applied before, nothing changed now. `waiting`: it stands in the stream behind an event that
    failed, and is decided once that one is released or skipped."""
    reason: str | None = None
    """Why it was refused, or what it waits for."""
    position: int | None = None
    """Of the request in its customer's stream; None when it never entered one."""


class Service(NamedTuple):
    """What commands work with."""

    intake: Intake
    stores: Stores
    clock: Callable[[], int] = now_us


def make_service(settings: Settings, database: Database) -> Service:
    """The service of these settings; the schema must be current."""
    intake = Intake(database, policies(settings, database, now_us()), lambda _: None, now_us)
    return Service(intake, Stores(database, settings.rules(), settings.round_events))


def open_credit(
    service: Service, organization_id: str, customer_id: str, limit_minor: int, terms_days: int
) -> CommandResult:
    """Open a credit account; creates an unknown customer [C3, C9]. The limit is in minor units and may be 0.

    Raises:
        UsageError: an argument is impossible; nothing changed. Outage: the database is away; asking again is safe.
    """
    _require(limit_minor >= 0, "the limit must not be negative")
    _require(0 <= terms_days <= MAX_TERMS_DAYS, f"the terms must be 0 to {MAX_TERMS_DAYS} days")
    request = _Request(EventType.CREDIT_OPENED, CREDIT, organization_id, customer_id, "", limit_minor)
    return _carry_out(service, request, {"terms_days": terms_days}, creates=True)


def charge_credit(
    service: Service, organization_id: str, customer_id: str, order_id: str, amount_minor: int
) -> CommandResult:
    """Charge an order to the customer's credit account [C4]. The amount is in minor units and positive.

    Raises:
        UsageError: an argument is impossible or the customer unknown; nothing changed. Outage: as above.
    """
    _require(amount_minor > 0, "the amount must be more than 0")
    _id("order", order_id)
    return _carry_out(
        service, _Request(EventType.CREDIT_CHARGED, CREDIT, organization_id, customer_id, order_id, amount_minor)
    )


class Signed(NamedTuple):
    """Who asks for a change of an account, and why."""

    by: str
    reason: str | None = None


def change_limit(
    service: Service, organization_id: str, customer_id: str, limit_minor: int, signed: Signed
) -> CommandResult:
    """Change the limit of a credit account, in minor units; it may be less than what is used [C1]. The present limit
    again is a duplicate.

    Raises:
        UsageError: an argument is impossible or the customer unknown; nothing changed. Outage: as above.
    """
    _require(limit_minor >= 0, "the limit must not be negative")
    request = _Request(EventType.CREDIT_LIMIT_CHANGED, CREDIT, organization_id, customer_id, "", limit_minor)
    return _carry_out(service, request, _signature(signed))


def suspend_credit(service: Service, organization_id: str, customer_id: str, signed: Signed) -> CommandResult:
    """Suspend a credit account by hand: it takes money, but no charge, until somebody lifts it [C7].

    Raises:
        UsageError: an argument is impossible or the customer unknown; nothing changed. Outage: as above.
    """
    return _by_hand(service, EventType.CREDIT_SUSPENDED, organization_id, customer_id, signed)


def lift_credit(service: Service, organization_id: str, customer_id: str, signed: Signed) -> CommandResult:
    """Lift a suspension, whoever made it [C7].

    Raises:
        UsageError: an argument is impossible or the customer unknown; nothing changed. Outage: as above.
    """
    return _by_hand(service, EventType.CREDIT_LIFTED, organization_id, customer_id, signed)


def _by_hand(
    service: Service, type_: EventType, organization_id: str, customer_id: str, signed: Signed
) -> CommandResult:
    as_of = business_date(service.clock(), service.stores.current_rules.zone).isoformat()
    detail = {"automatic": False, "as_of": as_of, **_signature(signed)}
    return _carry_out(service, _Request(type_, CREDIT, organization_id, customer_id, "", 0), detail)


def _signature(signed: Signed) -> Detail:
    reason = {} if signed.reason is None else {"reason": _text("reason", signed.reason)}
    return {"by": _text("name", signed.by), **reason}


def _text(what: str, text: str) -> str:
    text = text.strip()
    fits = 0 < len(text) <= MAX_TEXT and not UNSTORABLE.search(text)
    _require(fits, f"the {what} must be a proper text of 1 to {MAX_TEXT} characters without NUL")
    return text


def redeem_points(
    service: Service, organization_id: str, customer_id: str, points: int, reference: str
) -> CommandResult:
    """Redeem loyalty points under a reference that is unique in the organization [L6].

    Raises:
        UsageError: an argument is impossible or the customer unknown; nothing changed. Outage: as above.
    """
    _require(0 < points <= MAX_POINTS, f"the points must be a whole number from 1 to {MAX_POINTS}")
    _id("reference", reference)
    return _carry_out(
        service, _Request(EventType.LOYALTY_REDEEMED, LOYALTY, organization_id, customer_id, reference, points)
    )


class _Request(NamedTuple):
    type: EventType
    actor: str
    """Who decides it."""
    organization_id: str
    customer_id: str
    reference: str
    amount_minor: int


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise UsageError(otherwise)


def _id(what: str, value: str) -> None:
    try:
        id_(value)
    except DecodeError as error:
        raise UsageError(f"the {what} {error.reason}") from None
    _require(not UNSTORABLE.search(value), f"the {what} must be proper text without NUL")


def _carry_out(
    service: Service, request: _Request, detail: Detail | None = None, *, creates: bool = False
) -> CommandResult:
    _id("organization", request.organization_id)
    _id("customer", request.customer_id)
    if not creates and _stored(service, request) is None:
        raise UsageError(
            f"customer {request.customer_id} of organization {request.organization_id} is unknown; check both ids"
        )
    message = _message(request, detail, service.clock())
    decision = service.intake.command(message)
    if decision.rejected is not None:
        return CommandResult("refused", decision.rejected.reason)
    repeated = decision.outcome is Outcome.DUPLICATE
    number, position = _place(service, message, repeated=repeated)
    return _answer(service, request, number, position, repeated=repeated)


def _stored(service: Service, request: _Request) -> Stored | None:
    return stored_customer(service.stores.database, request.organization_id, request.customer_id)


def _message(request: _Request, detail: Detail | None, at_us: int) -> Message:
    data = {"customer_id": request.customer_id, "reference": request.reference, "amount": request.amount_minor}
    # Its own event_id makes the payload unlike any other, so that this very request is found again in the stream.
    payload = {"event_id": uuid.uuid4().hex, "event": request.type, "timestamp": iso(at_us)}
    return Message(
        type=request.type,
        organization_id=request.organization_id,
        customer_id=request.customer_id,
        reference=request.reference,
        amount_minor=request.amount_minor,
        currency=None,
        occurred_at_us=at_us,
        received_at_us=at_us,
        payload=json.dumps({**payload, "data": {**data, **(detail or {})}}),
        detail=json.dumps(detail) if detail else None,
    )


def _place(service: Service, message: Message, *, repeated: bool) -> tuple[int, int]:
    """The customer's number and the request's position; a repeated one stands where it was made first."""
    found = ("e.reference = ?", message.reference) if repeated else ("p.payload = ?", message.payload)
    rows = service.stores.database.query(
        "SELECT c.id, e.position FROM customer c JOIN event e ON e.customer = c.id "
        "JOIN event_payload p ON p.customer = e.customer AND p.position = e.position "
        f"WHERE c.organization_id = ? AND c.customer_id = ? AND e.type = ? AND {found[0]}",
        (message.organization_id, message.customer_id, message.type.value, found[1]),
    )
    number, position = rows[0]
    return number, position


def _answer(service: Service, request: _Request, number: int, position: int, *, repeated: bool) -> CommandResult:
    """Advance the actor up to the request, and tell what it made of it."""
    actor, deadline = request.actor, time.monotonic() + WAIT_S
    while True:
        advanced = advance(service.stores.of(actor), [number], now_us=service.clock)
        stored = _stored(service, request)
        assert stored is not None  # it has an event
        standing = stored.standings[actor]
        if standing.position >= position:
            return _verdict(service, stored, actor, position, repeated)
        if standing.held_position is not None:
            held = f"position {standing.held_position} is held for {actor}: {standing.error}"
            return CommandResult("waiting", held, position)
        if time.monotonic() > deadline:
            busy = "the customer is still being advanced; `customer-actors explain` will show the outcome"
            return CommandResult("waiting", busy, position)
        if not advanced.rounds:
            time.sleep(_LOOK_S)  # a worker has the row: it looks again before it lets the customer go


def _verdict(service: Service, stored: Stored, actor: str, position: int, repeated: bool) -> CommandResult:
    """What the actor made of the request: told by the stream folded again up to it, for states keep no history."""
    database, stores = service.stores.database, service.stores
    scratch = scratch_for(position, WINDOW)
    undone = undone_sales(database, stored.number, position, scratch)
    decimals = stores.current_rules.currency_decimals
    story = Story(stores.book, stored.standings, undone, decimals, skips(database, stored.number), scratch)
    told = telling.Told("", telling.FAILED, "")
    for event in events(database, stored.number, position):
        if event.concerns & BIT[actor]:
            (told,) = (effect.told for effect in story.take(event._replace(concerns=BIT[actor])))
    match told.outcome:
        case telling.REFUSED:
            first = "this was asked before and refused, and stays so: " if repeated else ""
            return CommandResult("refused", first + told.effect.removeprefix("refused: "), position)
        case telling.SKIPPED:
            return CommandResult("refused", told.effect, position)
        case telling.APPLIED | telling.NO_EFFECT if not repeated:
            return CommandResult("applied", None, position)
        case telling.APPLIED | telling.NO_EFFECT | telling.DUPLICATE:
            return CommandResult("duplicate", None, position)
        case _:
            return CommandResult("waiting", told.effect, position)
