"""Appending a batch: admission under row locks, positions without gaps, one transaction.

The order of steps is the deadlock and race argument of docs/design.md 3, always over sorted keys: known orders are
locked, then known POS sales, payments and redemptions, then known customers; then new customers are inserted, and new
sales. Outcomes are decided in memory once every known row is locked; positions are given to accepted messages only. If
another transaction inserts one of the new keys first, the batch is rolled back and decided again, with that row in view
(docs/decisions/0010-what-a-statement-costs.md).
"""

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

import structlog

from customer_actors.domain.admission import Decision, Draft, Redemption, Registry, Sale, SaleKey, admit
from customer_actors.domain.envelope import Received
from customer_actors.domain.events import Channel, Event, EventType, Message, Outcome, Rejected
from customer_actors.domain.routing import BIT, CONCERNS, CREDIT, LOYALTY, STATS, route
from customer_actors.errors import KeyTaken, Outage
from customer_actors.storage.bells import Bell, add_bell
from customer_actors.storage.database import Columns, Database, Row, columns
from customer_actors.storage.quarantine import keep

SALE = columns(
    "sale",
    "organization_id text, channel text, reference text",
    "customer_id text, amount_minor bigint, sold_channel text, sold_reference text, position bigint, "
    "occurred_at_us bigint, on_credit boolean, cancelled boolean, alias text, charged boolean",
)
PAYMENT = columns("payment_key", "organization_id text, customer_id text, reference text", "amount_minor bigint")
REDEMPTION = columns("command_key", "organization_id text, reference text", "customer_id text, points bigint")
ORGANIZATION_KEY = columns("organization", "organization_id text")
ORGANIZATION = columns("organization", "organization_id text", "currency text")
CUSTOMER_KEY = columns("customer", "organization_id text, customer_id text")
CUSTOMER = columns(
    "customer",
    "organization_id text, customer_id text",
    "id bigint, head bigint, head_stats bigint, head_loyalty bigint, head_credit bigint",
)
HEADS = columns("customer", "id bigint", "head bigint, head_stats bigint, head_loyalty bigint, head_credit bigint")
EVENT = columns(
    "event",
    "customer bigint, position bigint",
    "type text, reference text, channel text, amount_minor bigint, occurred_at_us bigint, received_at_us bigint, "
    "rules int, concerns int, on_credit boolean, already_cancelled boolean, sale_position bigint, "
    "sale_occurred_at_us bigint, order_id text, detail text, sale_reference text",
)
PAYLOAD = columns("event_payload", "customer bigint, position bigint", "payload text")
STATE_KEYS = tuple(columns(table, "customer bigint") for table in ("stats_state", "credit_state", "customer_segment"))
LOYALTY_STATE = columns("loyalty_state", "customer bigint", "tier text")

_NEW_KEYS: Final = frozenset({"sale_pkey", "customer_organization_id_customer_id_key"})
"""The constraints of the keys that a batch may lose a race for."""
_MOST_RACES: Final = 50
"""Lost in a row; each one means that somebody else's batch was committed."""

log = structlog.get_logger(__name__)


class Incoming(NamedTuple):
    """A message as received (None for a command) and what decoding made of it."""

    received: Received | None
    decoded: Message | Rejected


class AppendPolicy(NamedTuple):
    """What appending needs from the settings."""

    rules: int
    """Number of the rules in force, stamped on every event [A10]."""
    first_tier: str
    currency: str | None = None
    """The configured currency of every organization; None: the first one each sends [A6]."""


class Appended(NamedTuple):
    """The outcome of every message in delivery order, and the bell to ring after the commit."""

    decisions: list[Decision]
    bell: Bell


def append(database: Database, batch: Sequence[Incoming], policy: AppendPolicy, now_us: int) -> Appended:
    """Admit a batch in delivery order and commit all of it: streams, registry, quarantine and one bell row.

    Raises:
        Outage, DataFault: nothing was committed.
    """
    for _ in range(_MOST_RACES):
        try:
            return _append(database, batch, policy, now_us)
        except KeyTaken as taken:
            if taken.constraint not in _NEW_KEYS:
                raise
            log.info("another process was first with a key", constraint=taken.constraint, then="decided again")
    raise Outage("other processes keep registering the sales or customers that this batch names")


def _append(database: Database, batch: Sequence[Incoming], policy: AppendPolicy, now_us: int) -> Appended:
    with database.transaction():
        messages = [incoming.decoded for incoming in batch if isinstance(incoming.decoded, Message)]
        books = _Books(database, messages, policy.currency)
        decisions = [
            admit(incoming.decoded, books.registry)
            if isinstance(incoming.decoded, Message)
            else Decision(Outcome.QUARANTINED, rejected=incoming.decoded)
            for incoming in batch
        ]
        placed = _place(database, [d.draft for d in decisions if d.draft is not None], policy)
        books.save()
        _append_events(database, placed)
        refused = [
            (incoming.received, decision.rejected)
            for incoming, decision in zip(batch, decisions, strict=True)
            if incoming.received is not None and decision.rejected is not None  # commands are answered, not kept
        ]
        keep(database, refused, now_us)
        bell = _bell(database, batch, decisions, placed.numbers)
        add_bell(database, bell, now_us)
    return Appended(decisions, bell)


