"""`credit limit|suspend|lift|drift` on the command line: outcomes, who and why, and what a night found."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from customer_actors.storage import job_runs
from customer_actors.storage.job_runs import Run
from customer_actors.storage.nightly_credit import NightlyCredit
from customer_actors.storage.schema import migrate
from tests.cli.shop import ESCAPED, HOSTILE, Shop, is_harmless
from tests.model.examples import DAY_US, JUNE_1_US, TODAY, opened, order, payment


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    """A customer c1 of org-1 with an account, 40.00 used and 10.00 of it paid."""
    made = Shop(f"sqlite:///{tmp_path}/shop.db")
    migrate(made.database)
    made.settle(opened("100"), order("O1", "40", on_credit=True), payment("P1", "10"))
    yield made
    made.database.release()


def night(shop: Shop, slot: str, dry_run: bool = False) -> None:
    run, job = Run("credit", slot, TODAY, dry_run), NightlyCredit(shop.stores())
    job_runs.claim(shop.database, run, JUNE_1_US + len(slot))
    job_runs.plan(shop.database, job, run, JUNE_1_US)
    for number in job_runs.open_chunks(shop.database, run):
        job_runs.work(shop.database, job, run, number, JUNE_1_US)
    job_runs.finish(shop.database, job, run, JUNE_1_US)


COMMANDS: dict[str, list[tuple[str, ...]]] = {
    "limit": [("limit", "c1", "5.00"), ("limit", "c1", "5")],
    "suspend": [("suspend", "c1"), ("suspend", "c1")],
}


@pytest.mark.parametrize("commands", COMMANDS.values(), ids=COMMANDS)
def test_the_first_time_is_applied_and_the_second_a_duplicate(shop: Shop, commands: list[tuple[str, ...]]) -> None:
    for command, outcome in zip(commands, ("applied", "duplicate"), strict=True):
        done = shop.run("credit", *command, "--org", "org-1")
        assert (done.exit_code, f": {outcome} (position " in done.stdout) == (0, True), done.output


def test_a_lifting_is_applied_to_a_suspended_account_and_a_duplicate_on_an_active_one(shop: Shop) -> None:
    shop.run("credit", "suspend", "c1", "--org", "org-1")
    outcomes = [shop.json("credit", "lift", "c1", "--org", "org-1")["outcome"] for _ in range(2)]
    assert outcomes == ["applied", "duplicate"]


def test_a_suspended_account_refuses_a_charge_until_it_is_lifted(shop: Shop) -> None:
    charge = ("credit", "charge", "c1", "O2", "1.00", "--org", "org-1")
    shop.run("credit", "suspend", "c1", "--org", "org-1")
    assert shop.run(*charge).exit_code == 1
    shop.run("credit", "lift", "c1", "--org", "org-1")
    assert shop.run(*charge).exit_code == 0


def test_a_limit_below_what_is_used_leaves_nothing_to_charge(shop: Shop) -> None:
    shop.run("credit", "limit", "c1", "20.00", "--org", "org-1")
    assert shop.json("show", "c1", "--org", "org-1")["credit"]["available"] == "-10.00"
    assert shop.run("credit", "charge", "c1", "O2", "0.01", "--org", "org-1").exit_code == 1


def test_who_and_why_stand_in_the_stream_and_are_explained(shop: Shop) -> None:
    given = ("--org", "org-1", "--operator", "anna", "--reason", "cheque came back")
    shop.run("credit", "suspend", "c1", *given)
    detail = json.loads(shop.events()[-1].detail or "")
    as_of = detail.pop("as_of")
    assert detail == {"automatic": False, "by": "anna", "reason": "cheque came back"}
    assert len(as_of) == len("2024-06-01")
    shop.run("credit", "lift", "c1", *given)
    shop.run("credit", "limit", "c1", "7", *given)
    told = shop.run("explain", "c1", "--org", "org-1").stdout
    for effect in ("suspended by hand", "suspension lifted", "limit 100.00 -> 7.00"):
        assert f"{effect} by anna: cheque came back" in told


def test_the_login_name_is_taken_where_nobody_is_named(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOGNAME", "bela")
    shop.run("credit", "limit", "c1", "7", "--org", "org-1")
    assert json.loads(shop.events()[-1].detail or "") == {"by": "bela"}


def test_hostile_names_are_escaped_where_they_are_shown(shop: Shop) -> None:
    shop.run("credit", "suspend", "c1", "--org", "org-1", "--reason", HOSTILE)
    told = shop.run("explain", "c1", "--org", "org-1").stdout
    assert is_harmless(told)
    assert ESCAPED in told


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("limit", "nobody", "5"), "is unknown"),
        (("suspend", "nobody"), "is unknown"),
        (("lift", "nobody"), "is unknown"),
        (("limit", "c1", "-5"), "AMOUNT"),
        (("limit", "c1", "1,000"), "AMOUNT"),
        (("suspend", "c1", "--operator", " "), "name"),
        (("lift", "c1", "--reason", "x" * 501), "reason"),
        (("drift", "--run", "7"), "there is no reconciliation 7"),
    ],
)
def test_what_cannot_be_is_a_usage_error_and_changes_nothing(shop: Shop, command: tuple[str, ...], told: str) -> None:
    organization = () if command[0] == "drift" else ("--org", "org-1")
    done = shop.run("credit", command[0], *organization, *(("--",) if "-5" in command else ()), *command[1:])
    assert (done.exit_code, told in done.stderr) == (2, True), done.output
    assert len(shop.events()) == 3


# --- drift -------------------------------------------------------------------------------------------------------


def test_before_any_night_there_is_no_drift(shop: Shop) -> None:
    done = shop.run("credit", "drift")
    assert (done.exit_code, "no reconciliation has run yet" in done.stdout) == (0, True)
    assert shop.json("credit", "drift") == {"run": None}


def test_a_night_without_drift_ends_with_0(shop: Shop) -> None:
    night(shop, "1")
    done = shop.run("credit", "drift")
    assert (done.exit_code, done.stdout) == (0, "run 1, 1, as of 2024-06-01: 0 differences\n")


def test_drift_is_told_as_customer_field_stored_expected_of_any_run_and_ends_with_1(shop: Shop) -> None:
    shop.execute("UPDATE credit_state SET used_minor = 1")
    night(shop, "1", dry_run=True)
    night(shop, "22")
    night(shop, "333")
    drift = {
        "organization_id": "org-1",
        "customer_id": "c1",
        "field": "used",
        "stored": "0.01",
        "expected": "30.00",
        "repaired": True,
    }
    told = [shop.json("credit", "drift", "--run", str(number)) for number in (1, 2, 3)]
    assert [(t["run"], t["slot"], t["dry_run"], t["finished"]) for t in told] == [
        (1, "1", True, True),
        (2, "22", False, True),
        (3, "333", False, True),
    ]
    assert [t["drift"] for t in told] == [[{**drift, "repaired": False}], [drift], []]
    assert shop.json("credit", "drift") == told[2]
    second = shop.run("credit", "drift", "--run", "2")
    assert second.exit_code == 1
    assert "  c1  organization org-1  used  stored 0.01  expected 30.00  repaired\n" in second.stdout
    assert shop.run("credit", "drift", "--run", "2", "--json").exit_code == 1
    assert shop.run("credit", "drift").exit_code == 0


def test_whom_a_night_suspended_is_told(shop: Shop) -> None:
    run, job = Run("credit", "late", TODAY.replace(year=2025)), NightlyCredit(shop.stores())
    now_us = JUNE_1_US + 400 * DAY_US
    job_runs.claim(shop.database, run, now_us)
    job_runs.plan(shop.database, job, run, now_us)
    job_runs.work(shop.database, job, run, 1, now_us)
    aged = {"organization_id": "org-1", "customer_id": "c1", "action": "suspend", "oldest_due_date": "2024-07-01"}
    assert shop.json("credit", "drift")["aged"] == [aged]
    told = shop.run("credit", "drift")
    assert told.exit_code == 0
    assert told.stdout == (
        "run 1, late, as of 2025-06-01, not finished: 0 differences\n"
        "  c1  organization org-1  suspended  oldest due 2024-07-01\n"
    )
    assert "suspended automatically by nightly" in shop.run("explain", "c1", "--org", "org-1").stdout
