"""What the reading verbs show of one customer: its states, and the facts to explain them.

Nothing here takes a lock or writes. A customer is read in one statement, so its figures belong together also while the
actors work.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date, timedelta
from typing import Final, NamedTuple

from customer_actors.domain.credit_book import Account, Usage
from customer_actors.domain.events import Event, EventType, iso
from customer_actors.domain.loyalty import Loyalty
from customer_actors.domain.routing import ACTORS, CREDIT, LOYALTY, SEGMENTATION, STATS
from customer_actors.domain.rules import Rules
from customer_actors.domain.scratch import IN_MEMORY, Numbers, Scratch
from customer_actors.domain.segmentation import day_start_us
from customer_actors.domain.stats import Stats
from customer_actors.domain.story import STREAM, Skips, Standing
from customer_actors.domain.telling import Figures, Skip, amount_text, credit_figures, loyalty_figures, stats_figures
from customer_actors.storage import credit, loyalty, segmentation, stats
from customer_actors.storage.append import EVENT
from customer_actors.storage.database import Database, Row, columns, sorted_errors
from customer_actors.storage.operators import skips_of
from customer_actors.storage.postgresql import PostgresDatabase

STATES: Final = {
    STATS: stats.STATE,
    LOYALTY: loyalty.STATE,
    SEGMENTATION: segmentation.SEGMENT,
    CREDIT: credit.STATE,
}
_CHUNK = 1_000
"""Events read at once: memory does not grow with the stream."""


class SegmentRow(NamedTuple):
    """A segment row: the inputs, what was made of them, with which cuts and when [R6]."""

    last_purchase_date: str | None
    orders: int
    total_spent_minor: int
    recency: int | None
    frequency: int | None
    monetary: int | None
    code: str | None
    cuts: int | None
    calculated_at_us: int | None


class Stored(NamedTuple):
    """Everything stored of one customer but its stream and ledgers."""

    organization_id: str
    customer_id: str
    number: int
    head: int
    uses_credit: bool
    """Whether a usage exists that is not cancelled."""
    standings: dict[str, Standing]
    stats: Stats
    loyalty: Loyalty
    segment: SegmentRow
    account: Account
    night: tuple[int, str] | None = None
    """When the last night of the segments that examined this customer was done, and the date it calculated for."""


def _stored_sql() -> str:
    wanted = [
        "c.organization_id",
        "c.customer_id",
        "c.id",
        "c.head",
        "EXISTS (SELECT 1 FROM credit_usage u WHERE u.customer = c.id AND u.cancelled_position IS NULL)",
    ]
    tables = ["customer c"]
    for actor, state in STATES.items():
        held = f"held_{actor}"
        wanted += [f"{actor}.{name} AS {actor}_{name}" for name in ("position", "held_position")]
        wanted += [f"{held}.{name} AS {held}_{name}" for name in ("attempts", "next_try_us", "error")]
        wanted += [f"{actor}.{name} AS {actor}_{name}" for name in state.names[2:]]
        tables.append(f"JOIN {state.table} {actor} ON {actor}.customer = c.id")
        tables.append(f"LEFT JOIN held_group {held} ON {held}.customer = c.id AND {held}.actor = '{actor}'")
    return f"SELECT {', '.join(wanted)} FROM {' '.join(tables)} WHERE "


_STORED: Final = _stored_sql()
_BY_NAME: Final = f"{_STORED} c.organization_id = ? AND c.customer_id = ?"
_BY_NUMBER: Final = f"{_STORED} c.id = {{customer}}"
_CUSTOMER: Final = columns("customer", "customer bigint")
_NIGHT: Final = """
    SELECT r.done_us, r.as_of FROM customer c
    JOIN job_chunk k ON k.organization_id = c.organization_id AND c.id BETWEEN k.first AND k.last
    JOIN job_run r ON r.job = k.job AND r.slot = k.slot
    WHERE c.organization_id = ? AND c.customer_id = ?
    AND r.job = 'segments' AND r.done_us IS NOT NULL AND NOT CAST(r.dry_run AS boolean)
    ORDER BY r.as_of DESC, r.done_us DESC LIMIT 1
