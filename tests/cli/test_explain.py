"""What `explain` tells, and that it finds every stored figure that is not the refold's."""

import json
import threading
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from customer_actors.domain.events import Message
from customer_actors.domain.routing import STATS
from customer_actors.domain.rules import Rules
from customer_actors.domain.story import Story
from customer_actors.storage import views
from customer_actors.storage.database import Database
from customer_actors.storage.opening import open_database
from customer_actors.storage.operators import Action
from customer_actors.storage.rules import RulesBook
from customer_actors.storage.segment_check import segment_differences
from customer_actors.storage.triage import skip
from tests.cli.shop import LIFE, Shop, failing_at
from tests.model.examples import DAY_US, JUNE_1_US, cancellation, order, payment, redemption
from tests.model.strategies import messages
from tests.properties.service import Service
from tests.storage.support import NOW_US, Storage

EXPLAINED = """\
c1  organization org-1  9 events
     1  2024-06-01T00:00:00Z  credit.opened    100.00
        credit   C9        account opened, limit 100.00, terms 30 days -> active, limit 100.00, 0.00 used, 100.00 available, 0.00 unapplied
     2  2024-06-01T00:00:00.500000Z  order.completed  O-1  450.00
        stats    S1        order +1, +450.00 -> 1 order, 450.00 spent
        loyalty  L1 L2     +450 points = floor(450.00 x 1 x 1.0, bronze before) -> 450 points, bronze
     3  2024-06-01T00:00:00Z  pos.transaction.completed  T-1  60.00
        stats    S1        order +1, +60.00 -> 2 orders, 510.00 spent
        loyalty  L1 L2 L4  +60 points = floor(60.00 x 1 x 1.0, bronze before), tier was bronze -> 510 points, silver
        credit   C4        60.00 used for pos T-1, due 2024-07-01 -> active, limit 100.00, 60.00 used, 40.00 available, 0.00 unapplied
     4  2024-06-01T00:00:00Z  order.completed  O-2  50.00
        stats    S1        order +1, +50.00 -> 3 orders, 560.00 spent
        loyalty  L1 L2     +60 points = floor(50.00 x 1 x 1.2, silver before) -> 570 points, silver
        credit   C4        50.00 used for order O-2, due 2024-07-01, over the limit -> active, limit 100.00, 110.00 used, -10.00 available, 0.00 unapplied
     5  2024-06-01T00:00:00Z  payment.received  P-1  100.00
        credit   C2        100.00 allocated: 50.00 to order O-2, 50.00 to pos T-1 -> active, limit 100.00, 10.00 used, 90.00 available, 0.00 unapplied
     6  2024-06-01T00:00:00Z  loyalty.redeemed  R-1  100 points
        loyalty  L6        -100 points redeemed -> 470 points, silver
     7  2024-06-01T00:00:00Z  loyalty.redeemed  R-2  10000 points
        loyalty  L6        refused: 10000 points asked, 470 available -> 470 points, silver
     8  2024-06-01T00:00:00Z  order.cancelled  O-2  50.00
        stats    S1        order -1, -50.00, cancelled orders +1 -> 2 orders, 510.00 spent, 1 cancelled
        loyalty  L3        -60 points, those earned at position 4 -> 410 points, silver
        credit   C5        cancelled: 50.00 for order O-2; 50.00 released: 10.00 to pos T-1, 40.00 unapplied -> active, limit 100.00, 0.00 used, 100.00 available, 40.00 unapplied
     9  2024-06-01T00:00:00Z  credit.charged  O-3  500.00
        credit   C4        refused: the amount is more than the credit available -> active, limit 100.00, 0.00 used, 100.00 available, 40.00 unapplied
        segmentation  R6  R 5, F 2, M 3 -> potential_loyalist, by the fixed cuts, 2 orders, last purchase 2024-06-01
check: ok, stored state equals the refold of 9 events
"""  # noqa: E501


