"""Advancing on both databases: every chunking and batching ends in the same rows, and they are what the stream says."""

import json
from collections.abc import Sequence
from itertools import count
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from customer_actors.domain.events import Message
from customer_actors.domain.routing import ACTORS, CREDIT, LOYALTY, SEGMENTATION, STATS
from customer_actors.groups.advance import Report, advance
from customer_actors.storage.database import Database
from customer_actors.storage.overdue import all_behind
from tests.model.examples import DAY_US, JUNE_1_US, cancellation, charge, opened, order, payment, pos, redemption
from tests.model.reference import state_of_stream
from tests.model.strategies import messages
from tests.storage.support import RULES, TODAY, Dump, Storage, in_organization, organization_dump, stored_state

CHUNKS = (1, 2, 500)
EXAMPLES = 20
"""Drawn histories per database; each is run once per chunk size."""

_names = count(1)


def run(storage: Storage, history: Sequence[Message], round_events: int, batches: Random) -> Dump:
    """The rows of a new organization after this history in batches of any size, actors advancing now and then."""
    name = f"org-{next(_names)}"
    rest = in_organization(history, name)
    while rest:
        size = batches.randint(1, len(rest))
        batch, rest = rest[:size], rest[size:]
        storage.receive(*batch)
        for actor in batches.sample(ACTORS, batches.randint(0, len(ACTORS))):
            storage.advance(actor, round_events=round_events)
    storage.settle(round_events=round_events)
    assert not any(all_behind(storage.stores()).values())
    rows = organization_dump(storage.database, name)
    assert_the_rows_are_what_the_streams_say(storage, name)
    return rows


def assert_the_rows_are_what_the_streams_say(storage: Storage, organization_id: str) -> None:
    for name, customer_id in storage.customers():
        if name == organization_id:
            events = storage.events(customer_id, name)
            assert stored_state(storage, name, customer_id) == state_of_stream(events, RULES, TODAY)


@pytest.mark.parametrize("seed", range(3))
def test_any_chunking_and_any_batching_end_in_the_same_rows(storage: Storage, seed: int) -> None:
    drawn = Random(seed)
    results = [run(storage, long_history(Random(seed)), chunk, drawn) for chunk in CHUNKS]
    assert results[1:] == results[:1] * (len(CHUNKS) - 1)


def long_history(drawn: Random) -> list[Message]:
    """Of few customers with accounts: many sales, some on credit, cancellations, payments and redemptions."""
    history = [opened("300"), opened("50")._replace(customer_id="c2")]
    for number in range(60):
        customer_id, amount = f"c{drawn.randint(1, 3)}", str(drawn.randint(1, 400))
        named = str(drawn.randint(0, number))
        at_us = JUNE_1_US + drawn.randint(-400, 9) * DAY_US
        kinds = [
            order(str(number), amount, customer_id=customer_id, at_us=at_us, on_credit=drawn.random() < 0.5),
            pos(str(number), amount, customer_id=customer_id, on_credit=drawn.random() < 0.2)._replace(
                occurred_at_us=at_us
            ),
            cancellation(named),
            payment(str(number), amount, customer_id=customer_id)._replace(order_id=named),
            charge(str(number), amount, customer_id=customer_id),
            redemption(str(number), drawn.randint(1, 300), customer_id=customer_id),
        ]
        history.append(drawn.choices(kinds, weights=[5, 2, 3, 3, 1, 1])[0])
    return history


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(history=messages(), drawn=st.randoms(use_true_random=False))
def test_any_drawn_history_ends_in_the_same_rows_however_it_is_chunked(
    storage: Storage, history: list[Message], drawn: Random
) -> None:
    one_organization = [message for message in history if message.organization_id == "org-1"]
    results = [run(storage, one_organization, chunk, drawn) for chunk in CHUNKS]
    assert results[1:] == results[:1] * (len(CHUNKS) - 1)


# --- statistics ---------------------------------------------------------------------------------------------------

DAYS = {name: JUNE_1_US + day * DAY_US for day, name in enumerate(("a", "b", "c", "d"))}
SOLD = [order(name, "10", at_us=at_us) for name, at_us in DAYS.items()]