"""
_FIXED_WIDTH = 5
_STANDING_WIDTH = 5


def stored_customer(database: Database, organization_id: str, customer_id: str) -> Stored | None:
    """What is stored of a customer; None when the organization has none of that id [A9]."""
    if not storable(organization_id + customer_id):
        return None
    nights = database.query(_NIGHT, (organization_id, customer_id))  # before the row, which is then no older
    rows = database.query(_BY_NAME, (organization_id, customer_id))
    return _stored(rows[0])._replace(night=nights[0] if nights else None) if rows else None


def stored_customers(database: Database, numbers: Sequence[int]) -> dict[int, Stored]:
    """What is stored of customers by number, in one statement; a customer that lacks a state row is left out."""
    with database.reading():
        rows = database.for_each(_CUSTOMER, _BY_NUMBER, [(number,) for number in numbers])
    return {stored.number: stored for stored in map(_stored, rows)}


def _stored(row: Row) -> Stored:
    (organization_id, customer_id, number, head, uses_credit), rest = row[:_FIXED_WIDTH], row[_FIXED_WIDTH:]
    standings: dict[str, Standing] = {}
    states: dict[str, Row] = {}
    for actor, state in STATES.items():
        end = _STANDING_WIDTH + len(state.names) - 2
        standings[actor] = _standing(rest[:_STANDING_WIDTH])
        states[actor], rest = rest[_STANDING_WIDTH:end], rest[end:]
    account = Account(*states[CREDIT])
    return Stored(
        organization_id,
        customer_id,
        number,
        head,
        bool(uses_credit),
        standings,
        Stats(*states[STATS]),
        Loyalty(*states[LOYALTY]),
        SegmentRow(*states[SEGMENTATION]),
        account._replace(automatic=bool(account.automatic)),
    )


def _standing(row: Row) -> Standing:
    """A hold without details counts as parked: nobody would try it again."""
    position, held_position, attempts, next_try, error = row
    if held_position is None:
        return Standing(position)
    return Standing(position, held_position, attempts or 0, next_try is None, error or "")


def storable(text: str) -> bool:
    """Whether a text can be in a database at all: an argument may hold half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


def customer_view(database: Database, rules: Rules, organization_id: str, customer_id: str) -> Figures | None:
    """What `show --json` prints, key by key; None for a customer nobody has heard of."""
    stored = stored_customer(database, organization_id, customer_id)
    return None if stored is None else view_of(stored, rules, organization_id, customer_id)


def view_of(stored: Stored, rules: Rules, organization_id: str, customer_id: str) -> Figures:
    """The figures of what is stored, under the documented names and in their order."""
    decimals = rules.currency_decimals
    held = [_held_figures(actor, stored.standings[actor]) for actor in ACTORS]
    return {
        "organization_id": organization_id,
        "customer_id": customer_id,
        "position": stored.head,
        "stats": stats_figures(stored.stats, decimals),
        "loyalty": loyalty_figures(stored.loyalty),
        "segment": _segment_figures(stored, rules),
        "credit": credit_figures(stored.account, decimals) if _has_credit(stored) else None,
        "held": [figures for figures in held if figures["position"] is not None],
    }


def _segment_figures(stored: Stored, rules: Rules) -> Figures | None:
    """Null without an active sale, also while the row does not know yet that the last one was cancelled [R5]."""
    row = stored.segment
    if row.code is None or not stored.stats.orders:
        return None
    return {
        "code": row.code,
        "recency": row.recency,
        "frequency": row.frequency,
        "monetary": row.monetary,
        "calculated_at": _calculated_at(stored, rules),
    }


def _calculated_at(stored: Stored, rules: Rules) -> str | None:
    """When the segment was last known to be right: when its row was written, or the last night found it right [R7].

    A night that came late speaks of the end of the day it calculated for, and a row that waits was not looked at.
    """
    moment = stored.segment.calculated_at_us
    standing = stored.standings[SEGMENTATION]
    waits = standing.held_position is not None or standing.position < stored.standings[STATS].position
    if moment is not None and stored.night is not None and not waits:
        done_us, as_of = stored.night
        over_us = day_start_us(date.fromisoformat(as_of) + timedelta(1), rules.zone)
        moment = max(moment, min(done_us, over_us - 1))
    return None if moment is None else iso(moment)


def _has_credit(stored: Stored) -> bool:
    """An account, money (without an account all of it is in suspense), or a usage; a cancelled one never was [A4]."""
    return stored.account.status is not None or stored.account.suspense_minor > 0 or stored.uses_credit


def _held_figures(actor: str, standing: Standing) -> Figures:
    return {
        "actor": actor,
        "position": standing.held_position,
        "status": "parked" if standing.parked else "held",
        "attempts": standing.attempts,
        "error": standing.error,
    }


def organizations_of(database: Database, customer_id: str, limit: int = 5) -> list[str]:
    """Organizations that have a customer of this id."""
    if not storable(customer_id):
        return []
    sql = "SELECT organization_id FROM customer WHERE customer_id = ? ORDER BY organization_id LIMIT ?"
    return [row[0] for row in database.query(sql, (customer_id, limit))]


