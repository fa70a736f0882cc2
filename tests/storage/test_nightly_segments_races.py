"""Nights while others write, mostly on PostgreSQL, where several can at once [R6, R7, C8]."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date, timedelta

import pytest

from customer_actors.domain.routing import SEGMENTATION, STATS
from customer_actors.storage import job_runs
from customer_actors.storage.job_runs import NightlyJob, Run
from customer_actors.storage.nightly_credit import NightlyCredit
from customer_actors.storage.nightly_segments import NightlySegments
from customer_actors.storage.opening import open_database
from customer_actors.storage.segmentation import SegmentationStore, keep_cuts, newest_cuts
from tests.model.examples import DAY_US, order, payment
from tests.servers.process import wait_until
from tests.storage import credit_nights
from tests.storage.nights import (
    TOMORROW,
    TOMORROW_US,
    assert_each_row_agrees_with_its_inputs,
    crowd,
    night,
    segments,
)
from tests.storage.support import NOW_US, RULES, TODAY, Storage


def in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def waiting_for_locks(storage: Storage) -> int:
    count: int = storage.value("SELECT count(*) FROM pg_locks WHERE NOT granted")
    return count


def test_nobody_scores_by_older_cuts_once_a_snapshot_is_published(postgres_storage: Storage) -> None:
    """A bell that read the old cuts must be through before the chunks look."""
    storage = postgres_storage
    storage.settle(*crowd())
    other = Storage(open_database(str(storage.database.engine.database)))
    job, run = NightlySegments(other.database, RULES), Run("segments", "s", TOMORROW)
    planned = threading.Event()

    def plan() -> None:
        with other.database.transaction():
            job.plan(run, TOMORROW_US)
        planned.set()
        other.database.release()

    with storage.database.transaction():  # a bell's round
        keep_cuts(storage.database)
        assert newest_cuts(storage.database, "org-1").number is None
        thread = in_thread(plan)
        wait_until(lambda: waiting_for_locks(storage) == 1, 10)
        assert not planned.is_set()
    thread.join(10)
    assert planned.is_set()
    assert newest_cuts(storage.database, "org-1").as_of == TOMORROW


def test_nights_of_two_dates_at_once_end_as_the_later_one(storage: Storage) -> None:
    """Whichever comes first: the earlier date's never moves a row, or an account, back."""
    storage.settle(*crowd(), *(m for name in ("late", "later") for m in credit_nights.late(name)))
    storage.settle(*credit_nights.of("paid", *credit_nights.late("paid"), payment("P", "60")))
    dates = (credit_nights.SUSPENDED_FROM - timedelta(1), credit_nights.SUSPENDED_FROM)
    together = threading.Barrier(4)

    def run_the_night(job: NightlyJob, as_of: date) -> None:
        run = Run(job.name, f"{as_of}", as_of)
        now_us = credit_nights.now_of(run)
        together.wait()

        def done() -> bool:
            if job_runs.plan(storage.database, job, run, now_us):
                for number in job_runs.open_chunks(storage.database, run):
                    job_runs.work(storage.database, job, run, number, now_us)
            return job_runs.finish(storage.database, job, run, now_us)

        assert job_runs.claim(storage.database, run, now_us)
        wait_until(done, 60)
        storage.database.release()

    with ThreadPoolExecutor(4) as pool:
        jobs: tuple[NightlyJob, ...] = (
            NightlySegments(storage.database, RULES, 30),
            NightlyCredit(storage.stores(), 1),
        )
        for night_over in [pool.submit(run_the_night, job, as_of) for job in jobs for as_of in dates]:
            night_over.result()
    assert job_runs.open_runs(storage.database) == []
    after = segments(storage.database)
    storage.database.execute("UPDATE customer_segment SET position = 0")
    later_us = credit_nights.now_of(Run("segments", "", dates[1]))
    storage.advance(SEGMENTATION, now_us=later_us)  # each one by a bell, with the same cuts on the later date
    assert segments(storage.database) == after
    status = "SELECT c.customer_id, s.status FROM customer c JOIN credit_state s ON s.customer = c.id "
    assert dict(storage.database.query(status + "WHERE s.status IS NOT NULL")) == {
        "late": "suspended",
        "later": "suspended",
        "paid": "active",
    }


def test_an_event_that_holds_the_row_goes_first(postgres_storage: Storage) -> None:
    storage = postgres_storage
    storage.settle(*crowd())
    customer = storage.number("c119")  # whom the night rescores
    other = Storage(open_database(str(storage.database.engine.database)))

    def run_the_night() -> None:
        night(other, TODAY + timedelta(100), NOW_US + 100 * DAY_US, chunk_customers=1_000)
        other.database.release()

    with storage.database.transaction():
        storage.database.execute("SELECT 1 FROM customer_segment WHERE customer = ? FOR UPDATE", (customer,))
        thread = in_thread(run_the_night)
        wait_until(lambda: waiting_for_locks(storage) == 1, 10)
        storage.database.execute("UPDATE stats_state SET total_spent_minor = 1 WHERE customer = ?", (customer,))
    thread.join(10)
    assert segments(storage.database)["org-1", "c119"][2] == 1


def test_a_customer_whose_bell_found_the_row_locked_is_not_stranded(
    postgres_storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = postgres_storage
    storage.settle(*crowd())
    other = Storage(open_database(str(storage.database.engine.database)))
    write = NightlySegments._write

    def rung_while_locked(job: NightlySegments, *arguments: object) -> int:
        changed = write(job, *arguments)  # type: ignore[arg-type]
        other.receive(*(order(f"{i}-x", "70000", customer_id=f"c{i}") for i in range(120)))
        other.advance(STATS)
        left = SegmentationStore(other.database, RULES)
        left.round(left.all_behind(), TOMORROW_US)
        assert left.all_behind()  # the bell is answered, but not for the rows the night holds
        return changed

    monkeypatch.setattr(NightlySegments, "_write", rung_while_locked)
    night(storage, chunk_customers=1_000)
    assert storage.stores().of(SEGMENTATION).all_behind() == []
    assert {row[2] for row in segments(storage.database).values()} == {5}
    assert_each_row_agrees_with_its_inputs(storage)
    other.database.release()
