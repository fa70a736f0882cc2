"""What `show` prints, and that nothing from outside is executed wherever it is shown."""

import json
from collections.abc import Sequence

import pytest

from customer_actors.domain.events import Message, Rejected
from customer_actors.domain.routing import STATS
from tests.cli.shop import ESCAPED, HOSTILE, LIFE, Shop, failing_at, is_harmless
from tests.model.examples import DAY_US, JUNE_1_US, cancellation, opened, order, payment, redemption
from tests.storage.support import NOW_US

STATS_NOW = {
    "orders": 2,
    "total_spent": "510.00",
    "average_order_value": "255.00",
    "first_purchase_at": "2024-06-01T00:00:00Z",
    "last_purchase_at": "2024-06-01T00:00:00.500000Z",
    "cancelled_orders": 1,
    "by_channel": {"order": 1, "pos": 1},
}
SHOWN = {
    "organization_id": "org-1",
    "customer_id": "c1",
    "position": 9,
    "stats": STATS_NOW,
    "loyalty": {"points_balance": 410, "points_debt": 0, "lifetime_points": 510, "tier": "silver"},
    "segment": {
        "code": "potential_loyalist",
        "recency": 5,
        "frequency": 2,
        "monetary": 3,
        "calculated_at": "2024-06-11T00:00:00Z",
    },
    "credit": {
        "status": "active",
        "limit": "100.00",
        "used": "0.00",
        "available": "100.00",
        "unapplied": "40.00",
        "suspense": "0.00",
    },
    "held": [],
}


def test_show_prints_exactly_the_documented_document(shop: Shop) -> None:
    shop.settle(*LIFE)
    assert shop.run("show", "c1", "--org", "org-1", "--json").stdout == json.dumps(SHOWN) + "\n"


def test_a_customer_without_sales_has_zeros_nulls_and_the_lowest_tier(shop: Shop) -> None:
    shop.settle(cancellation("O-1"), order("O-1", "5"))
    view = shop.json("show", "c1", "--org", "org-1")
    assert view["stats"] == {
        "orders": 0,
        "total_spent": "0.00",
        "average_order_value": "0.00",
        "first_purchase_at": None,
        "last_purchase_at": None,
        "cancelled_orders": 1,
        "by_channel": {"order": 0, "pos": 0},
    }
    assert view["loyalty"] == {"points_balance": 0, "points_debt": 0, "lifetime_points": 0, "tier": "bronze"}
    assert (view["position"], view["segment"], view["credit"], view["held"]) == (1, None, None, [])


def test_what_the_actors_have_not_come_to_does_not_show_but_the_position_does(shop: Shop) -> None:
    shop.receive(*LIFE)
    view = shop.json("show", "c1", "--org", "org-1")
    assert (view["position"], view["stats"]["orders"], view["segment"], view["credit"]) == (9, 0, None, None)


def test_there_is_no_segment_once_the_statistics_know_of_no_sale(shop: Shop) -> None:
    shop.settle(order("O-1", "5"))
    shop.receive(cancellation("O-1"))
    shop.advance(STATS)
    assert shop.json("show", "c1", "--org", "org-1")["segment"] is None


NO_ACCOUNT = {"status": None, "limit": None, "available": None, "unapplied": "0.00"}


@pytest.mark.parametrize(
    ("history", "credit"),
    [
        ([order("O-1", "5")], None),
        ([order("O-1", "5", on_credit=True), cancellation("O-1")], None),
        ([order("O-1", "5", on_credit=True)], {**NO_ACCOUNT, "used": "5.00", "suspense": "0.00"}),
        ([payment("P", "7")], {**NO_ACCOUNT, "used": "0.00", "suspense": "7.00"}),
        ([order("O-1", "5", on_credit=True), payment("P", "7")], {**NO_ACCOUNT, "used": "5.00", "suspense": "7.00"}),
        (
            [order("O-1", "5", on_credit=True), opened("3")],
            {"status": "active", "limit": "3.00", "used": "5.00", "available": "-2.00"}
            | {"unapplied": "0.00", "suspense": "0.00"},
        ),
    ],
    ids=["no credit", "a cancelled usage", "a usage", "money", "both", "an account over its limit"],
)
def test_credit_is_null_only_without_account_usage_and_money(
    shop: Shop, history: Sequence[Message], credit: dict[str, object] | None
) -> None:
    shop.settle(*history)
    assert shop.json("show", "c1", "--org", "org-1")["credit"] == credit


def test_a_debt_of_points_shows_as_debt(shop: Shop) -> None:
    shop.settle(order("O-1", "300"), redemption("R", 200), cancellation("O-1"))
    figures = shop.json("show", "c1", "--org", "org-1")["loyalty"]
    assert figures == {"points_balance": 0, "points_debt": 200, "lifetime_points": 0, "tier": "bronze"}


@pytest.mark.parametrize(("decimals", "spent"), [("0", "1234"), ("3", "1.234")])
def test_amounts_have_the_digits_of_the_currency(shop: Shop, decimals: str, spent: str) -> None:
    shop.settle(order("O-1", "12.34"))  # 1234 minor units
    refused = shop.run("show", "c1", "--org", "org-1", CUSTOMER_ACTORS_CURRENCY_DECIMALS=decimals)
    assert (refused.exit_code, "CUSTOMER_ACTORS_CURRENCY_DECIMALS" in refused.output) == (2, True)
    stored = f"'\"currency_decimals\":2', '\"currency_decimals\":{decimals}'"
    shop.execute(f"UPDATE rules SET content = replace(content, {stored})")
    result = shop.run("show", "c1", "--org", "org-1", "--json", CUSTOMER_ACTORS_CURRENCY_DECIMALS=decimals)
    assert json.loads(result.stdout)["stats"]["total_spent"] == spent


