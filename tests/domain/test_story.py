"""What is told of a customer's events, and that the stored state is compared with a true refold."""

import json
from collections.abc import Sequence
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from customer_actors.domain.events import Channel, Event, EventType, iso
from customer_actors.domain.routing import CONCERNS, CREDIT, LOYALTY, STATS, STREAM_ACTORS, route
from customer_actors.domain.rules import Rules, Tier
from customer_actors.domain.story import STREAM, Difference, Effect, Skips, Standing, Story
from customer_actors.domain.story_credit import MOST_NAMED
from customer_actors.domain.telling import FAILED, WAITS, Figures, Told, amount_text, event_amount

RULES = {
    1: Rules(),
    2: Rules(points_per_unit=Decimal("0.5"), tiers=(Tier(name="paper", threshold=0, multiplier=Decimal(1)),)),
}
DAY_US = 86_400_000_000
BLANK = Event(1, 0, "", "", None, 0, 0, 0, 1, 0, False, False, None, None, None, None)
AT_END = Standing(1_000_000)


def sale(reference: str, amount: int, *, on_credit: bool = False, day: int = 0, late: bool = False) -> Event:
    event = BLANK._replace(type=EventType.ORDER_COMPLETED, reference=reference, channel=Channel.ORDER.value)
    at_us = day * DAY_US
    return event._replace(amount_minor=amount, on_credit=on_credit, occurred_at_us=at_us, already_cancelled=late)


def till(reference: str, amount: int) -> Event:
    return sale(reference, amount, on_credit=True)._replace(type=EventType.POS_COMPLETED, channel=Channel.POS.value)


def cancel(of: Event, position: int | None, day: int = 0) -> Event:
    """The cancellation of a sale that stands at a position; None: it was only charged."""
    at = None if position is None else of.occurred_at_us
    amount = 0 if position is None else of.amount_minor
    event = of._replace(type=EventType.ORDER_CANCELLED, sale_position=position, sale_occurred_at_us=at)
    return event._replace(amount_minor=amount, occurred_at_us=day * DAY_US)


def charge(reference: str, amount: int) -> Event:
    return sale(reference, amount)._replace(type=EventType.CREDIT_CHARGED)


def pay(amount: int, order: str | None = None) -> Event:
    return BLANK._replace(type=EventType.PAYMENT_RECEIVED, reference="P", amount_minor=amount, order_id=order)


def command(type_: EventType, amount: int = 0, **detail: object) -> Event:
    return BLANK._replace(type=type_, reference="R", amount_minor=amount, detail=json.dumps(detail) if detail else None)


def by_night(as_of: str) -> Event:
    return command(EventType.CREDIT_SUSPENDED, automatic=True, as_of=as_of)


OPENED = command(EventType.CREDIT_OPENED, 10_000)


def stream(events: Sequence[Event]) -> list[Event]:
    """The events at positions 1, 2, 3, … with the actors they concern."""
    return [
        event._replace(position=position, concerns=CONCERNS[route(event.type, event.on_credit)])
        for position, event in enumerate(events, start=1)
    ]


def story_of(
    events: Sequence[Event], skips: Skips | None = None, **standings: Standing
) -> tuple[Story, list[list[Effect]]]:
    """A story that has taken the events, and what it told of each."""
    placed = stream(events)
    undone = {event.sale_position: event.position for event in placed if event.sale_position is not None}
    story = Story(RULES, {actor: standings.get(actor, AT_END) for actor in STREAM_ACTORS}, undone, 2, skips)
    return story, [story.take(event) for event in placed]


def told(events: Sequence[Event], actor: str) -> Told:
    """What the actor made of the last event."""
    return next(effect.told for effect in story_of(events)[1][-1] if effect.actor == actor)


