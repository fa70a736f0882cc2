"""The nights on Dramatiq with a real worker: lost, doubled and malformed messages, failures, outages, kills."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import ConnectionClosed
from structlog.testing import capture_logs

from customer_actors.actors.broker import make_broker
from customer_actors.actors.nightly import CHUNK, NIGHTLY, QUEUES, Nights, nightly_jobs, ring_night
from customer_actors.actors.pipeline import Pipeline, now_us
from customer_actors.actors.sweeper import Sweeper
from customer_actors.errors import Outage
from customer_actors.storage import job_runs
from customer_actors.storage.job_runs import Chunk, Progress
from scheduler.jobs import JOBS
from tests.servers import PrivatePostgres
from tests.servers.process import wait_until
from tests.storage.counting import CHUNKS, NIGHT, PLANNED, UNDISTURBED, CountingJob, effects
from tests.storage.support import Storage
from tests.storage.test_outage import end_connections


class Service:
    """Workers with one nightly job."""

    def __init__(self, storage: Storage, job: CountingJob) -> None:
        self.storage = storage
        self.broker = make_broker(None)
        self.pipeline = Pipeline(self.broker, storage.stores())
        self.nights = Nights(self.pipeline, {job.name: job})

    def ring(self) -> None:
        ring_night(self.broker, NIGHT)

    def progress(self) -> Progress:
        found = job_runs.progress_of(self.storage.database, NIGHT.job, NIGHT.slot)
        assert found is not None
        return found

    def done(self) -> bool:
        return self.progress().done_us is not None

    def idle(self) -> bool:
        assert isinstance(self.broker, StubBroker)
        return not any(self.broker.queues[name].unfinished_tasks for name in QUEUES)

    def waiting(self, queue: str) -> int:
        assert isinstance(self.broker, StubBroker)
        ready: int = self.broker.queues[queue].qsize()
        return ready


@contextmanager
def running(storage: Storage, job: CountingJob, sweep_s: float | None = None) -> Iterator[Service]:
    service = Service(storage, job)
    if sweep_s is not None:
        service.broker.add_middleware(Sweeper(service.pipeline, sweep_s, nights=service.nights))
    worker = dramatiq.Worker(service.broker, worker_threads=4, worker_timeout=20)
    worker.start()
    try:
        yield service
    finally:
        worker.stop(timeout=10_000)


@pytest.fixture
def claimed(storage: Storage) -> Storage:
    assert job_runs.claim(storage.database, NIGHT, now_us())
    return storage


def test_every_job_the_scheduler_knows_is_done_by_the_workers(storage: Storage) -> None:
    assert set(nightly_jobs(storage.stores())) == {job.name for job in JOBS}
    assert {job.message for job in JOBS} == {NIGHTLY}


def test_one_message_does_the_whole_night(claimed: Storage) -> None:
    with running(claimed, CountingJob(claimed.database)) as service:
        service.ring()
        wait_until(service.done)
    assert effects(claimed.database) == UNDISTURBED
    assert service.progress()[4:] == (0, None, CHUNKS, CHUNKS, 10 * CHUNKS, sum(range(CHUNKS)))


def test_doubled_messages_and_those_after_the_end_do_nothing(claimed: Storage) -> None:
    with running(claimed, CountingJob(claimed.database)) as service:
        for _ in range(10):
            service.ring()
        wait_until(service.done)
        for _ in range(10):
            service.ring()
        wait_until(service.idle)
    assert effects(claimed.database) == UNDISTURBED


def test_a_night_whose_message_was_lost_costs_one_sweep(claimed: Storage) -> None:
    with running(claimed, CountingJob(claimed.database), sweep_s=0.05) as service:
        wait_until(service.done)
    assert effects(claimed.database) == UNDISTURBED


def test_what_an_earlier_process_left_is_finished_at_start_up(claimed: Storage) -> None:
    """Planned, one chunk done, and everything in the queues gone."""
    job = CountingJob(claimed.database)
    job_runs.plan(claimed.database, job, NIGHT, now_us())
    job_runs.work(claimed.database, job, NIGHT, 1, now_us())
    with running(claimed, job, sweep_s=3_600) as service:
        wait_until(service.done)
    assert effects(claimed.database) == UNDISTURBED


def test_without_customers_the_night_is_done_at_once(claimed: Storage) -> None:
    with running(claimed, CountingJob(claimed.database, chunks=0)) as service:
        service.ring()
        wait_until(service.done)


def test_a_failing_part_is_noted_without_its_text_and_the_others_go_on_until_it_is_mended(claimed: Storage) -> None:
    broken = True

    def fail(chunk: Chunk) -> None:
        if broken and chunk.number == 3:
            raise ValueError("secret-id")

    with running(claimed, CountingJob(claimed.database, fail), sweep_s=0.05) as service, capture_logs() as logs:
        service.ring()
        wait_until(lambda: service.progress().chunks_done == CHUNKS - 1 and service.progress().failures >= 2)
        error = service.progress().error
        assert error is not None
        assert error.startswith("ValueError at test_nightly.py:")
        broken = False
        wait_until(service.done)
    assert effects(claimed.database) == UNDISTURBED
    assert (service.progress().error, service.progress().failures >= 2) == (None, True)
    assert "secret-id" not in str(logs)


def test_an_outage_is_tried_again_and_is_no_failure(postgres_storage: Storage, postgres: PrivatePostgres) -> None:
    storage, left = postgres_storage, [1]
    assert job_runs.claim(storage.database, NIGHT, now_us())

    def end(chunk: Chunk) -> None:
        if chunk.number == 2 and left:
            left.pop()
            end_connections(postgres)

    with running(storage, CountingJob(storage.database, end)) as service:
        service.ring()
        wait_until(lambda: not left)
        storage.database.release()  # this thread's connection was ended as well

        def done() -> bool:
            try:
                return service.done()
            except Outage:
                return False

        wait_until(done, 90)  # every thread's connection was ended, so the pauses add up
    assert effects(storage.database) == UNDISTURBED
    assert service.progress().failures == 0


def test_a_running_night_is_rung_gently(claimed: Storage) -> None:
    """While messages wait, or something was done within the grace, ringing would only lengthen the queue."""
    service = Service(claimed, CountingJob(claimed.database))
    assert service.nights.sweep(60_000_000, lambda _: False) == 0
    assert service.nights.sweep(0, lambda queue: queue == CHUNK) == 0
    assert service.waiting(NIGHTLY) == 0
    assert service.nights.sweep(0, lambda _: False) == 1
    assert service.waiting(NIGHTLY) == 1


def test_a_chunk_in_work_is_not_done_by_a_second_message(claimed: Storage) -> None:
    go_on, begun = threading.Event(), []

    def wait(chunk: Chunk) -> None:
        begun.append(chunk.number)
        go_on.wait(20)

    with running(claimed, CountingJob(claimed.database, wait, chunks=1)) as service:
        service.ring()
        wait_until(lambda: begun == [0])
        for _ in range(5):
            service.broker.enqueue(message(CHUNK, NIGHT.job, NIGHT.slot, 0))
        wait_until(lambda: service.waiting(CHUNK) == 0)
        go_on.set()
        wait_until(service.done)
        wait_until(service.idle)
    assert begun == [0]


def message(queue: str, *arguments: Any) -> dramatiq.Message[Any]:
    return dramatiq.Message(queue, queue, arguments, {}, {})


@pytest.mark.parametrize(
    ("queue", "arguments"),
    [
        (NIGHTLY, ("no such job", NIGHT.slot)),
        (NIGHTLY, (NIGHT.job, "no such slot")),
        (NIGHTLY, ()),
        (CHUNK, (NIGHT.job, NIGHT.slot, 99)),
        (CHUNK, ("no such job", NIGHT.slot, 1)),
        (CHUNK, (NIGHT.job, NIGHT.slot)),
    ],
)
def test_a_message_that_names_nothing_does_nothing(claimed: Storage, queue: str, arguments: tuple[Any, ...]) -> None:
    with running(claimed, CountingJob(claimed.database)) as service:
        for _ in range(8):
            service.broker.enqueue(message(queue, *arguments))
        service.ring()
        wait_until(service.done)
    assert effects(claimed.database) == UNDISTURBED


def test_a_job_of_a_newer_version_is_left_to_its_workers(storage: Storage) -> None:
    newer = NIGHT._replace(job="newer")
    job_runs.claim(storage.database, newer, now_us())
    with running(storage, CountingJob(storage.database)) as service, capture_logs() as logs:
        ring_night(service.broker, newer)
        wait_until(lambda: any(line["event"] == "no such job" for line in logs))
    assert [run.job for run in job_runs.open_runs(storage.database)] == ["newer"]
    assert effects(storage.database) == []


class Away(StubBroker):
    """Takes declarations, refuses messages."""

    def enqueue(self, message: Any, *, delay: int | None = None) -> Any:
        raise ConnectionClosed("away")  # type: ignore[no-untyped-call]


def test_a_broker_that_is_away_is_no_error_for_the_next_sweep_rings() -> None:
    with capture_logs() as logs:
        ring_night(Away(middleware=[]), NIGHT)
    assert [line["event"] for line in logs] == ["not rung"]


def test_a_plan_that_fails_is_noted_and_tried_again(claimed: Storage) -> None:
    class Unplanned(CountingJob):
        broken = True

        def plan(self, *given: Any) -> list[Chunk]:
            chunks = super().plan(*given)
            if self.broken:
                raise ZeroDivisionError
            return chunks

    job = Unplanned(claimed.database)
    with running(claimed, job, sweep_s=0.05) as service:
        service.ring()
        wait_until(lambda: service.progress().failures > 0)
        assert effects(claimed.database) == []
        job.broken = False
        wait_until(service.done)
    assert effects(claimed.database) == UNDISTURBED
    assert PLANNED in UNDISTURBED