def bounds(storage: Storage) -> tuple[object, ...]:
    sql = "SELECT first_purchase_at_us, last_purchase_at_us FROM stats_state WHERE customer = ?"
    return storage.database.query(sql, (storage.number(),))[0]


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(
    ("gone", "left"),
    [("a", "bd"), ("d", "ac"), ("ad", "bc"), ("b", "ad"), ("abd", "cc"), ("dcb", "aa"), ("abcd", "")],
)
def test_first_and_last_purchase_are_read_again_after_a_cancellation_took_them(
    storage: Storage, chunk: int, gone: str, left: str
) -> None:
    cancelled = [cancellation(name) for name in gone]
    expected = (DAYS[left[0]], DAYS[left[1]]) if left else (None, None)
    storage.settle(*SOLD, *cancelled, round_events=chunk)
    assert bounds(storage) == expected

    storage.settle(*in_organization([*SOLD, *cancelled], "org-2"))
    storage.settle(*in_organization([*SOLD[::-1]], "org-3"), round_events=chunk)
    for one in in_organization(cancelled, "org-3"):
        storage.settle(one, round_events=chunk)
    for name in ("org-2", "org-3"):
        assert_the_rows_are_what_the_streams_say(storage, name)


def test_a_sale_after_the_cancellation_in_the_same_round_counts_for_the_bounds(storage: Storage) -> None:
    storage.settle(SOLD[1])
    storage.settle(cancellation("b"), SOLD[2], cancellation("c"), SOLD[3], SOLD[0])
    assert bounds(storage) == (DAYS["a"], DAYS["d"])


def test_bounds_come_from_the_position_reached_and_not_from_events_behind_it(storage: Storage) -> None:
    storage.receive(*SOLD[1:3], cancellation("b"), SOLD[0], SOLD[3])
    store = storage.stores(round_events=3).of(STATS)
    assert store.round([storage.number()], 0).applied == 3
    assert bounds(storage) == (DAYS["c"], DAYS["c"])
    storage.settle()
    assert bounds(storage) == (DAYS["a"], DAYS["d"])


# --- loyalty ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [True, False], ids=["later rounds", "one round"])
def test_a_reversal_takes_back_exactly_the_stored_points(storage: Storage, apart: bool) -> None:
    """The second sale earned at silver; by the time it is cancelled the customer is bronze again [L3, L4]."""
    history = [order("1", "600"), order("2", "99.99"), cancellation("1"), cancellation("2")]
    for batch in [[message] for message in history] if apart else [history]:
        storage.settle(*batch)
    sql = "SELECT kind, points, sale_position, tier, multiplier FROM loyalty_entry WHERE customer = ? ORDER BY position"
    assert storage.database.query(sql, (storage.number(),)) == [
        ("earn", 600, 1, "bronze", "1.0"),
        ("earn", 119, 2, "silver", "1.2"),
        ("reverse", -600, 1, None, None),
        ("reverse", -119, 2, None, None),
    ]
    state = stored_state(storage, "org-1", "c1")["loyalty"]
    assert state == {"points_balance": 0, "points_debt": 0, "lifetime_points": 0, "tier": "bronze"}


# --- credit -------------------------------------------------------------------------------------------------------

