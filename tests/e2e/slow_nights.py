"""Processes made to be killed: workers whose nights are cut small and slow, a scheduler that dies at its claim."""

import os
import signal
import sys
import threading
from typing import Any, Final

from customer_actors.actors import main, nightly
from customer_actors.storage import job_runs
from customer_actors.storage.actors import Stores
from customer_actors.storage.database import Database
from customer_actors.storage.job_runs import Chunk, Done, NightlyJob, Run
from customer_actors.storage.nightly_credit import NightlyCredit
from customer_actors.storage.nightly_segments import NightlySegments

CHUNK_CUSTOMERS: Final = 100
_PAUSE_S: Final = 0.1


def jobs(stores: Stores) -> dict[str, NightlyJob]:
    """Both nights in small chunks."""
    return {
        "segments": NightlySegments(stores.database, stores.current_rules, CHUNK_CUSTOMERS),
        "credit": NightlyCredit(stores, CHUNK_CUSTOMERS),
    }


class _Slow:
    """A job that takes its time before each chunk is done, inside and outside of its transactions."""

    def __init__(self, job: NightlyJob) -> None:
        self.name = job.name
        self.plan = job.plan
        self.finish = job.finish
        self._job = job

    def work(self, run: Run, chunk: Chunk, now_us: int, done: Done) -> None:
        def slow(examined: int, changed: int) -> None:
            threading.Event().wait(_PAUSE_S)
            done(examined, changed)
            threading.Event().wait(_PAUSE_S)

        self._job.work(run, chunk, now_us, slow)


def setup() -> None:
    """What `dramatiq tests.e2e.slow_nights:setup` runs."""
    nightly.nightly_jobs = lambda stores: {name: _Slow(job) for name, job in jobs(stores).items()}
    main.setup()


def _dying_scheduler() -> None:
    """The scheduler, killed by itself right after its claim, won or lost, or on seeing that it comes too late."""
    from scheduler.__main__ import main as run_scheduler

    whole, look = job_runs.claim, job_runs.run_of

    def claim(database: Database, run: Run, now_us: int) -> bool:
        whole(database, run, now_us)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError

    def run_of(database: Database, job: str, slot: str) -> Any:
        found = look(database, job, slot)
        if found is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    job_runs.claim, job_runs.run_of = claim, run_of
    run_scheduler()


def _embedded() -> None:
    """`customer-actors run -` with slow nights."""
    from customer_actors.cli import main as cli

    nightly.nightly_jobs = lambda stores: {name: _Slow(job) for name, job in jobs(stores).items()}
    cli(["run", "-"])


if __name__ == "__main__":
    {"scheduler": _dying_scheduler, "embedded": _embedded}[sys.argv.pop()]()
