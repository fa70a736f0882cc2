"""The nightly jobs as Dramatiq actors: a message plans a run, further ones do its chunks, the last one finishes it.

As everywhere the database is the truth: a message may be lost, doubled or reordered. The sweep rings what is open.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, Final

import dramatiq
import structlog

from customer_actors.actors.pipeline import BROKER_ERRORS, Pipeline
from customer_actors.errors import Outage
from customer_actors.storage import job_runs
from customer_actors.storage.actors import Stores
from customer_actors.storage.job_runs import NightlyJob, Run
from customer_actors.storage.nightly_credit import NightlyCredit
from customer_actors.storage.nightly_segments import NightlySegments

NIGHTLY: Final = "nightly"
CHUNK: Final = "nightly_chunk"
QUEUES: Final = (NIGHTLY, CHUNK)
_AFTER_THE_BELLS: Final = 10
"""Dramatiq's priority, lowest first: within a worker, what happens now goes before the night's work."""

log = structlog.get_logger(__name__)


def nightly_jobs(stores: Stores) -> dict[str, NightlyJob]:
    """Every nightly job by name."""
    jobs: tuple[NightlyJob, ...] = (NightlySegments(stores.database, stores.current_rules), NightlyCredit(stores))
    return {job.name: job for job in jobs}


def ring_night(broker: dramatiq.Broker, run: Run) -> None:
    """Have the workers go on with a run. Never raises for a broker that is away: the next sweep rings."""
    _send(broker, NIGHTLY, run.job, run.slot)


def _send(broker: dramatiq.Broker, actor: str, *arguments: object) -> None:
    message: dramatiq.Message[Any] = dramatiq.Message(
        queue_name=actor, actor_name=actor, args=arguments, kwargs={}, options={}
    )
    try:
        broker.enqueue(message)
    except BROKER_ERRORS as error:
        log.warning("not rung", actor=actor, error=type(error).__name__, then="the next sweep rings")


class Nights:
    """Declares the two actors on the pipeline's broker."""

    def __init__(self, pipeline: Pipeline, jobs: Mapping[str, NightlyJob]) -> None:
        self._broker = pipeline.broker
        self._database = pipeline.stores.database
        self._clock = pipeline.clock
        self._jobs = jobs
        for name, does in ((NIGHTLY, self._night), (CHUNK, self._chunk)):
            dramatiq.Actor(
                self._scoped(does),
                broker=self._broker,
                actor_name=name,
                queue_name=name,
                priority=_AFTER_THE_BELLS,
                options={},
            )

    def ring_open(self) -> int:
        """Ring every run that is not done, as at start-up; returns how many."""
        return self._ring(job_runs.open_runs(self._database))

    def sweep(self, grace_us: int, busy: Callable[[str], bool]) -> int:
        """Ring the runs nobody works on: no message waits and nothing was done for the grace; returns how many."""
        runs = job_runs.unanswered_runs(self._database, self._clock(), grace_us)
        return self._ring(runs) if runs and not any(busy(queue) for queue in QUEUES) else 0

    def _ring(self, runs: list[Run]) -> int:
        for run in runs:
            ring_night(self._broker, run)
        return len(runs)

    def _night(self, job: str, slot: str) -> None:
        """Plan the run if it is not, and have its open chunks done."""
        found = self._found(job, slot)
        if found is None:
            return
        work, run = found
        with self._failures_noted(run):
            if not job_runs.plan(self._database, work, run, self._clock()):
                return
            for number in job_runs.open_chunks(self._database, run):
                _send(self._broker, CHUNK, job, slot, number)
            self._finish(work, run)

    def _chunk(self, job: str, slot: str, number: int) -> None:
        """Do one chunk, and finish the run after the last one."""
        found = self._found(job, slot)
        if found is None:
            return
        work, run = found
        with self._failures_noted(run, number):
            if job_runs.work(self._database, work, run, number, self._clock()):
                log.debug("chunk done", job=job, slot=slot, chunk=number)
            self._finish(work, run)

    def _finish(self, work: NightlyJob, run: Run) -> None:
        if job_runs.finish(self._database, work, run, self._clock()):
            log.info("night done", job=run.job, slot=run.slot)

    def _found(self, job: str, slot: str) -> tuple[NightlyJob, Run] | None:
        """The job and the run a message names; None when there is nothing to do here."""
        run = job_runs.run_of(self._database, job, slot)
        if run is None:
            return None  # claimed in a transaction that was lost with its server
        if job not in self._jobs:
            log.warning("no such job", job=job, then="workers of the version that has it will do it")
            return None
        return self._jobs[job], run

    def _scoped(self, work: Callable[..., None]) -> Callable[..., None]:
        @wraps(work)
        def scoped(*arguments: Any) -> None:
            with self._database.scope():
                work(*arguments)

        return scoped

    @contextmanager
    def _failures_noted(self, run: Run, chunk: int | None = None) -> Iterator[None]:
        """An outage has the message tried again; anything else is noted for `status`, and the sweep tries again."""
        try:
            yield
        except Outage:
            raise
        except Exception as error:
            text = _kind_and_place(error)
            log.error("night failed", job=run.job, slot=run.slot, chunk=chunk, error=text, then="tried again")
            job_runs.fail(self._database, run, text, self._clock())


def _kind_and_place(error: Exception) -> str:
    """The error without its text, which may name a customer or an amount."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    place = f" at {Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}" if trace else ""
    return type(error).__name__ + place