def usages(database: Database, number: int, limit: int) -> tuple[list[Usage], int]:
    """A customer's usages, and how many there are: what is open first, by due date, then the newest."""
    rows = database.query(_USAGES, (number, limit))
    total: int = database.query("SELECT count(*) FROM credit_usage WHERE customer = ?", (number,))[0][0]
    return [Usage(*row) for row in rows], total


_USAGES: Final = f"""
    SELECT {", ".join(credit.USAGE.names[1:])} FROM credit_usage WHERE customer = ?
    ORDER BY CASE WHEN outstanding_minor > 0 THEN 0 ELSE 1 END, CASE WHEN outstanding_minor > 0 THEN due_date END,
    CASE WHEN outstanding_minor > 0 THEN position ELSE -position END LIMIT ?
"""


# --- the facts to explain a customer -----------------------------------------------------------------------------


class Basis(NamedTuple):
    """One moment of a customer, to be compared with the refold of its stream."""

    stored: Stored
    figures: dict[str, Figures]
    """Per actor the stored figures that a refold must reproduce, see `domain.story.Story.differences`."""
    skips: Skips


def explain_basis(database: Database, rules: Rules, organization_id: str, customer_id: str) -> Basis | None:
    """States and what the ledgers add up to, as of one moment; None for an unknown customer."""
    with snapshot(database):
        stored = stored_customer(database, organization_id, customer_id)
        if stored is None:
            return None
        figures = _comparable(database, stored, rules.currency_decimals)
        return Basis(stored, figures, skips(database, stored.number))


def skips(database: Database, number: int) -> Skips:
    """What actors stepped over in a customer's stream."""
    found = skips_of(database, [number])
    return {(actor, position): Skip(skip.operator, skip.reason) for (_, position, actor), skip in found.items()}


@contextmanager
def snapshot(database: Database) -> Iterator[None]:
    """Statements inside see one moment. Keep it short: it holds back PostgreSQL's vacuum."""
    level = "REPEATABLE READ" if isinstance(database, PostgresDatabase) else "DEFERRED"
    with sorted_errors(database), database.engine.atomic(level):
        yield


_LEDGERS: Final = """
    SELECT (SELECT CAST(COALESCE(sum(points), 0) AS bigint) FROM loyalty_entry WHERE customer = ?),
    (SELECT CAST(COALESCE(sum(points), 0) AS bigint) FROM loyalty_entry WHERE customer = ? AND kind <> 'redeem'),
    (SELECT CAST(COALESCE(sum(outstanding_minor), 0) AS bigint) FROM credit_usage WHERE customer = ?),
    (SELECT CAST(COALESCE(sum(unapplied_minor), 0) AS bigint) FROM credit_payment WHERE customer = ?)
"""


def _comparable(database: Database, stored: Stored, decimals: int) -> dict[str, Figures]:
    points, lifetime_points, outstanding_minor, unapplied_minor = database.query(_LEDGERS, (stored.number,) * 4)[0]
    position = {actor: {"position": standing.position} for actor, standing in stored.standings.items()}
    account = stored.account
    return {
        STREAM: {"events": stored.head},
        STATS: position[STATS] | stats_figures(stored.stats, decimals),
        LOYALTY: position[LOYALTY]
        | loyalty_figures(stored.loyalty)
        | {"ledger_points": points, "ledger_lifetime_points": lifetime_points},
        CREDIT: position[CREDIT]
        | credit_figures(account, decimals)
        | {
            "terms_days": account.terms_days,
            "automatic": account.automatic,
            "usages_outstanding": amount_text(outstanding_minor, decimals),
            "payments_unapplied": amount_text(unapplied_minor, decimals),
        },
    }


def events(database: Database, number: int, up_to: int) -> Iterator[Event]:
    """A customer's events from position 1 to `up_to`, in order."""
    wanted = f"SELECT {', '.join(EVENT.names)} FROM event WHERE customer = ? AND position > ? AND position <= ?"
    after = 0
    while rows := database.query(f"{wanted} ORDER BY position LIMIT {_CHUNK}", (number, after, up_to)):
        yield from map(Event._make, rows)
        after = rows[-1][1]


def undone_sales(database: Database, number: int, up_to: int, scratch: Scratch = IN_MEMORY) -> Numbers:
    """Position of a sale -> position of its cancellation, of all sales cancelled up to a position."""
    sql = (
        f"SELECT position, sale_position FROM event WHERE customer = ? AND type = '{EventType.ORDER_CANCELLED.value}' "
        f"AND sale_position IS NOT NULL AND position > ? AND position <= ? ORDER BY position LIMIT {_CHUNK}"
    )
    undone, after = scratch.numbers(), 0
    while rows := database.query(sql, (number, after, up_to)):
        undone.update((sale, position) for position, sale in rows)
        after = rows[-1][0]
    return undone
