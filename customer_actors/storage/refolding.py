"""Streams folded again beside the live rows, and compared with what is stored: common to `audit` and `rebuild`.

Nothing here locks or writes. Events and ledger facts never change once the actor has passed them, so a refold may be
brought up to a position without any lock or snapshot, and go on later inside one. Read at once are at most WINDOW
positions of a stream, expected or stored; what a fold keeps of a longer one is in a file, see `scratch`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from operator import itemgetter
from typing import Any, Final, NamedTuple

from customer_actors.domain.events import Event, iso
from customer_actors.domain.refold import ALLOCATION, ENTRY, PAYMENT, REFOLDS, USAGE, Failure, Row, Rows
from customer_actors.domain.routing import BIT, CREDIT, LOYALTY, STATS
from customer_actors.domain.telling import amount_text
from customer_actors.storage import credit, loyalty, stats
from customer_actors.storage.append import EVENT
from customer_actors.storage.database import Columns, Database, columns
from customer_actors.storage.operators import skips_of
from customer_actors.storage.rules import RulesBook
from customer_actors.storage.scratch import scratch_for

WINDOW: Final = 10_000
"""Positions read at once."""

STATES: Final[Mapping[str, Columns]] = {STATS: stats.STATE, LOYALTY: loyalty.STATE, CREDIT: credit.STATE}
FACTS: Final[Mapping[str, Columns]] = {
    ENTRY: loyalty.ENTRY,
    USAGE: credit.USAGE,
    PAYMENT: credit.PAYMENT,
    ALLOCATION: credit.ALLOCATION,
}
CACHED: Final[Mapping[str, Columns]] = {USAGE: credit.USAGE_CHANGES, PAYMENT: credit.PAYMENT_CHANGES}
"""The columns of facts that change: figures kept beside the fact, which may be put right."""

MADE: Final[Mapping[str, tuple[str, ...]]] = {STATS: (), LOYALTY: (ENTRY,), CREDIT: (ALLOCATION,)}
KEPT: Final[Mapping[str, tuple[str, ...]]] = {STATS: (), LOYALTY: (), CREDIT: (USAGE, PAYMENT)}

_SUMS: Final = {
    LOYALTY: "SELECT {customer} AS customer, CAST(COALESCE(sum(points), 0) AS bigint) AS points, "
    "CAST(COALESCE(sum(CASE WHEN kind <> 'redeem' THEN points END), 0) AS bigint) AS lifetime_points "
    "FROM loyalty_entry WHERE customer = {customer}",
    CREDIT: "SELECT {customer} AS customer, "
    "(SELECT CAST(COALESCE(sum(outstanding_minor), 0) AS bigint) FROM credit_usage WHERE customer = {customer}) AS u, "
    "(SELECT CAST(COALESCE(sum(unapplied_minor), 0) AS bigint) FROM credit_payment WHERE customer = {customer}) AS p",
}
"""What the ledgers add up to, in the order of `Refold.sums`."""

CUSTOMER: Final = columns("customer", "customer bigint")
_BETWEEN: Final = columns("event", "customer bigint, after bigint, up_to bigint")
_LEAST: Final = -(2**62)
"""Before every position: somebody may have written facts there that no event made."""
_MOST: Final = 2**62
"""Behind every position."""


class Finding(NamedTuple):
    """A stored figure or row of one customer that is not what the refold expects."""

    customer: int
    kind: str
    """`state`, `sum`, `missing`, `surplus`, `different`, `cached`, `failed`, or as the caller says."""
    field: str
    stored: object
    expected: object
    table: str = ""
    """The kind of row it is about, a key of FACTS."""
    row: Row = ()
    """The expected row; of a surplus one what is stored."""


class Refolding:
    """One actor's refold of some customers, brought on step by step."""

    def __init__(self, database: Database, book: RulesBook, actor: str, decimals: int, longest: int) -> None:
        """`longest`: about how many events the longest of the streams has."""
        self.actor = actor
        self.events = 0
        """Events that were folded."""
        self.rows = 0
        """Ledger rows that were compared."""
        self._database = database
        self._book = book
        self._decimals = decimals
        self._longest = longest
        self._refolds: dict[int, Any] = {}
        self._compared: dict[int, int] = {}
        """Customer -> up to where its stored facts were read."""

    def failure(self, customer: int) -> Failure | None:
        """The event at which the refold of a customer ended early."""
        failure: Failure | None = self._refolds[customer].failure
        return failure

    def state(self, customer: int) -> Row:
        """The columns the customer's state row must have behind its position."""
        state: Row = self._refolds[customer].state()
        return state

    def go_on(self, positions: Mapping[int, int], window: int = WINDOW) -> Iterator[Finding]:
        """Fold on to these positions, and compare the facts that are made on the way; one window after the other.

        Skips are read first: no actor passes a skipped event before its skip is committed.
        """
        skips = skips_of(self._database, list(positions))
        for customer in positions:
            if customer not in self._refolds:
                self._refolds[customer] = REFOLDS[self.actor](scratch_for(self._longest, window))
            refold = self._refolds[customer]
            refold.skipped = {at for who, at, actor in skips if (who, actor) == (customer, self.actor)}
            self._compared.setdefault(customer, 0)
        while waiting := {c: p for c, p in positions.items() if self._refolds[c].position < p}:
            reach = {c: min(p, self._refolds[c].position + window) for c, p in waiting.items()}
            self._fold(reach)
            yield from self._compare_made(reach)

    def _fold(self, reach: Mapping[int, int]) -> None:
        wanted = [(customer, self._refolds[customer].position, up_to) for customer, up_to in reach.items()]
        with self._database.reading():
            rows = self._database.for_each(_BETWEEN, _events_sql(BIT[self.actor]), wanted)
            rows.sort(key=_BY_POSITION)
            for row in rows:
                self._refolds[row[0]].take(Event._make(row), self._book)
        for customer, up_to in reach.items():
            self._refolds[customer].position = up_to
        self.events += len(rows)

    def _compare_made(self, reach: Mapping[int, int]) -> Iterator[Finding]:
        made = {customer: self._refolds[customer].made() for customer in reach}
        for kind in MADE[self.actor]:
            expected = {customer: made[customer][kind] for customer in reach}
            wanted = [(customer, self._compared[customer], up_to) for customer, up_to in reach.items()]
            yield from self._compare(kind, self._stored(kind, wanted), expected)
        self._compared.update(reach)

    def finish(self, window: int = WINDOW) -> Iterator[Finding]:
        """Compare what is left, in the snapshot or under the lock in which the positions were read: facts behind them,
        rows that change, sums."""
        for after, up_to in self._windows(window):
            # Between the first event and where it has come to, what was made was compared on the way.
            new = [(c, max(after, done) if after >= 0 else after, up_to) for c, done in self._compared.items()]
            new = [(customer, after, up_to) for customer, after, up_to in new if after < up_to]
            for kind in MADE[self.actor]:
                yield from self._compare(kind, self._stored(kind, new), {customer: {} for customer, _, _ in new})
            kept = {customer: refold.kept(after, up_to) for customer, refold in self._refolds.items()}
            everyone = [(customer, after, up_to) for customer in self._refolds]
            for kind in KEPT[self.actor]:
                expected = {customer: rows[kind] for customer, rows in kept.items()}
                yield from self._compare(kind, self._stored(kind, everyone), expected)
        yield from self.sums()

    def _windows(self, window: int) -> Iterator[tuple[int, int]]:
        """All positions, those of facts that no event made too, in spans that hold about `window` of each."""
        most = max((refold.position for refold in self._refolds.values()), default=0)
        events = range(0, most + 1, window)
        yield from self._beyond(_LEAST, 0, window)
        yield from pairwise(events)
        yield from self._beyond(events[-1], _MOST, window)

    def _beyond(self, after: int, end: int, window: int) -> Iterator[tuple[int, int]]:
        """Spans of which no customer has more than so many stored facts of a kind, however far apart they are."""
        while after < end:
            found = [end]
            for kind in (*MADE[self.actor], *KEPT[self.actor]):
                last = (
                    f"SELECT f.position FROM {FACTS[kind].table} f WHERE f.customer = {{customer}} AND f.position > "
                    f"{{after}} AND f.position <= {{up_to}} ORDER BY f.position LIMIT 1 OFFSET {window - 1}"
                )
                with self._database.reading():
                    rows = self._database.for_each(_BETWEEN, last, [(each, after, end) for each in self._refolds])
                found += [position for (position,) in rows]
            yield after, min(found)
            after = min(found)

    def _stored(self, kind: str, wanted: Sequence[Row]) -> list[Row]:
        table = FACTS[kind]
        sql = (
            f"SELECT {', '.join('f.' + name for name in table.names)} FROM {table.table} f "
            "WHERE f.customer = {customer} AND f.position > {after} AND f.position <= {up_to}"
        )
        with self._database.reading():
            rows = self._database.for_each(_BETWEEN, sql, wanted)
        self.rows += len(rows)
        return rows

    def _compare(self, kind: str, stored: Iterable[Row], expected: Mapping[int, Rows]) -> Iterator[Finding]:
        """Row by row; what was expected and not stored is missing. Empties `expected`."""
        table = FACTS[kind]
        key_width, names = len(table.key) - 1, table.names[1:]
        booleans = [i for i, (_, type_) in enumerate((*table.key, *table.values)) if type_ == "boolean"]
        for customer, *values in stored:
            if self.failure(customer):
                continue
            for i in booleans:
                values[i - 1] = bool(values[i - 1])
            key = values[0] if key_width == 1 else tuple(values[:key_width])
            wanted = expected[customer].pop(key, None)
            if wanted is None:
                told = self._told(names[key_width:], values[key_width:])
                yield Finding(customer, "surplus", self._named(kind, values), told, None, kind, tuple(values))
            elif tuple(values) != tuple(wanted):
                yield from self._different(customer, kind, values, wanted)
        for customer, rows in expected.items():
            if not self.failure(customer):
                for row in rows.values():
                    told = self._told(names[key_width:], row[key_width:])
                    yield Finding(customer, "missing", self._named(kind, row), None, told, kind, tuple(row))
            rows.clear()

    def _different(self, customer: int, kind: str, values: Sequence[Any], wanted: Row) -> Iterator[Finding]:
        """A row whose facts differ is left alone altogether: its cached figures belong to other facts."""
        names, cached = FACTS[kind].names[1:], [name for name, _ in CACHED[kind].values] if kind in CACHED else []
        differing = [i for i, name in enumerate(names) if values[i] != wanted[i]]
        facts = any(names[i] not in cached for i in differing)
        for i in differing:
            shown = self._value(names[i], values[i]), self._value(names[i], wanted[i])
            field = f"{self._named(kind, values)} {_label(names[i])}"
            yield Finding(customer, "different" if facts else "cached", field, *shown, kind, tuple(wanted))

    def sums(self) -> Iterator[Finding]:
        """What the ledgers add up to, against what the refold says."""
        if self.actor not in _SUMS:
            return
        with self._database.reading():
            rows = self._database.for_each(CUSTOMER, _SUMS[self.actor], [(customer,) for customer in self._refolds])
        for customer, *sums in rows:
            if self.failure(customer):
                continue
            for (name, expected), stored in zip(self._refolds[customer].sums().items(), sums, strict=True):
                if stored != expected:
                    shown = self._value(name, stored), self._value(name, expected)
                    yield Finding(customer, "sum", _label(name), *shown)

    def compare_state(self, customer: int, stored: Row) -> Iterator[Finding]:
        """The columns of a state row behind its position; of a refold that failed only that."""
        failure = self.failure(customer)
        if failure is not None:
            yield Finding(customer, "failed", "refold", f"position {failure.position} applied", failure.error)
            return
        names = STATES[self.actor].values[1:]
        for (name, type_), read, expected in zip(names, stored, self.state(customer), strict=True):
            value = bool(read) if type_ == "boolean" else read
            if value != expected:
                yield Finding(customer, "state", _label(name), self._value(name, value), self._value(name, expected))

    def _named(self, kind: str, row: Sequence[Any]) -> str:
        if kind == ALLOCATION:
            usage, payment, position, _ = row
            return f"allocation {position} of payment {payment} to usage {usage}"
        return f"{kind} {row[0]}"

    def _told(self, names: Sequence[str], row: Sequence[Any]) -> str:
        """What a row says, without what is empty."""
        figures = [(_label(name), self._value(name, value)) for name, value in zip(names, row, strict=True)]
        return ", ".join(f"{name} {value}" for name, value in figures if value is not None and value is not False)

    def _value(self, name: str, value: Any) -> object:
        if value is None:
            return None
        if name.endswith("_minor"):
            return amount_text(value, self._decimals)
        return iso(value) if name.endswith("_us") else value


_BY_POSITION = itemgetter(0, 1)


def _label(name: str) -> str:
    return name.removesuffix("_minor").removesuffix("_us")


def _events_sql(bit: int) -> str:
    """Events that concern an actor, and the customer's first one, whose rules name the lowest tier."""
    return (
        f"SELECT {', '.join('e.' + name for name in EVENT.names)} FROM event e WHERE e.customer = {{customer}} "
        f"AND e.position > {{after}} AND e.position <= {{up_to}} AND ((e.concerns & {bit}) <> 0 OR e.position = 1)"
    )
