"""The one check after every fault (docs/guarantees.md, Faults to inject); nothing of the service runs any more."""

from collections.abc import Collection, Sequence
from datetime import date
from typing import Any, Final, NamedTuple

from customer_actors.domain.events import Event
from customer_actors.domain.rules import Rules
from customer_actors.storage.append import EVENT
from customer_actors.storage.database import Database
from customer_actors.storage.views import customer_view
from tests.faults.accounts import TWICE, UNKEPT, Accounts
from tests.faults.order_log import OrderProof, prove
from tests.model.stream import state_of_stream

_HEADS: Final = {"stats": "head_stats", "loyalty": "head_loyalty", "credit": "head_credit"}
_SUMS: Final = {
    "points are the sum of the ledger [L5]": "SELECT count(*) FROM loyalty_state s WHERE s.points <> "
    "COALESCE((SELECT sum(points) FROM loyalty_entry e WHERE e.customer = s.customer), 0)",
    "lifetime points are the sum of earnings and reversals [L4]": "SELECT count(*) FROM loyalty_state s WHERE "
    "s.lifetime_points <> COALESCE((SELECT sum(points) FROM loyalty_entry e "
    "WHERE e.customer = s.customer AND e.kind <> 'redeem'), 0)",
    "credit used is the sum of what is outstanding [C1]": "SELECT count(*) FROM credit_state s WHERE s.used_minor <> "
    "COALESCE((SELECT sum(outstanding_minor) FROM credit_usage u WHERE u.customer = s.customer), 0)",
    "unapplied money and suspense are the sum of what payments have left [C2, C3]": "SELECT count(*) FROM credit_state "
    "s WHERE s.unapplied_minor + s.suspense_minor <> "
    "COALESCE((SELECT sum(unapplied_minor) FROM credit_payment p WHERE p.customer = s.customer), 0)",
    "payments are allocated or left [C2]": "SELECT count(*) FROM credit_payment p WHERE p.amount_minor <> "
    "p.unapplied_minor + COALESCE((SELECT sum(amount_minor) FROM credit_allocation a "
    "WHERE a.customer = p.customer AND a.payment_position = p.position), 0)",
}
"""Claim -> how many rows break it."""


class Verdict(NamedTuple):
    """Three figures for the table, and everything else that is not as it must be; all must be empty."""

    lost: int
    twice: int
    disorder: int
    wrong: list[str]
    applied: int
    """Positions in the order log: how much the proof stands on."""
    held: int
    """How often a customer was held or charged one more attempt, also if it went on since: an outage does neither."""


def check(database: Database, rules: Rules, confirmed: Sequence[str], accounts: Accounts, today: date) -> Verdict:
    """Judge what is stored against what the broker confirmed, the log of steps, and the model fed with the streams."""

    found = check_stored(database, prove(lambda sql: database.query(sql)[0][0]))
    wrong = list(found.wrong)
    if refused := accounts.wrongly_refused(confirmed, database.query):
        wrong.append(f"{refused} sound messages in quarantine")
    if unsent := accounts.unpublished(confirmed, database.query):
        wrong.append(f"{len(unsent)} events or quarantined bodies that nobody published: {unsent[:2]}")
    wrong += wrong_states(database, rules, today)
    return found._replace(lost=found.lost + len(accounts.missing(confirmed, database.query)), wrong=wrong)


def check_stored(database: Database, proof: OrderProof) -> Verdict:
    """The part of it that takes neither the lines nor the model: a few statements, for runs too large for the rest."""

    def scalar(sql: str) -> Any:
        return database.query(sql)[0][0]

    unkept = {claim: scalar(sql) for claim, sql in UNKEPT.items()}
    unapplied = {f"customers whose {actor} is not at its head": scalar(_unapplied(actor)) for actor in _HEADS}
    repeated = {claim: int(scalar(sql)) for claim, sql in TWICE.items()}
    lost = sum(unkept.values()) + sum(unapplied.values())
    twice = proof.twice + sum(repeated.values())
    wrong = [f"{claim}: {count}" for claim, count in {**unkept, **unapplied, **repeated}.items() if count]
    wrong += [claim for claim, sql in _SUMS.items() if scalar(sql)]
    if held := scalar("SELECT count(*) FROM held_group"):
        wrong.append(f"{held} customers are still held")
    wrong += _positions(database)
    return Verdict(lost, twice, proof.disorder, wrong, proof.positions, scalar("SELECT count(*) FROM hold_log"))


def _unapplied(actor: str) -> str:
    """Counts customers that an actor has not brought to the last position that concerns it, or has brought past it."""
    return (
        f"SELECT count(*) FROM customer c LEFT JOIN {actor}_state s ON s.customer = c.id "
        f"WHERE s.position IS DISTINCT FROM c.{_HEADS[actor]}"
    )


def _positions(database: Database) -> list[str]:
    """Positions are 1..head, and segmentation is where statistics are."""
    streams = database.query(
        "SELECT c.id FROM customer c LEFT JOIN event e ON e.customer = c.id GROUP BY c.id, c.head "
        "HAVING count(e.position) <> c.head OR min(e.position) <> 1 OR max(e.position) <> c.head"
    )
    segments = database.query(
        "SELECT s.customer FROM stats_state s LEFT JOIN customer_segment g ON g.customer = s.customer "
        "WHERE g.position IS DISTINCT FROM s.position"
    )
    return [f"customer {row[0]}: positions are not 1..head" for row in streams] + [
        f"customer {row[0]}: the segment is not of the newest statistics" for row in segments
    ]


def wrong_states(database: Database, rules: Rules, today: date, but: Collection[int] = ()) -> list[str]:
    """Every stored state is what the model makes of the stored stream, from zero; the customers `but` are left out."""
    wrong = []
    stream = f"SELECT {', '.join(EVENT.names)} FROM event WHERE customer = ? ORDER BY position"
    for organization_id, customer_id, number in database.query("SELECT organization_id, customer_id, id FROM customer"):
        if number in but:
            continue
        view = customer_view(database, rules, organization_id, customer_id) or {}
        if view["segment"] is not None:
            view["segment"].pop("calculated_at")
        events = [Event._make(row) for row in database.query(stream, (number,))]
        expected = state_of_stream(events, rules, today)
        wrong += [
            f"customer {number}: {part} is {view[part]}, refolded from zero {expected[part]}"
            for part in expected
            if view[part] != expected[part]
        ]
    return wrong
