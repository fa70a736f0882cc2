"""The nightly jobs as data, their slots, and in words when they are due."""

from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from apscheduler.triggers.cron import CronTrigger

from customer_actors.actors.nightly import NIGHTLY
from customer_actors.errors import UsageError
from customer_actors.settings import Settings
from customer_actors.storage.job_runs import Run


class Job(NamedTuple):
    """Something to be done at times an operator chooses."""

    name: str
    cron: str
    """The field of `Settings` that holds its cron expression, in the business time zone."""
    message: str
    """The Dramatiq actor, and its queue, that gets (name, slot)."""
    does: str
    """In one sentence, for `list`."""


JOBS: Final[tuple[Job, ...]] = (
    Job("segments", "nightly_segments_cron", NIGHTLY, "Rescores every customer with fresh cuts [R2, R7]."),
    Job("credit", "nightly_credit_cron", NIGHTLY, "Reconciles every credit account [C7, C8]."),
)
"""Every nightly job there is."""

_FIRST_LOOK: Final = timedelta(minutes=10)
_GAP: Final = timedelta(hours=2)
"""No daylight saving change leaves out more. A search has to begin before it to find the times that are left out."""


def job_named(name: str, jobs: Sequence[Job] = JOBS) -> Job:
    """The job of this name. Raises UsageError naming those there are."""
    for job in jobs:
        if job.name == name:
            return job
    raise UsageError(f"there is no job {name!r}; the jobs are {', '.join(job.name for job in jobs)}")


def trigger_of(job: Job, settings: Settings) -> CronTrigger:
    """When a job is due; the zone is explicit, for without one APScheduler takes the host's."""
    return CronTrigger.from_crontab(getattr(settings, job.cron), timezone=ZoneInfo(settings.timezone))


def next_due(job: Job, settings: Settings, now: datetime) -> datetime | None:
    """When the job is due next, after `now` (aware); None for a date that never comes."""
    found: datetime | None = trigger_of(job, settings).get_next_fire_time(None, now)
    return found


def due_run(job: Job, settings: Settings, now: datetime) -> tuple[Run, datetime] | None:
    """The run of the newest slot that was due within the catch-up window before `now`, and the moment it was due.

    Of several missed slots only the newest counts. A slot's name is the wall time without offset, so the hour that
    comes twice in autumn names its slots twice; a time that spring leaves out is due where the clock would have shown
    it, under the name it never showed [G17].
    """
    window, trigger = timedelta(minutes=settings.catch_up), trigger_of(job, settings)
    now = now.astimezone(UTC)  # two times of one zone are compared by the wall, whatever their offsets
    for back in sorted({min(_FIRST_LOOK, window), window}):
        due = _last_between(trigger, now - back - _GAP, now)
        if due is not None and now - due.astimezone(UTC) <= window:
            return Run(job.name, slot_of(due), due.date()), due.astimezone(UTC)
    return None


def _last_between(trigger: CronTrigger, start: datetime, end: datetime) -> datetime | None:
    """The last time the trigger fires in these bounds, given in UTC, which has no gaps; both are included."""
    last, moment = None, start
    while (due := trigger.get_next_fire_time(None, moment)) is not None and due.astimezone(UTC) <= end:
        last, moment = due, due.astimezone(UTC) + timedelta(microseconds=1)
    return last


def slot_of(due: datetime) -> str:
    """The slot of a moment in the business time zone: its wall time, such as 2026-11-24T03:15."""
    return due.strftime("%Y-%m-%dT%H:%M")


def run_by_hand(job: Job, settings: Settings, now: datetime, as_of: date | None, dry_run: bool) -> Run:
    """The run a person or a system cron asks for.

    With a date, the slot is that date. Without one it is the slot that was due within the catch-up window, so that a
    CronJob and any scheduler share it; when none was due, it is today. A dry run takes no slot away from a real one.
    """
    today = now.astimezone(ZoneInfo(settings.timezone))
    if dry_run:
        return Run(job.name, f"dry run {today:%Y-%m-%dT%H:%M:%S.%f}", as_of or today.date(), dry_run=True)
    if as_of is None and (due := due_run(job, settings, now)) is not None:
        return due[0]
    date_ = as_of or today.date()
    return Run(job.name, date_.isoformat(), date_)
