"""A slot takes effect once: with two schedulers, after an outage, whatever the host's clock does [G16, G17]."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from customer_actors.settings import load_settings
from customer_actors.storage import job_runs
from customer_actors.storage.database import Database
from customer_actors.storage.job_runs import Run
from customer_actors.storage.opening import open_database
from customer_actors.storage.schema import migrate
from scheduler import clock as clock_module
from scheduler.clock import Clock, make_scheduler, running_clock
from tests.scheduler.watching import NIGHT, SEGMENTS, SETTINGS, Watch
from tests.servers.process import wait_until

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def test_a_slot_is_claimed_and_rung_when_it_is_due_and_never_again(database: Database) -> None:
    watch = Watch(database)
    for minutes in (-1, 0, 1, 60, 359):
        watch.look_at(NIGHT + timedelta(minutes=minutes))
    assert watch.rung == ["2030-01-10T03:15"]
    watch.look_at(NIGHT + DAY)
    assert watch.rung == ["2030-01-10T03:15", "2030-01-11T03:15"]


def test_of_many_schedulers_one_rings(database: Database) -> None:
    watches, together = [Watch(database) for _ in range(6)], threading.Barrier(6)

    def look(watch: Watch) -> None:
        together.wait()
        watch.clock.punctually(SEGMENTS)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(look, watches))
    assert [slot for watch in watches for slot in watch.rung] == ["2030-01-10T03:15"]


@pytest.mark.parametrize(("late", "runs"), [(5 * HOUR, 1), (6 * HOUR, 1), (6 * HOUR + timedelta(seconds=1), 0)])
def test_a_slot_missed_while_everything_was_down_runs_once_inside_the_window(
    database: Database, late: timedelta, runs: int
) -> None:
    for _ in range(2):
        watch = Watch(database)
        watch.look_at(NIGHT + late)
    assert len(job_runs.open_runs(database)) == runs


def test_of_several_missed_slots_one_runs(database: Database) -> None:
    hourly = load_settings({"CUSTOMER_ACTORS_NIGHTLY_SEGMENTS_CRON": "0 * * * *"})
    watch = Watch(database, settings=hourly)
    watch.look_at(NIGHT)
    watch.look_at(NIGHT + 5 * HOUR)
    assert watch.rung == ["2030-01-10T03:00", "2030-01-10T08:00"]


def test_a_new_installation_begins_with_its_next_night(database: Database) -> None:
    made = job_runs.first_migrated(database)
    minute = load_settings({"CUSTOMER_ACTORS_NIGHTLY_SEGMENTS_CRON": "* * * * *"})
    watch = Watch(database, settings=minute)
    watch.look_at(made.replace(second=0, microsecond=0))
    assert watch.rung == []
    watch.look_at(made + timedelta(minutes=1))
    assert len(watch.rung) == 1


@pytest.mark.parametrize("jump", [DAY, -DAY])
def test_a_clock_that_jumps_a_day_and_back_runs_every_slot_once(database: Database, jump: timedelta) -> None:
    watch, real = Watch(database), NIGHT - DAY - 2 * HOUR
    while real < NIGHT + 3 * DAY:
        wrong = NIGHT + HOUR <= real < NIGHT + 5 * HOUR
        watch.look_at(real + jump if wrong else real)
        real += timedelta(minutes=30)
    assert sorted(watch.rung) == [f"2030-01-{day}T03:15" for day in ("09", 10, 11, 12)]


def test_a_slot_whose_moment_fell_into_the_wrong_hours_runs_when_the_clock_is_right_again(database: Database) -> None:
    watch = Watch(database)
    watch.look_at(NIGHT - HOUR)
    watch.look_at(NIGHT + DAY - 2 * HOUR)
    watch.look_at(NIGHT + HOUR)
    assert watch.rung == ["2030-01-10T03:15"]


def test_apscheduler_has_every_job_coalesced_with_the_window_as_grace_and_the_zone_named(database: Database) -> None:
    settings = load_settings({"CUSTOMER_ACTORS_TIMEZONE": "Europe/Berlin", "CUSTOMER_ACTORS_CATCH_UP": "90"})
    jobs = make_scheduler(Clock(settings, database, lambda _: None)).get_jobs()
    assert [job.id for job in jobs] == ["segments", "credit"]
    assert {job.misfire_grace_time for job in jobs} == {90 * 60}
    assert {(job.coalesce, job.max_instances) for job in jobs} == {(True, 1)}
    assert {str(job.trigger.timezone) for job in jobs} == {"Europe/Berlin"}


def test_apscheduler_claims_at_the_moment(database: Database) -> None:
    watch = Watch(database)
    scheduler = make_scheduler(watch.clock)
    scheduler.modify_job("segments", next_run_time=datetime.now(UTC))
    scheduler.start()
    wait_until(lambda: watch.rung == ["2030-01-10T03:15"])
    scheduler.shutdown()


def test_the_first_look_is_at_once_and_further_ones_follow(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock_module, "LOOK_S", 0.01)
    watch, signs = Watch(database), []
    with running_clock(watch.clock, database, lambda: signs.append(1)):
        wait_until(lambda: watch.rung == ["2030-01-10T03:15"])
        watch.now = NIGHT + DAY
        wait_until(lambda: watch.rung == ["2030-01-10T03:15", "2030-01-11T03:15"])
    assert len(signs) > 1


@pytest.mark.parametrize("error", [OSError("disk"), None])
def test_a_claim_that_fails_is_only_late(tmp_path: Path, error: Exception | None) -> None:
    database = open_database(f"sqlite:///{tmp_path}/shop.db")
    migrate(database)

    def ring(run: Run) -> None:
        if error is not None:
            raise error

    clock = Clock(SETTINGS, database, ring, [SEGMENTS], lambda: NIGHT)
    if error is None:
        database.execute("ALTER TABLE job_run RENAME TO gone")
    with capture_logs() as logs:
        clock.look()
    assert [(line["event"], line["job"]) for line in logs if line["event"] == "not claimed"] == [
        ("not claimed", "segments")
    ]
    if error is None:
        database.execute("ALTER TABLE gone RENAME TO job_run")
        clock.look()
    assert len(job_runs.open_runs(database)) == 1
    database.release()
