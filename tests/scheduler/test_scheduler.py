"""The scheduler's shell: jobs are data, times follow the settings, and the process behaves like every other."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from click.testing import CliRunner

from customer_actors.settings import Settings, load_settings
from customer_actors.storage.opening import open_database
from customer_actors.storage.schema import migrate
from scheduler.__main__ import print_jobs, scheduler
from scheduler.jobs import JOBS, Job, due_times, make_scheduler
from tests.servers import PrivatePostgres
from tests.servers.process import wait_until

BERLIN = {"CUSTOMER_ACTORS_TIMEZONE": "Europe/Berlin", "CUSTOMER_ACTORS_NIGHTLY_SEGMENTS_CRON": "30 4 * * mon"}


def nothing(settings: Settings) -> None:
    """A job's message, sent to nobody."""


SEGMENTS = Job("segments", "nightly_segments_cron", "Rescores everybody.", nothing)
CREDIT = Job("credit", "nightly_credit_cron", "Reconciles every account.", nothing)


def test_a_job_is_due_by_its_setting_in_the_business_time_zone() -> None:
    winter, summer = datetime(2025, 1, 1, tzinfo=UTC), datetime(2025, 7, 1, tzinfo=UTC)
    settings = load_settings(BERLIN)
    (in_winter,), (in_summer,) = (due_times(settings, moment, [SEGMENTS]) for moment in (winter, summer))
    assert str(in_winter.next_at) == "2025-01-06 04:30:00+01:00"
    assert str(in_summer.next_at) == "2025-07-07 04:30:00+02:00"


def test_every_job_there_is_can_be_scheduled() -> None:
    assert len(list(due_times(load_settings({}), datetime.now(UTC), JOBS))) == len(JOBS)


def test_missed_slots_run_once_within_the_catch_up_window_and_then_no_more() -> None:
    settings = load_settings({**BERLIN, "CUSTOMER_ACTORS_CATCH_UP_MINUTES": "90"})
    jobs = make_scheduler(settings, [SEGMENTS, CREDIT]).get_jobs()
    assert [job.id for job in jobs] == ["segments", "credit"]
    assert {job.misfire_grace_time for job in jobs} == {90 * 60}
    assert {job.coalesce for job in jobs} == {True}
    assert {str(job.trigger.timezone) for job in jobs} == {"Europe/Berlin"}


def test_a_slot_that_is_due_has_its_message_sent() -> None:
    sent: list[Settings] = []

    def send(settings: Settings) -> None:
        sent.append(settings)
        clock.shutdown(wait=False)

    settings = load_settings({})
    clock = make_scheduler(settings, [CREDIT._replace(send=send)])
    clock.modify_job("credit", next_run_time=datetime.now(UTC))
    clock.start()
    assert sent == [settings]


def test_list_names_every_job_with_its_times(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUSTOMER_ACTORS_NIGHTLY_CREDIT_CRON", "1 2 * * *")
    print_jobs([SEGMENTS, CREDIT], as_json=False)
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("segments: 15 3 * * * (UTC), next ")
    assert second.startswith("credit: 1 2 * * * (UTC), next ")

    print_jobs([CREDIT], as_json=True)
    (row,) = json.loads(capsys.readouterr().out)
    assert row["cron"] == "1 2 * * *"
    assert datetime.fromisoformat(row["next_at"]) > datetime.now(UTC)


def test_list_shows_the_jobs_there_are() -> None:
    done = CliRunner().invoke(scheduler, ["list", "--json"], catch_exceptions=False)
    assert [row["name"] for row in json.loads(done.stdout)] == [job.name for job in JOBS]


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


def test_an_old_schema_is_refused_with_the_command_to_run(tmp_path: Path) -> None:
    with started(tmp_path, DATABASE_URL=f"sqlite:///{tmp_path}/new.db") as process:
        assert process.wait(timeout=20) == 2
    assert logged(tmp_path)("customer-actors migrate")


def test_a_wrong_setting_is_refused_by_name(tmp_path: Path, url: str) -> None:
    with started(tmp_path, DATABASE_URL=url, CUSTOMER_ACTORS_NIGHTLY_CREDIT_CRON="soon") as process:
        assert process.wait(timeout=20) == 2
    assert logged(tmp_path)("CUSTOMER_ACTORS_NIGHTLY_CREDIT_CRON=soon")


def test_a_database_that_is_away_is_waited_for(tmp_path: Path, postgres: PrivatePostgres, postgres_url: str) -> None:
    database = open_database(postgres_url)
    migrate(database)
    database.release()
    postgres.stop()
    with started(tmp_path, DATABASE_URL=postgres_url) as process:
        wait_until(lambda: logged(tmp_path)("does not answer"))
        postgres.start()
        wait_until(lambda: logged(tmp_path)('"started"'))
        process.terminate()
        assert process.wait(timeout=20) == 0
