"""The scheduler's shell: what `list` shows, and that the process behaves like every other."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, date, datetime
from pathlib import Path
from threading import Thread

import pytest
from click.testing import CliRunner

from customer_actors.process import Stop
from customer_actors.storage import job_runs
from customer_actors.storage.beats import all_beats
from customer_actors.storage.job_runs import Run
from customer_actors.storage.opening import open_database
from customer_actors.storage.schema import migrate
from scheduler import __main__ as shell
from scheduler import clock
from scheduler.__main__ import scheduler
from tests.servers import PrivatePostgres
from tests.servers.process import wait_until
from tests.storage.holding import crowd, fail_everything
from tests.storage.support import Storage

ROW = ["name", "cron", "in_words", "timezone", "next_at", "does", "last_run"]


def test_list_names_every_job_with_its_times_in_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUSTOMER_ACTORS_NIGHTLY_CREDIT_CRON", "1 2 * * *")
    monkeypatch.setenv("CUSTOMER_ACTORS_TIMEZONE", "Europe/Berlin")
    lines = invoke("list").splitlines()
    assert lines[0].startswith("segments: every day at 03:15 (Europe/Berlin, 15 3 * * *), next 20")
    assert lines[3].startswith("credit: every day at 02:01 (Europe/Berlin, 1 2 * * *), next 20")
    assert lines[2] == lines[5] == "  never ran"
    assert not list(tmp_path.iterdir())


def test_list_shows_the_last_run_of_every_job(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    database = open_database(url)
    job_runs.claim(database, Run("credit", "2026-11-24T03:45", date(2026, 11, 24)), 1)
    database.release()
    assert "  last run 2026-11-24T03:45: claimed, as of 2026-11-24; no worker has begun" in invoke("list").splitlines()
    before = datetime.now(UTC)
    segments, credit = json.loads(invoke("list", "--json"))
    assert list(segments) == list(credit) == ROW
    assert datetime.fromisoformat(credit["next_at"]) > before
    assert (segments["last_run"], credit["last_run"]["state"]) == (None, "claimed")


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(scheduler, arguments, catch_exceptions=False)
    assert done.exit_code == 0
    return done.stdout


def test_help_explains_itself() -> None:
    done = CliRunner().invoke(scheduler, ["--help"], catch_exceptions=False)
    assert done.exit_code == 0
    assert "Example: python -m scheduler" in done.stdout


@contextmanager
def started(folder: Path, **env: str) -> Iterator["subprocess.Popen[bytes]"]:
    """`python -m scheduler` with its log in a file; it surely ends with the block."""
    with (
        (folder / "log").open("wb") as log,
        subprocess.Popen([sys.executable, "-m", "scheduler"], env={**os.environ, **env}, stderr=log) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def logged(folder: Path) -> Callable[[str], bool]:
    return lambda text: text in (folder / "log").read_text()


@pytest.fixture
def url(tmp_path: Path) -> str:
    database = open_database(found := f"sqlite:///{tmp_path}/shop.db")
    migrate(database)
    database.release()
    return found


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_stays_until_a_signal_and_ends_within_four_seconds(tmp_path: Path, url: str, number: signal.Signals) -> None:
    with started(tmp_path, DATABASE_URL=url) as process:
        wait_until(lambda: logged(tmp_path)('"started"'))
        began = time.monotonic()
        process.send_signal(number)
        assert process.wait(timeout=20) == 0
        assert time.monotonic() - began < 4
    assert logged(tmp_path)('"stopped"')


def test_it_shows_that_it_lives_and_takes_the_sign_away_at_its_end(tmp_path: Path, url: str) -> None:
    database = open_database(url)

    def kinds() -> list[str]:
        return [one.kind for one in all_beats(database)]

    with started(tmp_path, DATABASE_URL=url) as process:
        wait_until(lambda: kinds() == ["scheduler"])
        process.terminate()
        assert process.wait(timeout=20) == 0
    assert kinds() == []
    database.release()


def test_without_a_broker_its_beat_tells_of_a_mass_failure(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It advances customers itself, so nobody else can tell."""
    crowd(storage)
    fail_everything(monkeypatch, "loyalty")
    stop = Stop()
    monkeypatch.setattr(shell, "stopping_on_signals", lambda: nullcontext(stop))
    monkeypatch.setattr(shell, "open_database", lambda _: storage.database)
    monkeypatch.setattr(clock, "LOOK_S", 0.05)
    serving = Thread(target=shell.serve)
    serving.start()
    try:
        wait_until(lambda: [each.alarm for each in all_beats(storage.database)] == ["mass failure"])
    finally:
        stop.ask(signal.SIGTERM)
        serving.join(20)
    assert not serving.is_alive()


def test_an_old_schema_is_refused_with_the_command_to_run(tmp_path: Path) -> None:
    with started(tmp_path, DATABASE_URL=f"sqlite:///{tmp_path}/new.db") as process:
        assert process.wait(timeout=20) == 2
    assert logged(tmp_path)("customer-actors migrate")


def test_a_wrong_setting_is_refused_by_name(tmp_path: Path, url: str) -> None:
    with started(tmp_path, DATABASE_URL=url, CUSTOMER_ACTORS_NIGHTLY_CREDIT_CRON="soon") as process:
        assert process.wait(timeout=20) == 2
    assert logged(tmp_path)("CUSTOMER_ACTORS_NIGHTLY_CREDIT_CRON=soon")


def test_a_database_that_is_away_is_waited_for(
    tmp_path: Path, stoppable_postgres: PrivatePostgres, stoppable_url: str
) -> None:
    database = open_database(stoppable_url)
    migrate(database)
    database.release()
    stoppable_postgres.stop()
    with started(tmp_path, DATABASE_URL=stoppable_url) as process:
        wait_until(lambda: logged(tmp_path)("does not answer"))
        stoppable_postgres.start()
        wait_until(lambda: logged(tmp_path)('"started"'))
        process.terminate()
        assert process.wait(timeout=20) == 0
