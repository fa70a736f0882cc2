"""The nightly jobs as data, their slots, and in words when they are due."""

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import takewhile
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
_SHIFT: Final = timedelta(hours=2)
"""No daylight saving change moves a clock further."""


def job_named(name: str, jobs: Sequence[Job] = JOBS) -> Job:
    """The job of this name. Raises UsageError naming those there are."""
    for job in jobs:
        if job.name == name:
            return job
    raise UsageError(f"there is no job {name!r}; the jobs are {', '.join(job.name for job in jobs)}")


def trigger_of(job: Job, settings: Settings) -> CronTrigger:
    """When a job is due; the zone is explicit, for without one APScheduler takes the host's."""
    return CronTrigger.from_crontab(getattr(settings, job.cron), timezone=ZoneInfo(settings.timezone))


def next_due(job: Job, settings: Settings, now: datetime) -> datetime:
    """When the job is due next, after `now` (aware)."""
    zone = ZoneInfo(settings.timezone)
    wall = now.astimezone(zone).replace(tzinfo=None)
    return next(due.astimezone(zone) for due, _ in _slots(job, settings, wall - _SHIFT) if due > now)


def due_run(job: Job, settings: Settings, now: datetime) -> tuple[Run, datetime] | None:
    """The run of the newest slot that was due within the catch-up window before `now`, and the moment it was due.

    Of several missed slots only the newest counts [G17].
    """
    window, now = timedelta(minutes=settings.catch_up), now.astimezone(UTC)  # in UTC an hour is an hour
    for back in sorted({min(_FIRST_LOOK, window), window}):
        found = _last_between(job, settings, now - back, now)
        if found is not None:
            due, wall = found
            return Run(job.name, slot_of(wall), wall.date()), due
    return None


def _last_between(job: Job, settings: Settings, first: datetime, last: datetime) -> tuple[datetime, datetime] | None:
    """The last of the slots that are due between two moments, both included."""
    zone = ZoneInfo(settings.timezone)
    begin, end = (moment.astimezone(zone).replace(tzinfo=None) for moment in (first, last))
    slots = takewhile(lambda slot: slot[1] <= end + _SHIFT, _slots(job, settings, begin - _SHIFT))
    return max((slot for slot in slots if first <= slot[0] <= last), default=None)


def _slots(job: Job, settings: Settings, wall: datetime) -> Iterator[tuple[datetime, datetime]]:
    """When the job is due, in UTC, with what the clock on the wall shows then, from a time on the wall on.

    Counted on the wall, where no time is missing and none comes twice. Of the hour that autumn shows twice the first
    one counts; a time that spring leaves out, be it midnight, is due where the clock would have shown it.
    """
    trigger, zone = CronTrigger.from_crontab(getattr(settings, job.cron), timezone=UTC), ZoneInfo(settings.timezone)
    moment = wall.replace(tzinfo=UTC)
    while (found := trigger.get_next_fire_time(None, moment)) is not None:
        shown = found.replace(tzinfo=None)
        yield shown.replace(tzinfo=zone).astimezone(UTC), shown
        moment = found + timedelta(microseconds=1)


def slot_of(wall: datetime) -> str:
    """The slot of a time in the business time zone: its wall time, such as 2026-11-24T03:15."""
    return wall.strftime("%Y-%m-%dT%H:%M")


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
