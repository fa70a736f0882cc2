"""The state of the whole service in figures: how far the actors are, and what waits for a person [G24].

Statements see a moment each, so figures read while the service works may be a few events apart.
"""

from typing import Final

from customer_actors.domain.routing import ACTORS, BIT, SEGMENTATION, STATS
from customer_actors.domain.telling import Figures
from customer_actors.storage.beats import Beat, all_beats
from customer_actors.storage.database import Database
from customer_actors.storage.nights_view import nights_view
from customer_actors.storage.views import STATES

# Counted for the customers behind only. As subqueries and not as a join, so that each of them is one look into the
# primary key of the events, however many are in the streams.
_WAITING: Final = """
    SELECT w.held, count(*), CAST(sum(w.waiting) AS bigint), min(w.oldest_us) FROM (
        SELECT CASE WHEN s.held_position IS NULL THEN 0 ELSE 1 END AS held,
            (SELECT count(*) {events}) AS waiting,
            (SELECT min(e.received_at_us) {events}) AS oldest_us
        FROM {behind}
    ) w GROUP BY w.held
"""
_EVENTS: Final = (
    "FROM event e WHERE e.customer = s.customer AND e.position > s.position AND e.position <= {end} "
    "AND (e.concerns & {bit}) <> 0"
)
_TRIED_AGAIN: Final = (
    "SELECT count(*) FROM held_group h JOIN {table} s ON s.customer = h.customer "
    "WHERE h.actor = '{actor}' AND h.next_try_us IS NOT NULL AND s.held_position IS NOT NULL"
)


def service_view(database: Database, now_us: int) -> Figures:
    """Streams, lag per actor, quarantine and bells; the schema must be current."""
    customers, events = database.query("SELECT count(*), CAST(COALESCE(sum(head), 0) AS bigint) FROM customer")[0]
    return {
        "customers": customers,
        "events": events,
        "actors": {actor: _actor_figures(database, actor, now_us) for actor in ACTORS},
        "quarantined": _quarantined(database),
        "bells": _bells(database, now_us),
        "nights": nights_view(database),
        "processes": [_process(beat, now_us) for beat in all_beats(database)],
    }


def _actor_figures(database: Database, actor: str, now_us: int) -> Figures:
    """Who is behind and not held waits to be advanced; what stands at and behind a hold is counted by itself."""
    figures = {row[0]: row[1:] for row in database.query(_waiting_sql(actor))}
    behind, waiting, oldest_us = figures.get(0, (0, 0, None))
    held, held_back, _ = figures.get(1, (0, 0, None))
    tried_again = database.query(_TRIED_AGAIN.format(table=STATES[actor].table, actor=actor))[0][0]
    return {
        "customers_behind": behind,
        "events_waiting": waiting,
        "oldest_waiting_seconds": _age_s(oldest_us, now_us),
        "held": tried_again,
        "parked": held - tried_again,
        "events_held_back": held_back,
    }


def _waiting_sql(actor: str) -> str:
    table = STATES[actor].table
    if actor == SEGMENTATION:  # it follows the statistics: what they have not folded does not wait for it yet
        behind = f"{table} s JOIN stats_state f ON f.customer = s.customer WHERE f.position > s.position"
        events = _EVENTS.format(end="f.position", bit=BIT[STATS])
    else:
        behind = f"{table} s JOIN customer c ON c.id = s.customer WHERE c.head_{actor} > s.position"
        events = _EVENTS.format(end="c.head", bit=BIT[actor])
    return _WAITING.format(events=events, behind=behind)


def _quarantined(database: Database) -> Figures:
    """What waits in quarantine; a message admitted after a fix no longer does."""
    rows = database.query(
        "SELECT code, count(*), CAST(sum(seen) AS bigint) FROM quarantine WHERE resolved_us IS NULL "
        "GROUP BY code ORDER BY code"
    )
    return {
        "distinct": sum(row[1] for row in rows),
        "seen": sum(row[2] for row in rows),
        "codes": {code: {"distinct": distinct, "seen": seen} for code, distinct, seen in rows},
    }


def _process(beat: Beat, now_us: int) -> Figures:
    """The last sign of life of one process."""
    return {
        "process": beat.process,
        "beat_seconds_ago": _age_s(beat.at_us, now_us),
        "threads": beat.threads_alive,
        "threads_expected": beat.threads_expected,
        "problem": beat.trouble or beat.alarm,
    }


def _bells(database: Database, now_us: int) -> Figures:
    unanswered, oldest_us = database.query("SELECT count(*), min(rung_at_us) FROM bell")[0]
    return {"unanswered": unanswered, "oldest_seconds": _age_s(oldest_us, now_us)}


def _age_s(since_us: int | None, now_us: int) -> int | None:
    """Whole seconds since a moment; 0 for a moment that a clock ahead of ours noted."""
    return None if since_us is None else max(0, (now_us - since_us) // 1_000_000)
