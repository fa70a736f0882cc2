"""Segment rows: not a fold, but a function of the statistics and the newest cuts [R1, R5, R6]."""

import json
from collections.abc import Iterable, Sequence
from datetime import date
from typing import Final, NamedTuple

from customer_actors.domain import routing
from customer_actors.domain.events import business_date
from customer_actors.domain.rules import Rules
from customer_actors.domain.segmentation import Cuts, Quintiles, Scores, score
from customer_actors.domain.stats import Stats
from customer_actors.errors import DataFault
from customer_actors.groups.advance import Hold, Round
from customer_actors.groups.alarm import MassFailure
from customer_actors.storage import holds
from customer_actors.storage.database import Database, Row, columns
from customer_actors.storage.postgresql import PostgresDatabase
from customer_actors.storage.stats import STATE as STATS_STATE

_LOCKED = columns("customer_segment", "customer bigint", "position bigint")
SEGMENT = columns(
    "customer_segment",
    "customer bigint",
    "position bigint, last_purchase_date text, orders bigint, total_spent_minor bigint, recency int, frequency int, "
    "monetary int, code text, cuts int, calculated_at_us bigint",
)
_ORGANIZATION = columns("customer", "id bigint", "organization_id text")
_GROUP = columns("customer_segment", "customer bigint")
_BEHIND = (
    "SELECT s.customer FROM stats_state s JOIN customer_segment g ON g.customer = s.customer "
    "WHERE s.customer = {customer} AND s.position > g.position AND g.held_position IS NULL LIMIT 1"
)

_CUTS_LOCK: Final = 7_203_114_016
"""Any number, the same in every version: the advisory lock of whoever reads cuts to write scores."""


class Segment(NamedTuple):
    """A segment with the inputs it was calculated from; `scores` is None without an active sale [R5]."""

    last_purchase: date | None
    orders: int
    total_spent_minor: int
    scores: Scores | None
    cuts: int | None


def segment_of(stats: Stats, cuts: Cuts, rules: Rules, as_of: date) -> Segment:
    """Score one customer's statistics on a business date [R1, R6]."""
    if stats.last_purchase_at_us is None:
        return Segment(None, 0, 0, None, cuts.number)
    last = business_date(stats.last_purchase_at_us, rules.zone)
    scores = score(as_of, last, stats.orders, stats.total_spent_minor, cuts, rules.currency_decimals)
    return Segment(last, stats.orders, stats.total_spent_minor, scores, cuts.number)


