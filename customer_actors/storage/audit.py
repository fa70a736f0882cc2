"""Everything stored, compared with the streams folded again: states, positions, ledgers, sums, holds, segments.

Runs while events flow: what one actor stored of one customer is read in one snapshot, so it belongs together, and is
compared with the refold to exactly the position read there. A customer with a long stream is folded up beforehand,
outside any snapshot, so that none stays open for longer than its last steps.

Memory: a page of customers with at most WINDOW events together, or one window of a longer stream. What its fold has to
keep, and what differs in it, goes to temporary files.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from heapq import merge
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple

from customer_actors.domain.refold import Row
from customer_actors.domain.routing import ACTORS, BIT, CREDIT, LOYALTY, SEGMENTATION, STATS, STREAM_ACTORS
from customer_actors.domain.rules import Rules
from customer_actors.domain.stats import Stats
from customer_actors.domain.story import STREAM
from customer_actors.storage import holds
from customer_actors.storage.database import Database, columns
from customer_actors.storage.operators import skips_of
from customer_actors.storage.refolding import CUSTOMER, FACTS, WINDOW, Finding, Refolding
from customer_actors.storage.rules import RulesBook
from customer_actors.storage.scratch import Spool
from customer_actors.storage.segment_check import Known, segment_differences
from customer_actors.storage.views import STATES, Stored, snapshot, stored_customers

PAGE: Final = 500
"""Most customers compared at once."""


class Difference(NamedTuple):
    """A figure that is not what the stream says; amounts and times are texts as `show` prints them."""

    organization_id: str
    customer_id: str
    actor: str
    field: str
    stored: object
    expected: object


@dataclass
class Checked:
    """How much was compared."""

    customers: int = 0
    events: int = 0
    ledger_rows: int = 0


class Scope(NamedTuple):
    """What to audit: everything, one organization, or one customer of it."""

    organization_id: str | None = None
    customer_id: str | None = None

    def condition(self) -> tuple[str, list[str]]:
        wanted = [("organization_id", self.organization_id), ("customer_id", self.customer_id)]
        named = [(name, value) for name, value in wanted if value is not None]
        return "".join(f" AND {name} = ?" for name, _ in named), [value for _, value in named]


class Customer(NamedTuple):
    """A customer on a page."""

    number: int
    head: int
    organization_id: str
    customer_id: str


def pages(database: Database, scope: Scope, most_events: int = WINDOW) -> Iterator[list[Customer]]:
    """Customers by number, at most PAGE and about `most_events` events at once; those that come meanwhile are left."""
    condition, values = scope.condition()
    (last,) = database.query("SELECT COALESCE(max(id), 0) FROM customer")[0]
    wanted = f"SELECT id, head, organization_id, customer_id FROM customer WHERE id > ? AND id <= ?{condition}"
    after = 0
    while rows := database.query(f"{wanted} ORDER BY id LIMIT {PAGE}", (after, last, *values)):
        page: list[Customer] = []
        for customer in map(Customer._make, rows):
            if page and sum(one.head for one in page) + customer.head > most_events:
                yield page
                page = []
            page.append(customer)
        yield page
        after = rows[-1][0]


def count_customers(database: Database, scope: Scope) -> int:
    """How many customers a scope holds."""
    condition, values = scope.condition()
    count: int = database.query(f"SELECT count(*) FROM customer WHERE 1 = 1{condition}", values)[0][0]
    return count


class Audit:
    """Compares page by page; `checked` counts on."""

    def __init__(self, database: Database, rules: Rules, actors: Sequence[str] = ACTORS, window: int = WINDOW) -> None:
        self.checked = Checked()
        self._database = database
        self._rules = rules
        self._actors = actors
        self._window = window
        self._book = RulesBook(database)
        self._cuts: Known = {}

    def run(self, scope: Scope, progress: Callable[[int], None] = lambda _: None) -> Iterator[Difference]:
        """Every difference, customer by customer. `progress` is told how many customers are done.

        Of everything it ends with rows whose customer is gone: nothing keeps that row, and no page has them.
        """
        for page in pages(self._database, scope, self._window):
            named = {customer.number: customer for customer in page}
            for actor, finding in self.findings(page):
                yield _difference(named, actor, finding)
            self.checked.customers += len(page)
            progress(self.checked.customers)
        if scope == Scope():
            yield from _orphans(self._database)

    def findings(self, page: Sequence[Customer]) -> "Iterator[_Found]":
        """What differs of the customers of one page, as (actor, finding), customer by customer."""
        numbers = [customer.number for customer in page]
        decimals = self._rules.currency_decimals
        longest = max(customer.head for customer in page)
        refoldings = [
            Refolding(self._database, self._book, actor, decimals, longest)
            for actor in STREAM_ACTORS
            if actor in self._actors
        ]
        if sum(customer.head for customer in page) > self._window:  # one customer, alone on its page
            yield from self._ahead(numbers, refoldings)
        found: Spool[_Found] = Spool()
        with snapshot(self._database):
            for actor, finding in self._compare(numbers, refoldings):
                found.add((finding.customer, _ORDER[actor]), (actor, finding))
        yield from found
        self.checked.ledger_rows += sum(refolding.rows for refolding in refoldings)

    def _ahead(self, numbers: Sequence[int], refoldings: Iterable[Refolding]) -> "Iterator[_Found]":
        """Fold up to where the actors stand, without a snapshot: nothing up to there can change."""
        stored = stored_customers(self._database, numbers)
        heads = self._heads(numbers)
        for refolding in refoldings:
            positions = _positions(stored, heads, refolding.actor)
            yield from ((refolding.actor, finding) for finding in refolding.go_on(positions, self._window))

    def _compare(self, numbers: Sequence[int], refoldings: Sequence[Refolding]) -> "Iterator[_Found]":
        stored = stored_customers(self._database, numbers)
        heads = self._heads(numbers)
        if tuple(self._actors) == ACTORS:
            yield from self._streams(heads)
        yield from self._missing(sorted(set(numbers) - set(stored)))
        for refolding in refoldings:
            actor = refolding.actor
            positions = _positions(stored, heads, actor)
            yield from ((actor, finding) for finding in refolding.go_on(positions, self._window))
            yield from ((actor, finding) for finding in refolding.finish(self._window))
            for number, one in stored.items():
                yield from ((actor, finding) for finding in refolding.compare_state(number, _state(one, actor)))
        if SEGMENTATION in self._actors:
            yield from self._segments(_with_right_statistics(stored, refoldings))
        yield from self._standings(stored, heads)
        self.checked.events += sum(head.events for head in heads.values())

    def _heads(self, numbers: Sequence[int]) -> "dict[int, _Heads]":
        with self._database.reading():
            rows = self._database.for_each(CUSTOMER, _HEADS, [(number,) for number in numbers])
        return {head.customer: head for head in map(_Heads._make, rows)}

    def _streams(self, heads: "dict[int, _Heads]") -> "Iterator[_Found]":
        """Positions 1 to head without gaps, and the heads of the actors [A8]."""
        for head in heads.values():
            events = f"{head.events} at {head.first} to {head.last}"
            expected = f"{head.last} at {min(1, head.last)} to {head.last}"
            if events != expected:
                yield STREAM, Finding(head.customer, "stream", "events", events, expected)
            pairs = {"head": (head.head, head.last)} | {
                f"head_{actor}": (getattr(head, f"head_{actor}"), getattr(head, actor)) for actor in STREAM_ACTORS
            }
            for field, (has, wanted) in pairs.items():
                if has != wanted:
                    yield STREAM, Finding(head.customer, "stream", field, has, wanted)

    def _missing(self, numbers: Sequence[int]) -> "Iterator[_Found]":
        """Of every actor, for a customer is read as a whole: one that lacks a row is compared for none of them."""
        for actor in ACTORS:
            keys = STATES[actor]._replace(values=())
            there = {row[0] for row in self._database.select(keys, [(number,) for number in numbers])}
            own = actor in self._actors
            kind, field = ("row", "state row") if own else ("elsewhere", f"{actor} state row")
            yield from (
                (actor, Finding(number, kind, field, None, "a row")) for number in numbers if number not in there
            )

    def _standings(self, stored: dict[int, Stored], heads: "dict[int, _Heads]") -> "Iterator[_Found]":
        """No actor stands behind the last event that concerns it; a hold is at the next one, with its details [G7]."""
        for actor in self._actors:
            details = holds.positions(self._database, actor, list(stored))
            following = self._following(actor, stored)
            for number, one in stored.items():
                standing = one.standings[actor]
                last = one.standings[STATS].position if actor == SEGMENTATION else getattr(heads[number], actor)
                if standing.position > last:
                    yield actor, Finding(number, "position", "position", standing.position, last)
                held, detail = standing.held_position, details.get(number)
                expected = following.get(number, detail) if held == detail else detail
                if held != expected:
                    yield actor, Finding(number, "hold", "held_position", held, expected)

    def _following(self, actor: str, stored: dict[int, Stored]) -> dict[int, int | None]:
        """The first event not applied of customers that are held; segments are made of figures, not of events."""
        if actor == SEGMENTATION:
            return {}
        standings = {number: one.standings[actor] for number, one in stored.items()}
        held = [(number, each.position) for number, each in standings.items() if each.held_position is not None]
        with self._database.reading():
            return dict(self._database.for_each(_AFTER, _FOLLOWING.format(bit=BIT[actor]), held))

    def _segments(self, stored: dict[int, Stored]) -> "Iterator[_Found]":
        skips = skips_of(self._database, list(stored))
        for number, one in stored.items():
            skipped = (number, one.standings[SEGMENTATION].position, SEGMENTATION) in skips
            differences = segment_differences(self._database, self._rules, one, self._cuts, skipped=skipped)
            for actor, field, has, wanted in differences:
                yield actor, Finding(number, "segment", field, has, wanted)


_Found = tuple[str, Finding]
"""Actor (or STREAM) and finding."""
_ORDER: Final = {actor: order for order, actor in enumerate((STREAM, *ACTORS))}


class _Heads(NamedTuple):
    """A customer's stream as it is, and the heads that are stored of it."""

    customer: int
    head: int
    head_stats: int
    head_loyalty: int
    head_credit: int
    events: int
    first: int
    last: int
    stats: int
    """The last event that concerns it, like the others."""
    loyalty: int
    credit: int