BIG = sale("A", 50_000)
CASES: list[tuple[str, Sequence[Event], str, tuple[str, str, str]]] = [
    # claim, events, actor, (rule, outcome, effect) of the last one
    ("a sale", [sale("A", 5000)], STATS, ("S1", "applied", "order +1, +50.00")),
    ("a sale cancelled before", [sale("A", 5, late=True)], STATS,
     ("A4", "applied", "already cancelled: cancelled orders +1")),
    ("a cancellation", [BIG, cancel(BIG, 1)], STATS, ("S1", "applied", "order -1, -500.00, cancelled orders +1")),
    ("a cancellation of a mere charge", [OPENED, charge("A", 9), cancel(charge("A", 9), None)], STATS,
     ("S1", "none", "no sale to undo: the order was charged, but not completed before")),
    ("points", [sale("A", 5025)], LOYALTY, ("L1 L2", "applied", "+50 points = floor(50.25 x 1 x 1.0, bronze before)")),
    ("points that change the tier", [BIG], LOYALTY,
     ("L1 L2 L4", "applied", "+500 points = floor(500.00 x 1 x 1.0, bronze before), tier was bronze")),
    ("the tier before multiplies", [BIG, sale("B", 5000)], LOYALTY,
     ("L1 L2", "applied", "+60 points = floor(50.00 x 1 x 1.2, silver before)")),
    ("no points", [sale("A", 99)], LOYALTY, ("L1 L3", "none", "no points = floor(0.99 x 1 x 1.0, bronze before)")),
    ("points taken back", [BIG, cancel(BIG, 1)], LOYALTY,
     ("L3 L4", "applied", "-500 points, those earned at position 1, tier was silver")),
    ("no points to take back", [sale("A", 99), cancel(sale("A", 99), 1)], LOYALTY,
     ("L3", "none", "no points to take back: it earned none")),
    ("points redeemed", [BIG, command(EventType.LOYALTY_REDEEMED, 200)], LOYALTY,
     ("L6", "applied", "-200 points redeemed")),
    ("a redemption refused", [command(EventType.LOYALTY_REDEEMED, 200)], LOYALTY,
     ("L6", "refused", "refused: 200 points asked, 0 available")),
    ("an account", [OPENED], CREDIT, ("C9", "applied", "account opened, limit 100.00, terms 30 days")),
    ("an account twice", [OPENED, OPENED], CREDIT, ("C9", "duplicate", "no effect, it is so already")),
    ("a credit sale", [OPENED, sale("A", 5000, on_credit=True)], CREDIT,
     ("C4", "applied", "50.00 used for order A, due 1970-01-31")),
    ("a credit sale over the limit", [OPENED, sale("A", 10_001, on_credit=True)], CREDIT,
     ("C4", "applied", "100.01 used for order A, due 1970-01-31, over the limit")),
    ("a credit sale without an account", [till("T", 5000)], CREDIT,
     ("C3", "applied", "50.00 used for pos T, due 1970-01-31, without an account")),
    ("a credit sale paid at once", [OPENED, pay(2000), till("T", 5000)], CREDIT,
     ("C4 C2", "applied", "50.00 used for pos T, due 1970-01-31; 20.00 of it paid at once by unapplied money")),
    ("a charge refused", [OPENED, charge("A", 10_001)], CREDIT,
     ("C4", "refused", "refused: the amount is more than the credit available")),
    ("a charge of a sale on credit", [OPENED, sale("A", 5, on_credit=True), charge("A", 5)], CREDIT,
     ("C4", "duplicate", "no effect, order A has its usage already")),
    ("a payment", [OPENED, sale("A", 6000, on_credit=True), pay(10_000)], CREDIT,
     ("C2", "applied", "100.00 allocated: 60.00 to order A, 40.00 unapplied")),
    ("a payment over several", [OPENED, sale("A", 60, on_credit=True), till("A", 50), pay(100, "A")], CREDIT,
     ("C2", "applied", "1.00 allocated: 0.60 to order A, 0.40 to pos A")),
    ("a payment of the newest", [OPENED, sale("A", 60, on_credit=True), sale("B", 50, on_credit=True), pay(50, "B")],
     CREDIT, ("C2", "applied", "0.50 allocated: 0.50 to order B")),
    ("a payment of nothing", [OPENED, pay(10_000)], CREDIT, ("C2", "applied", "100.00 unapplied: nothing is open")),
    ("a payment without an account", [pay(10_000)], CREDIT,
     ("C3", "applied", "100.00 kept in suspense: there is no account")),
    ("suspense drained", [till("T", 5000), pay(6000), OPENED], CREDIT,
     ("C9 C3", "applied",
      "account opened, limit 100.00, terms 30 days; 60.00 from suspense: 50.00 to pos T, 10.00 unapplied")),
    ("a usage cancelled", [OPENED, till("T", 5000), cancel(till("T", 5000), 2)], CREDIT,
     ("C5", "applied", "cancelled: 50.00 for pos T")),
    ("money released", [OPENED, till("T", 50), pay(50), till("U", 20), cancel(till("T", 50), 2)], CREDIT,
     ("C5", "applied", "cancelled: 0.50 for pos T; 0.50 released: 0.20 to pos U, 0.30 unapplied")),
    ("a sale and a charge of its order cancelled", [OPENED, till("T", 50), charge("A", 40),
     cancel(till("T", 50), 2)._replace(reference="A")], CREDIT,
     ("C5", "applied", "cancelled: 0.50 for pos T and 0.40 for order A")),
    ("nothing to cancel", [cancel(till("T", 50), None)], CREDIT, ("C5", "none", "no usage to cancel")),
    ("a limit", [OPENED, command(EventType.CREDIT_LIMIT_CHANGED, 5000)], CREDIT,
     ("C9", "applied", "limit 100.00 -> 50.00")),
    ("a limit of no account", [command(EventType.CREDIT_LIMIT_CHANGED, 5000)], CREDIT,
     ("C9", "refused", "refused: there is no credit account")),
    ("a suspension", [OPENED, command(EventType.CREDIT_SUSPENDED)], CREDIT, ("C7", "applied", "suspended by hand")),
    ("a suspension by night", [OPENED, till("T", 50), by_night("2100-01-01")], CREDIT,
     ("C7", "applied", "suspended automatically")),
    ("a suspension by night of who paid meanwhile", [OPENED, till("T", 50), pay(50), by_night("2100-01-01")], CREDIT,
     ("C7", "refused", "refused: nothing is overdue for too long any more")),
    ("a suspension lifted", [OPENED, command(EventType.CREDIT_SUSPENDED), command(EventType.CREDIT_LIFTED)], CREDIT,
     ("C7", "applied", "suspension lifted")),
]  # fmt: skip


