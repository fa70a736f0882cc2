"""Held customers as a person deals with them: what is held and why, release, skip.

Whoever changes something locks the state row first, waiting for a worker that has it; afterwards the caller has to look
again, as everybody who locks a state row does (docs/design.md 3).
"""

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from customer_actors.domain.routing import ACTORS, BIT, SEGMENTATION, STATS, WAKES
from customer_actors.errors import RefusedError
from customer_actors.storage.bells import add_bell
from customer_actors.storage.database import Columns, Database, Row, columns
from customer_actors.storage.operators import Action, record
from customer_actors.storage.views import STATES

CHUNK: Final = 200
"""Customers released or skipped in one transaction."""
LOST: Final = "the details of this hold are missing"
"""The error of a hold without a row in `held_group`, which only somebody else can have deleted: since when it is held
nobody knows, and nobody tries it again."""


class Wanted(NamedTuple):
    """Which holds are meant; None: any."""

    actor: str | None = None
    error: str | None = None
    """A part of the error's text, upper and lower case as written."""
    customer: int | None = None
    position: int | None = None


class HeldError(NamedTuple):
    """Everybody one actor holds for the same error."""

    actor: str
    error: str
    customers: int
    parked: int
    """Of them; their attempts are used up."""
    since_us: int | None
    """None: nobody knows, as of `LOST` ones."""
    waiting: int
    """Events behind those that failed."""


class HeldCustomer(NamedTuple):
    """One customer held for one actor."""

    organization_id: str
    customer_id: str
    actor: str
    position: int
    attempts: int
    next_try_us: int | None
    """None: parked."""
    since_us: int | None
    waiting: int
    error: str


class HeldEvent(NamedTuple):
    """The event that failed, with the whole traceback that was kept."""

    held: HeldCustomer
    type: str
    reference: str
    occurred_at_us: int
    traceback: str


class Place(NamedTuple):
    """Where one actor stands in a customer's stream."""

    position: int
    held_position: int | None


# --- looking -----------------------------------------------------------------------------------------------------


def _held(actor: str) -> str:
    """Everybody this actor holds. The flag decides: details may be left of a hold that is gone, or be lost."""
    events = "FROM event e WHERE e.customer = s.customer AND e.position > s.held_position"
    if actor == SEGMENTATION:  # it follows the statistics
        events += " AND e.position <= (SELECT f.position FROM stats_state f WHERE f.customer = s.customer)"
    bit = BIT[STATS if actor == SEGMENTATION else actor]
    return (
        f"SELECT '{actor}' AS actor, s.customer, s.held_position AS position, COALESCE(h.attempts, 0) AS attempts, "
        f"h.next_try_us, h.since_us, COALESCE(h.error, '{LOST}') AS error, COALESCE(h.traceback, '') AS traceback, "
        f"(SELECT count(*) {events} AND (e.concerns & {bit}) <> 0) AS waiting FROM {STATES[actor].table} s "
        f"LEFT JOIN held_group h ON h.actor = '{actor}' AND h.customer = s.customer "
        "WHERE s.held_position IS NOT NULL"
    )


_HELD: Final = {actor: _held(actor) for actor in ACTORS}
_NAMED: Final = "JOIN customer c ON c.id = h.customer"
_CUSTOMER: Final = (
    "c.organization_id, c.customer_id, h.actor, h.position, h.attempts, h.next_try_us, h.since_us, h.waiting, h.error"
)


def _from(wanted: Wanted, also: str = "") -> tuple[str, list[Any]]:
    """The holds that are wanted, as `h` (and what is joined `also`), and the parameters."""
    holds = " UNION ALL ".join(_HELD[actor] for actor in ([wanted.actor] if wanted.actor else ACTORS))
    conditions, parameters = _conditions(wanted)
    return f"FROM ({holds}) h {also} WHERE {conditions}", parameters


def _conditions(wanted: Wanted) -> tuple[str, list[Any]]:
    # replace() tells whether a text is part of another the same way in both databases; LIKE does not.
    conditions: dict[str, Any] = {
        "h.actor = ?": wanted.actor,
        "replace(h.error, ?, '') <> h.error": wanted.error,
        "h.customer = ?": wanted.customer,
        "h.position = ?": wanted.position,
    }
    given = {text: value for text, value in conditions.items() if value is not None}
    return " AND ".join(given) or "1 = 1", [*given.values()]


