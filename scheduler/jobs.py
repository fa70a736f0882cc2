"""The jobs as data, and the APScheduler that runs them when their cron expression says so."""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from apscheduler.schedulers.blocking import BlockingScheduler
from apscheduler.triggers.cron import CronTrigger

from customer_actors.settings import Settings


class Job(NamedTuple):
    """Something to be done at times an operator chooses."""

    name: str
    cron: str
    """The field of `Settings` that holds its cron expression, in the business time zone."""
    does: str
    """In one sentence, for `list`."""
    send: Callable[[Settings], None]
    """Sends the message that has the workers do it; touches no customer itself."""


JOBS: Final[tuple[Job, ...]] = ()
"""Every job there is; the nightly segments and the nightly reconciliation are not written yet."""


def trigger_of(job: Job, settings: Settings) -> CronTrigger:
    """When a job is due; the zone is explicit, for without one APScheduler takes the host's."""
    return CronTrigger.from_crontab(getattr(settings, job.cron), timezone=ZoneInfo(settings.timezone))


def make_scheduler(settings: Settings, jobs: Sequence[Job] = JOBS) -> BlockingScheduler:
    """A scheduler, not started, that runs these jobs.

    A slot missed by less than the catch-up window still runs, and several missed ones run once [G17].
    """
    scheduler = BlockingScheduler(timezone=ZoneInfo(settings.timezone))
    for job in jobs:
        scheduler.add_job(
            job.send,
            trigger_of(job, settings),
            args=(settings,),
            id=job.name,
            name=job.name,
            coalesce=True,
            misfire_grace_time=settings.catch_up_minutes * 60,
            max_instances=1,
        )
    return scheduler


class Due(NamedTuple):
    """A job with its cron expression and the next moment it is due."""

    job: Job
    cron: str
    next_at: datetime | None


def due_times(settings: Settings, now: datetime, jobs: Sequence[Job] = JOBS) -> Iterator[Due]:
    """When each job runs next after `now` (aware)."""
    for job in jobs:
        yield Due(job, getattr(settings, job.cron), trigger_of(job, settings).get_next_fire_time(None, now))
