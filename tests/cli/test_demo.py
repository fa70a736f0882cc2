"""`demo`: a first result from nothing."""

import os
import signal
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from customer_actors.cli.demo import FILE
from tests.cli.running import NOBODY_LISTENS, PROGRAM, STDERR, count, ended_by, invoke, started, stopped, wait_until


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the demo has been played, by somebody whose settings point elsewhere."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / FILE).write_text("what an earlier demo left")
    return folder


@pytest.fixture(scope="module")
def done(folder: Path) -> "subprocess.CompletedProcess[str]":
    elsewhere = {
        "DATABASE_URL": "postgresql://127.0.0.1:1/precious",
        "RABBITMQ_URL": NOBODY_LISTENS,
        "CUSTOMER_ACTORS_BATCH_SIZE": "nonsense",
    }
    began = time.monotonic()
    env = {**os.environ, **elsewhere}
    done = subprocess.run([PROGRAM, "demo"], env=env, cwd=folder, capture_output=True, text=True, timeout=120)
    assert time.monotonic() - began < 30
    return done


def test_it_succeeds_although_some_lines_were_quarantined(done: "subprocess.CompletedProcess[str]") -> None:
    assert (done.returncode, "Traceback" in done.stderr) == (0, False)
    for outcome in ("accepted", "duplicate", "anonymous", "suppressed", "quarantined"):
        assert f"\n{outcome} " in done.stdout


def test_it_shows_reasons_segments_tiers_and_credit(done: "subprocess.CompletedProcess[str]") -> None:
    for word in ("bad_amount", "champions", "at_risk", "bronze", "platinum", "limits of all accounts"):
        assert f"\n{word} " in done.stdout
    assert "credit open      applied        12" in done.stdout


def test_it_explains_a_customer_with_a_cancellation_credit_and_redemptions(
    done: "subprocess.CompletedProcess[str]",
) -> None:
    _assert_worth_reading(done.stdout)


@pytest.mark.parametrize("day", [datetime(2026, 11, 30, 11, tzinfo=UTC), datetime(2026, 2, 28, 23, 59, tzinfo=UTC)])
def test_on_any_day(day: datetime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The year ends now, and its weekends and Decembers decide who buys what: on the first of these days, the customer
    with cancelled orders had them cancelled before they arrived, which leaves no event to explain."""

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("customer_actors.cli.demo.datetime", stopped(day))
    output = invoke("demo", env={}).stdout
    _assert_worth_reading(output)
    assert "\nconflict " in output


def _assert_worth_reading(output: str) -> None:
    explained = output.partition("Credit (")[2]
    for word in ("order.completed", "order.cancelled", "credit.opened", "loyalty.redeemed", "refused", "check: ok"):
        assert word in explained


def test_it_is_plain_text_where_there_is_no_terminal(done: "subprocess.CompletedProcess[str]") -> None:
    assert "\x1b" not in done.stdout + done.stderr


def test_what_it_says_to_type_next_works(
    done: "subprocess.CompletedProcess[str]", folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    lines = [line.strip() for line in done.stdout.partition("What to type next:")[2].splitlines() if line.strip()]
    env = dict(line.removeprefix("export ").split("=", 1) for line in lines if line.startswith("export "))
    verbs = [line.split()[1:] for line in lines if line.startswith("customer-actors ")]
    assert {"DATABASE_URL", "RABBITMQ_URL"} == env.keys()
    assert [verb[0] for verb in verbs] == ["show", "explain", "status"]
    for verb in verbs:
        assert invoke(*verb, env=env).exit_code == 0


def test_it_makes_its_file_anew_each_time(done: "subprocess.CompletedProcess[str]", folder: Path) -> None:
    events = count(f"sqlite:///{folder}/{FILE}", "SELECT count(*) FROM event")
    subprocess.run([PROGRAM, "demo"], cwd=folder, capture_output=True, check=True, timeout=120)
    assert 0 < count(f"sqlite:///{folder}/{FILE}", "SELECT count(*) FROM event") < 1.5 * events


def test_it_ends_with_ctrl_c(tmp_path: Path) -> None:
    with started("demo", env={}, folder=tmp_path) as process:
        wait_until(lambda: (tmp_path / FILE).exists() and count(f"sqlite:///{tmp_path}/{FILE}", EVENTS) > 0)
        code, seconds = ended_by(process, signal.SIGINT)
    assert code == 130, (tmp_path / STDERR).read_text()
    assert seconds < 4


EVENTS = "SELECT count(*) FROM event"


def test_a_file_it_cannot_replace_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / FILE).mkdir()
    done = invoke("demo")
    assert done.exit_code == 2
    assert FILE in done.stderr


def test_help_explains_with_an_example() -> None:
    assert "Example: customer-actors demo" in invoke("demo", "--help").stdout
