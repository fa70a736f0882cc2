"""The night of the segments against a plain reading of the rules, over any shop and any clock [R1-R7]."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from typing import NamedTuple
from zoneinfo import ZoneInfo

from hypothesis import given, settings
from hypothesis import strategies as st

from customer_actors.domain.rules import Rules
from customer_actors.domain.segmentation import Cuts, Scale, Sieve, code_of, day_start_us, score
from customer_actors.storage.database import Database, Row
from customer_actors.storage.job_runs import Run
from customer_actors.storage.nightly_segments import NightlySegments
from customer_actors.storage.schema import migrate
from customer_actors.storage.segmentation import SegmentationStore, newest_cuts
from customer_actors.storage.sqlite import SqliteDatabase

HOUR_US = 3_600_000_000
NIGHT = datetime(2026, 3, 30, 1, 15, tzinfo=UTC)  # Berlin went to summer time the night before
AS_OF = date(2026, 3, 30)
NIGHT_US = int(NIGHT.timestamp()) * 1_000_000
FIXED = {"days": (30, 60, 90, 180), "orders": (1, 2, 4, 9), "total": (9_999, 49_999, 99_999, 499_999)}
ZONES = ("UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Pacific/Auckland")


class Buyer(NamedTuple):
    """One customer's statistics; without orders it has no active sale."""

    organization_id: str
    last_us: int
    orders: int
    total_minor: int


def buyers(most_hours: int, most_orders: int, most_minor: int) -> st.SearchStrategy[Buyer]:
    return st.builds(
        Buyer,
        st.sampled_from(["a", "a", "a", "a", "b"]),
        st.integers(-30, most_hours).map(lambda hours: NIGHT_US - hours * HOUR_US),
        st.integers(0, most_orders),
        st.integers(0, most_minor),
    )


shops = st.tuples(
    st.sampled_from([48, 24 * 40, 24 * 400]), st.sampled_from([1, 6, 40]), st.sampled_from([3, 5_000, 800_000])
).flatmap(lambda most: st.lists(buyers(*most), min_size=1, max_size=180))


@contextmanager
def stored(shop: Sequence[Buyer]) -> Iterator[Database]:
    """The shop with statistics that no segment has seen yet."""
    database = SqliteDatabase(":memory:")
    migrate(database)
    try:
        with database.transaction():
            for number, buyer in enumerate(shop, 1):
                last = buyer.last_us if buyer.orders else None
                database.execute(
                    "INSERT INTO customer (id, organization_id, customer_id, head) VALUES (?, ?, ?, 1)",
                    (number, buyer.organization_id, f"c{number}"),
                )
                database.execute(
                    "INSERT INTO stats_state VALUES (?, 1, NULL, ?, 0, ?, 0, ?, ?)",
                    (number, buyer.orders, buyer.total_minor if buyer.orders else 0, last, last),
                )
                database.execute("INSERT INTO customer_segment (customer) VALUES (?)", (number,))
        yield database
    finally:
        database.release()


def run(database: Database, rules: Rules, chunk_customers: int = 50) -> int:
    """A night; returns how many rows it rewrote."""
    job, night = NightlySegments(database, rules, chunk_customers), Run("segments", "s", AS_OF)
    changed: list[int] = []
    with database.transaction():
        chunks = job.plan(night, NIGHT_US)
    for chunk in chunks:
        job.work(night, chunk, NIGHT_US, lambda _, rows: changed.append(rows))
    return sum(changed)


def rows_of(database: Database) -> list[Row]:
    return database.query("SELECT customer, recency, frequency, monetary, code FROM customer_segment ORDER BY customer")


