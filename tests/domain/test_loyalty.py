"""Points are exact, undone exactly, and the tier follows them [L1-L7]."""

from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction
from math import floor
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from customer_actors.domain.events import Channel, Event, EventType
from customer_actors.domain.loyalty import Entry, Loyalty, Result, fold, tier_of
from customer_actors.domain.rules import DEFAULT_TIERS, Rules, Tier

DEFAULTS = Rules()
BLANK = Event(1, 1, "", "O-1", None, 0, 0, 0, 1, 2, False, False, None, None, None, None)


def sale(amount_minor: int, position: int = 1, already_cancelled: bool = False) -> Event:
    return BLANK._replace(
        type=EventType.ORDER_COMPLETED,
        position=position,
        channel=Channel.ORDER,
        amount_minor=amount_minor,
        already_cancelled=already_cancelled,
    )


def cancellation(sale_position: int | None, position: int = 2) -> Event:
    return BLANK._replace(
        type=EventType.ORDER_CANCELLED, position=position, channel=Channel.ORDER, sale_position=sale_position
    )


def redemption(points: int, position: int = 3) -> Event:
    return BLANK._replace(type=EventType.LOYALTY_REDEEMED, position=position, reference="R-1", amount_minor=points)


def run(events: Sequence[Event], rules: Rules = DEFAULTS) -> tuple[Loyalty, list[Entry]]:
    """State and ledger after a stream, the earnings supplied the way the driver does."""
    state, entries, earned = Loyalty(), list[Entry](), dict[int, int]()
    for event in events:
        result = fold(state, event, rules, earned)
        state = result.state
        if result.entry:
            entries.append(result.entry)
            if result.entry.kind == "earn":
                earned[result.entry.position] = result.entry.points
    return state, entries


@pytest.mark.parametrize(
    ("lifetime", "name"),
    [
        (-1, "bronze"),
        (0, "bronze"),
        (499, "bronze"),
        (500, "silver"),
        (999, "silver"),
        (1000, "gold"),
        (4999, "gold"),
        (5000, "platinum"),
        (10**12, "platinum"),
    ],
)
def test_a_tier_is_held_from_exactly_its_threshold_on(lifetime: int, name: str) -> None:
    assert tier_of(lifetime, DEFAULTS).name == name


@pytest.mark.parametrize(
    ("lifetime_before", "amount_minor", "points", "tier_used", "tier_after"),
    [
        (0, 10_00, 10, "bronze", "bronze"),
        (0, 10_99, 10, "bronze", "bronze"),  # floor
        (0, 499_99, 499, "bronze", "bronze"),
        (0, 500_00, 500, "bronze", "silver"),  # the sale that reaches a tier is still paid by the old one
        (499, 1_00, 1, "bronze", "silver"),
        (499, 6000_00, 6000, "bronze", "platinum"),  # evaluated once, over several tiers
        (500, 100_00, 120, "silver", "silver"),
        (500, 99, 1, "silver", "silver"),  # one floor: 0.99 x 1.2 = 1.188; floor(0.99) x 1.2 would be 0
        (500, 1_99, 2, "silver", "silver"),  # 2.388
        (1000, 67, 1, "gold", "gold"),  # 1.005
        (5000, 50, 1, "platinum", "platinum"),
    ],
)
def test_points_are_multiplied_by_the_tier_before_the_sale_and_floored_once(
    lifetime_before: int, amount_minor: int, points: int, tier_used: str, tier_after: str
) -> None:
    state, entry, refused = fold(Loyalty(7, lifetime_before, "any"), sale(amount_minor), DEFAULTS, {})
    multiplier = {"bronze": "1.0", "silver": "1.2", "gold": "1.5", "platinum": "2.0"}[tier_used]
    assert state == Loyalty(7 + points, lifetime_before + points, tier_after)
    assert entry == Entry(1, "earn", points, 1, tier_used, multiplier, "1")
    assert refused is None


