"""One customer's story: the stream folded again by the real folds, and what each actor made of every event.

Each actor is folded up to the position its stored row has come to: what lies beyond waits, what an operator skipped is
skipped again, and the figures at the end are what the row must hold. What a fold asks for later is kept in a scratch,
see `scratch`; a stream is told in one pass.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Final, NamedTuple, Protocol

from customer_actors.domain import loyalty, stats
from customer_actors.domain.events import Event, EventType
from customer_actors.domain.loyalty import Loyalty
from customer_actors.domain.routing import BIT, CREDIT, LOYALTY, STATS, STREAM_ACTORS
from customer_actors.domain.rules import Rules, Tier
from customer_actors.domain.scratch import IN_MEMORY, Numbers, Scratch
from customer_actors.domain.stats import Stats
from customer_actors.domain.story_credit import CreditTeller
from customer_actors.domain.telling import (
    APPLIED,
    FAILED,
    NO_EFFECT,
    REFUSED,
    SKIPPED,
    WAITS,
    Figures,
    Skip,
    Told,
    amount_text,
    loyalty_figures,
    stats_figures,
)

STREAM: Final = "stream"
"""Stands for the stream itself where figures are told apart by actor."""


class Standing(NamedTuple):
    """How far an actor has come in a customer's stream."""

    position: int = 0
    held_position: int | None = None
    """The event it failed at, while it is held there."""
    attempts: int = 0
    parked: bool = False
    error: str = ""


Skips = Mapping[tuple[str, int], Skip]
"""By actor and position."""


class Effect(NamedTuple):
    """What one actor made of one event, and its figures afterwards (none while it waits)."""

    actor: str
    told: Told
    balance: Figures


class Difference(NamedTuple):
    """A stored figure that is not what the refold expects."""

    actor: str
    field: str
    stored: object
    expected: object


class Story:
    """Takes one customer's events in stream order and tells what each actor made of them.

    `rules` are all rules by number and `standings` those of the stream actors. `undone` gives, for every sale that is
    cancelled anywhere in the stream, the position of the cancellation by that of the sale. `decimals` is the number of
    decimal places of the currency. What is in `skips` only moved its actor's position. What has to be kept of the
    stream is kept in `scratch`.
    """

    def __init__(
        self,
        rules: Mapping[int, Rules],
        standings: Mapping[str, Standing],
        undone: Mapping[int, int],
        decimals: int,
        skips: Skips | None = None,
        scratch: Scratch = IN_MEMORY,
    ) -> None:
        self.events = 0
        """Events taken so far."""
        self.waiting: dict[str, Standing] = {}
        """Actors that have not come to the end of what was taken."""
        self._rules = rules
        self._standings = standings
        self._skips = skips or {}
        stepped_over = frozenset(position for actor, position in self._skips if actor == STATS)
        self._loyalty = _LoyaltyTeller(undone, scratch.numbers(), decimals)
        self._tellers: dict[str, _Teller] = {
            STATS: _StatsTeller(standings[STATS].position, undone, stepped_over, decimals),
            LOYALTY: self._loyalty,
            CREDIT: CreditTeller(scratch.credit_facts(), decimals),
        }
        self._failures: dict[str, Difference] = {}

    def take(self, event: Event) -> list[Effect]:
        """Fold the next event and tell its effects, one per stream actor it concerns.

        Raises whatever `rules` raises for a number it does not know.
        """
        rules = self._rules[event.rules]
        if not self.events:  # the customer was created with this event, in the lowest tier of its rules
            self._loyalty.state = Loyalty(tier=rules.tiers[0].name)
        self.events += 1
        return [self._effect(actor, event, rules) for actor in STREAM_ACTORS if event.concerns & BIT[actor]]

    def _effect(self, actor: str, event: Event, rules: Rules) -> Effect:
        standing, teller = self._standings[actor], self._tellers[actor]
        if event.position > standing.position:
            self.waiting[actor] = standing
            return Effect(actor, Told("", WAITS, _why_it_waits(standing, event.position)), {})
        if (skip := self._skips.get((actor, event.position))) is not None:
            return Effect(actor, Told("", SKIPPED, f"skipped by {skip.operator}: {skip.reason}"), teller.balance())
        if actor in self._failures:
            return Effect(actor, Told("", FAILED, "not folded again, because an event before it failed"), {})
        try:
            told = teller.take(event, rules)
        except (OSError, MemoryError):  # the machine's: a fold itself reads and writes nothing
            raise
        except Exception as error:  # what could be folded once no longer can: a difference like any other
            what = f"{type(error).__name__}: {error}"
            self._failures[actor] = Difference(actor, "refold", f"position {event.position} applied", what)
            return Effect(actor, Told("", FAILED, f"folding it again failed: {what}"), {})
        return Effect(actor, told, teller.balance())

    def differences(self, stored: Mapping[str, Figures]) -> list[Difference]:
        """Where `stored` differs from the refold of the whole stream.

        `stored` holds per actor its `position` and all figures of its teller, and for STREAM the number of `events`. An
        actor whose refold failed has that failure for its only difference.
        """
        found: list[Difference] = []
        for actor, figures in stored.items():
            if actor in self._failures:
                found.append(self._failures[actor])
                continue
            expected = dict(_flat(self._expected(actor, figures)))
            different = [(field, value) for field, value in _flat(figures) if value != expected[field]]
            found.extend(Difference(actor, field, value, expected[field]) for field, value in different)
        return found

    def _expected(self, actor: str, stored: Figures) -> Figures:
        if actor == STREAM:
            return {"events": self.events}
        return {"position": min(stored["position"], self.events), **self._tellers[actor].figures()}


