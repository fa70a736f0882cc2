"""What the reading verbs show of one customer: its states, and the facts to explain them.

Nothing here takes a lock or writes. A customer is read in one statement, so its figures belong together also while the
actors work.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any, Final, NamedTuple

from customer_actors.domain.credit_book import Account, Usage
from customer_actors.domain.events import Event, EventType, business_date, iso
from customer_actors.domain.loyalty import Loyalty
from customer_actors.domain.routing import ACTORS, CREDIT, LOYALTY, SEGMENTATION, STATS
from customer_actors.domain.rules import Rules
from customer_actors.domain.segmentation import Cuts, score
from customer_actors.domain.stats import Stats
from customer_actors.domain.story import STREAM, Difference, Standing
from customer_actors.domain.telling import Figures, amount_text, credit_figures, loyalty_figures, stats_figures
from customer_actors.storage import credit, loyalty, segmentation, stats
from customer_actors.storage.append import EVENT
from customer_actors.storage.database import Database, Row, sorted_errors
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

    number: int
    head: int
    uses_credit: bool
    """Whether a usage exists that is not cancelled."""
    standings: dict[str, Standing]
    stats: Stats
    loyalty: Loyalty
    segment: SegmentRow
    account: Account


def _stored_sql() -> str:
    wanted = [
        "c.id",
        "c.head",
        "EXISTS (SELECT 1 FROM credit_usage u WHERE u.customer = c.id AND u.cancelled_position IS NULL)",
    ]
    tables = ["customer c"]
    for actor, state in STATES.items():
        held = f"held_{actor}"
        wanted += [f"{actor}.position", f"{actor}.held_position"]
        wanted += [f"{held}.{name}" for name in ("attempts", "next_try_us", "error")]
        wanted += [f"{actor}.{name}" for name in state.names[2:]]
        tables.append(f"JOIN {state.table} {actor} ON {actor}.customer = c.id")
        tables.append(f"LEFT JOIN held_group {held} ON {held}.customer = c.id AND {held}.actor = '{actor}'")
    return f"SELECT {', '.join(wanted)} FROM {' '.join(tables)} WHERE c.organization_id = ? AND c.customer_id = ?"


_STORED: Final = _stored_sql()
_STANDING_WIDTH = 5


def stored_customer(database: Database, organization_id: str, customer_id: str) -> Stored | None:
    """What is stored of a customer; None when the organization has none of that id [A9]."""
    if not _storable(organization_id + customer_id):
        return None
    rows = database.query(_STORED, (organization_id, customer_id))
    if not rows:
        return None
    (number, head, uses_credit), rest = rows[0][:3], rows[0][3:]
    standings: dict[str, Standing] = {}
    states: dict[str, Row] = {}
    for actor, state in STATES.items():
        end = _STANDING_WIDTH + len(state.names) - 2
        standings[actor] = _standing(rest[:_STANDING_WIDTH])
        states[actor], rest = rest[_STANDING_WIDTH:end], rest[end:]
    account = Account(*states[CREDIT])
    return Stored(
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


def _storable(text: str) -> bool:
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
        "segment": _segment_figures(stored),
        "credit": credit_figures(stored.account, decimals) if _has_credit(stored) else None,
        "held": [figures for figures in held if figures["position"] is not None],
    }


def _segment_figures(stored: Stored) -> Figures | None:
    """Null without an active sale, also while the row does not know yet that the last one was cancelled [R5]."""
    row = stored.segment
    if row.code is None or not stored.stats.orders:
        return None
    return {
        "code": row.code,
        "recency": row.recency,
        "frequency": row.frequency,
        "monetary": row.monetary,
        "calculated_at": _calculated_at(row),
    }


def _calculated_at(row: SegmentRow) -> str | None:
    """When the segment was last known to be right. A night's end belongs here once nights are recorded [R7]."""
    return None if row.calculated_at_us is None else iso(row.calculated_at_us)


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
    if not _storable(customer_id):
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


def explain_basis(database: Database, rules: Rules, organization_id: str, customer_id: str) -> Basis | None:
    """States and what the ledgers add up to, as of one moment; None for an unknown customer."""
    with _snapshot(database):
        stored = stored_customer(database, organization_id, customer_id)
        return None if stored is None else Basis(stored, _comparable(database, stored, rules.currency_decimals))


@contextmanager
def _snapshot(database: Database) -> Iterator[None]:
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


def undone_sales(database: Database, number: int, up_to: int) -> dict[int, int]:
    """Position of a sale -> position of its cancellation, of all sales cancelled up to a position."""
    sql = (
        f"SELECT sale_position, position FROM event WHERE customer = ? AND type = '{EventType.ORDER_CANCELLED.value}' "
        "AND sale_position IS NOT NULL AND position <= ?"
    )
    return dict(database.query(sql, (number, up_to)))


def segment_differences(database: Database, rules: Rules, stored: Stored) -> list[Difference]:
    """What the segment row has otherwise than its own inputs say, and its inputs otherwise than the statistics [R6].

    The inputs are compared only while the row stands where the statistics stand. Days are counted to the business date
    the row was calculated on.
    """
    row, expected = stored.segment, stored.segment
    if stored.standings[SEGMENTATION].position == stored.standings[STATS].position:
        expected = expected._replace(**_inputs(stored.stats, rules))
    expected = expected._replace(**_scores(database, rules, row))
    has, wanted = _shown(row, rules), _shown(expected, rules)
    return [Difference(SEGMENTATION, field, has[field], wanted[field]) for field in has if has[field] != wanted[field]]


def _shown(row: SegmentRow, rules: Rules) -> Figures:
    return row._asdict() | {"total_spent_minor": amount_text(row.total_spent_minor, rules.currency_decimals)}


def _inputs(state: Stats, rules: Rules) -> dict[str, Any]:
    last = state.last_purchase_at_us
    day = None if last is None else business_date(last, rules.zone).isoformat()
    return {"last_purchase_date": day, "orders": state.orders, "total_spent_minor": state.total_spent_minor}


def _scores(database: Database, rules: Rules, row: SegmentRow) -> dict[str, Any]:
    if row.last_purchase_date is None or row.calculated_at_us is None:
        return {"recency": None, "frequency": None, "monetary": None, "code": None}
    as_of = business_date(row.calculated_at_us, rules.zone)
    last, cuts = date.fromisoformat(row.last_purchase_date), _cuts(database, row.cuts)
    scores = score(as_of, last, row.orders, row.total_spent_minor, cuts, rules.currency_decimals)
    return scores._asdict() | {"cuts": cuts.number}


def _cuts(database: Database, number: int | None) -> Cuts:
    """The snapshot of that number; without one the fixed cuts."""
    rows = database.query("SELECT number, recency, frequency, monetary FROM rfm_cuts WHERE number = ?", (number,))
    if not rows:
        return Cuts()
    return Cuts(rows[0][0], *(None if text is None else tuple(json.loads(text)) for text in rows[0][1:]))
