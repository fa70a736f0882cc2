"""The clock: claims every slot that is due and has its run rung. Any number may run; a slot takes effect once [G17].

APScheduler is punctual. A look every few seconds, timed by a clock that nobody sets, makes up for what was missed while
everything was down, while the database was away, or because the host's time jumped.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Final
from zoneinfo import ZoneInfo

import structlog
from apscheduler.schedulers.background import BackgroundScheduler

from customer_actors.errors import CustomerActorsError
from customer_actors.settings import Settings
from customer_actors.storage import job_runs
from customer_actors.storage.database import Database
from customer_actors.storage.job_runs import Run
from scheduler.jobs import JOBS, Job, due_run, trigger_of

LOOK_S: Final = 5.0

log = structlog.get_logger("scheduler")

Ring = Callable[[Run], object]
"""Tells the workers of a run; may lose it, for they sweep."""


def utc_now() -> datetime:
    return datetime.now(UTC)


def microseconds(moment: datetime) -> int:
    """Microseconds since the epoch."""
    return int(moment.timestamp() * 1_000_000)


class Clock:
    """Claims slots for one process."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        ring: Ring,
        jobs: Sequence[Job] = JOBS,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        self.settings = settings
        self.jobs = jobs
        self._database = database
        self._ring = ring
        self._now = now

    def claim_due(self, job: Job) -> Run | None:
        """Claim the job's newest slot of the catch-up window, and ring; None when there is none or somebody has it.

        A slot from before the database was made was not missed: a new installation begins with its next night.

        Raises:
            Outage: nothing is known to be claimed; the next look tries again.
        """
        now = self._now()
        due = due_run(job, self.settings, now)
        if due is None or due[1] < job_runs.first_migrated(self._database):
            return None
        run = due[0]
        if job_runs.run_of(self._database, job.name, run.slot) is not None:
            return None
        if not job_runs.claim(self._database, run, microseconds(now)):
            return None
        log.info("claimed", job=job.name, slot=run.slot)
        self._ring(run)
        return run

    def look(self) -> None:
        """Claim whatever is due, for every job."""
        for job in self.jobs:
            self.on_time(job)

    def on_time(self, job: Job) -> None:
        """What APScheduler calls: a claim that fails is only late, for the next look makes it."""
        try:
            self.claim_due(job)
        except CustomerActorsError as error:
            log.warning("not claimed", job=job.name, error=str(error), then=f"again in {LOOK_S:g} s")
        except Exception:
            log.exception("not claimed", job=job.name, then=f"again in {LOOK_S:g} s")

    def punctually(self, job: Job) -> None:
        """`on_time`, in a thread of APScheduler's that keeps no connection until tomorrow."""
        self.on_time(job)
        self._database.release()


def make_scheduler(clock: Clock) -> BackgroundScheduler:
    """APScheduler, not started, with every job: coalesced, its grace the catch-up window, nothing stored on disk."""
    settings = clock.settings
    scheduler = BackgroundScheduler(timezone=ZoneInfo(settings.timezone))
    for job in clock.jobs:
        scheduler.add_job(
            clock.punctually,
            trigger_of(job, settings),
            args=(job,),
            id=job.name,
            name=job.name,
            coalesce=True,
            misfire_grace_time=settings.catch_up * 60,
            max_instances=1,
        )
    return scheduler


@contextmanager
def running_clock(clock: Clock, database: Database, sign_of_life: Callable[[], object] | None = None) -> Iterator[None]:
    """Run the clock in threads of its own, with a first look at once, until the block ends.

    `sign_of_life` is called with every look.
    """
    scheduler, over = make_scheduler(clock), threading.Event()

    def look() -> None:
        while True:
            if sign_of_life is not None:
                _guarded(sign_of_life)
            clock.look()
            if over.wait(LOOK_S):
                break
        database.release()

    looking = threading.Thread(target=look, name="nights", daemon=True)
    scheduler.start()
    looking.start()
    try:
        yield
    finally:
        over.set()
        scheduler.shutdown(wait=False)
        looking.join(timeout=1)


def _guarded(work: Callable[[], object]) -> None:
    try:
        work()
    except CustomerActorsError as error:
        log.warning("no sign of life", error=str(error), then=f"again in {LOOK_S:g} s")