class _Books:
    """The registry rows a batch names: locked where known, handed to admission, saved where new or changed.

    A sale key that is not known is not there for admission, and belongs to whoever inserts it first: every outcome that
    writes a sale inserts each key whose absence it follows from. (Two outcomes write none: an order that a POS sale
    refuses, and a payment whose order is not known yet. Both are what they would be if they had come a little earlier.)
    """

    def __init__(self, database: Database, messages: Sequence[Message], currency: str | None) -> None:
        self.database = database
        self.registry = Registry()
        self._stored: dict[SaleKey, Row] = {}
        self._new_organizations: set[Row] = set()
        self._load_currencies(messages, currency)
        orders = {(m.organization_id, Channel.ORDER.value, m.reference) for m in messages if m.type in _NAMES_ORDER}
        paid = {(m.organization_id, Channel.ORDER.value, m.order_id) for m in messages if m.order_id}
        self._load_sales(orders | paid)
        self._load_sales(
            {(m.organization_id, Channel.POS.value, m.reference) for m in messages if m.type == EventType.POS_COMPLETED}
            | {(m.organization_id, Channel.POS.value, m.pos_transaction_id) for m in messages if m.pos_transaction_id}
            | {(s.organization_id, Channel.POS.value, s.alias) for s in self.registry.sales.values() if s.alias}
        )
        self._payments = {
            (m.organization_id, m.customer_id, m.reference): (m.amount_minor,)
            for m in reversed(messages)
            if m.type == EventType.PAYMENT_RECEIVED
        }
        self._new_payments = self._load(PAYMENT, self._payments)
        self._redemptions = {
            (m.organization_id, m.reference): (m.customer_id, m.amount_minor)
            for m in reversed(messages)
            if m.type == EventType.LOYALTY_REDEEMED
        }
        self._new_redemptions = self._load(REDEMPTION, self._redemptions)

    def _load_currencies(self, messages: Sequence[Message], currency: str | None) -> None:
        """An organization's stored currency, else the configured one, else the first one it names [A6]."""
        self.registry.default_currency = currency
        rows = self.database.select(ORGANIZATION, [(o,) for o in sorted({m.organization_id for m in messages})])
        known = {organization: known for organization, known in rows if known is not None}
        naming = sorted({m.organization_id for m in messages if m.currency or currency} - known.keys())
        if naming:  # somebody names the currency first: one at a time, so that all see the same first one
            keys = [(organization,) for organization in naming]
            self._new_organizations = self.database.insert_missing(ORGANIZATION_KEY, keys)
            locked = self.database.lock(ORGANIZATION, keys, "t.organization_id")
            known |= {organization: known for organization, known in locked if known is not None}
        self.registry.currencies = known
        self._known_currencies = set(known)

    def _load_sales(self, wanted: Iterable[SaleKey]) -> None:
        for row in self.database.lock(SALE, sorted(wanted), "t.organization_id, t.channel, t.reference"):
            self.registry.sales[row[:3]] = Sale(*row)
            self._stored[row[:3]] = row

    def _load(self, table: Columns, wanted: dict[Row, Row]) -> set[Row]:
        """Payments and redemptions are inserted with their content at once; the rows somebody made before are read."""
        width = len(table.key)
        rows = sorted((*key, *content) for key, content in wanted.items())
        new = self.database.insert_missing(table, rows)
        for row in self.database.lock(table, [row[:width] for row in rows if row[:width] not in new], _order(table)):
            if table is PAYMENT:
                self.registry.payments[row[:3]] = row[3]
            else:
                self.registry.redemptions[row[:2]] = Redemption(*row[2:])
        return new

    def save(self) -> None:
        """Write what admission changed, new sales first: inserting a key that somebody has updated and not committed
        waits for him, and he must not wait for an insert of ours."""
        database, registry, stored = self.database, self.registry, self._stored
        sales = sorted(_sale_row(sale) for sale in registry.sales.values() if not sale.blank)
        database.insert(SALE, [row for row in sales if row[:3] not in stored])
        database.update(SALE, [row for row in sales if row[:3] in stored and row != stored[row[:3]]])
        self._settle(PAYMENT, self._payments, self._new_payments, {k: (v,) for k, v in registry.payments.items()})
        self._settle(REDEMPTION, self._redemptions, self._new_redemptions, dict(registry.redemptions.items()))
        named = [(o, c) for o, c in sorted(registry.currencies.items()) if o not in self._known_currencies]
        database.update(ORGANIZATION, named)
        database.delete(ORGANIZATION_KEY, sorted(o for o in self._new_organizations if o[0] not in registry.currencies))

    def _settle(self, table: Columns, inserted: dict[Row, Row], new: set[Row], final: dict[Row, Row]) -> None:
        """The first message that named a new key may have been refused; then the key is what admission made of it."""
        self.database.delete(Columns(table.table, table.key), sorted(key for key in new if key not in final))
        changed = [(*key, *final[key]) for key in sorted(new) if key in final and tuple(final[key]) != inserted[key]]
        self.database.update(table, changed)


