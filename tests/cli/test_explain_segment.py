"""`explain --segment`: the inputs, the cuts in force, the scores, and what would move the customer [R1-R7]."""

import time
from datetime import date, timedelta
from typing import Any

import pytest

from customer_actors.domain.events import business_date
from customer_actors.storage.job_runs import Run
from customer_actors.storage.nightly_segments import NightlySegments
from tests.cli.shop import ESCAPED, HOSTILE, Shop, is_harmless
from tests.model.examples import DAY_US, cancellation, order

ORG = "--org", "org-1"
_LONGER_AGO = (
    "UPDATE stats_state SET first_purchase_at_us = first_purchase_at_us - ?, "
    "last_purchase_at_us = last_purchase_at_us - ?"
)


@pytest.fixture(autouse=True)
def one_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """No midnight falls between what a test does and what it looks at."""
    now_ns = time.time_ns()
    monkeypatch.setattr("time.time_ns", lambda: now_ns)


def now_us() -> int:
    return time.time_ns() // 1_000


def today(shop: Shop) -> date:
    return business_date(now_us(), shop.rules.zone)


def sell(shop: Shop, customer_id: str, amounts: list[str], days_ago: int) -> None:
    """That many orders of a customer, so many days before now; the actors run now."""
    sold_us = now_us() - days_ago * DAY_US
    shop.receive(
        *(order(f"{customer_id}-{i}", a, customer_id=customer_id, at_us=sold_us) for i, a in enumerate(amounts))
    )
    for actor in ("stats", "loyalty", "segmentation", "credit"):
        shop.advance(actor, now_us=now_us())


def night(shop: Shop) -> None:
    job, run = NightlySegments(shop.database, shop.rules), Run("segments", "s", today(shop))
    with shop.database.transaction():
        chunks = job.plan(run, now_us())
    for chunk in chunks:
        job.work(run, chunk, now_us(), lambda examined, changed: None)


def explained(shop: Shop, customer_id: str = "c1") -> Any:
    return shop.json("explain", customer_id, *ORG, "--segment")


def test_everything_by_the_fixed_cuts(shop: Shop) -> None:
    sell(shop, "c1", ["300.00", "250.00", "10.00"], 40)
    told = explained(shop)
    assert told["inputs"] == {
        "last_purchase_date": (today(shop) - timedelta(40)).isoformat(),
        "days": 40,
        "orders": 3,
        "total_spent": "560.00",
    }
    assert told["cuts"] == {
        "number": None,
        "as_of": None,
        "recency": [30, 60, 90, 180],
        "frequency": [1, 2, 4, 9],
        "monetary": ["99.99", "499.99", "999.99", "4999.99"],
        "fixed": ["recency", "frequency", "monetary"],
    }
    assert told["scores"] == {
        "recency": {"score": 4, "from": 31, "to": 60},
        "frequency": {"score": 3, "from": 3, "to": 4},
        "monetary": {"score": 3, "from": "500.00", "to": "999.99"},
    }
    assert (told["code"], told["health"], told["segment"]["code"]) == ("loyal", 4, "loyal")
    champion = {"recency": 5, "frequency": 4, "monetary": 4, "code": "champions", "health": 5}
    assert told["moves"] == [{"kind": "both", "size": 2, "amount": "440.00", **champion}]
    text = shop.run("explain", "c1", *ORG, "--segment").stdout
    assert "2 more sales of 440.00 in all, the last one today -> R 5, F 4, M 4: champions, health 5" in text
    assert told["decay"]["kind"] == "days"
    assert told["decay"]["size"] == 51
    assert told["decay"]["on"] == (today(shop) + timedelta(51)).isoformat()
    assert told["decay"]["code"] == "at_risk"


def test_what_would_move_the_customer(shop: Shop) -> None:
    sell(shop, "c1", ["900.00", "200.00"], 100)
    told = explained(shop)
    assert [(move["kind"], move["size"], move["code"]) for move in told["moves"]] == [
        ("sale", 1, "loyal"),
        ("sales", 3, "champions"),
    ]
    text = shop.run("explain", "c1", *ORG, "--segment").stdout
    assert "a sale today, of any amount -> R 5, F 3, M 4: loyal, health 4" in text
    assert "3 more sales, the last one today -> R 5, F 4, M 4: champions, health 5" in text
    assert "decays      never" in text