_HEADS: Final = """
    SELECT c.id, c.head, c.head_stats, c.head_loyalty, c.head_credit, s.* FROM customer c
    CROSS JOIN (
        SELECT count(*) AS events, COALESCE(min(e.position), 0) AS first, COALESCE(max(e.position), 0) AS last,
        COALESCE(max(CASE WHEN (e.concerns & 1) <> 0 THEN e.position END), 0) AS stats,
        COALESCE(max(CASE WHEN (e.concerns & 2) <> 0 THEN e.position END), 0) AS loyalty,
        COALESCE(max(CASE WHEN (e.concerns & 4) <> 0 THEN e.position END), 0) AS credit
        FROM event e WHERE e.customer = {customer}
    ) s WHERE c.id = {customer}
"""


def _orphans(database: Database) -> Iterator[Difference]:
    """One for each number that rows have and no customer has; whose it was, only the lost row could tell."""
    found = merge(*(_without_customer(database, table) for table in _OF_CUSTOMERS))
    for number, rows in groupby(found, key=itemgetter(0)):
        expected = f"a row, for those in {', '.join(table for _, table in rows)}"
        yield Difference("", f"number {number}", STREAM, "customer row", None, expected)


def _without_customer(database: Database, table: str) -> Iterator[tuple[int, str]]:
    """Numbers in a table that no customer has, in order."""
    after = -(2**63)
    while rows := database.query(_WALK.format(table=table), (after,)):
        yield from ((number, table) for number, known in rows if not known)
        after = rows[-1][0]


