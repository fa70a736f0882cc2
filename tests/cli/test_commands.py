"""`credit` and `loyalty` on the command line: outcomes as words, JSON and exit codes."""

import json
from pathlib import Path

import pytest

from customer_actors.domain.rules import Rules
from tests.cli.running import NOBODY_LISTENS, count, invoke, order, states


@pytest.fixture(autouse=True)
def env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that knows customer C1, with 150 points."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATABASE_URL", url := f"sqlite:///{tmp_path}/shop.db")
    assert invoke("run", "-", stdin=order("O1", amount="150.00")).exit_code == 0
    assert count(url, "SELECT count(*) FROM event") == 1


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/shop.db"


def test_what_is_applied_and_what_was_applied_before_end_with_0() -> None:
    for command in (
        ("credit", "open", "C2", "--limit", "1000.00", "--terms", "14"),
        ("credit", "charge", "C2", "O9", "199.90"),
        ("loyalty", "redeem", "C1", "100", "V1"),
    ):
        first, second = invoke(*command), invoke(*command)
        assert (first.exit_code, second.exit_code) == (0, 0), first.output
        assert ": applied (position " in first.stdout
        assert ": duplicate (position " in second.stdout


def test_what_is_refused_ends_with_1_and_says_why() -> None:
    done = invoke("loyalty", "redeem", "C1", "151", "V1")
    assert done.exit_code == 1
    assert "refused (position 2): 151 points asked, 150 available" in done.stdout


def test_json_tells_outcome_reason_and_position() -> None:
    done = invoke("credit", "charge", "C1", "O9", "1", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout) == {"outcome": "refused", "reason": "there is no credit account", "position": 2}


def test_terms_come_from_the_settings_unless_given(url: str) -> None:
    invoke("credit", "open", "C1", "--limit", "0")
    invoke("credit", "open", "C2", "--limit", "0", env={"CUSTOMER_ACTORS_DEFAULT_TERMS_DAYS": "7"})
    invoke("credit", "open", "C3", "--limit", "0", "--terms", "0")
    for customer, terms in (("C1", Rules().default_terms_days), ("C2", 7), ("C3", 0)):
        sql = "SELECT a.terms_days FROM credit_state a JOIN customer c ON c.id = a.customer WHERE c.customer_id = "
        assert count(url, f"{sql}'{customer}'") == terms


def test_the_organization_is_an_option(url: str) -> None:
    assert invoke("credit", "open", "C1", "--limit", "5", "--org", "other").exit_code == 0
    assert states(url)["other", "C1"]["credit"]["limit"] == "5.00"
    assert states(url)["default", "C1"]["credit"] is None


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (("credit", "open", "C1"), "--limit"),
        (("credit", "open", "C1", "--limit", "1,000.00"), "--limit"),
        (("credit", "open", "C1", "--limit", "1_000"), "--limit"),
        (("credit", "open", "C1", "--limit", "0.001"), "decimal places"),
        (("credit", "open", "C1", "--limit", "NaN"), "--limit"),
        (("credit", "open", "C1", "--limit", "-1"), "negative"),
        (("credit", "open", "C1", "--limit", "1", "--terms", "1.5"), "--terms"),
        (("credit", "open", "C1", "--limit", "1", "--terms", "4000"), "terms"),
        (("credit", "open", " ", "--limit", "1"), "customer"),
        (("credit", "open", "C" * 65, "--limit", "1"), "64"),
        (("credit", "open", "C1", "--limit", "1", "--org", ""), "organization"),
        (("credit", "charge", "C1", "O1"), "AMOUNT"),
        (("credit", "charge", "C1", "O1", "0"), "more than 0"),
        (("credit", "charge", "C1", "", "1"), "order"),
        (("credit", "charge", "nobody", "O1", "1"), "nobody"),
        (("loyalty", "redeem", "C1", "0", "V1"), "points"),
        (("loyalty", "redeem", "C1", "1.0", "V1"), "POINTS"),
        (("loyalty", "redeem", "C1", "1_0", "V1"), "POINTS"),
        (("loyalty", "redeem", "C1", "\uff11", "V1"), "POINTS"),
        (("loyalty", "redeem", "C1", "1" * 19, "V1"), "POINTS"),
        (("loyalty", "redeem", "C1", "1", ""), "reference"),
        (("loyalty", "redeem", "nobody", "1", "V1"), "nobody"),
    ],
)
def test_the_impossible_ends_with_2_names_the_argument_and_changes_nothing(
    url: str, command: tuple[str, ...], named: str
) -> None:
    before = states(url)
    done = invoke(*command)
    assert done.exit_code == 2
    assert named in done.stderr
    assert states(url) == before


def test_an_old_schema_is_refused_with_the_command_to_run(tmp_path: Path) -> None:
    done = invoke("credit", "open", "C1", "--limit", "1", env={"DATABASE_URL": f"sqlite:///{tmp_path}/new.db"})
    assert done.exit_code == 2
    assert "customer-actors migrate" in done.stderr


def test_a_database_that_is_away_ends_with_4() -> None:
    away = {"DATABASE_URL": "postgresql://postgres:x@127.0.0.1:1/shop"}
    assert invoke("loyalty", "redeem", "C1", "1", "V1", env=away).exit_code == 4


def test_a_broker_that_is_away_hinders_no_command(postgres_url: str) -> None:
    """The workers find the bell row when they are back; this customer was advanced by the command itself."""
    env = {"DATABASE_URL": postgres_url, "RABBITMQ_URL": NOBODY_LISTENS}
    assert invoke("migrate", env=env).exit_code == 0
    assert invoke("credit", "open", "C1", "--limit", "10", env=env).exit_code == 0
    assert states(postgres_url)["default", "C1"]["credit"]["limit"] == "10.00"
    assert count(postgres_url, "SELECT count(*) FROM bell") == 1


@pytest.mark.parametrize("command", [("credit",), ("credit", "open"), ("credit", "charge"), ("loyalty", "redeem")])
def test_help_explains_with_an_example(command: tuple[str, ...]) -> None:
    done = invoke(*command, "--help")
    assert done.exit_code == 0
    assert len(command) == 1 or f"Example: customer-actors {' '.join(command)}" in done.stdout