@pytest.mark.parametrize("event", [sale(0), sale(99), sale(100_00, already_cancelled=True)])
def test_a_sale_that_earns_nothing_makes_no_entry(event: Event) -> None:
    assert fold(Loyalty(5, 5), event, DEFAULTS, {}) == Result(Loyalty(5, 5))


def test_a_sale_at_the_till_earns_like_an_order() -> None:
    till = sale(10_00)._replace(type=EventType.POS_COMPLETED, channel=Channel.POS)
    assert fold(Loyalty(), till, DEFAULTS, {}) == fold(Loyalty(), sale(10_00), DEFAULTS, {})


@pytest.mark.parametrize(("decimals", "amount_minor"), [(0, 10), (1, 100), (2, 10_00), (4, 10_0000)])
def test_points_are_per_unit_whatever_the_decimals(decimals: int, amount_minor: int) -> None:
    rules = Rules(currency_decimals=decimals)
    assert [fold(Loyalty(), sale(a), rules, {}).state.points for a in (amount_minor - 1, amount_minor)] == [9, 10]


def test_points_are_exact_beyond_what_a_float_can_hold() -> None:
    rules = Rules(points_per_unit=Decimal("999999.9999"), tiers=(DEFAULT_TIERS[0],))
    entry = fold(Loyalty(), sale(999_999_999_999_99), rules, {}).entry
    assert entry
    assert entry.points == 999_999_999_899_990_000


def test_a_renamed_tier_still_multiplies() -> None:
    renamed = Rules(tiers=(Tier(name="guest", threshold=0, multiplier=Decimal(1)), *DEFAULT_TIERS[1:3]))
    result = fold(Loyalty(10, 600, "argent"), sale(10_00), renamed, {})
    assert result.state == Loyalty(22, 612, "silver")


def test_a_reversal_takes_back_the_stored_points_and_lowers_the_tier() -> None:
    result = fold(Loyalty(1000, 1001, "gold"), cancellation(1), DEFAULTS, {1: 502, 9: 3})
    assert result == Result(Loyalty(498, 499, "bronze"), Entry(2, "reverse", -502, 1))


def test_sales_already_awarded_are_not_rated_again_after_a_reversal() -> None:
    state, entries = run([sale(500_00, 1), sale(100_00, 2), cancellation(1, 3), sale(100_00, 4)])
    assert [e.points for e in entries] == [500, 120, -500, 100]
    assert state == Loyalty(220, 220, "bronze")


@pytest.mark.parametrize("sale_position", [None, 8], ids=["only charged", "earned nothing"])
def test_a_cancellation_without_an_earning_changes_nothing(sale_position: int | None) -> None:
    assert fold(Loyalty(5, 600, "x"), cancellation(sale_position), DEFAULTS, {1: 5}) == Result(Loyalty(5, 600, "x"))


def test_a_redemption_never_changes_lifetime_points_or_tier() -> None:
    result = fold(Loyalty(700, 700, "silver"), redemption(700), DEFAULTS, {})
    assert result == Result(Loyalty(0, 700, "silver"), Entry(3, "redeem", -700))


@pytest.mark.parametrize(("points", "asked"), [(10, 11), (0, 1), (-5, 1), (10, 0), (10, -1), (-5, -6)])
def test_a_redemption_beyond_the_balance_or_not_positive_is_refused(points: int, asked: int) -> None:
    state, entry, refused = fold(Loyalty(points, 20), redemption(asked), DEFAULTS, {})
    assert (state, entry) == (Loyalty(points, 20), None)
    assert refused


def test_points_spent_and_then_reversed_become_a_debt_that_new_points_pay_first() -> None:
    events = [sale(100_00, 1), redemption(80, 2), cancellation(1, 3)]
    owing, _ = run(events)
    paying, _ = run([*events, sale(30_00, 4)])
    paid, _ = run([*events, sale(30_00, 4), sale(60_00, 5)])
    assert [(s.points_balance, s.points_debt) for s in (owing, paying, paid)] == [(0, 80), (0, 50), (10, 0)]