def held_errors(database: Database, wanted: Wanted, limit: int) -> list[HeldError]:
    """The holds by actor and error, those with most customers first."""
    holds, parameters = _from(wanted)
    sql = (
        "SELECT h.actor, h.error, count(*) AS customers, "
        "CAST(sum(CASE WHEN h.next_try_us IS NULL THEN 1 ELSE 0 END) AS bigint), min(h.since_us), "
        f"CAST(sum(h.waiting) AS bigint) {holds} GROUP BY h.actor, h.error ORDER BY customers DESC, 1, 2 LIMIT ?"
    )
    return [HeldError(*row) for row in database.query(sql, (*parameters, limit))]


def held_customers(database: Database, wanted: Wanted, limit: int) -> list[HeldCustomer]:
    """The customers held, the longest first, and before them those of whom nobody knows since when."""
    holds, parameters = _from(wanted, _NAMED)
    order = "COALESCE(h.since_us, 0), c.organization_id, c.customer_id, h.actor"
    sql = f"SELECT {_CUSTOMER} {holds} ORDER BY {order} LIMIT ?"
    return [HeldCustomer(*row) for row in database.query(sql, (*parameters, limit))]


def held_totals(database: Database, wanted: Wanted) -> tuple[int, int]:
    """How many holds there are, and how many different pairs of actor and error."""
    holds, parameters = _from(wanted)
    each = f"SELECT count(*) AS n {holds} GROUP BY h.actor, h.error"
    sql = f"SELECT CAST(COALESCE(sum(g.n), 0) AS bigint), count(*) FROM ({each}) g"
    customers, errors = database.query(sql, parameters)[0]
    return customers, errors


def held_events(database: Database, customer: int, actor: str | None = None) -> list[HeldEvent]:
    """What this customer is held at, by actor."""
    event = "JOIN event e ON e.customer = h.customer AND e.position = h.position"
    holds, parameters = _from(Wanted(actor, customer=customer), f"{_NAMED} {event}")
    sql = f"SELECT {_CUSTOMER}, e.type, e.reference, e.occurred_at_us, h.traceback {holds} ORDER BY h.actor"
    width = len(HeldCustomer._fields)
    return [HeldEvent(HeldCustomer(*row[:width]), *row[width:]) for row in database.query(sql, parameters)]


def held_without_details(database: Database, most: int) -> list[tuple[str, str, str]]:
    """(organization, customer, actor) of those whose hold is `LOST`: no retry knows of them."""
    lost = [hold for hold in held_customers(database, Wanted(error=LOST), most) if hold.since_us is None]
    return [(hold.organization_id, hold.customer_id, hold.actor) for hold in lost]


def number_of_customer(database: Database, organization_id: str, customer_id: str) -> int | None:
    """The customer's internal number; None when nobody has heard of it."""
    sql = "SELECT id FROM customer WHERE organization_id = ? AND customer_id = ?"
    rows = database.query(sql, (organization_id, customer_id))
    return rows[0][0] if rows else None


def place_of(database: Database, actor: str, customer: int) -> Place:
    """Where an actor stands, read without a lock. Raises RefusedError when its state row is gone."""
    sql = f"SELECT position, held_position FROM {STATES[actor].table} WHERE customer = ?"
    return _place(actor, database.query(sql, (customer,)))


def _place(actor: str, rows: Sequence[Row]) -> Place:
    if not rows:
        raise RefusedError(
            f"the customer has no state row of {actor}; `customer-actors rebuild {actor} --customer CUSTOMER --org ORG "
            "--reason TEXT` makes it again"
        )
    return Place(*rows[0])


# --- acting ------------------------------------------------------------------------------------------------------


def skip(database: Database, actor: str, customer: int, position: int, by: Action, now_us: int) -> Place | None:
    """Step over the event an actor is held at, in one transaction with the record of it.

    Returns None when done: the caller advances the customer, for what waited behind. When the actor is not held at that
    position nothing changes, and its place is returned.
    """
    with database.transaction():
        place = _place(actor, [row[1:] for row in database.lock(_flags(actor), [(customer,)], "t.customer")])
        if place.held_position != position:
            return place
        _step_over(database, actor, [(customer, position)], by, now_us)
    return None