def days_of(buyer: Buyer, zone: ZoneInfo) -> int:
    return max(0, (AS_OF - datetime.fromtimestamp(buyer.last_us // 1_000_000, zone).date()).days)


def model_cuts(values: list[int]) -> tuple[int, ...] | None:
    """[R2] the smallest value that at least ceil(k*n/5) customers do not exceed; [R3] None for the fixed cuts."""
    if len(values) < 100:
        return None
    ordered = sorted(values)
    cuts = tuple(ordered[math.ceil(k * len(values) / 5) - 1] for k in (1, 2, 3, 4))
    return cuts if len(set(cuts)) == 4 else None


def model(shop: Sequence[Buyer], zone: ZoneInfo) -> tuple[dict[str, list[tuple[int, ...] | None]], list[Row]]:
    """Per organization its cuts, and every customer's scores and code."""
    cuts: dict[str, list[tuple[int, ...] | None]] = {}
    for name in sorted({buyer.organization_id for buyer in shop if buyer.orders}):
        own = [buyer for buyer in shop if buyer.orders and buyer.organization_id == name]
        values = ([days_of(b, zone) for b in own], [b.orders for b in own], [b.total_minor for b in own])
        cuts[name] = [model_cuts(one) for one in values]
    rows: list[Row] = []
    for number, buyer in enumerate(shop, 1):
        if not buyer.orders:
            rows.append((number, None, None, None, None))
            continue
        days, orders, total = (
            own or fixed for own, fixed in zip(cuts[buyer.organization_id], FIXED.values(), strict=True)
        )
        recency = 5 - sum(cut < days_of(buyer, zone) for cut in days)
        frequency = 1 + sum(cut < buyer.orders for cut in orders)
        monetary = 1 + sum(cut < buyer.total_minor for cut in total)
        rows.append((number, recency, frequency, monetary, code_of(recency, frequency, monetary)))
    return cuts, rows


@settings(max_examples=60)
@given(shops, st.sampled_from(ZONES))
def test_the_night_is_what_the_rules_say(shop: list[Buyer], zone: str) -> None:
    rules = Rules(timezone=zone)
    cuts, rows = model(shop, rules.zone)
    with stored(shop) as database:
        run(database, rules)
        assert {name: list(newest_cuts(database, name)[1:4]) for name in cuts} == cuts
        found = rows_of(database)
    assert found == rows
    scores_of: dict[tuple[object, ...], Row] = {}
    for buyer, row in zip(shop, found, strict=True):
        if buyer.orders:
            inputs = buyer.organization_id, days_of(buyer, rules.zone), buyer.orders, buyer.total_minor
            assert scores_of.setdefault(inputs, row[1:]) == row[1:]  # ties score equal


@settings(max_examples=40)
@given(shops, st.integers(1, 40), st.sampled_from(ZONES))
def test_nightly_equals_incremental_for_the_same_day_and_cuts(shop: list[Buyer], size: int, zone: str) -> None:
    rules = Rules(timezone=zone)
    with stored(shop) as database:
        run(database, rules, size)
        by_night = rows_of(database)
        # Cut off by the day it begins, so that the bells see the same business date in every zone.
        database.execute("UPDATE customer_segment SET position = 0")
        SegmentationStore(database, rules).round(range(1, len(shop) + 1), day_start_us(AS_OF, rules.zone))
        assert rows_of(database) == by_night
        assert run(database, rules) == 0  # and nothing is left to rewrite


@given(
    st.sampled_from(ZONES),
    st.lists(st.integers(0, 500), min_size=4, max_size=4, unique=True),
    st.integers(-40, 24 * 520),
    st.integers(0, HOUR_US - 1),
)
def test_the_sieve_scores_as_the_score_does(zone: str, cuts: list[int], hours: int, rest_us: int) -> None:
    """Moments instead of dates: the same for every hour of every zone."""
    first, second, third, fourth = sorted(cuts)
    own, rules = Cuts(1, recency=(first, second, third, fourth)), Rules(timezone=zone)
    moment = NIGHT_US - hours * HOUR_US + rest_us
    last = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=moment)).astimezone(rules.zone).date()
    sieve = Sieve(Scale(own, 2), AS_OF, rules.zone)
    assert sieve.scores(moment, 3, 700) == score(AS_OF, last, 3, 700, own, 2)