@pytest.mark.parametrize(("events", "actor", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_it_is_told(events: Sequence[Event], actor: str, expected: tuple[str, str, str]) -> None:
    assert tuple(told(events, actor)) == expected


def test_a_payment_of_very_many_usages_names_a_few_and_counts_the_others() -> None:
    sales = [sale(f"O{number}", 100, on_credit=True) for number in range(MOST_NAMED + 3)]
    effect = told([OPENED, *sales, pay(750)], CREDIT).effect
    named = "".join(f"1.00 to order O{number}, " for number in range(MOST_NAMED))
    assert effect == f"7.50 allocated: {named}2.50 to 3 others"


def test_every_effect_is_followed_by_the_figures_after_it() -> None:
    _, effects = story_of([OPENED, sale("A", 50_000, on_credit=True)])
    assert [(effect.actor, effect.balance) for effect in effects[-1]] == [
        (STATS, {"orders": 1, "total_spent": "500.00", "cancelled_orders": 0}),
        (LOYALTY, {"points_balance": 500, "points_debt": 0, "lifetime_points": 500, "tier": "silver"}),
        (
            CREDIT,
            {
                "status": "active",
                "limit": "100.00",
                "used": "500.00",
                "available": "-400.00",
                "unapplied": "0.00",
                "suspense": "0.00",
            },
        ),
    ]


def test_only_the_actors_concerned_are_asked() -> None:
    _, effects = story_of([sale("A", 5000), pay(1)])
    assert [[effect.actor for effect in told] for told in effects] == [[STATS, LOYALTY], [CREDIT]]


def test_an_event_is_folded_with_the_rules_it_was_stamped_with() -> None:
    cheap = sale("B", 5000)._replace(rules=2)
    effect = told([sale("A", 5000), cheap], LOYALTY).effect
    assert effect == "+25 points = floor(50.00 x 0.5 x 1, paper before), tier was bronze"


def test_a_customer_starts_in_the_lowest_tier_of_the_day() -> None:
    story, _ = story_of([pay(1)._replace(rules=2)])
    assert story.differences({LOYALTY: {"position": 0, "tier": "paper"}}) == []


# --- amounts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("minor", "decimals", "text"),
    [(0, 2, "0.00"), (5, 2, "0.05"), (-5, 2, "-0.05"), (123, 2, "1.23"), (-12_345, 3, "-12.345"), (7, 0, "7")],
)
def test_an_amount_has_exactly_the_digits_of_its_currency(minor: int, decimals: int, text: str) -> None:
    assert amount_text(minor, decimals) == text


@pytest.mark.parametrize(
    ("event", "amount"),
    [
        (sale("A", 5), "0.05"),
        (OPENED, "100.00"),
        (command(EventType.LOYALTY_REDEEMED, 200), 200),
        (command(EventType.CREDIT_SUSPENDED), None),
        (command(EventType.CREDIT_LIFTED), None),
    ],
)
def test_an_event_has_the_amount_its_type_has(event: Event, amount: object) -> None:
    assert event_amount(event, 2) == amount


# --- who waits ---------------------------------------------------------------------------------------------------

THREE = [sale("A", 5000), sale("B", 5000), sale("C", 5000)]
HELD = Standing(1, 2, attempts=3, error="ValueError: x")


@pytest.mark.parametrize(
    ("standing", "reasons"),
    [
        (Standing(2), ["not reached yet: the actor stands at position 2"]),
        (HELD, ["held (attempts: 3), is tried again by itself: ValueError: x", "behind position 2, which is held"]),
        (
            HELD._replace(parked=True),
            ["parked (attempts: 3), waits for a person: ValueError: x", "behind position 2, which is parked"],
        ),
        (HELD._replace(position=0), ["not reached yet: the actor stands at position 0"]),
    ],
)
def test_what_an_actor_has_not_come_to_waits_with_the_reason(standing: Standing, reasons: list[str]) -> None:
    story, effects = story_of(THREE, loyalty=standing)
    waiting = [told for _, loyalty in effects for told in [loyalty.told] if told.outcome == WAITS]
    assert [told.effect for told in waiting][: len(reasons)] == reasons
    assert all(told.rule == "" for told in waiting)
    assert [effect.balance for _, effect in effects if effect.told in waiting] == [{}] * len(waiting)
    assert story.waiting == {LOYALTY: standing}


def test_each_actor_is_compared_as_of_its_own_position() -> None:
    story, _ = story_of(THREE, stats=Standing(2), loyalty=Standing(1))
    stored = {STATS: {"position": 2, "orders": 2}, LOYALTY: {"position": 1, "points_balance": 50}}
    assert story.differences(stored) == []
    assert story.differences({STATS: {"position": 2, "orders": 3}}) == [Difference(STATS, "orders", 3, 2)]


# --- the comparison ----------------------------------------------------------------------------------------------

LIFE = [OPENED, sale("A", 5000, on_credit=True), till("T", 700), pay(900), sale("B", 99), cancel(till("T", 700), 3)]


def figures_of(events: Sequence[Event]) -> dict[str, Figures]:
    """Everything a stored state is compared by, as the refold itself has it."""
    story, _ = story_of(events)
    tellers = {actor: story._tellers[actor].figures() for actor in STREAM_ACTORS}
    stored = {actor: {"position": len(events), **figures} for actor, figures in tellers.items()}
    return {STREAM: {"events": len(events)}, **stored}


FIELDS = [(actor, field) for actor, figures in figures_of(LIFE).items() for field in figures]


def test_the_true_state_has_no_difference() -> None:
    assert story_of(LIFE)[0].differences(figures_of(LIFE)) == []


@pytest.mark.parametrize(("actor", "field"), FIELDS)
def test_any_other_figure_is_named(actor: str, field: str) -> None:
    stored = figures_of(LIFE)
    expected = stored[actor][field]
    stored[actor][field] = wrong = {"order": -1, "pos": -1} if field == "by_channel" else 999
    found = story_of(LIFE)[0].differences(stored)
    if field == "by_channel":
        assert [difference.field for difference in found] == ["by_channel.order", "by_channel.pos"]
    else:
        assert found == [Difference(actor, field, wrong, expected)]


def test_a_stream_that_lost_events_is_a_difference() -> None:
    stored = figures_of(LIFE)
    found = {(one.actor, one.field) for one in story_of(LIFE[:-1])[0].differences(stored)}
    assert {(STREAM, "events"), (STATS, "position"), (CREDIT, "usages_outstanding")} <= found


def test_what_can_no_longer_be_folded_is_that_actors_only_difference() -> None:
    broken = command(EventType.CREDIT_OPENED)._replace(detail="{")
    story, effects = story_of([sale("A", 5000), broken, pay(900)])
    assert [effect.told.outcome for (effect,) in effects[1:]] == [FAILED, FAILED]
    assert "JSONDecodeError" in effects[1][0].told.effect
    (difference,) = story.differences({STATS: {"position": 1, "orders": 1}, CREDIT: {"position": 3, "used": "9.00"}})
    assert (difference.actor, difference.field, difference.stored) == (CREDIT, "refold", "position 2 applied")


@given(
    st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=12),
    st.data(),
)
def test_first_and_last_purchase_are_those_of_the_sales_active_at_the_position(
    steps: list[tuple[int, bool]], data: st.DataObject
) -> None:
    events: list[Event] = []
    active: list[int] = []
    for day, wants_cancellation in steps:
        if wants_cancellation and active:
            position = active.pop(data.draw(st.integers(0, len(active) - 1)))
            events.append(cancel(events[position - 1], position))
        else:
            events.append(sale(str(len(events)), 100, day=day))
            active.append(len(events))
    reached = data.draw(st.integers(0, len(events)))
    undone = {event.sale_position for event in events[:reached] if event.type == EventType.ORDER_CANCELLED}
    sales = [e for at, e in enumerate(events[:reached], 1) if e.type == EventType.ORDER_COMPLETED and at not in undone]
    times: list[str | None] = [iso(at_us) for at_us in sorted(event.occurred_at_us for event in sales)] or [None]
    story, _ = story_of(events, stats=Standing(reached))
    bounds = {"position": reached, "first_purchase_at": times[0], "last_purchase_at": times[-1]}
    assert story.differences({STATS: bounds}) == []
