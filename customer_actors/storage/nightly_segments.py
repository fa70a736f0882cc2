"""The night of the segments: cuts per organization, then everybody rescored, rewriting only what changed [R2, R7].

A chunk reads without locks, which finds the few customers whose scores or code are no longer right; only their rows
are locked, and under the lock everything is read and scored again. So an event that arrives meanwhile is never
overwritten, and nobody waits for a million rows.
"""

import json
from bisect import bisect_left
from collections.abc import Sequence
from datetime import date, timedelta
from operator import itemgetter
from typing import Final, NamedTuple

import structlog

from customer_actors.domain.events import business_date
from customer_actors.domain.rules import Rules
from customer_actors.domain.segmentation import (
    Cuts,
    Quintiles,
    Scale,
    Sieve,
    cut_places,
    day_start_us,
    days_since,
    quintiles,
)
from customer_actors.domain.stats import Stats
from customer_actors.errors import DataFault
from customer_actors.groups.advance import advance
from customer_actors.storage.database import Database, Row, columns
from customer_actors.storage.job_runs import Chunk, Done, Run, require_begun
from customer_actors.storage.postgresql import PostgresDatabase
from customer_actors.storage.segmentation import (
    SEGMENT,
    SegmentationStore,
    keep_cuts,
    newest_cuts,
    publish_cuts,
    segment_columns,
    segment_of,
)
from customer_actors.storage.stats import STATE as STATS_STATE

log = structlog.get_logger(__name__)

CHUNK_CUSTOMERS: Final = 10_000
"""Per transaction: some 0.1 s of work, and a few MB."""
MOST_PLANNING_S: Final = 240
"""For one statement; a million customers take two to four seconds on an idle machine."""
LAST_NUMBER: Final = 2**63 - 1
"""The last chunk of an organization has no end: customers who come during the night belong to it."""

_CUTS = columns(
    "rfm_cuts",
    "organization_id text, as_of text",
    "recency text, frequency text, monetary text, calculated_at_us bigint",
)
_PLACES: Final = "((n + 4) / 5, (2 * n + 4) / 5, (3 * n + 4) / 5, (4 * n + 4) / 5)"
"""`cut_places` in SQL, where dividing integers rounds down."""
_RANKED: Final = f"""
    WITH buyer AS MATERIALIZED (
        SELECT s.last_purchase_at_us AS last_us, s.sales_order + s.sales_pos AS orders, s.total_spent_minor AS total
        FROM stats_state s JOIN customer c ON c.id = s.customer
        WHERE c.organization_id = ? AND s.last_purchase_at_us IS NOT NULL
    ), size AS (SELECT count(*) AS n FROM buyer)
    SELECT 'last', n, place, value FROM size, (
        SELECT row_number() OVER (ORDER BY last_us DESC) AS place, last_us AS value FROM buyer
    ) ranked WHERE place IN {_PLACES}
    UNION ALL SELECT 'total', n, place, value FROM size, (
        SELECT row_number() OVER (ORDER BY total) AS place, total AS value FROM buyer
    ) ranked WHERE place IN {_PLACES}
    UNION ALL SELECT 'orders', n, place, value FROM size, (
        SELECT CAST(sum(count(*)) OVER (ORDER BY orders) AS bigint) AS place, orders AS value
        FROM buyer GROUP BY orders
    ) ranked
"""
"""One statement, so that all cuts and n are of one moment. Orders are few different values: the last place of each."""
_ORGANIZATIONS: Final = (
    "SELECT organization_id, count(*) FROM customer GROUP BY organization_id ORDER BY organization_id"
)
_BLOCKS: Final = """
    SELECT max(id), count(*) FROM customer WHERE organization_id = ? GROUP BY id / ? ORDER BY 1
"""
_CHUNK: Final = """
    SELECT c.id, s.last_purchase_at_us, s.sales_order + s.sales_pos, s.total_spent_minor,
        g.recency, g.frequency, g.monetary, g.code
    FROM customer c JOIN stats_state s ON s.customer = c.id JOIN customer_segment g ON g.customer = c.id
    WHERE c.organization_id = ? AND c.id BETWEEN ? AND ? AND s.customer BETWEEN ? AND ? AND g.customer BETWEEN ? AND ?
    AND g.held_position IS NULL AND (g.calculated_at_us IS NULL OR g.calculated_at_us < ?)
"""
"""A held row waits for its release. The range is said of every table, else PostgreSQL reads two of them as a whole."""
_LOCKED = columns(
    "customer_segment",
    "customer bigint",
    "held_position bigint, calculated_at_us bigint, recency int, frequency int, monetary int, code text",
)
_NOTHING: Final = (None, None, None, None)
"""Scores and code without an active sale [R5]."""