class SegmentationStore:
    """The segmentation actor's rows. Every writer first locks the segment row, then reads statistics and cuts [R6]."""

    actor = routing.SEGMENTATION
    table = "customer_segment"

    def __init__(self, database: Database, rules: Rules) -> None:
        self.database = database
        self.rules = rules
        self.alarm = MassFailure()
        """Replaced by the one all stores of a process share."""

    def round(self, groups: Sequence[int], now_us: int) -> Round:
        """Rescore the customers whose row can be locked.

        When the database refuses a row, the round is halved until that one customer is found; it is held alone.
        """
        try:
            return self._round(groups, now_us)
        except DataFault as fault:
            if len(groups) == 1:
                return self._round(groups, now_us, fault)
            middle = len(groups) // 2
            one, other = self.round(groups[:middle], now_us), self.round(groups[middle:], now_us)
            return Round(
                one.locked + other.locked, one.applied + other.applied, one.held + other.held, one.moved + other.moved
            )

    def _round(self, groups: Sequence[int], now_us: int, fault: DataFault | None = None) -> Round:
        with self.database.transaction():
            keep_cuts(self.database)
            locked = self.database.lock_groups(_LOCKED, groups, "held_position IS NULL")
            return self._advance(dict(locked), now_us, {}, fault)

    def retry(self, group: int, now_us: int) -> Round:
        """Try a held customer again if its time has come; locks nothing otherwise."""
        try:
            return self._retry(group, now_us)
        except DataFault as fault:
            return self._retry(group, now_us, fault)

    def _retry(self, group: int, now_us: int, fault: DataFault | None = None) -> Round:
        with self.database.transaction():
            keep_cuts(self.database)
            due: dict[int, int] = dict(holds.lock_due(self.database, self.actor, _LOCKED, [group], now_us))
            done = self._advance(due, now_us, holds.positions(self.database, self.actor, due), fault)
            holds.settle(self.database, self.actor, list(due), done.held, now_us)
            return done

    def _advance(
        self, positions: dict[int, int], now_us: int, held_at: dict[int, int], fault: DataFault | None
    ) -> Round:
        """Rescore locked rows; all of them fail with `fault`, if there is one.

        A customer that fails again stays held where it was: statistics may have moved on.
        """
        if not positions:
            return Round(0)
        stats = self.database.select(STATS_STATE, [(group,) for group in positions])
        changed = {row[0]: row for row in stats if row[1] > positions[row[0]]}
        rows, failed = self._rescore(changed, now_us) if fault is None else ([], _all_failed(changed, fault))
        self.database.update(SEGMENT, rows)
        failed = [hold._replace(position=held_at.get(hold.group, hold.position)) for hold in failed]
        failures = {hold.group for hold in failed}
        known = holds.charged(self.database, self.actor, failures.intersection(held_at))
        self.alarm.note(self.actor, changed.keys() - known, failures - known, now_us / 1_000_000)
        holds.hold(self.database, self.actor, self.table, failed, now_us, self.alarm)
        return Round(len(positions), len(rows), tuple(failed), tuple(row[0] for row in rows))

    def _rescore(self, stats_rows: dict[int, Row], now_us: int) -> tuple[list[Row], list[Hold]]:
        organizations: dict[int, str] = dict(self.database.select(_ORGANIZATION, [(group,) for group in stats_rows]))
        cuts = {one: newest_cuts(self.database, one) for one in sorted(set(organizations.values()))}
        as_of = business_date(now_us, self.rules.zone)
        rows: list[Row] = []
        failed: list[Hold] = []
        for group, row in stats_rows.items():
            try:
                segment = segment_of(Stats(*row[2:]), cuts[organizations[group]], self.rules, as_of)
            except Exception as error:
                failed.append(Hold.of(group, row[1], error))
                continue
            rows.append((group, row[1], *segment_columns(segment), now_us))
        return rows, failed

    def behind(self, groups: Sequence[int]) -> list[int]:
        """Those of the groups whose statistics are newer than their segment, and that are not held."""
        with self.database.reading():
            return [row[0] for row in self.database.for_each(_GROUP, _BEHIND, [(group,) for group in groups])]

    def all_behind(self) -> list[int]:
        """As `behind`, over all customers: for start-up and for waiting until everybody is through."""
        rows = self.database.query(
            "SELECT g.customer FROM stats_state s JOIN customer_segment g ON g.customer = s.customer "
            "WHERE s.position > g.position AND g.held_position IS NULL ORDER BY g.customer"
        )
        return [row[0] for row in rows]


def segment_columns(segment: Segment) -> Row:
    """The columns of a segment between position and calculated_at_us."""
    last = segment.last_purchase.isoformat() if segment.last_purchase else None
    scores: Iterable[object] = segment.scores or (None, None, None, None)
    return (last, segment.orders, segment.total_spent_minor, *scores, segment.cuts)


def _all_failed(stats_rows: dict[int, Row], fault: DataFault) -> list[Hold]:
    return [Hold.of(group, row[1], fault) for group, row in stats_rows.items()]


def keep_cuts(database: Database) -> None:
    """Until the end of this transaction the cuts stay as they are. Call it before locking segment rows.

    Every writer of scores does, so that once a snapshot is published nobody writes by an older one any more. On SQLite
    the transaction itself excludes all other writers.
    """
    if isinstance(database, PostgresDatabase):
        database.execute("SELECT pg_advisory_xact_lock_shared(?)", (_CUTS_LOCK,))


def publish_cuts(database: Database) -> None:
    """Wait for the writers who score by the cuts of before, and keep new ones waiting until the commit.

    Call it last before the commit of a snapshot. Takes no row lock, so it cannot deadlock with `keep_cuts`.
    """
    if isinstance(database, PostgresDatabase):
        database.execute("SELECT pg_advisory_xact_lock(?)", (_CUTS_LOCK,))


def newest_cuts(database: Database, organization_id: str) -> Cuts:
    """The organization's snapshot of the latest date, or none: then the fixed cuts apply [R3, R6]."""
    rows = database.execute(
        "SELECT number, recency, frequency, monetary, as_of FROM rfm_cuts "
        "WHERE organization_id = ? ORDER BY as_of DESC LIMIT 1",
        (organization_id,),
    ).fetchall()
    return cuts_of(rows[0]) if rows else Cuts()


def cuts_of(row: Row) -> Cuts:
    """The snapshot of a row (number, recency, frequency, monetary, as_of)."""
    number, recency, frequency, monetary, as_of = row
    return Cuts(number, _quintiles(recency), _quintiles(frequency), _quintiles(monetary), date.fromisoformat(as_of))


def _quintiles(text: str | None) -> Quintiles | None:
    if text is None:
        return None
    first, second, third, fourth = json.loads(text)
    return first, second, third, fourth
