"""The verbs `audit` and `rebuild` as a person and a script meet them."""

import json
from typing import Any

import pytest

from customer_actors.domain.routing import ACTORS
from tests.cli.shop import ESCAPED, HOSTILE, LIFE, Shop, is_harmless
from tests.model.examples import order
from tests.tampering import tamper

AGAINST_FIGURES = "UPDATE stats_state SET cancelled_orders = 7"
OK_LINE = "audit: ok, no difference, 1 customer, 9 events and 12 ledger rows compared\n"


def test_audit_of_an_untouched_database_is_one_line(shop: Shop) -> None:
    shop.settle(*LIFE)
    result = shop.run("audit")
    assert (result.stdout, result.exit_code) == (OK_LINE, 0)
    assert shop.json("audit") == {
        "differences": [],
        "ok": True,
        "checked": {"customers": 1, "events": 9, "ledger_rows": 12},
    }
    assert shop.run("audit", "--json").exit_code == 0


def test_audit_names_what_differs_and_ends_with_1(shop: Shop) -> None:
    shop.settle(*LIFE)
    tamper(shop.database, AGAINST_FIGURES)
    tamper(shop.database, "UPDATE credit_state SET used_minor = 5")
    result = shop.run("audit")
    assert result.exit_code == 1
    assert [" ".join(line.split()) for line in result.stdout.splitlines()] == [
        "c1 organization org-1",
        "stats cancelled_orders stored 7, expected 1",
        "credit used stored 0.05, expected 0.00",
        "audit: 2 differences, 1 customer, 9 events and 12 ledger rows compared",
        "next: customer-actors rebuild stats --dry-run --reason TEXT",
        "next: customer-actors rebuild credit --dry-run --reason TEXT",
    ]
    document = shop.json("audit")
    assert not document["ok"]
    assert document["differences"][1] == {
        "organization_id": "org-1",
        "customer_id": "c1",
        "actor": "credit",
        "field": "used",
        "stored": "0.05",
        "expected": "0.00",
    }
    assert shop.run("audit", "--json").exit_code == 1
    assert shop.run("audit", "--actor", "loyalty").exit_code == 0
    assert shop.run("audit", "c1", "--org", "org-1", "--actor", "stats").exit_code == 1


def test_rows_whose_customer_is_gone_end_it_with_1(shop: Shop) -> None:
    shop.settle(order("O-1", "5"), order("O-2", "5", customer_id="c2"))
    number = shop.number()
    shop.database.execute("DELETE FROM customer WHERE customer_id = 'c1'")
    result = shop.run("audit")
    assert result.exit_code == 1
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[0] == f"number {number} organization unknown"
    assert lines[1].startswith("stream customer row stored nothing, expected a row, for those in credit_state, ")
    assert lines[2:] == ["audit: 1 difference, 1 customer, 1 event and 1 ledger row compared"]
    assert shop.run("audit", "--json").exit_code == 1
    assert shop.run("audit", "--org", "org-1").exit_code == 0


def test_text_is_bounded_per_customer_and_json_is_not(shop: Shop) -> None:
    shop.settle(*[order(f"O-{n}", "5") for n in range(30)], order("X", "5", customer_id="c2"))
    tamper(shop.database, "DELETE FROM loyalty_entry")
    lines = shop.run("audit").stdout.splitlines()
    assert lines[21] == "  and 12 more; --json has them all"
    assert lines[22].split() == ["c2", "organization", "org-1"]
    assert lines[-2].startswith("audit: 35 differences, ")
    assert len(shop.json("audit")["differences"]) == 35