_OF_CUSTOMERS: Final = (
    *("event", "event_payload"),
    *(state.table for state in STATES.values()),
    *(facts.table for facts in FACTS.values()),
)
"""Tables whose key begins with the customer's number."""
_WALK: Final = f"""
    WITH RECURSIVE walk (customer, step) AS (
        SELECT min(t.customer), 1 FROM {{table}} t WHERE t.customer > ?
        UNION ALL
        SELECT (SELECT min(t.customer) FROM {{table}} t WHERE t.customer > w.customer), w.step + 1
        FROM walk w WHERE w.customer IS NOT NULL AND w.step < {PAGE}
    )
    SELECT w.customer, EXISTS (SELECT 1 FROM customer c WHERE c.id = w.customer) FROM walk w
    WHERE w.customer IS NOT NULL ORDER BY w.customer
"""
"""From number to number by the index, however many rows each has, and a page of them at a time. Read at one moment,
for a customer and its first event are committed together."""

_AFTER: Final = columns("event", "customer bigint, after bigint")
_FOLLOWING: Final = """
    SELECT {{customer}} AS customer, (
        SELECT e.position FROM event e WHERE e.customer = {{customer}} AND e.position > {{after}}
        AND (e.concerns & {bit}) <> 0 ORDER BY e.position LIMIT 1
    ) AS position
"""


def _positions(stored: dict[int, Stored], heads: dict[int, _Heads], actor: str) -> dict[int, int]:
    """How far to fold: never behind the end of a stream, whatever a state says."""
    return {number: min(one.standings[actor].position, heads[number].last) for number, one in stored.items()}


def _with_right_statistics(stored: dict[int, Stored], refoldings: Iterable[Refolding]) -> dict[int, Stored]:
    """The statistics refolded, where they were: a segment is not blamed for statistics that are wrong since."""
    refolded = next((refolding for refolding in refoldings if refolding.actor == STATS), None)
    if refolded is None:
        return stored
    return {
        number: one if refolded.failure(number) else one._replace(stats=Stats(*refolded.state(number)))
        for number, one in stored.items()
    }


def _state(stored: Stored, actor: str) -> Row:
    states: dict[str, Any] = {STATS: stored.stats[:-1], LOYALTY: stored.loyalty, CREDIT: stored.account}
    state: Row = states[actor]
    return state


def _difference(named: dict[int, Customer], actor: str, finding: Finding) -> Difference:
    customer = named[finding.customer]
    return Difference(
        customer.organization_id, customer.customer_id, actor, finding.field, finding.stored, finding.expected
    )
