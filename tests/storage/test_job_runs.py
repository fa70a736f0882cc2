"""A nightly run: claimed by one, planned by one, every chunk effective once, whoever comes second or is killed."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from customer_actors.domain.events import iso
from customer_actors.errors import Outage, UsageError
from customer_actors.storage import job_runs
from customer_actors.storage.database import Database
from customer_actors.storage.nights_view import night_figures, night_text, nights_view
from customer_actors.storage.opening import open_database
from tests.servers import PrivatePostgres
from tests.servers.process import wait_until
from tests.storage.counting import CHUNKS, FINISHED, NIGHT, PLANNED, UNDISTURBED, CountingJob, effects
from tests.storage.support import NOW_US, TODAY, Storage
from tests.storage.test_outage import end_connections

SECOND = 1_000_000


def claimed(database: Database) -> CountingJob:
    assert job_runs.claim(database, NIGHT, NOW_US)
    return CountingJob(database)


def do_all(database: Database, job: CountingJob) -> None:
    """What the actors do, in this thread."""
    assert job_runs.plan(database, job, NIGHT, NOW_US)
    for number in job_runs.open_chunks(database, NIGHT):
        assert job_runs.work(database, job, NIGHT, number, NOW_US)
    assert job_runs.finish(database, job, NIGHT, NOW_US)


def test_a_run_is_planned_worked_and_finished_once_however_often_it_is_told(database: Database) -> None:
    job = claimed(database)
    do_all(database, job)
    assert effects(database) == UNDISTURBED
    assert not job_runs.plan(database, job, NIGHT, NOW_US)
    assert not any(job_runs.work(database, job, NIGHT, number, NOW_US) for number in range(CHUNKS))
    assert not job_runs.finish(database, job, NIGHT, NOW_US)
    assert effects(database) == UNDISTURBED


def test_of_many_who_claim_a_slot_at_once_one_gets_it(database: Database) -> None:
    together = threading.Barrier(8)

    def claim(_: int) -> bool:
        together.wait()
        try:
            return job_runs.claim(database, NIGHT, NOW_US)
        finally:
            database.release()

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(claim, range(8))) == [False] * 7 + [True]


def test_of_many_who_work_at_once_each_chunk_has_one(database: Database) -> None:
    job, together = claimed(database), threading.Barrier(6)

    def go() -> None:
        together.wait()
        job_runs.plan(database, job, NIGHT, NOW_US)
        while job_runs.run_of(database, NIGHT.job, NIGHT.slot) is not None:
            for number in job_runs.open_chunks(database, NIGHT):
                job_runs.work(database, job, NIGHT, number, NOW_US)
            job_runs.finish(database, job, NIGHT, NOW_US)
            if not job_runs.open_runs(database):
                break
        database.release()

    with ThreadPoolExecutor(6) as pool:
        for done in [pool.submit(go) for _ in range(6)]:
            done.result()
    assert effects(database) == UNDISTURBED


def test_nothing_is_done_before_the_plan_and_not_finished_before_the_last_chunk(database: Database) -> None:
    job = claimed(database)
    assert job_runs.open_chunks(database, NIGHT) == []
    assert not job_runs.finish(database, job, NIGHT, NOW_US)
    assert job_runs.plan(database, job, NIGHT, NOW_US)
    assert not job_runs.finish(database, job, NIGHT, NOW_US)
    assert effects(database) == [PLANNED]


def test_a_run_nobody_claimed_is_not_there(database: Database) -> None:
    assert job_runs.run_of(database, NIGHT.job, NIGHT.slot) is None
    assert job_runs.progress_of(database, NIGHT.job, NIGHT.slot) is None
    assert not job_runs.plan(database, CountingJob(database), NIGHT, NOW_US)


def test_without_customers_a_run_is_done_after_its_plan(database: Database) -> None:
    assert job_runs.claim(database, NIGHT, NOW_US)
    do_all(database, CountingJob(database, chunks=0))
    assert effects(database) == [PLANNED, FINISHED]


def test_a_failure_inside_a_chunk_keeps_nothing_of_it(database: Database) -> None:
    assert job_runs.claim(database, NIGHT, NOW_US)

    def fail(_: object) -> None:
        raise ValueError("secret-id")

    failing = CountingJob(database, fail)
    assert job_runs.plan(database, failing, NIGHT, NOW_US)
    with pytest.raises(ValueError, match="secret"):
        job_runs.work(database, failing, NIGHT, 2, NOW_US)
    assert effects(database) == [PLANNED]
    do_all(database, CountingJob(database))
    assert effects(database) == UNDISTURBED


def test_whoever_marks_a_chunk_second_keeps_nothing(database: Database) -> None:
    """Correctness does not rest on the lock: here somebody does the chunk in spite of it."""
    job = claimed(database)
    job_runs.plan(database, job, NIGHT, NOW_US)

    def overtaken(_: object) -> None:
        sql = "UPDATE job_chunk SET done_us = 1 WHERE job = ? AND slot = ? AND number = 3"
        database.execute(sql, (NIGHT.job, NIGHT.slot))

    assert not job_runs.work(database, CountingJob(database, overtaken), NIGHT, 3, NOW_US)
    assert effects(database) == [PLANNED]


def test_a_job_that_forgets_to_mark_its_chunk_is_a_failure(database: Database) -> None:
    class Forgetful(CountingJob):
        def work(self, *_: object) -> None:
            pass

    claimed(database)
    job = Forgetful(database)
    assert job_runs.plan(database, job, NIGHT, NOW_US)
    with pytest.raises(RuntimeError, match="did not say"):
        job_runs.work(database, job, NIGHT, 0, NOW_US)


def test_a_chunk_in_work_elsewhere_is_left_alone_and_given_back_when_that_process_is_gone(
    postgres_storage: Storage, migrated_url: str
) -> None:
    database = postgres_storage.database
    job = claimed(database)
    job_runs.plan(database, job, NIGHT, NOW_US)
    elsewhere = open_database(migrated_url)
    key = f"{NIGHT.job} {NIGHT.slot}"
    assert elsewhere.query("SELECT pg_try_advisory_lock(hashtext(?), 1)", (key,)) == [(True,)]
    assert not job_runs.work(database, job, NIGHT, 1, NOW_US)
    assert job_runs.work(database, job, NIGHT, 2, NOW_US)
    elsewhere.release()
    wait_until(lambda: job_runs.work(database, job, NIGHT, 1, NOW_US))


def test_a_run_somebody_plans_right_now_is_left_to_them(postgres_storage: Storage, migrated_url: str) -> None:
    database, elsewhere = postgres_storage.database, open_database(migrated_url)
    job = claimed(database)
    with elsewhere.transaction():
        elsewhere.execute("SELECT 1 FROM job_run FOR UPDATE")
        assert not job_runs.plan(database, job, NIGHT, NOW_US)
    do_all(database, job)
    elsewhere.release()


def test_whoever_asks_for_the_end_too_early_holds_nothing_up(postgres_storage: Storage, migrated_url: str) -> None:
    database, elsewhere = postgres_storage.database, open_database(migrated_url)
    job = claimed(database)
    with elsewhere.transaction():
        assert not job_runs.finish(elsewhere, job, NIGHT, NOW_US)
        assert job_runs.plan(database, job, NIGHT, NOW_US)
    elsewhere.release()


def test_a_database_that_goes_away_in_a_chunk_keeps_nothing_of_it(
    postgres_storage: Storage, postgres: PrivatePostgres
) -> None:
    database = postgres_storage.database
    claimed(database)
    failing = CountingJob(database, lambda _: end_connections(postgres))
    assert job_runs.plan(database, failing, NIGHT, NOW_US)
    with pytest.raises(Outage):
        job_runs.work(database, failing, NIGHT, 0, NOW_US)
    assert effects(database) == [PLANNED]
    do_all(database, CountingJob(database))
    assert effects(database) == UNDISTURBED


def test_days_go_in_order_unless_the_earlier_one_fails(database: Database) -> None:
    today = NIGHT._replace(slot="2026-11-25T03:15", as_of=date(2026, 11, 25))
    job = claimed(database)
    assert job_runs.claim(database, today, NOW_US)
    assert not job_runs.plan(database, job, today, NOW_US)
    job_runs.fail(database, NIGHT, "ValueError", NOW_US)
    assert job_runs.plan(database, job, today, NOW_US)


@pytest.mark.parametrize(
    ("failures", "quiet_s", "rung"),
    [
        (0, 4, False),
        (0, 6, True),
        (0, -4, False),
        (0, -6, True),
        (1, 9, False),
        (1, 11, True),
        (50, 319, False),
        (50, 321, True),
    ],
)
def test_a_run_is_rung_when_nothing_was_done_for_the_grace_which_doubles_with_every_failure(
    database: Database, failures: int, quiet_s: int, rung: bool
) -> None:
    """An activity in the future is one of a clock that was wrong."""
    claimed(database)
    for _ in range(failures):
        job_runs.fail(database, NIGHT, "ValueError", NOW_US)
    found = job_runs.unanswered_runs(database, NOW_US + quiet_s * SECOND, 5 * SECOND)
    assert found == ([NIGHT] if rung else [])


def test_a_chunk_done_is_a_sign_of_life(database: Database) -> None:
    job = claimed(database)
    job_runs.plan(database, job, NIGHT, NOW_US)
    job_runs.work(database, job, NIGHT, 0, NOW_US + 8 * SECOND)
    assert job_runs.unanswered_runs(database, NOW_US + 12 * SECOND, 5 * SECOND) == []
    assert job_runs.unanswered_runs(database, NOW_US + 14 * SECOND, 5 * SECOND) == [NIGHT]


def test_progress_is_counted_and_told(database: Database) -> None:
    job = claimed(database)

    def told() -> str:
        return night_text(nights_view(database)[NIGHT.job])

    assert told() == "claimed, as of 2026-11-24; no worker has begun"
    job_runs.plan(database, job, NIGHT, NOW_US)
    for number in (2, 4):
        job_runs.work(database, job, NIGHT, number, NOW_US)
    assert told() == "running, as of 2026-11-24: 2 of 5 parts, 20 customers examined, 6 rows changed"
    job_runs.fail(database, NIGHT, "ValueError at fold.py:3", NOW_US)
    assert told().endswith("6 rows changed; 1 failures, the last: ValueError at fold.py:3")
    assert nights_view(database)[NIGHT.job]["state"] == "failing"
    for number in (0, 1, 3):
        job_runs.work(database, job, NIGHT, number, NOW_US)
    assert job_runs.finish(database, job, NIGHT, NOW_US + SECOND)
    progress = job_runs.progress_of(database, NIGHT.job, NIGHT.slot)
    assert progress is not None
    assert night_figures(progress) == {
        "job": "counting",
        "slot": "2026-11-24T03:15",
        "as_of": "2026-11-24",
        "dry_run": False,
        "state": "done",
        "claimed_at": iso(NOW_US),
        "done_at": iso(NOW_US + SECOND),
        "chunks": 5,
        "chunks_done": 5,
        "customers_examined": 50,
        "rows_changed": 10,
        "failures": 1,
        "error": None,
    }


def test_the_chunks_of_earlier_dates_go_when_a_run_is_done_and_what_they_came_to_stays(database: Database) -> None:
    job, days = (
        CountingJob(database),
        {day: NIGHT._replace(slot=f"{day}", as_of=date(2026, 11, day)) for day in (1, 2, 3)},
    )
    dry = NIGHT._replace(slot="dry", as_of=date(2026, 12, 1), dry_run=True)
    for run in (days[2], dry, days[3], days[1]):
        assert job_runs.claim(database, run, NOW_US)
        assert job_runs.plan(database, job, run, NOW_US)
        for number in job_runs.open_chunks(database, run):
            assert job_runs.work(database, job, run, number, NOW_US)
        assert job_runs.finish(database, job, run, NOW_US)
    assert database.query("SELECT DISTINCT slot FROM job_chunk ORDER BY slot") == [("1",), ("3",)]
    for run in (*days.values(), dry):
        progress = job_runs.progress_of(database, run.job, run.slot)
        assert progress is not None
        assert progress[6:] == (CHUNKS, CHUNKS, 10 * CHUNKS, sum(range(CHUNKS)))


@pytest.mark.parametrize(
    ("as_of", "dry_run", "wrong"),
    [
        (date(1969, 12, 31), False, "no date of business"),
        (date(9999, 12, 31), True, "no date of business"),
        (date(1970, 1, 1), False, None),
        (TODAY, False, None),
        (TODAY + timedelta(1), False, None),  # hosts may disagree about the date
        (TODAY + timedelta(2), False, "lies ahead"),
        (TODAY + timedelta(2), True, None),
    ],
)
def test_a_run_is_for_a_date_that_has_begun(as_of: date, dry_run: bool, wrong: str | None) -> None:
    run = NIGHT._replace(as_of=as_of, dry_run=dry_run)
    with nullcontext() if wrong is None else pytest.raises(UsageError, match=wrong):
        job_runs.require_begun(run, NOW_US, ZoneInfo("UTC"))


def test_the_last_run_of_a_job_is_the_newest_real_one(database: Database) -> None:
    claimed(database)
    later = NIGHT._replace(slot="2026-11-25T03:15")
    assert job_runs.claim(database, later, NOW_US + SECOND)
    assert job_runs.claim(database, NIGHT._replace(slot="dry", dry_run=True), NOW_US + 2 * SECOND)
    assert {job: last.run for job, last in job_runs.last_runs(database).items()} == {NIGHT.job: later}


def test_a_database_knows_when_it_was_made(database: Database) -> None:
    made = job_runs.first_migrated(database)
    assert made.tzinfo is not None
    assert made <= datetime.now(UTC)