@pytest.mark.parametrize("type_", [t for t in EventType if t.startswith(("payment", "credit"))])
def test_payments_and_credit_never_move_points(type_: EventType) -> None:
    event = BLANK._replace(type=type_, channel=Channel.ORDER, amount_minor=100_00, sale_position=1)
    assert fold(Loyalty(5, 5), event, DEFAULTS, {1: 5}) == Result(Loyalty(5, 5))


RATES = st.decimals(0, 1000, places=3)


@st.composite
def rule_sets(draw: st.DrawFn) -> Rules:
    thresholds = [0, *sorted(draw(st.sets(st.integers(1, 3000), max_size=4)))]
    names = ["bronze", "silver", "gold", "platinum", "diamond"]
    tiers = tuple(Tier(name=n, threshold=t, multiplier=draw(RATES)) for n, t in zip(names, thresholds, strict=False))
    return Rules(currency_decimals=draw(st.integers(0, 4)), points_per_unit=draw(RATES), tiers=tiers)


@st.composite
def streams(draw: st.DrawFn) -> list[Event]:
    """Sales, each cancelled at most once and never before, with redemptions in between."""
    events: list[Event] = []
    open_sales: list[int] = []
    for position in range(1, draw(st.integers(1, 25)) + 1):
        kind = draw(st.sampled_from(["sale", "sale", "cancel", "redeem"]))
        if kind == "cancel" and open_sales:
            events.append(cancellation(open_sales.pop(draw(st.integers(0, len(open_sales) - 1))), position))
        elif kind == "redeem":
            events.append(redemption(draw(st.integers(0, 2000)), position))
        else:
            events.append(sale(draw(st.integers(0, 300_000)), position))
            open_sales.append(position)
    return events


@settings(deadline=None)
@given(streams(), rule_sets())
def test_the_ledger_explains_the_state(events: list[Event], rules: Rules) -> None:
    by_position = {event.position: event for event in events}
    for length in range(len(events) + 1):
        state, entries = run(events[:length], rules)
        lifetime = sum(e.points for e in entries if e.kind != "redeem")
        assert state.points_balance - state.points_debt == sum(e.points for e in entries)
        assert 0 in (state.points_balance, state.points_debt)
        assert state.lifetime_points == lifetime >= 0
        assert state.tier == [t.name for t in rules.tiers if t.threshold <= lifetime][-1]
    _, entries = run(events, rules)
    assert all(entry.points for entry in entries)
    earnings = {e.sale_position: e for e in entries if e.kind == "earn"}
    reversals = {e.sale_position: e for e in entries if e.kind == "reverse"}
    assert len(earnings) + len(reversals) + sum(e.kind == "redeem" for e in entries) == len(entries)
    assert all(reversal.points == -earnings[sold].points for sold, reversal in reversals.items())
    lifetime = 0
    for entry in entries:
        if entry.kind == "earn":
            tier = [t for t in rules.tiers if t.threshold <= lifetime][-1]
            units = Fraction(by_position[entry.position].amount_minor, 10**rules.currency_decimals)
            assert entry.points == floor(units * Fraction(rules.points_per_unit) * Fraction(tier.multiplier))
            assert (entry.tier, Decimal(entry.multiplier or "")) == (tier.name, tier.multiplier)
        lifetime += entry.points if entry.kind != "redeem" else 0


@settings(deadline=None)
@given(streams(), st.randoms(use_true_random=False))
def test_with_equal_multipliers_the_order_of_the_input_does_not_matter(events: list[Event], random: Random) -> None:
    flat = Rules(tiers=tuple(tier.model_copy(update={"multiplier": Decimal(1)}) for tier in DEFAULT_TIERS))
    sales = [event for event in events if event.type == EventType.ORDER_COMPLETED]
    cancellations = [event for event in events if event.type == EventType.ORDER_CANCELLED]
    cancelled = {event.sale_position for event in cancellations}
    never_cancelled, _ = run([event for event in sales if event.position not in cancelled], flat)
    random.shuffle(sales)
    random.shuffle(cancellations)
    assert run([*sales, *cancellations], flat)[0] == never_cancelled
