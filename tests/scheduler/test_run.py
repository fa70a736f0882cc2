"""`python -m scheduler run`: the same job for a person, a system cron or a CronJob; it says how it ended."""

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from customer_actors.actors import nightly
from customer_actors.errors import UsageError
from customer_actors.storage import job_runs
from customer_actors.storage.database import Database
from customer_actors.storage.job_runs import Run
from customer_actors.storage.opening import open_database
from customer_actors.storage.schema import migrate
from scheduler.__main__ import scheduler
from tests.storage.counting import UNDISTURBED, CountingJob, effects
from tests.storage.test_outage import administer

DAY = "2026-11-20"
NIGHT = Run("credit", DAY, date(2026, 11, 20))


class Jobs:
    """The database of a test, and what the job of its workers does before each chunk."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.before: Callable[[Any], object] = lambda _: None
        self.runs: list[Run] = []

    def of(self, stores: Any) -> dict[str, CountingJob]:
        job = CountingJob(stores.database, self.before)
        whole = job.plan

        def plan(run: Run, now_us: int) -> Any:
            self.runs.append(run)
            return whole(run, now_us)

        job.plan = plan  # type: ignore[method-assign]
        return dict.fromkeys(("segments", "credit"), job)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Jobs]:
    url = f"sqlite:///{tmp_path}/shop.db"
    database = open_database(url)
    migrate(database)
    found = Jobs(database)
    monkeypatch.setenv("DATABASE_URL", url)
    monkeypatch.setenv("CUSTOMER_ACTORS_SWEEP_SECONDS", "3600")
    monkeypatch.setattr(nightly, "nightly_jobs", found.of)
    yield found
    database.release()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(scheduler, ["run", *arguments], catch_exceptions=False)


def test_without_a_broker_it_does_the_work_itself_and_a_second_time_it_already_ran(jobs: Jobs) -> None:
    first = run("credit", "--as-of", DAY)
    assert (first.exit_code, jobs.runs) == (0, [NIGHT])
    assert (
        first.stdout
        == "credit 2026-11-20: done, as of 2026-11-20: 5 of 5 parts, 50 customers examined, 10 rows changed\n"
    )
    assert effects(jobs.database) == UNDISTURBED
    second = run("credit", "--as-of", DAY, "--json")
    assert second.exit_code == 3
    assert "already ran; name a date with --as-of" in second.stderr
    assert json.loads(second.stdout)["state"] == "done"
    assert effects(jobs.database) == UNDISTURBED


def test_a_database_that_forgets_commits_is_refused(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    database, name = open_database(postgres_url), postgres_url.rpartition("/")[2]
    migrate(database)
    administer(postgres_url, f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    with pytest.raises(UsageError, match="synchronous_commit is off"):
        run("credit", "--as-of", DAY)
    assert job_runs.last_runs(database) == {}
    database.release()


def test_what_stopped_half_way_goes_on(jobs: Jobs) -> None:
    job = CountingJob(jobs.database)
    job_runs.claim(jobs.database, NIGHT, 1)
    job_runs.plan(jobs.database, job, NIGHT, 1)
    job_runs.work(jobs.database, job, NIGHT, 2, 1)
    assert run("credit", "--as-of", DAY).exit_code == 0
    assert effects(jobs.database) == UNDISTURBED


def test_a_failure_is_one_line_and_exit_code_1_and_the_next_time_goes_on(jobs: Jobs) -> None:
    def fail(_: Any) -> None:
        raise ValueError("secret-id")

    jobs.before = fail
    failed = run("credit", "--as-of", DAY, "--wait")
    assert failed.exit_code == 1
    assert "credit 2026-11-20: failed: ValueError at test_run.py:" in failed.stderr
    assert "secret-id" not in failed.output
    jobs.before = lambda _: None
    assert run("credit", "--as-of", DAY, "--wait").exit_code == 0
    assert effects(jobs.database) == UNDISTURBED


def test_no_progress_for_too_long_is_a_failure(jobs: Jobs) -> None:
    go_on = threading.Event()
    jobs.before = lambda _: go_on.wait(20)
    threading.Timer(3, go_on.set).start()
    stalled = run("credit", "--as-of", DAY, "--stalled-after", "0.5")
    assert stalled.exit_code == 1
    assert "no progress for 0.5 s; do workers run?" in stalled.stderr


def test_a_dry_run_is_told_to_the_job_and_takes_no_slot(jobs: Jobs) -> None:
    for _ in range(2):
        assert run("credit", "--as-of", DAY, "--dry-run").exit_code == 0
    assert [(one.dry_run, one.as_of) for one in jobs.runs] == [(True, NIGHT.as_of)] * 2
    assert job_runs.last_runs(jobs.database) == {}
    assert run("credit", "--as-of", DAY).exit_code == 0


def test_without_a_date_it_shares_the_slot_with_every_scheduler(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    due = datetime.now(UTC) - timedelta(minutes=30)
    monkeypatch.setenv("CUSTOMER_ACTORS_NIGHTLY_CREDIT_CRON", f"{due.minute} {due.hour} * * *")
    assert run("credit").exit_code == 0
    assert [one.slot for one in jobs.runs] == [due.strftime("%Y-%m-%dT%H:%M")]
    assert run("credit").exit_code == 3


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("credit", "--as-of", "yesterday"),
        ("credit", "--stalled-after", "0"),
    ],
)
def test_a_wrong_command_line_is_exit_code_2(jobs: Jobs, arguments: tuple[str, ...]) -> None:
    assert run(*arguments).exit_code == 2
    assert job_runs.open_runs(jobs.database) == []


@pytest.mark.parametrize("name", ["segments", "credit"])
@pytest.mark.parametrize(("day", "wrong"), [("2999-01-01", "lies ahead"), ("1815-12-10", "no date of business")])
def test_a_date_that_no_run_can_be_for_is_refused_before_anything_is_claimed(
    jobs: Jobs, name: str, day: str, wrong: str
) -> None:
    with pytest.raises(UsageError, match=wrong):  # exit code 2
        run(name, "--as-of", day)
    assert job_runs.open_runs(jobs.database) == []


def test_with_a_broker_it_hands_over_and_waits_only_if_asked(
    jobs: Jobs, postgres_url: str, rabbitmq_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody works here, so what is waited for makes no progress."""
    database = open_database(postgres_url)
    migrate(database)
    monkeypatch.setenv("DATABASE_URL", postgres_url)
    monkeypatch.setenv("RABBITMQ_URL", rabbitmq_url)
    first = run("credit", "--as-of", DAY)
    assert (first.exit_code, "the workers have it" in first.stderr) == (0, True)
    second = run("credit", "--as-of", DAY)
    assert (second.exit_code, "in work, claimed" in second.stderr) == (0, True)
    assert run("credit", "--as-of", DAY, "--wait", "--stalled-after", "0.3").exit_code == 1
    database.release()
