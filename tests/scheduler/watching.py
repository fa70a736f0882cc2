"""A scheduler's clock that is set by hand, and what it rang."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

from customer_actors.settings import Settings, load_settings
from customer_actors.storage.database import Database
from customer_actors.storage.job_runs import Run
from scheduler.clock import Clock
from scheduler.jobs import JOBS, Job

SEGMENTS: Final = JOBS[0]
SETTINGS: Final = load_settings({"CUSTOMER_ACTORS_CATCH_UP": "360"})
NIGHT: Final = datetime(2030, 1, 10, 3, 15, tzinfo=UTC)
"""After the database was made."""


class Watch:
    """One scheduler; `rung` are the slots it sent a message for."""

    def __init__(
        self,
        database: Database,
        now: datetime = NIGHT,
        settings: Settings = SETTINGS,
        jobs: Sequence[Job] = (SEGMENTS,),
    ) -> None:
        self.now = now
        self.rung: list[str] = []
        self.clock = Clock(settings, database, self._ring, jobs, lambda: self.now)

    def _ring(self, run: Run) -> None:
        self.rung.append(run.slot)

    def look_at(self, now: datetime) -> None:
        self.now = now
        self.clock.look()