class NightlySegments:
    """The job `segments` [R2, R7]."""

    name = "segments"

    def __init__(self, database: Database, rules: Rules, chunk_customers: int = CHUNK_CUSTOMERS) -> None:
        self.database = database
        self.rules = rules
        self._chunk_customers = chunk_customers

    def plan(self, run: Run, now_us: int) -> Sequence[Chunk]:
        """A snapshot of cuts and the chunks of every organization with an active sale; a dry run keeps the old cuts.

        Without one it keeps the snapshot it has. One that has a snapshot for a later date is left out: this run would
        move its customers back. A snapshot for the same date, of an earlier run, is used again.

        Raises:
            UsageError: the date lies ahead, so that this snapshot would stand in the way of every night until then.
        """
        require_begun(run, now_us, self.rules.zone)
        if isinstance(self.database, PostgresDatabase):  # ranking millions takes longer than a statement usually may
            self.database.execute(f"SET LOCAL statement_timeout = '{MOST_PLANNING_S}s'")
        chunks: list[Chunk] = []
        for organization_id, count in self.database.execute(_ORGANIZATIONS).fetchall():
            if self._snapshot(organization_id, run, now_us):
                lasts = [*self._inner_ends(organization_id, count), LAST_NUMBER]
                firsts = [1, *(last + 1 for last in lasts)]
                for first, last in zip(firsts, lasts, strict=False):
                    chunks.append(Chunk(len(chunks) + 1, organization_id, first, last))
        if not run.dry_run:
            publish_cuts(self.database)
        return chunks

    def _inner_ends(self, organization_id: str, count: int) -> list[int]:
        """The last numbers of all chunks but the last one, which has no end."""
        if count <= self._chunk_customers:
            return []
        ends: list[int] = []
        within = 0
        for last, customers in self.database.execute(_BLOCKS, (organization_id, self._chunk_customers)).fetchall():
            within += customers
            if within >= self._chunk_customers:
                ends.append(last)
                within = 0
        return ends

    def _snapshot(self, organization_id: str, run: Run, now_us: int) -> bool:
        """Whether there are cuts for this date now."""
        newest = newest_cuts(self.database, organization_id)
        if newest.as_of is not None and newest.as_of >= run.as_of:
            return newest.as_of == run.as_of
        cuts = cuts_as_of(self.database, organization_id, run.as_of, self.rules)
        if cuts is None or run.dry_run:
            return cuts is not None
        texts = (_json(cuts.recency), _json(cuts.frequency), _json(cuts.monetary))
        self.database.insert_missing(_CUTS, [(organization_id, run.as_of.isoformat(), *texts, now_us)])
        return True

    def work(self, run: Run, chunk: Chunk, now_us: int, done: Done) -> None:
        """Rescore the customers of one chunk, and look once more after those whose rows were locked.

        A customer whose row the database refuses is left as it is, and logged; the others are rescored.
        """
        night = _night(run, now_us, self.rules)
        try:
            locked = self._rescore(night, chunk, done)
        except DataFault:
            locked = self._rescore(night, chunk, done, frozenset(self._refused(night, chunk)))
        store = SegmentationStore(self.database, self.rules)
        advance(store, store.behind(locked), now_us=lambda: now_us)

    def finish(self, run: Run, now_us: int) -> None:
        """Nothing is left to do: the moment the run is done is what `calculated_at` shows [R7]."""

    def _rescore(
        self, night: "_Night", chunk: Chunk, done: Done, without: frozenset[int] = frozenset()
    ) -> Sequence[int]:
        """Find who is to be rescored, score again under lock, write, mark done: one transaction.

        Returns whose rows were locked.
        """
        with self.database.transaction():
            keep_cuts(self.database)
            examined, wrong, cuts = self._sift(night, chunk)
            wrong = [customer for customer in wrong if customer not in without]
            if night.run.dry_run:
                done(examined, len(wrong))
                return ()
            done(examined, self._write(night, cuts, wrong))
            return wrong

    def _sift(self, night: "_Night", chunk: Chunk) -> tuple[int, list[int], Cuts]:
        """How many customers were looked at, those whose scores are no longer right, and the cuts. Locks nothing."""
        cuts = newest_cuts(self.database, chunk.organization_id)
        if cuts.as_of is not None and cuts.as_of > night.run.as_of:  # a later night went on: its scores count
            return 0, [], cuts
        bounds = (chunk.first, chunk.last)
        rows = self.database.execute(_CHUNK, (chunk.organization_id, *bounds * 3, night.over_us)).fetchall()
        scores = Sieve(Scale(cuts, self.rules.currency_decimals), night.run.as_of, self.rules.zone).scores
        wrong = [row[0] for row in rows if row[4:] != (_NOTHING if row[1] is None else scores(row[1], row[2], row[3]))]
        return len(rows), wrong, cuts

    def _write(self, night: "_Night", cuts: Cuts, customers: Sequence[int]) -> int:
        """Lock rows, read the statistics again, and rewrite those that are still wrong; returns how many.

        As every writer of a segment does; an event's writer who came first was right already [R6].
        """
        locked = self.database.lock(_LOCKED, [(customer,) for customer in customers], "customer")
        has = {row[0]: row[3:] for row in locked if row[1] is None and (row[2] is None or row[2] < night.over_us)}
        rows: list[Row] = []
        for customer, position, *figures in self.database.select(STATS_STATE, [(customer,) for customer in has]):
            try:
                segment = segment_of(Stats(*figures), cuts, self.rules, night.run.as_of)
            except Exception as error:
                _log_refused(customer, error)
                continue
            if has[customer] != (segment.scores or _NOTHING):
                rows.append((customer, position, *segment_columns(segment), night.calculated_us))
        self.database.update(SEGMENT, rows)
        return len(rows)

    def _refused(self, night: "_Night", chunk: Chunk) -> list[int]:
        """Rescore a chunk in ever smaller parts; returns the customers whose row the database refuses."""
        with self.database.transaction():
            _, wrong, _ = self._sift(night, chunk)
        parts, refused = [wrong], []
        while parts:
            part = parts.pop()
            try:
                with self.database.transaction():
                    keep_cuts(self.database)
                    self._write(night, newest_cuts(self.database, chunk.organization_id), part)
            except DataFault as fault:
                if len(part) > 1:
                    parts += [part[: len(part) // 2], part[len(part) // 2 :]]
                else:
                    refused += part
                    _log_refused(part[0], fault)
        return refused


class _Night(NamedTuple):
    """A run with its moments, in microseconds."""

    run: Run
    calculated_us: int
    """What its rows carry: now, but within the day it calculates for, so that the row says by itself which day."""
    over_us: int
    """The end of that day: a row calculated later is never moved back."""


def _night(run: Run, now_us: int, rules: Rules) -> _Night:
    begin, over = (day_start_us(run.as_of + timedelta(days), rules.zone) for days in (0, 1))
    return _Night(run, min(max(now_us, begin), over - 1), over)


def _log_refused(customer: int, error: Exception) -> None:
    log.error("segment not rescored", customer=customer, error=type(error).__name__, then="it stays as it is")


def cuts_as_of(database: Database, organization_id: str, as_of: date, rules: Rules) -> Cuts | None:
    """The cuts of all customers with an active sale [R2, R3]; None when there is no such customer.

    Days since a purchase ascend as its moment descends, so the moments are sorted and only four become days.
    """
    rows = database.execute(_RANKED, (organization_id,)).fetchall()
    if not rows:
        return None
    n = rows[0][1]
    last_us, orders, totals = (
        _at_cuts(n, [row[2:] for row in rows if row[0] == name]) for name in ("last", "orders", "total")
    )
    days = [days_since(business_date(moment, rules.zone), as_of) for moment in last_us]
    return Cuts(None, quintiles(n, days), quintiles(n, orders), quintiles(n, totals), as_of)


def _at_cuts(n: int, ranked: Sequence[Row]) -> list[int]:
    """The values at the places of the cuts; `ranked` has (last place, value) of those values and of others."""
    ordered = sorted(ranked)
    return [ordered[bisect_left(ordered, place, key=itemgetter(0))][1] for place in cut_places(n)]


def _json(cuts: Quintiles | None) -> str | None:
    return None if cuts is None else json.dumps(cuts)