def test_money_alone_can_move(shop: Shop) -> None:
    sell(shop, "c1", ["100.00"] * 5, 3)
    told = explained(shop)
    assert told["moves"] == [
        {
            "kind": "amount",
            "size": "500.00",
            "recency": 5,
            "frequency": 4,
            "monetary": 4,
            "code": "champions",
            "health": 5,
        }
    ]
    assert "a sale of 500.00 today" in shop.run("explain", "c1", *ORG, "--segment").stdout


def test_the_snapshot_in_force_is_named(shop: Shop) -> None:
    for i in range(1, 121):
        sold_us = now_us() - i % 100 * DAY_US
        shop.receive(*(order(f"{i}-{k}", str(i), customer_id=f"c{i}", at_us=sold_us) for k in range(1 + i % 5)))
    for actor in ("stats", "loyalty", "segmentation", "credit"):
        shop.advance(actor, now_us=now_us())
    night(shop)
    cuts = explained(shop)["cuts"]
    assert cuts["as_of"] == today(shop).isoformat()
    assert cuts["frequency"] == [1, 2, 3, 4]
    assert cuts["fixed"] == []
    assert f"snapshot {cuts['number']} of {cuts['as_of']}  [R2]" in shop.run("explain", "c1", *ORG, "--segment").stdout


def test_days_that_no_night_has_counted_yet_are_told(shop: Shop) -> None:
    sell(shop, "c1", ["10.00"], 29)
    shop.execute("UPDATE customer_segment SET calculated_at_us = calculated_at_us - ?", 20 * DAY_US)
    shop.execute(_LONGER_AGO, 70 * DAY_US, 70 * DAY_US)
    told = explained(shop)
    assert (told["segment"]["code"], told["code"]) == ("new", "lost")
    text = shop.run("explain", "c1", *ORG, "--segment").stdout
    assert "stored as new, calculated" in text
    assert "the next night corrects it" in text


def test_without_an_active_sale_it_says_why(shop: Shop) -> None:
    sell(shop, "c1", ["10.00"], 3)
    shop.settle(cancellation("c1-0"))
    told = explained(shop)
    assert told["segment"] is None
    assert told["code"] is None
    assert "no active sale" in told["note"]
    assert "[R5]" in shop.run("explain", "c1", *ORG, "--segment").stdout


def test_a_segment_that_waits_says_so(shop: Shop) -> None:
    sell(shop, "c1", ["10.00"], 3)
    shop.receive(order("new", "5000.00", at_us=now_us()))
    shop.advance("stats", now_us=now_us())
    told = explained(shop)
    assert "waits" in told["note"]
    assert told["inputs"]["orders"] == 2


def test_an_unknown_customer_is_refused(shop: Shop) -> None:
    result = shop.run("explain", "nobody", *ORG, "--segment")
    assert result.exit_code == 1
    assert "no customer nobody" in result.stderr


@pytest.mark.parametrize("as_json", [True, False])
def test_what_came_from_outside_is_escaped(shop: Shop, as_json: bool) -> None:
    shop.settle(order("o1", "10.00", customer_id=HOSTILE))
    result = shop.run("explain", HOSTILE, *ORG, "--segment", *["--json"] * as_json)
    assert result.exit_code == 0
    assert is_harmless(result.stdout)
    assert as_json or ESCAPED in result.stdout


def test_calculated_at_is_that_of_the_last_finished_night(shop: Shop) -> None:
    """[R7] The row was written before it, and the night found it right."""
    sell(shop, "c1", ["10.00"], 3)
    own = shop.json("show", "c1", *ORG)["segment"]["calculated_at"]
    shop.execute("UPDATE customer_segment SET calculated_at_us = calculated_at_us - ?", DAY_US)
    shop.execute(
        "INSERT INTO job_run (job, slot, as_of, claimed_us, planned_us) VALUES ('segments', 's', ?, 1, 1)",
        today(shop).isoformat(),
    )
    shop.execute(
        "INSERT INTO job_chunk (job, slot, number, organization_id, first, last) VALUES "
        "('segments', 's', 1, 'org-1', 1, 1000000)"
    )
    before = shop.json("show", "c1", *ORG)["segment"]["calculated_at"]
    assert before < own  # a night that is not finished says nothing
    done_us = now_us() + 1
    shop.execute("UPDATE job_run SET done_us = ?", done_us)
    assert shop.json("show", "c1", *ORG)["segment"]["calculated_at"] > before
    shop.execute("UPDATE job_chunk SET first = 500000")  # a night that did not see this customer
    assert shop.json("show", "c1", *ORG)["segment"]["calculated_at"] == before
