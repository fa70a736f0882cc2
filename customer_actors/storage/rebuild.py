"""States and ledgers put right from the streams, at the positions where they stand.

Whoever differs is folded again beside the live row; then, under its lock, up to the position it has come to meanwhile.
The state is written, missing ledger rows are inserted, cached figures corrected. Ledger rows that should not be there
or say something else are facts somebody may have acted on: they are reported and never touched. Positions and holds
stay. A state row that is gone is made again at the end of what concerns the actor, or before the event it is held at.

Memory: as in `audit`, and the differences of one customer.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from customer_actors.domain.events import business_date
from customer_actors.domain.routing import LOYALTY, SEGMENTATION, STATS, WAKES
from customer_actors.domain.rules import Rules
from customer_actors.domain.stats import Stats
from customer_actors.errors import DataFault
from customer_actors.storage import holds
from customer_actors.storage.actors import Stores
from customer_actors.storage.append import LOYALTY_STATE
from customer_actors.storage.audit import Audit, Customer, Scope, pages
from customer_actors.storage.bells import add_bell
from customer_actors.storage.database import Database, columns
from customer_actors.storage.operators import Action, record
from customer_actors.storage.refolding import CACHED, FACTS, STATES, WINDOW, Finding, Refolding
from customer_actors.storage.segmentation import SEGMENT, keep_cuts, newest_cuts, segment_columns, segment_of
from customer_actors.storage.stats import STATE as STATS_STATE

REPAIRED: Final = "repaired"
INSERTED: Final = "inserted"
REPORTED: Final = "reported"
_BECOMES: Final = {
    "state": REPAIRED,
    "cached": REPAIRED,
    "sum": REPAIRED,
    "segment": REPAIRED,
    "missing": INSERTED,
    "row": INSERTED,
}
"""Kind of finding -> what is done about it; everything else is only reported."""


class Outcome(NamedTuple):
    """What was found of one customer, and what was done about it."""

    organization_id: str
    customer_id: str
    field: str
    stored: object
    expected: object
    what: str
    """`repaired`, `inserted` or `reported`; in a dry run what would be done."""


@dataclass
class Rebuilt:
    """Counts."""

    customers: int = 0
    events: int = 0
    repaired: int = 0
    inserted: int = 0
    reported: int = 0

    def failed(self, *, dry_run: bool) -> bool:
        """Whether something is not as the streams say when this ends."""
        return bool(self.reported or (dry_run and (self.repaired or self.inserted)))


_Done = tuple[str, Finding]


class Rebuild:
    """Goes through the customers, one transaction for each that differs."""

    def __init__(
        self, database: Database, rules: Rules, actor: str, *, dry_run: bool = False, window: int = WINDOW
    ) -> None:
        self.rebuilt = Rebuilt()
        self._database = database
        self._rules = rules
        self._actor = actor
        self._dry_run = dry_run
        self._window = window
        self._stores = Stores(database, rules)
        # A segment is made of the statistics: of wrong ones it would be made wrong.
        self._audit = Audit(database, rules, (STATS, actor) if actor == SEGMENTATION else (actor,), window)
        self._unrecorded: Action | None = None

    def run(
        self, scope: Scope, by: Action, now_us: Callable[[], int], progress: Callable[[int], None] = lambda _: None
    ) -> Iterator[Outcome]:
        """Rebuild, and tell what was done customer by customer, after its commit.

        The action is recorded once, in the first transaction that changes something.
        """
        self._unrecorded = by._replace(actor=self._actor)
        for page in pages(self._database, scope, self._window):
            found: dict[int, list[Finding]] = {}
            for actor, finding in self._audit.findings(page):
                if actor == self._actor or finding.kind == "elsewhere":
                    found.setdefault(finding.customer, []).append(finding)
                elif finding.kind in ("state", "row", "failed"):
                    told = finding._replace(kind="statistics", field=f"{actor} {finding.field}")
                    found.setdefault(finding.customer, []).append(told)
            self.rebuilt.events = self._audit.checked.events
            for customer in page:
                yield from self._outcomes(customer, found.pop(customer.number, []), scope, now_us())
                self.rebuilt.customers += 1
            progress(self.rebuilt.customers)

    def _outcomes(self, customer: Customer, found: Sequence[Finding], scope: Scope, now_us: int) -> Iterator[Outcome]:
        wrong = any(finding.kind == "statistics" for finding in found)  # they are rebuilt first
        done = [(REPORTED if wrong else _BECOMES.get(finding.kind, REPORTED), finding) for finding in found]
        if not self._dry_run and any(what != REPORTED for what, _ in done):
            if scope.customer_id is not None and self._unrecorded is not None:
                self._unrecorded = self._unrecorded._replace(customer=customer.number)
            swap = self._rescore if self._actor == SEGMENTATION else self._swap
            # Positions and holds are not a refold's to put right; what it compares is compared again under the lock.
            done = [one for one in done if one[1].kind in ("position", "hold")]
            try:
                done += swap(customer, now_us)
            except DataFault as fault:
                done.append((REPORTED, Finding(customer.number, "failed", "rebuild", str(fault), "accepted")))
            self._look_again(customer.number, now_us)
        for what, finding in done:
            setattr(self.rebuilt, what, getattr(self.rebuilt, what) + 1)
            yield Outcome(*customer[2:], finding.field, finding.stored, finding.expected, what)

    def _swap(self, customer: Customer, now_us: int) -> list[_Done]:
        """Refold one customer beside the row, then swap under its lock."""
        number, table = customer.number, STATES[self._actor]
        decimals = self._rules.currency_decimals
        refolding = Refolding(self._database, self._stores.book, self._actor, decimals, customer.head)
        position, head = self._place(number)
        beside = list(refolding.go_on({number: min(position, head)}, self._window))
        with self._database.transaction():
            rows = self._database.lock(table, [(number,)], "t.customer")
            position, head = self._place(number)
            found = [*beside, *refolding.go_on({number: min(position, head)}, self._window)]
            found += [each for each in refolding.finish(self._window) if each.kind != "sum"]
            found += [] if rows else [_gone(number)]
            found += refolding.compare_state(number, rows[0][2:] if rows else refolding.state(number))
            if refolding.failure(number) is not None:
                return [(REPORTED, finding) for finding in found]
            if not rows and not self._make_row(number, position):
                return []  # another rebuild did all of this meanwhile
            done = self._put_right(number, position, refolding, found)
            done += [(REPORTED, finding) for finding in refolding.sums()]
            self._record(done, now_us)
        return done

    def _put_right(self, number: int, position: int, refolding: Refolding, found: Sequence[Finding]) -> list[_Done]:
        done: list[_Done] = [(_BECOMES.get(finding.kind, REPORTED), finding) for finding in found]
        if any(finding.kind in ("state", "row") for finding in found):
            self._database.update(STATES[self._actor], [(number, position, *refolding.state(number))])
        for kind, table in FACTS.items():
            missing = sorted({(number, *each.row) for each in found if (each.kind, each.table) == ("missing", kind)})
            inserted = self._database.insert_missing(table, missing)
            width = len(table.key)
            left = {row[1:] for row in missing if row[:width] not in inserted}  # another row has its sale
            done = [(REPORTED if f.kind == "missing" and f.table == kind and f.row in left else w, f) for w, f in done]
        for kind, table in CACHED.items():
            names = FACTS[kind].names[1:]
            at = [names.index(name) for name, _ in table.values]
            rows = {each.row for each in found if (each.kind, each.table) == ("cached", kind)}
            self._database.update(table, sorted((number, row[0], *(row[i] for i in at)) for row in rows))
        return done

    def _rescore(self, customer: Customer, now_us: int) -> list[_Done]:
        """Score one customer's statistics again with the cuts in force; a held one is left as it is [R6]."""
        number = customer.number
        with self._database.transaction():
            keep_cuts(self._database)
            made = not self._database.lock(SEGMENT, [(number,)], "t.customer")
            if made and not self._make_row(number, self._place(number)[0]):
                return []
            ((_, *before),) = self._database.lock(SEGMENT, [(number,)], "t.customer")
            held = self._database.query("SELECT held_position FROM customer_segment WHERE customer = ?", (number,))
            if held[0][0] is not None:
                finding = Finding(number, "hold", "segment", f"held at position {held[0][0]}", "not held")
                done: list[_Done] = [(INSERTED, _gone(number))] * made
                self._record(done, now_us)
                return [*done, (REPORTED, finding)]
            ((_, position, *stats),) = self._database.select(STATS_STATE, [(number,)])
            cuts = newest_cuts(self._database, customer.organization_id)
            as_of = business_date(now_us, self._rules.zone)
            after = [position, *segment_columns(segment_of(Stats(*stats), cuts, self._rules, as_of)), now_us]
            self._database.update(SEGMENT, [(number, *after)])
            names = SEGMENT.names[1:-1]  # without the time of the calculation
            done = [
                (REPAIRED, Finding(number, "segment", name, has, wanted))
                for name, has, wanted in zip(names, before, after, strict=False)
                if has != wanted
            ]
            done = [(INSERTED, _gone(number))] if made else done
            self._record(done, now_us)
        return done

    def _place(self, number: int) -> tuple[int, int]:
        """The position of the state row, or the one at which to make it again; and the customer's head."""
        last = "f.position" if self._actor == SEGMENTATION else f"c.head_{self._actor}"
        ((position, head),) = self._database.query(
            _PLACE.format(table=_TABLE[self._actor], last=last), (self._actor, number)
        )
        return position, head

    def _make_row(self, number: int, position: int) -> bool:
        """Insert a state row that is gone, held if there are details of a hold; whether nobody else did meanwhile."""
        if self._actor == LOYALTY:
            new = self._database.insert_missing(LOYALTY_STATE, [(number, self._rules.tiers[0].name)])
        else:
            new = self._database.insert_missing(columns(_TABLE[self._actor], "customer bigint"), [(number,)])
        if new:
            held = holds.positions(self._database, self._actor, [number]).get(number)
            flags = columns(_TABLE[self._actor], "customer bigint", "position bigint, held_position bigint")
            self._database.update(flags, [(number, position, held)])
        return bool(new)

    def _record(self, done: Sequence[_Done], now_us: int) -> None:
        if self._unrecorded is not None and any(what != REPORTED for what, _ in done):
            record(self._database, self._unrecorded, now_us)
            self._unrecorded = None

    def _look_again(self, number: int, now_us: int) -> None:
        """Whoever wanted the row while it was locked went away: if it waits now, there is a bell for it."""
        if self._stores.of(self._actor).behind([number]):
            with self._database.transaction():
                add_bell(self._database, {WAKES[self._actor]: [number]}, now_us)


_TABLE: Final = {SEGMENTATION: SEGMENT.table} | {actor: table.table for actor, table in STATES.items()}
_PLACE: Final = (
    "SELECT COALESCE(s.position, h.position - 1, {last}), c.head FROM customer c "
    "LEFT JOIN {table} s ON s.customer = c.id LEFT JOIN stats_state f ON f.customer = c.id "
    "LEFT JOIN held_group h ON h.customer = c.id AND h.actor = ? WHERE c.id = ?"
)


def _gone(number: int) -> Finding:
    return Finding(number, "row", "state row", None, "a row")