def skip_wanted(database: Database, wanted: Wanted, by: Action, now_us: int) -> Iterator[tuple[str, list[int]]]:
    """Step over the one event that each of these is held at now, in transactions of `CHUNK` customers of one actor.

    Nobody who is held only later, and nobody who is by then held for an error that is not wanted: a skip is for good.

    Yields (actor, customers) after each commit: the caller advances them, or leaves that to the bell row. Every skip is
    recorded for itself, since each is part of its customer's history.
    """
    for actor, chunk in _chunks(database, wanted):
        with database.transaction():
            held = _still_held(database, wanted._replace(actor=actor), chunk)
            _step_over(database, actor, held, by, now_us)
        if held:
            yield actor, [customer for customer, _ in held]


def _step_over(database: Database, actor: str, held: Sequence[tuple[int, int]], by: Action, now_us: int) -> None:
    database.update(_flags(actor), [(customer, position, None) for customer, position in held])
    _forget(database, actor, [customer for customer, _ in held], now_us)
    for customer, position in held:
        record(database, by._replace(actor=actor, customer=customer, position=position), now_us)


def count_wanted(database: Database, wanted: Wanted) -> dict[str, int]:
    """Actor -> how many customers a release or a skip would concern."""
    holds, parameters = _from(wanted)
    return dict(database.query(f"SELECT h.actor, count(*) {holds} GROUP BY h.actor ORDER BY h.actor", parameters))


def release(database: Database, wanted: Wanted, by: Action, now_us: int) -> Iterator[tuple[str, list[int]]]:
    """Clear holds, in transactions of `CHUNK` customers of one actor; attempts start anew.

    Yields (actor, customers) after each commit: the caller advances them, or leaves that to the bell row. The action is
    recorded once, with the first customers.
    """
    recorded = False
    for actor, chunk in _chunks(database, wanted):
        with database.transaction():
            freed = [customer for customer, _ in _still_held(database, wanted._replace(actor=actor), chunk)]
            lifted = columns(STATES[actor].table, "customer bigint", "held_position bigint")
            database.update(lifted, [(customer, None) for customer in freed])
            _forget(database, actor, freed, now_us)
            if freed and not recorded:
                record(database, by, now_us)
        if freed:
            recorded = True
            yield actor, freed


def _chunks(database: Database, wanted: Wanted) -> list[tuple[str, list[tuple[int, int]]]]:
    """(actor, some of its holds as (customer, position)), all that are there now."""
    chunks = []
    for actor in ACTORS if wanted.actor is None else [wanted.actor]:
        after = 0
        while chunk := _next_chunk(database, wanted._replace(actor=actor), after):
            after = chunk[-1][0]
            chunks.append((actor, chunk))
    return chunks


def _next_chunk(database: Database, wanted: Wanted, after: int) -> list[tuple[int, int]]:
    """(customer, position) of the next holds in number order."""
    holds, parameters = _from(wanted)
    sql = f"SELECT h.customer, h.position {holds} AND h.customer > ? ORDER BY h.customer LIMIT ?"
    return [(row[0], row[1]) for row in database.query(sql, (*parameters, after, CHUNK))]


def _still_held(database: Database, wanted: Wanted, chunk: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those still held where they were seen, and for what is wanted; only the locked row can tell. All are locked."""
    actor, seen = str(wanted.actor), dict(chunk)
    rows = database.lock(_flags(actor), [(customer,) for customer in seen], "t.customer")
    held = [(customer, held_position) for customer, _, held_position in rows if held_position == seen[customer]]
    if wanted.error is None:
        return held
    # Tried again meanwhile, it may have failed for something else.
    holds, parameters = _from(wanted)
    sql = f"SELECT h.customer, h.position {holds} AND h.customer BETWEEN ? AND ?"
    wanted_still = {(row[0], row[1]) for row in database.query(sql, (*parameters, min(seen), max(seen)))}
    return [each for each in held if each in wanted_still]


def _flags(actor: str) -> Columns:
    return columns(STATES[actor].table, "customer bigint", "position bigint, held_position bigint")


def _forget(database: Database, actor: str, customers: Sequence[int], now_us: int) -> None:
    """Remove the details of holds and leave a bell, for the one that told of what waits was let go meanwhile."""
    keys = columns("held_group", "actor text, customer bigint")
    database.delete(keys, [(actor, customer) for customer in customers])
    if customers:
        add_bell(database, {WAKES[actor]: sorted(customers)}, now_us)
