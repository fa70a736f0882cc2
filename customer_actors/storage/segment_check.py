"""Whether a segment row is what its own inputs and the cuts it names make of it [R6]."""

from datetime import date
from typing import Any

from customer_actors.domain.events import business_date
from customer_actors.domain.routing import SEGMENTATION, STATS
from customer_actors.domain.rules import Rules
from customer_actors.domain.segmentation import Cuts, score
from customer_actors.domain.stats import Stats
from customer_actors.domain.story import Difference
from customer_actors.domain.telling import Figures, amount_text
from customer_actors.storage.database import Database
from customer_actors.storage.segmentation import cuts_of
from customer_actors.storage.views import SegmentRow, Stored

Known = dict[tuple[str, int], Cuts]
"""Snapshots by organization and number, read already."""


def segment_differences(
    database: Database, rules: Rules, stored: Stored, known: Known | None = None, *, skipped: bool = False
) -> list[Difference]:
    """What the segment row has otherwise than its own inputs say, and its inputs otherwise than the statistics [R6].

    The inputs are compared only while the row stands where the statistics stand, and not if it came there because an
    operator let it step over (`skipped`). Days are counted to the business date
    the row was calculated on. `known` keeps snapshots for the next call; they never change.
    """
    row, expected = stored.segment, stored.segment
    if not skipped and stored.standings[SEGMENTATION].position == stored.standings[STATS].position:
        expected = expected._replace(**_inputs(stored.stats, rules))
    expected = expected._replace(**_scores(database, rules, stored, {} if known is None else known))
    has, wanted = _shown(row, rules), _shown(expected, rules)
    return [Difference(SEGMENTATION, field, has[field], wanted[field]) for field in has if has[field] != wanted[field]]


def _shown(row: SegmentRow, rules: Rules) -> Figures:
    return row._asdict() | {"total_spent_minor": amount_text(row.total_spent_minor, rules.currency_decimals)}


def _inputs(state: Stats, rules: Rules) -> dict[str, Any]:
    last = state.last_purchase_at_us
    day = None if last is None else business_date(last, rules.zone).isoformat()
    return {"last_purchase_date": day, "orders": state.orders, "total_spent_minor": state.total_spent_minor}


def _scores(database: Database, rules: Rules, stored: Stored, known: Known) -> dict[str, Any]:
    row = stored.segment
    if row.last_purchase_date is None or row.calculated_at_us is None:
        return {"recency": None, "frequency": None, "monetary": None, "code": None}
    as_of = business_date(row.calculated_at_us, rules.zone)
    last = date.fromisoformat(row.last_purchase_date)
    cuts = _cuts(database, stored.organization_id, row.cuts, known)
    scores = score(as_of, last, row.orders, row.total_spent_minor, cuts, rules.currency_decimals)
    return scores._asdict() | {"cuts": cuts.number}


def _cuts(database: Database, organization_id: str, number: int | None, known: Known) -> Cuts:
    """The organization's snapshot of that number; without one, or of another's, the fixed cuts, which have none."""
    if number is None:
        return Cuts()
    if (organization_id, number) not in known:
        wanted = "SELECT number, recency, frequency, monetary, as_of FROM rfm_cuts "
        rows = database.query(f"{wanted} WHERE number = ? AND organization_id = ?", (number, organization_id))
        known[organization_id, number] = cuts_of(rows[0]) if rows else Cuts()
    return known[organization_id, number]
