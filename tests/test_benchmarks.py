"""What the benchmark judges every subject by notices every kind of wrong effect."""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.streams import lines, truth
from benchmarks.verdict import OURS, Verdict, judge
from customer_actors.embedded import embedded
from customer_actors.settings import load_settings
from customer_actors.storage.database import Database
from tests.tampering import tamper

STREAM = lines("hot", 1_500)
SOUND = Verdict(totals_equal=True, inversions=0, doubles=0, missing=0, wrong_customers=0)
HOT = "customer = (SELECT id FROM customer WHERE customer_id = 'C0000000')"
FIRST, SECOND = [
    event["data"]["order_id"]
    for event in map(json.loads, STREAM)
    if event["event"] == "order.completed" and event["data"]["customer_id"] == "C0000000"
][:2]


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = f"sqlite:///{tmp_path}/shop.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
    with embedded(load_settings({"DATABASE_URL": url})) as service:
        service.feed(io.BytesIO("\n".join(STREAM).encode()))
        service.drain()
        yield service.database


def test_a_stream_has_something_of_everything() -> None:
    assert all(truth(STREAM).sums)


def test_what_the_service_makes_of_a_stream_is_sound(database: Database) -> None:
    assert judge(database.query, OURS, STREAM, truth(STREAM)) == SOUND
    assert SOUND.wrong == 0


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (
            "DELETE FROM loyalty_entry WHERE (customer, position) IN "
            f"(SELECT customer, position FROM event WHERE type = 'order.completed' AND reference = '{FIRST}')",
            SOUND._replace(missing=1),
        ),
        (
            f"UPDATE event SET reference = '{FIRST}' WHERE type = 'order.completed' AND reference = '{SECOND}'",
            SOUND._replace(missing=1, doubles=2),
        ),
        (
            f"UPDATE event SET reference = CASE reference WHEN '{FIRST}' THEN '{SECOND}' ELSE '{FIRST}' END "
            f"WHERE type = 'order.completed' AND reference IN ('{FIRST}', '{SECOND}')",
            SOUND._replace(inversions=1),
        ),
        (
            f"UPDATE loyalty_state SET lifetime_points = lifetime_points + 1 WHERE {HOT}",
            SOUND._replace(wrong_customers=1),
        ),
        (
            f"UPDATE stats_state SET total_spent_minor = total_spent_minor + 1 WHERE {HOT}",
            SOUND._replace(totals_equal=False),
        ),
        (f"UPDATE customer_segment SET orders = 0, code = NULL WHERE {HOT}", SOUND._replace(totals_equal=False)),
    ],
)
def test_every_kind_of_wrong_effect_is_counted(database: Database, change: str, found: Verdict) -> None:
    tamper(database, change)
    verdict = judge(database.query, OURS, STREAM, truth(STREAM))
    assert verdict == found
    assert verdict.wrong > 0