def test_explain_tells_every_event_and_what_each_actor_made_of_it(shop: Shop) -> None:
    shop.settle(*LIFE)
    result = shop.run("explain", "c1", "--org", "org-1")
    assert (result.stdout, result.exit_code) == (EXPLAINED, 0)


def test_explain_as_json_is_one_document_with_figures(shop: Shop) -> None:
    shop.settle(*LIFE)
    document = shop.json("explain", "c1", "--org", "org-1")
    assert list(document) == ["organization_id", "customer_id", "events", "check"]
    assert document["check"] == {"ok": True, "differences": []}
    assert [event["position"] for event in document["events"]] == list(range(1, 10))
    loyalty_figures = {"points_balance": 470, "points_debt": 0, "lifetime_points": 570, "tier": "silver"}
    assert document["events"][5] == {
        "position": 6,
        "type": "loyalty.redeemed",
        "reference": "R-1",
        "amount": 100,
        "occurred_at": "2024-06-01T00:00:00Z",
        "received_at": "2024-06-01T00:00:00Z",
        "rules": 1,
        "effects": [
            {
                "actor": "loyalty",
                "rule": "L6",
                "outcome": "applied",
                "effect": "-100 points redeemed",
                "balance": loyalty_figures,
            }
        ],
    }


def test_the_last_events_alone_are_shown_but_all_are_folded(shop: Shop) -> None:
    shop.settle(*LIFE)
    lines = shop.run("explain", "c1", "--org", "org-1", "--last", "1").stdout.splitlines()
    assert lines[:2] == ["c1  organization org-1  9 events", "positions 1 to 8 are folded, not shown"]
    assert lines[2:] == EXPLAINED.splitlines()[-4:]
    document = shop.json("explain", "c1", "--org", "org-1", "--last", "2")
    assert [event["position"] for event in document["events"]] == [8, 9]
    assert shop.run("explain", "c1", "--org", "org-1", "--last", "50").stdout == EXPLAINED
    shop.execute("UPDATE stats_state SET cancelled_orders = 7")
    assert shop.run("explain", "c1", "--org", "org-1", "--last", "1").exit_code == 1


TAMPERED = [
    ("UPDATE stats_state SET position = 12", "stats position: stored 12, expected 9"),
    ("UPDATE stats_state SET total_spent_minor = 51001", "stats total_spent: stored 510.01, expected 510.00"),
    ("UPDATE stats_state SET sales_pos = 2", "stats by_channel.pos: stored 2, expected 1"),
    (
        "UPDATE stats_state SET first_purchase_at_us = NULL",
        "stats first_purchase_at: stored nothing, expected 2024-06-01T00:00:00Z",
    ),
    ("UPDATE loyalty_state SET points = -3", "loyalty points_debt: stored 3, expected 0"),
    ("UPDATE loyalty_state SET tier = 'gold'", "loyalty tier: stored gold, expected silver"),
    ("DELETE FROM loyalty_entry WHERE kind = 'redeem'", "loyalty ledger_points: stored 510, expected 410"),
    (
        "UPDATE loyalty_entry SET points = 451 WHERE position = 2",
        "loyalty ledger_lifetime_points: stored 511, expected 510",
    ),
    ("UPDATE credit_state SET unapplied_minor = 0", "credit unapplied: stored 0.00, expected 40.00"),
    ("UPDATE credit_state SET status = 'suspended'", "credit status: stored suspended, expected active"),
    ("UPDATE credit_state SET automatic = NOT automatic", "credit automatic: stored True, expected False"),
    ("UPDATE credit_state SET terms_days = 7", "credit terms_days: stored 7, expected 30"),
    (
        "UPDATE credit_usage SET outstanding_minor = 1 WHERE position = 3",
        "credit usages_outstanding: stored 0.01, expected 0.00",
    ),
    ("UPDATE credit_payment SET unapplied_minor = 0", "credit payments_unapplied: stored 0.00, expected 40.00"),
    ("UPDATE customer_segment SET recency = 4", "segmentation recency: stored 4, expected 5"),
    ("UPDATE customer_segment SET code = 'lost'", "segmentation code: stored lost, expected potential_loyalist"),
    ("UPDATE customer_segment SET cuts = 5", "segmentation cuts: stored 5, expected nothing"),
    ("UPDATE customer_segment SET orders = 3", "segmentation orders: stored 3, expected 2"),
    (
        "UPDATE customer_segment SET last_purchase_date = '2024-05-31'",
        "segmentation last_purchase_date: stored 2024-05-31, expected 2024-06-01",
    ),
    ("UPDATE customer SET head = 10", "stream events: stored 10, expected 9"),
]