_NAMES_ORDER = frozenset({EventType.ORDER_COMPLETED, EventType.ORDER_CANCELLED, EventType.CREDIT_CHARGED})


def _order(table: Columns) -> str:
    return ", ".join(f"t.{name}" for name, _ in table.key)


def _sale_row(sale: Sale) -> Row:
    return (
        sale.organization_id,
        sale.channel,
        sale.reference,
        sale.customer_id,
        sale.amount_minor,
        sale.sold_channel,
        sale.sold_reference,
        sale.position,
        sale.occurred_at_us,
        sale.on_credit,
        sale.cancelled,
        sale.alias,
        sale.charged,
    )


class _Placed(NamedTuple):
    """Drafts that have their place in the streams, not written yet."""

    numbers: dict[tuple[str, str], int]
    """The customers' internal numbers by (organization_id, customer_id)."""
    events: list[Event]
    payloads: list[Row]
    heads: list[Row]


def _place(database: Database, drafts: Sequence[Draft], policy: AppendPolicy) -> _Placed:
    """Lock the customers, make the new ones, and give every draft its position."""
    keys: list[Row] = sorted({(draft.message.organization_id, draft.customer_id) for draft in drafts})
    known = database.lock(CUSTOMER, keys, "t.organization_id, t.customer_id")
    new = sorted({*keys} - {row[:2] for row in known})
    database.insert(CUSTOMER_KEY, new)
    heads = {(row[0], row[1]): list(row[2:]) for row in [*known, *database.select(CUSTOMER, new)]}
    numbers = {key: head[0] for key, head in heads.items()}
    created = [(numbers[key],) for key in new]
    for table in STATE_KEYS:  # there must be a row to lock before the first event can be seen
        database.insert(table, created)
    database.insert(LOYALTY_STATE, [(number, policy.first_tier) for (number,) in created])

    events = [_event(draft, heads[draft.message.organization_id, draft.customer_id], policy.rules) for draft in drafts]
    payloads = [(e.customer, e.position, d.message.payload) for e, d in zip(events, drafts, strict=True)]
    return _Placed(numbers, events, payloads, [tuple(head) for head in heads.values()])


def _append_events(database: Database, placed: _Placed) -> None:
    database.insert(EVENT, placed.events)
    database.insert(PAYLOAD, placed.payloads)
    database.update(HEADS, placed.heads)


def _event(draft: Draft, head: list[int], rules: int) -> Event:
    """The event of a draft at the next position; `head` is [number, head, head_stats, head_loyalty, head_credit]."""
    message, sale = draft.message, draft.sale
    head[1] = position = head[1] + 1
    concerns = (
        BIT[STATS] if draft.already_cancelled and draft.founds_sale else CONCERNS[route(draft.type, draft.on_credit)]
    )
    for slot, actor in ((2, STATS), (3, LOYALTY), (4, CREDIT)):
        if concerns & BIT[actor]:
            head[slot] = position
    of = None if draft.founds_sale or sale is None or sale.position is None else sale
    if draft.founds_sale and sale is not None:
        sale.position = position
    return Event(
        customer=head[0],
        position=position,
        type=draft.type.value,
        reference=message.reference,
        channel=draft.channel,
        amount_minor=draft.amount_minor,
        occurred_at_us=message.occurred_at_us,
        received_at_us=message.received_at_us,
        rules=rules,
        concerns=concerns,
        on_credit=draft.on_credit,
        already_cancelled=draft.already_cancelled,
        sale_position=of.position if of else None,
        sale_occurred_at_us=of.occurred_at_us if of else None,
        order_id=message.order_id,
        detail=message.detail,
        sale_reference=of.sold_reference if of and of.sold_channel == draft.channel else None,
    )


def _bell(
    database: Database, batch: Sequence[Incoming], decisions: Sequence[Decision], numbers: dict[tuple[str, str], int]
) -> Bell:
    """Whom to ring for what: accepted and duplicate messages alike, for a crash may have lost the first one's bell."""
    rung: dict[tuple[str, str], set[str]] = {}
    for incoming, decision in zip(batch, decisions, strict=True):
        if decision.customer_id is not None and isinstance(incoming.decoded, Message):
            type_ = decision.draft.type if decision.draft else incoming.decoded.type
            key = (incoming.decoded.organization_id, decision.customer_id)
            rung.setdefault(key, set()).add(route(type_, decision.on_credit))
    unknown = [key for key in rung if key not in numbers]
    numbers = numbers | {(row[0], row[1]): row[2] for row in database.select(_NUMBER, unknown)}
    bell: dict[str, list[int]] = {}
    for key, routes in rung.items():
        for one in routes:
            bell.setdefault(one, []).append(numbers[key])
    return {one: sorted(customers) for one, customers in bell.items()}


_NUMBER = columns("customer", "organization_id text, customer_id text", "id bigint")
