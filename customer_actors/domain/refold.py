"""One actor's stream folded again by the real folds, without a word: what stored states and ledgers must be.

Each event is folded with the rules it is stamped with [A10], and what an operator skipped is skipped again. Ledger
lines are handed over as they are made; what later events may ask for is kept in a scratch, see `scratch`.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, Final, NamedTuple

from customer_actors.domain import credit, loyalty, stats
from customer_actors.domain.credit_book import Account
from customer_actors.domain.events import SALE_TYPES, Event, EventType
from customer_actors.domain.loyalty import Loyalty
from customer_actors.domain.routing import BIT, CREDIT, LOYALTY, STATS
from customer_actors.domain.rules import Rules
from customer_actors.domain.scratch import IN_MEMORY, Scratch
from customer_actors.domain.stats import Stats

Row = tuple[Any, ...]
Rows = dict[Any, Any]
"""Rows of one table and customer by position; allocations by (usage, payment, position). A row begins with its key."""

ENTRY: Final = "entry"
USAGE: Final = "usage"
PAYMENT: Final = "payment"
ALLOCATION: Final = "allocation"


class Failure(NamedTuple):
    """An event that was applied once and can be folded no longer."""

    position: int
    error: str


class Refold(ABC):
    """One actor's refold of one customer; `take` its events in order."""

    actor: str

    def __init__(self, scratch: Scratch = IN_MEMORY) -> None:
        self._scratch = scratch
        self.position = 0
        """The last event taken, whether it concerned the actor or not."""
        self.skipped: Collection[int] = frozenset()
        """Positions an operator let the actor step over."""
        self.failure: Failure | None = None
        """Set by the first event that fails; nothing behind it is folded."""

    def take(self, event: Event, book: Mapping[int, Rules]) -> None:
        """Fold the next event with its rules out of `book`; what does not concern the actor only moves the position."""
        self.position = event.position
        if self.failure is not None:
            return
        try:
            rules = book[event.rules]
        except LookupError as error:
            self.failure = Failure(event.position, str(error))
            return
        if event.position == 1:
            self._begin(rules)
        if not event.concerns & BIT[self.actor] or event.position in self.skipped:
            return
        try:
            self._fold(event, rules)
        except (OSError, MemoryError):  # the machine's: a fold itself reads and writes nothing
            raise
        except Exception as error:  # whatever the event holds: it is told, not passed on
            self.failure = Failure(event.position, f"{type(error).__name__}: {error}")

    def _begin(self, rules: Rules) -> None:
        """Take the rules a customer's first event was stamped with."""
        del rules

    @abstractmethod
    def _fold(self, event: Event, rules: Rules) -> None: ...

    @abstractmethod
    def state(self) -> Row:
        """The columns of the actor's state row behind its position."""

    def made(self) -> dict[str, Rows]:
        """The append-only rows made since the last call, by kind."""
        return {}

    def kept(self, after: int, up_to: int) -> dict[str, Rows]:
        """The rows of which some columns change later, by kind: those behind position `after`, not behind `up_to`."""
        del after, up_to
        return {}

    def sums(self) -> dict[str, int]:
        """What the ledger's rows must add up to, by name."""
        return {}


class StatsRefold(Refold):
    """Statistics [S1]."""

    actor = STATS

    def __init__(self, scratch: Scratch = IN_MEMORY) -> None:
        super().__init__(scratch)
        self._state = Stats()
        self._active = scratch.numbers()
        """When each active sale occurred."""

    def _fold(self, event: Event, rules: Rules) -> None:
        if event.type == EventType.ORDER_CANCELLED and event.sale_position in self.skipped:
            return  # the sale was never counted, so there is nothing to undo
        self._state = stats.fold(self._state, event)
        if event.type in SALE_TYPES and not event.already_cancelled:
            self._active[event.position] = event.occurred_at_us
        elif event.type == EventType.ORDER_CANCELLED and event.sale_position is not None:
            self._active.pop(event.sale_position, None)

    def state(self) -> Row:
        if self._state.bounds_stale:
            first, last = self._active.bounds()
            self._state = self._state._replace(first_purchase_at_us=first, last_purchase_at_us=last, bounds_stale=False)
        return self._state[:-1]


class LoyaltyRefold(Refold):
    """Points and tier, with the entries that make them [L1-L7]."""

    actor = LOYALTY

    def __init__(self, scratch: Scratch = IN_MEMORY) -> None:
        super().__init__(scratch)
        self._state = Loyalty()
        self._earned = scratch.numbers()
        self._entries: Rows = {}

    def _begin(self, rules: Rules) -> None:
        self._state = Loyalty(tier=rules.tiers[0].name)

    def _fold(self, event: Event, rules: Rules) -> None:
        result = loyalty.fold(self._state, event, rules, self._earned)
        self._state = result.state
        if result.entry is not None:
            self._entries[event.position] = result.entry
            if result.entry.kind == "earn":
                self._earned[event.position] = result.entry.points

    def state(self) -> Row:
        return self._state

    def made(self) -> dict[str, Rows]:
        made, self._entries = self._entries, {}
        return {ENTRY: made}

    def sums(self) -> dict[str, int]:
        return {"ledger_points": self._state.points, "ledger_lifetime_points": self._state.lifetime_points}


class CreditRefold(Refold):
    """The account, with its usages, payments and allocations [C1-C5]."""

    actor = CREDIT

    def __init__(self, scratch: Scratch = IN_MEMORY) -> None:
        super().__init__(scratch)
        self._account = Account()
        self._ledger = scratch.credit_facts()
        self._allocations: Rows = {}

    def _fold(self, event: Event, rules: Rules) -> None:
        result = credit.fold(self._account, event, rules, self._ledger)
        self._account = result.account
        self._ledger.apply(result)
        for position, payment, usage, amount_minor in result.allocations:
            key = usage, payment, position
            before = self._allocations.get(key, (0,))[-1]
            self._allocations[key] = (*key, before + amount_minor)

    def state(self) -> Row:
        return self._account

    def made(self) -> dict[str, Rows]:
        made, self._allocations = self._allocations, {}
        return {ALLOCATION: made}

    def kept(self, after: int, up_to: int) -> dict[str, Rows]:
        usages, payments = self._ledger.between(after, up_to)
        return {USAGE: usages, PAYMENT: payments}

    def sums(self) -> dict[str, int]:
        account = self._account
        return {
            "usages_outstanding_minor": account.used_minor,
            "payments_unapplied_minor": account.unapplied_minor + account.suspense_minor,
        }


REFOLDS: Final[dict[str, type[Refold]]] = {kind.actor: kind for kind in (StatsRefold, LoyaltyRefold, CreditRefold)}