@pytest.mark.parametrize(("statement", "line"), TAMPERED, ids=[case[0][:60] for case in TAMPERED])
def test_a_stored_figure_that_is_not_the_refolds_is_named(shop: Shop, statement: str, line: str) -> None:
    shop.settle(*LIFE)
    shop.execute(statement)
    result = shop.run("explain", "c1", "--org", "org-1")
    assert result.exit_code == 1
    assert f"  {line}\n" in result.stdout
    assert "check: ok" not in result.stdout
    actor, field = line.split(":")[0].split()
    check = shop.json("explain", "c1", "--org", "org-1")["check"]
    assert not check["ok"]
    assert (actor, field) in [(each["actor"], each["field"]) for each in check["differences"]]


def test_the_segment_is_checked_against_the_cuts_it_names(shop: Shop) -> None:
    shop.settle(*LIFE)
    shop.execute(
        "INSERT INTO rfm_cuts (organization_id, as_of, frequency, calculated_at_us) VALUES ('org-1', ?, ?, 0)",
        "2024-06-11",
        "[0, 1, 5, 9]",
    )
    number = shop.value("SELECT number FROM rfm_cuts")
    shop.execute("UPDATE customer_segment SET cuts = ?", number)
    result = shop.run("explain", "c1", "--org", "org-1")
    assert "  segmentation frequency: stored 2, expected 3\n" in result.stdout
    shop.execute("UPDATE customer_segment SET frequency = 3, code = 'loyal'")
    result = shop.run("explain", "c1", "--org", "org-1")
    assert result.exit_code == 0
    assert f"R 5, F 3, M 3 -> loyal, by cuts {number}, 2 orders" in result.stdout


