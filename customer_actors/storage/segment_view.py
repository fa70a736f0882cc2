"""What `explain --segment` tells: the inputs, the cuts in force, the scores, and what would change the code."""

from datetime import date, timedelta

from customer_actors.domain.events import business_date
from customer_actors.domain.routing import SEGMENTATION, STATS
from customer_actors.domain.rules import Rules
from customer_actors.domain.segment_outlook import Interval, Move, decay, intervals, upward
from customer_actors.domain.segmentation import HEALTH, Cuts, Scale, Scores
from customer_actors.domain.telling import Figures, amount_text
from customer_actors.storage.database import Database
from customer_actors.storage.segmentation import newest_cuts
from customer_actors.storage.views import Stored, stored_customer, view_of

NO_SALE = "no active sale, so no segment [R5]"
WAITS = "the segment waits for its bell: these are its newest statistics"
HELD = "the segment is held: see `customer-actors held show`"


def segment_explanation(
    database: Database, rules: Rules, organization_id: str, customer_id: str, now_us: int
) -> Figures | None:
    """Why a customer has its segment, as of today's business date; None for an unknown customer.

    Scores are calculated from the statistics with the cuts in force. The stored segment stands beside them: it may be
    of an earlier day, for the days that pass are counted once a night [R7].
    """
    stored = stored_customer(database, organization_id, customer_id)
    if stored is None:
        return None
    with database.reading():
        cuts = newest_cuts(database, organization_id)
    today = business_date(now_us, rules.zone)
    figures: Figures = {
        "organization_id": organization_id,
        "customer_id": customer_id,
        "as_of": today.isoformat(),
        "segment": view_of(stored, rules, organization_id, customer_id)["segment"],
        "note": _note(stored),
        "cuts": _cuts_figures(cuts, rules),
    }
    return figures | _today(stored, rules, cuts, today)


def _note(stored: Stored) -> str | None:
    standing = stored.standings[SEGMENTATION]
    if standing.held_position is not None:
        return HELD
    if standing.position < stored.standings[STATS].position:
        return WAITS
    return None if stored.stats.orders else NO_SALE


def _cuts_figures(cuts: Cuts, rules: Rules) -> Figures:
    scale = Scale(cuts, rules.currency_decimals)
    fixed = [name for name in ("recency", "frequency", "monetary") if getattr(cuts, name) is None]
    return {
        "number": cuts.number,
        "as_of": None if cuts.as_of is None else cuts.as_of.isoformat(),
        "recency": list(scale.recency),
        "frequency": list(scale.frequency),
        "monetary": [amount_text(cut, rules.currency_decimals) for cut in scale.monetary],
        "fixed": fixed,
    }


def _today(stored: Stored, rules: Rules, cuts: Cuts, today: date) -> Figures:
    last_us = stored.stats.last_purchase_at_us
    if last_us is None:
        return {"inputs": None, "scores": None, "code": None, "health": None, "moves": [], "decay": None}
    last, decimals = business_date(last_us, rules.zone), rules.currency_decimals
    orders, total_minor, days = stored.stats.orders, stored.stats.total_spent_minor, (today - last).days
    scale = Scale(cuts, decimals)
    scores = scale.scores(max(0, days), orders, total_minor)
    values = zip(("recency", "frequency", "monetary"), scores[:3], intervals(scale, scores), strict=True)
    falls = decay(scale, days, orders, total_minor)
    return {
        "inputs": {
            "last_purchase_date": last.isoformat(),
            "days": max(0, days),
            "orders": orders,
            "total_spent": amount_text(total_minor, decimals),
        },
        "scores": {
            name: {"score": score, **_interval_figures(interval, decimals if name == "monetary" else None)}
            for name, score, interval in values
        },
        "code": scores.code,
        "health": HEALTH[scores.code],
        "moves": [_move_figures(move, decimals) for move in upward(scale, days, orders, total_minor)],
        "decay": falls and {"on": (today + timedelta(falls.size)).isoformat(), **_move_figures(falls, decimals)},
    }


def _interval_figures(interval: Interval, decimals: int | None) -> Figures:
    """The ends as they are told: amounts as text, days and orders as integers."""
    lowest, highest = interval
    if decimals is None:
        return {"from": lowest, "to": highest}
    return {"from": amount_text(lowest, decimals), "to": None if highest is None else amount_text(highest, decimals)}


def _move_figures(move: Move, decimals: int) -> Figures:
    size = amount_text(move.size, decimals) if move.kind == "amount" else move.size
    amount = {"amount": amount_text(move.amount_minor, decimals)} if move.kind == "both" else {}
    return {"kind": move.kind, "size": size, **amount, **_scores_figures(move.scores)}


def _scores_figures(scores: Scores) -> Figures:
    return {**scores._asdict(), "health": HEALTH[scores.code]}