Allocations = list[tuple[int, int, int]]
"""(usage position, payment position, net amount in minor units)."""
CREDIT_HISTORIES: dict[str, tuple[list[Message], Allocations]] = {
    "a payment in a later round pays a usage of an earlier one": (
        [opened("500"), order("1", "30", on_credit=True), order("2", "40", on_credit=True), payment("p", "50")],
        [(2, 4, 3000), (3, 4, 2000)],
    ),
    "a named order comes first": (
        [
            opened("500"),
            order("1", "30", on_credit=True),
            order("2", "40", on_credit=True),
            payment("p", "50")._replace(order_id="2"),
        ],
        [(2, 4, 1000), (3, 4, 4000)],
    ),
    "unapplied money pays the next usage": (
        [opened("500"), payment("p", "50"), payment("q", "50"), order("1", "70", on_credit=True), charge("2", "50")],
        [(4, 2, 5000), (4, 3, 2000), (5, 3, 3000)],
    ),
    "a cancellation releases and allocates again": (
        [
            opened("500"),
            order("1", "30", on_credit=True),
            payment("p", "20"),
            payment("q", "25"),
            order("2", "40", on_credit=True),
            cancellation("1"),
        ],
        [(5, 3, 2000), (5, 4, 2000)],
    ),
    "released money is unapplied when nothing is due": (
        [
            opened("500"),
            order("1", "30", on_credit=True),
            payment("p", "30"),
            cancellation("1"),
            order("2", "10", on_credit=True),
        ],
        [(5, 3, 1000)],
    ),
    "suspense is drained in arrival order at opening": (
        [order("1", "30", on_credit=True), payment("p", "20"), payment("q", "20"), opened("500")],
        [(1, 2, 2000), (1, 3, 1000)],
    ),
    "a cancelled usage without an account takes no suspense": (
        [order("1", "30", on_credit=True), payment("p", "20"), cancellation("1"), opened("500"), charge("2", "15")],
        [(5, 2, 1500)],
    ),
}


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize(("history", "expected"), CREDIT_HISTORIES.values(), ids=CREDIT_HISTORIES.keys())
def test_credit_facts_reach_across_rounds(
    storage: Storage, chunk: int, history: list[Message], expected: Allocations
) -> None:
    storage.settle(*history, round_events=chunk)
    for message in in_organization(history, "org-2"):
        storage.settle(message, round_events=chunk)
    sql = (
        "SELECT usage_position, payment_position, CAST(sum(amount_minor) AS bigint) FROM credit_allocation "
        "WHERE customer = ? GROUP BY 1, 2 HAVING sum(amount_minor) <> 0 ORDER BY 1, 2"
    )
    for organization_id in ("org-1", "org-2"):
        assert storage.database.query(sql, (storage.number("c1", organization_id),)) == expected
        assert_the_rows_are_what_the_streams_say(storage, organization_id)
    assert_credit_sums_agree(storage.database)


def assert_credit_sums_agree(database: Database) -> None:
    allocated = "SELECT coalesce(sum(amount_minor), 0) FROM credit_allocation a WHERE a.customer = t.customer AND"
    usages = f"amount_minor - ({allocated} a.usage_position = t.position) <> outstanding_minor"
    payments = f"amount_minor - ({allocated} a.payment_position = t.position) <> unapplied_minor"
    assert database.query(f"SELECT * FROM credit_usage t WHERE cancelled_position IS NULL AND {usages}") == []
    assert database.query(f"SELECT * FROM credit_payment t WHERE {payments}") == []
    cached = (
        "SELECT s.customer FROM credit_state s WHERE used_minor <> (SELECT coalesce(sum(outstanding_minor), 0) "
        "FROM credit_usage u WHERE u.customer = s.customer) OR unapplied_minor + suspense_minor <> "
        "(SELECT coalesce(sum(unapplied_minor), 0) FROM credit_payment p WHERE p.customer = s.customer)"
    )
    assert database.query(cached) == []


# --- segmentation -------------------------------------------------------------------------------------------------


def segment(storage: Storage) -> tuple[object, ...]:
    sql = "SELECT position, orders, total_spent_minor, recency, frequency, monetary, code, cuts FROM customer_segment"
    return storage.database.query(sql)[0]


def test_segmentation_scores_what_statistics_have_reached_and_nothing_newer(storage: Storage) -> None:
    storage.receive(order("1", "10"), order("2", "990"))
    assert storage.advance(SEGMENTATION).applied == 0
    assert segment(storage)[0] == 0
    storage.stores(round_events=1).of(STATS).round([storage.number()], 0)
    storage.advance(SEGMENTATION)
    assert segment(storage) == (1, 1, 1000, 5, 1, 1, "new", None)
    storage.advance(STATS)
    storage.advance(SEGMENTATION)
    assert segment(storage) == (2, 2, 100_000, 5, 2, 4, "potential_loyalist", None)
    assert storage.advance(SEGMENTATION, [storage.number()]).applied == 0