def test_what_an_actor_has_not_come_to_waits(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_at(monkeypatch, "O-2")
    shop.settle(order("O-1", "5"), order("O-2", "5"), order("O-3", "5"))
    shop.receive(order("O-4", "5"))
    result = shop.run("explain", "c1", "--org", "org-1")
    waits = [line.split(maxsplit=2)[2] for line in result.stdout.splitlines() if line.split()[1] == "waits"]
    assert waits == [
        "held (attempts: 1), is tried again by itself: ValueError: boom",
        "behind position 2, which is held",
        "not reached yet: the actor stands at position 3",
        "behind position 2, which is held",
    ]
    last = result.stdout.splitlines()[-1]
    so_far = "(loyalty up to position 1, stats up to position 3)"
    assert last == f"check: ok, stored state equals the refold of 4 events {so_far}"
    assert result.exit_code == 0
    shop.advance(STATS)
    assert "segmentation  R6  R 5, F 3, M 1 -> potential_loyalist" in result.stdout
    assert "; waits at position 3\n" in shop.run("explain", "c1", "--org", "org-1").stdout
    effects = shop.json("explain", "c1", "--org", "org-1")["events"][3]["effects"]
    assert effects[1] == {
        "actor": "loyalty",
        "rule": "",
        "outcome": "waits",
        "effect": "behind position 2, which is held",
        "balance": None,
    }


def test_a_skipped_event_tells_who_skipped_it_and_why(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_at(monkeypatch, "O-1")
    shop.settle(order("O-1", "5"), cancellation("O-1"), order("O-2", "7"))
    number, by = shop.number(), Action("anna\x1b[31m", "skip", "the till sent it twice")
    assert skip(shop.database, "loyalty", number, 1, by, NOW_US) is None
    monkeypatch.undo()
    shop.settle()
    result = shop.run("explain", "c1", "--org", "org-1")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[3].split(maxsplit=1) == [
        "loyalty",
        r"skipped   skipped by anna\x1b[31m: the till sent it twice -> 0 points, bronze",
    ]
    assert lines[6].endswith("no points to take back: it earned none -> 0 points, bronze")
    assert lines[-1] == "check: ok, stored state equals the refold of 3 events"
    effect = shop.json("explain", "c1", "--org", "org-1")["events"][0]["effects"][1]
    assert (effect["actor"], effect["outcome"]) == ("loyalty", "skipped")
    assert effect["effect"] == "skipped by anna\x1b[31m: the till sent it twice"


def test_a_clamped_time_shows_what_was_sent(shop: Shop) -> None:
    detail = json.dumps({"occurred_at": "2024-06-01T05:00:00+02:00"})
    shop.settle(order("O-1", "5")._replace(detail=detail), order("O-2", "5", at_us=JUNE_1_US - 2 * DAY_US))
    lines = shop.run("explain", "c1", "--org", "org-1").stdout.splitlines()
    assert lines[1].endswith("O-1  5.00  (clamped, sent as 2024-06-01T05:00:00+02:00)")
    assert lines[4].endswith("2024-05-30T00:00:00Z  order.completed  O-2  5.00  (received 2024-06-01T00:00:00Z)")
    first, second = shop.json("explain", "c1", "--org", "org-1")["events"]
    assert first["sent_as"] == "2024-06-01T05:00:00+02:00"
    assert "sent_as" not in second


def test_explain_is_right_while_the_actors_work(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """States and ledgers are read as of one moment, and the stream is folded no further than that."""
    shop.settle(*LIFE)
    read = views.stored_customer

    def work(*args: Any) -> Any:
        stored = read(*args)
        thread = threading.Thread(target=_work_on, args=(shop.url,))
        thread.start()
        thread.join()
        return stored

    monkeypatch.setattr(views, "stored_customer", work)
    result = shop.run("explain", "c1", "--org", "org-1")
    assert (result.stdout, result.exit_code) == (EXPLAINED, 0)
    monkeypatch.undo()
    assert shop.json("show", "c1", "--org", "org-1")["position"] == 12


def _work_on(url: str) -> None:
    other = Storage(open_database(url), Rules())
    other.settle(order("O-9", "70", on_credit=True), payment("P-9", "500"), redemption("R-9", 100))
    other.database.release()


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(messages())
def test_no_history_whatever_makes_stored_state_and_refold_differ(history: list[Message]) -> None:
    service = Service(Rules(timezone="Europe/Berlin"), round_events=3)
    try:
        for message_ in history:
            service.receive([message_])
        for organization_id, customer_id in service.customers():
            assert _differences(service.database, service.rules, organization_id, customer_id) == []
    finally:
        service.close()


def _differences(database: Database, rules: Rules, organization_id: str, customer_id: str) -> list[object]:
    basis = views.explain_basis(database, rules, organization_id, customer_id)
    assert basis is not None
    stored = basis.stored
    story = Story(RulesBook(database), stored.standings, views.undone_sales(database, stored.number, stored.head), 2)
    for event in views.events(database, stored.number, stored.head):
        story.take(event)
    return [*story.differences(basis.figures), *segment_differences(database, rules, stored)]


def test_a_stream_longer_than_one_read_is_told_whole(shop: Shop) -> None:
    shop.settle(*[payment(f"P-{n}", "1") for n in range(2_001)])
    document = shop.json("explain", "c1", "--org", "org-1")
    assert [event["reference"] for event in document["events"]] == [f"P-{n}" for n in range(2_001)]
    assert document["check"]["ok"]
