"""The plain refold: real folds, recorded skips, and facts handed over once."""

from decimal import Decimal

import pytest

from customer_actors.domain.events import EventType
from customer_actors.domain.refold import (
    ALLOCATION,
    ENTRY,
    PAYMENT,
    REFOLDS,
    USAGE,
    CreditRefold,
    LoyaltyRefold,
    Refold,
    StatsRefold,
)
from customer_actors.domain.routing import STREAM_ACTORS
from customer_actors.domain.rules import Rules, Tier
from tests.domain.test_story import DAY_US, OPENED, cancel, command, pay, sale, stream

RULES = {
    1: Rules(),
    2: Rules(points_per_unit=Decimal("0.5"), tiers=(Tier(name="paper", threshold=0, multiplier=Decimal(1)),)),
}
A, B = sale("A", 5000, on_credit=True), sale("B", 700, on_credit=True, day=1)


def taken(refold: Refold, *events: object) -> Refold:
    for event in stream(events):  # type: ignore[arg-type]
        refold.take(event, RULES)
    return refold


def test_there_is_one_for_every_actor_that_folds_the_stream() -> None:
    assert set(REFOLDS) == set(STREAM_ACTORS)


def test_bounds_are_those_of_the_active_sales_after_a_cancellation() -> None:
    refold = StatsRefold()
    assert taken(refold, A, B, cancel(A, 1)).state() == (1, 0, 700, 1, DAY_US, DAY_US)
    assert refold.position == 3


def test_a_skipped_sale_and_its_cancellation_change_nothing() -> None:
    for position in (1, 2):
        refold = StatsRefold()
        refold.skipped = {position}
        first, second = (A, B) if position == 1 else (B, A)
        taken(refold, first, second, cancel(A, position))
        assert refold.state() == (1, 0, 700, 0, DAY_US, DAY_US)


def test_a_sale_whose_cancellation_is_skipped_stays() -> None:
    refold = StatsRefold()
    refold.skipped = {3}
    assert taken(refold, A, B, cancel(A, 1)).state() == (2, 0, 5700, 0, 0, DAY_US)


def test_entries_are_handed_over_once() -> None:
    refold = LoyaltyRefold()
    taken(refold, A, B, cancel(A, 1))
    entries = refold.made()[ENTRY]
    assert [(position, entry.points) for position, entry in entries.items()] == [(1, 50), (2, 7), (3, -50)]
    assert refold.made() == {ENTRY: {}}
    assert refold.sums() == {"ledger_points": 7, "ledger_lifetime_points": 7}


def test_a_reversal_finds_an_earning_that_was_handed_over_long_ago() -> None:
    refold = LoyaltyRefold()
    first, last = stream([A, cancel(A, 1)])
    refold.take(first, RULES)
    refold.made()
    refold.take(last, RULES)
    assert refold.made()[ENTRY][2].points == -50


def test_a_customer_starts_in_the_lowest_tier_of_the_first_event() -> None:
    refold = LoyaltyRefold()
    assert taken(refold, pay(1)._replace(rules=2)).state() == (0, 0, "paper")


def test_credit_hands_over_allocations_and_keeps_usages_and_payments() -> None:
    refold = CreditRefold()
    taken(refold, OPENED, A, pay(5100))
    assert refold.made() == {ALLOCATION: {(2, 3, 3): (2, 3, 3, 5000)}}
    assert refold.made() == {ALLOCATION: {}}
    kept = refold.kept(0, 100)
    assert (kept[USAGE][2].outstanding_minor, kept[PAYMENT][3].unapplied_minor) == (0, 100)
    assert refold.sums() == {"usages_outstanding_minor": 0, "payments_unapplied_minor": 100}


@pytest.mark.parametrize("behind", [[], [pay(5)]])
def test_what_fails_ends_the_refold_and_is_told(behind: list[object]) -> None:
    refold = CreditRefold()
    before = refold.state()
    taken(refold, command(EventType.CREDIT_OPENED, 1)._replace(detail="{"), *behind)
    assert refold.failure is not None
    assert (refold.failure.position, refold.failure.error[:15]) == (1, "JSONDecodeError")
    assert refold.state() == before
    assert refold.position == 1 + len(behind)