def _flat(figures: Figures) -> Iterator[tuple[str, object]]:
    for name, value in figures.items():
        if isinstance(value, dict):
            yield from ((f"{name}.{key}", item) for key, item in value.items())
        else:
            yield name, value


def _why_it_waits(standing: Standing, position: int) -> str:
    held = standing.held_position
    if held is None or position < held:
        return f"not reached yet: the actor stands at position {standing.position}"
    state = "parked" if standing.parked else "held"
    if position > held:
        return f"behind position {held}, which is {state}"
    then = "waits for a person" if standing.parked else "is tried again by itself"
    return f"{state} (attempts: {standing.attempts}), {then}: {standing.error}"


class _Teller(Protocol):
    """One actor's refold."""

    def take(self, event: Event, rules: Rules) -> Told:
        """Fold one event and tell what it did; when folding raises, nothing has changed."""

    def balance(self) -> Figures:
        """The few figures told after every event."""

    def figures(self) -> Figures:
        """Everything the stored state must equal."""


class _StatsTeller:
    def __init__(self, last_position: int, undone: Mapping[int, int], skipped: Collection[int], decimals: int) -> None:
        self._state = Stats()
        self._last_position = last_position
        self._skipped = skipped
        self._undone = undone
        self._decimals = decimals
        self._first_us: int | None = None
        self._last_us: int | None = None

    def take(self, event: Event, rules: Rules) -> Told:
        if event.type == EventType.ORDER_CANCELLED and event.sale_position in self._skipped:
            return Told("S1", NO_EFFECT, f"no sale to undo: position {event.sale_position} was skipped")
        self._state = stats.fold(self._state, event)
        amount = amount_text(event.amount_minor, self._decimals)
        if event.type == EventType.ORDER_CANCELLED:
            if event.sale_position is None:
                return Told("S1", NO_EFFECT, "no sale to undo: the order was charged, but not completed before")
            return Told("S1", APPLIED, f"order -1, -{amount}, cancelled orders +1")
        if event.already_cancelled:
            return Told("A4", APPLIED, "already cancelled: cancelled orders +1")
        self._widen_bounds(event)
        return Told("S1", APPLIED, f"order +1, +{amount}")

    def _widen_bounds(self, event: Event) -> None:
        """First and last purchase of the sales active at the end, so that no cancellation costs a look at all sales."""
        undone = self._undone.get(event.position)
        if undone is None or undone in self._skipped or undone > self._last_position:
            at = event.occurred_at_us
            self._first_us = at if self._first_us is None else min(self._first_us, at)
            self._last_us = at if self._last_us is None else max(self._last_us, at)

    def balance(self) -> Figures:
        state = self._state
        spent = amount_text(state.total_spent_minor, self._decimals)
        return {"orders": state.orders, "total_spent": spent, "cancelled_orders": state.cancelled_orders}

    def figures(self) -> Figures:
        final = self._state._replace(first_purchase_at_us=self._first_us, last_purchase_at_us=self._last_us)
        return stats_figures(final, self._decimals)


class _LoyaltyTeller:
    def __init__(self, undone: Mapping[int, int], earned: Numbers, decimals: int) -> None:
        self.state = Loyalty()
        self._undone = undone
        self._decimals = decimals
        self._earned = earned
        """Points by sale, of those sales alone that a cancellation will ask for."""

    def take(self, event: Event, rules: Rules) -> Told:
        before = self.state
        result = loyalty.fold(before, event, rules, self._earned)
        self.state = result.state
        points = 0 if result.entry is None else result.entry.points
        if event.position in self._undone:
            self._earned[event.position] = points
        told = self._told(event, points, result.refused, loyalty.tier_of(before.lifetime_points, rules), rules)
        if before.tier == self.state.tier:
            return told
        return told._replace(rule=f"{told.rule} L4", effect=f"{told.effect}, tier was {before.tier}")

    def _told(self, event: Event, points: int, refused: str | None, tier: Tier, rules: Rules) -> Told:
        match event.type:
            case EventType.LOYALTY_REDEEMED:
                if refused is not None:
                    return Told("L6", REFUSED, f"refused: {refused}")
                return Told("L6", APPLIED, f"{points} points redeemed")
            case EventType.ORDER_CANCELLED:
                if points:
                    return Told("L3", APPLIED, f"{points} points, those earned at position {event.sale_position}")
                return Told("L3", NO_EFFECT, "no points to take back: it earned none")
            case _:
                amount = amount_text(event.amount_minor, self._decimals)
                why = f"floor({amount} x {rules.points_per_unit} x {tier.multiplier}, {tier.name} before)"
                if points:
                    return Told("L1 L2", APPLIED, f"+{points} points = {why}")
                return Told("L1 L3", NO_EFFECT, f"no points = {why}")

    def balance(self) -> Figures:
        return loyalty_figures(self.state)

    def figures(self) -> Figures:
        rows = {"ledger_points": self.state.points, "ledger_lifetime_points": self.state.lifetime_points}
        return {**loyalty_figures(self.state), **rows}