def test_what_comes_from_outside_is_escaped(shop: Shop) -> None:
    shop.settle(order(HOSTILE, "5", customer_id=HOSTILE, on_credit=True))
    tamper(shop.database, "DELETE FROM credit_usage")
    for args in (("audit",), ("rebuild", "credit", "--reason", "a", "--dry-run")):
        text = shop.run(*args).stdout
        assert ESCAPED in text
        assert is_harmless(text)
        assert is_harmless(shop.run(*args, "--json").stdout)
    assert shop.json("audit")["differences"][0]["customer_id"] == HOSTILE


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("audit", "nobody"), "no customer nobody in organization default"),
        (("audit", "c1"), "no customer c1 in organization default; that id exists: add --org org-1"),
        (("audit", "--org", "org-9"), "no organization org-9 has customers; check --org"),
        (("audit", "--actor", "nobody"), "'nobody' is not one of"),
        (("rebuild", "stats", "--reason", "a", "--customer", "nobody"), "no customer nobody"),
        (("rebuild", "stats", "--reason", " "), "--reason must be a text"),
        (("rebuild", "stats"), "Missing option '--reason'"),
        (("rebuild", "everything", "--reason", "a"), "'everything' is not one of"),
    ],
)
def test_a_wrong_question_is_usage_and_names_the_fix(shop: Shop, args: tuple[str, ...], text: str) -> None:
    shop.settle(*LIFE)
    result = shop.run(*args)
    assert result.exit_code == 2
    assert text in result.stderr
    assert shop.value("SELECT count(*) FROM operator_action") == 0


def test_rebuild_puts_right_and_tells_what(shop: Shop) -> None:
    shop.settle(*LIFE)
    tamper(shop.database, "DELETE FROM loyalty_entry WHERE position = 2")
    tamper(shop.database, "UPDATE loyalty_state SET points = 1")
    args = ("rebuild", "loyalty", "--reason", "restored", "--operator", "anna", "--org", "org-1", "--customer", "c1")
    dry = shop.run(*args, "--dry-run")
    assert dry.exit_code == 1
    assert shop.run("audit").exit_code == 1
    result = shop.run(*args)
    assert result.exit_code == 0
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[0] == "c1 organization org-1"
    assert lines[1].startswith("inserted entry 2 stored nothing, expected kind earn, points 450")
    assert lines[2] == "repaired points stored 1, expected 410"
    assert lines[3] == "rebuild: 1 customer, 9 events; 1 figure put right, 1 row inserted, 0 only reported"
    assert shop.run("audit").stdout == OK_LINE
    assert shop.database.query("SELECT operator, action, reason, actor, customer FROM operator_action") == [
        ("anna", "rebuild", "restored", "loyalty", shop.number())
    ]


def test_rebuild_as_json(shop: Shop) -> None:
    shop.settle(*LIFE)
    tamper(shop.database, AGAINST_FIGURES)
    finding = {"organization_id": "org-1", "customer_id": "c1", "field": "cancelled_orders", "stored": 7, "expected": 1}
    counts = {"customers": 1, "events": 9, "repaired": 1, "inserted": 0, "reported": 0}
    args = ("rebuild", "stats", "--reason", "a", "--operator", "anna")
    would: Any = {"findings": [{**finding, "what": "repaired"}], "ok": False, "dry_run": True, "done": counts}
    assert shop.json(*args, "--dry-run") == would
    assert json.loads(shop.run(*args, "--json").stdout) == {**would, "ok": True, "dry_run": False}
    again = shop.json(*args)
    assert (again["findings"], again["done"]["repaired"]) == ([], 0)


def test_a_ledger_fact_that_is_wrong_is_reported_with_1(shop: Shop) -> None:
    shop.settle(*LIFE)
    tamper(shop.database, "UPDATE loyalty_entry SET tier = 'gold' WHERE position = 2")
    result = shop.run("rebuild", "loyalty", "--reason", "a")
    assert result.exit_code == 1
    assert "reported" in result.stdout
    assert shop.run("audit").exit_code == 1
    assert shop.value("SELECT count(*) FROM operator_action") == 0


@pytest.mark.parametrize("actor", ACTORS)
def test_rebuild_of_an_untouched_database_changes_and_records_nothing(shop: Shop, actor: str) -> None:
    shop.settle(*LIFE)
    result = shop.run("rebuild", actor, "--reason", "to be sure")
    assert result.exit_code == 0
    assert "0 figures put right, 0 rows inserted, 0 only reported" in result.stdout
    assert shop.value("SELECT count(*) FROM operator_action") == 0