def test_held_and_parked_actors_are_listed_in_the_order_of_the_actors(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_at(monkeypatch, "O-2")
    shop.settle(order("O-1", "5"), order("O-2", "5"), order("O-3", "5"))
    held = {"actor": "loyalty", "position": 2, "status": "held", "attempts": 1, "error": "ValueError: boom"}
    assert shop.json("show", "c1", "--org", "org-1")["held"] == [held]
    shop.execute("UPDATE held_group SET next_try_us = NULL, attempts = 10")
    shop.execute("UPDATE stats_state SET position = 1, held_position = 3")
    parked = held | {"status": "parked", "attempts": 10}
    lost = {"actor": "stats", "position": 3, "status": "parked", "attempts": 0, "error": ""}
    assert shop.json("show", "c1", "--org", "org-1")["held"] == [lost, parked]


def test_an_unknown_customer_is_a_problem_said_in_one_line(shop: Shop) -> None:
    result = shop.run("show", "c1")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "customer-actors: no customer c1 in organization default\n"


@pytest.mark.parametrize("verb", ["show", "explain"])
def test_where_else_an_unknown_id_is_known_is_said(shop: Shop, verb: str) -> None:
    shop.settle(order("O-1", "5"), order("O-1", "5", organization_id="big shop"))
    result = shop.run(verb, "c1", "--json")
    assert (result.exit_code, result.stdout) == (1, "")
    where = "that id exists in organization big shop, org-1: add --org 'big shop'"
    assert result.stderr == f"customer-actors: no customer c1 in organization default; {where}\n"


@pytest.mark.parametrize("wrong", ["\udc80", "\0", "\x1b[2J", "x" * 10_000])
def test_ids_no_database_can_hold_are_unknown_like_any_other(shop: Shop, wrong: str) -> None:
    for args in (("show", wrong), ("explain", wrong), ("show", "c1", "--org", wrong)):
        result = shop.run(*args)
        assert result.exit_code == 1
        assert "no customer" in result.stderr
        assert "\x1b" not in result.stderr


CARD = """\
c1  organization org-1  position 9
  statistics  2 orders (1 order, 1 pos), 510.00 spent, 255.00 on average
              first purchase 2024-06-01T00:00:00Z, last 2024-06-01T00:00:00.500000Z
              1 cancelled
  loyalty     410 points, silver, 510 lifetime points
  segment     potential_loyalist  R 5  F 2  M 3  calculated 2024-06-11T00:00:00Z
  credit      active, limit 100.00, 0.00 used, 100.00 available, 40.00 unapplied
              cancelled  due 2024-07-01        0.00 of      50.00  order O-2, over the limit
              paid       due 2024-07-01        0.00 of      60.00  pos T-1
"""


def test_the_card_of_a_customer(shop: Shop) -> None:
    shop.settle(*LIFE)
    assert shop.run("show", "c1", "--org", "org-1").stdout == CARD


def test_the_card_names_the_status_of_each_usage_and_what_is_held(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    future = NOW_US + 365 * 1000 * DAY_US
    due = [order(f"O-{n}", "1", on_credit=True, at_us=JUNE_1_US + n * DAY_US) for n in range(30)]
    shop.settle(order("X", "9", on_credit=True, at_us=future), *due)
    failing_at(monkeypatch, "O-99", "no \x1b[1mgood")
    shop.settle(order("O-99", "1"))
    lines = shop.run("show", "c1", "--org", "org-1").stdout.splitlines()
    assert "              overdue    due 2024-07-01        1.00 of       1.00  order O-0, without an account" in lines
    assert sum("overdue" in line for line in lines) == 20
    assert lines[-2:] == [
        "              and 11 more usages",
        r"  held        loyalty at position 32, attempts: 1: ValueError: no \x1b[1mgood",
    ]


OF = ("--org", HOSTILE)


@pytest.fixture
def hostile(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> Shop:
    """A customer whose every id is hostile, held by an error that is hostile too."""
    failing_at(monkeypatch, HOSTILE + "9", HOSTILE)
    history = [opened("100"), order(HOSTILE, "5", on_credit=True), payment(HOSTILE, "5"), order(HOSTILE + "9", "1")]
    shop.settle(*[each._replace(customer_id=HOSTILE, organization_id=HOSTILE) for each in history])
    shop.receive(Rejected(HOSTILE, HOSTILE))
    return shop


@pytest.mark.parametrize("args", [("show", HOSTILE, *OF), ("explain", HOSTILE, *OF), ("status",), ("show", HOSTILE)])
def test_hostile_text_is_escaped_wherever_it_is_shown(hostile: Shop, args: Sequence[str]) -> None:
    output = hostile.run(*args).output
    assert ESCAPED in output
    assert is_harmless(output)


def test_hostile_text_is_data_in_json(hostile: Shop) -> None:
    assert hostile.json("show", HOSTILE, *OF)["customer_id"] == HOSTILE
    result = hostile.run("explain", HOSTILE, *OF, "--json")
    assert is_harmless(result.stdout)
    document = json.loads(result.stdout)
    assert (document["customer_id"], document["organization_id"]) == (HOSTILE, HOSTILE)
    assert document["events"][1]["reference"] == HOSTILE
    assert f"order {HOSTILE}" in document["events"][2]["effects"][0]["effect"]