def test_segmentation_takes_the_newest_cuts_of_the_organization(storage: Storage) -> None:
    storage.settle(order("1", "10"))
    assert segment(storage)[3:] == (5, 1, 1, "new", None)
    for organization_id, as_of, monetary in [
        ("org-1", "2024-06-01", (1, 2, 3, 4)),
        ("org-1", "2024-06-02", (500, 1999, 2500, 3000)),
        ("org-2", "2024-06-03", (1, 2, 3, 4)),
    ]:
        sql = (
            "INSERT INTO rfm_cuts (organization_id, as_of, recency, frequency, monetary, calculated_at_us) "
            "VALUES (?, ?, ?, NULL, ?, 0)"
        )
        storage.database.execute(sql, (organization_id, as_of, json.dumps([1, 2, 3, 8]), json.dumps(monetary)))
    newest = storage.value("SELECT max(number) FROM rfm_cuts WHERE organization_id = 'org-1'")
    # Nine days ago: more than four cuts of recency allow; two orders by the fixed cuts; 20.00 is above two cuts.
    storage.settle(order("2", "10"))
    assert segment(storage)[3:] == (1, 2, 3, "lost", newest)


def test_a_customer_whose_last_sale_is_cancelled_has_no_segment(storage: Storage) -> None:
    storage.settle(order("1", "10"))
    storage.settle(cancellation("1"))
    assert segment(storage) == (2, 0, 0, None, None, None, None, None)


# --- positions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("actor", [STATS, LOYALTY, CREDIT])
def test_one_round_takes_a_share_of_each_customer_and_what_one_does_not_need_of_the_other(
    storage: Storage, actor: str
) -> None:
    history = [
        opened("1000"),
        *(order(str(n), "1", on_credit=True) for n in range(20)),
        order("x", "1", customer_id="c2"),
    ]
    storage.receive(*history)
    numbers = [storage.number("c1"), storage.number("c2")]
    round_ = storage.stores(round_events=8).of(actor).round(numbers, 0)
    assert (round_.locked, round_.applied) == (2, 8)
    heads = f"SELECT head_{actor} - position FROM customer JOIN {actor}_state ON customer = id WHERE position > head"
    assert storage.database.query(heads) == []
    report = storage.advance(actor, numbers, round_events=8)
    assert (report.applied + round_.applied, report.remaining) == (21, [])
    assert all_behind(storage.stores())[actor] == []


def test_advancing_again_or_for_unknown_customers_changes_nothing(storage: Storage) -> None:
    storage.settle(*long_history(Random(7)))
    before = organization_dump(storage.database, "org-1")
    for actor in ACTORS:
        assert storage.advance(actor, [1, 2, 3, 999_999, *range(storage.number(), storage.number() + 5)]) == Report(
            rounds=1
        )
        assert storage.advance(actor, []) == Report()
        assert storage.advance(actor, [-1, 999_999]) == Report()
    assert organization_dump(storage.database, "org-1") == before


def test_a_time_budget_that_is_used_up_reports_who_still_waits(storage: Storage) -> None:
    storage.receive(*(order(str(n), "1") for n in range(5)), order("x", "1", customer_id="c2"))
    numbers = sorted([storage.number("c1"), storage.number("c2")])
    store = storage.stores(round_events=2).of(STATS)
    report = advance(store, numbers, now_us=lambda: 0, budget_s=-1)
    assert (report.rounds, report.applied, report.remaining) == (1, 2, [storage.number("c1")])


def test_money_meant_for_an_order_reaches_the_till_sale_it_is_one_with(storage: Storage) -> None:
    """[A5, C2] the named sale is paid first, although another usage is due earlier."""
    older = order("0", "50", on_credit=True, at_us=JUNE_1_US)
    till = pos("t", "50", on_credit=True)._replace(occurred_at_us=JUNE_1_US + DAY_US)
    named = payment("p", "50")._replace(order_id="1")
    storage.settle(older, till, order("1", "50", twin="t"), opened("500"), named)
    rows = storage.database.query("SELECT reference, outstanding_minor FROM credit_usage ORDER BY position")
    assert rows == [("0", 5_000), ("t", 0)]
