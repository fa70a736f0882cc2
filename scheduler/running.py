"""`python -m scheduler run`: one run of a job, for a person, a system cron or a Kubernetes CronJob."""

import json
import sys
import time
from collections.abc import Callable
from datetime import date
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

import click
import structlog

from customer_actors.errors import Outage
from customer_actors.process import Stop
from customer_actors.settings import Settings
from customer_actors.storage import job_runs
from customer_actors.storage.database import Database
from customer_actors.storage.job_runs import Progress, Run
from customer_actors.storage.nights_view import night_figures, night_text
from scheduler.clock import Ring, microseconds, utc_now
from scheduler.jobs import Job, run_by_hand
from scheduler.workers import workers

DONE, FAILED, ALREADY_RAN = 0, 1, 3
STALLED_S: Final = 600.0
"""How long a run that is waited for may make no progress."""
_LOOK_S: Final = 0.2
_SAY_S: Final = 2.0

log = structlog.get_logger("scheduler")


class Wanted(NamedTuple):
    """What the command line asks for."""

    job: Job
    as_of: date | None
    dry_run: bool
    wait: bool
    stalled_s: float
    as_json: bool


def run_job(settings: Settings, database: Database, wanted: Wanted, stop: Stop) -> int:
    """Claim the run and have it done; the exit code.

    Without a broker the work is done in this process, which therefore always waits.

    Raises:
        Outage: the database is away. UsageError: the date lies ahead, or is none of business.
    """
    now = utc_now()
    run = run_by_hand(wanted.job, settings, now, wanted.as_of, wanted.dry_run)
    job_runs.require_begun(run, microseconds(now), ZoneInfo(settings.timezone))
    claimed = job_runs.claim(database, run, microseconds(now))
    before = _progress(database, run)
    if before.done_us is not None:
        _say(f"{run.job} {run.slot}: already ran; name a date with --as-of to run it again")
        _tell(before, wanted.as_json)
        return ALREADY_RAN
    with workers(settings, database) as (ring, _):
        ring(before.run)
        if not wanted.wait and settings.rabbitmq_url is not None:
            _say(f"{run.job} {run.slot}: " + ("the workers have it" if claimed else f"in work, {_text(before)}"))
            _tell(before, wanted.as_json)
            return DONE
        return _wait(database, before, wanted, stop, ring)


def _progress(database: Database, run: Run) -> Progress:
    found = job_runs.progress_of(database, run.job, run.slot)
    assert found is not None, "claimed by us or by somebody else"
    return found


def _wait(database: Database, before: Progress, wanted: Wanted, stop: Stop, ring: Ring) -> int:
    """Wait until the run is done, fails, or makes no progress for too long."""
    run, last, moved_at, said_at = before.run, before, time.monotonic(), 0.0
    while not stop.wait(_LOOK_S):
        seen = _patiently(lambda: _progress(database, run))
        if seen is not None and seen != last:
            last, moved_at = seen, time.monotonic()
        if last.done_us is not None:
            _tell(last, wanted.as_json)
            return DONE
        if last.failures > before.failures:
            _say(f"{run.job} {run.slot}: failed: {last.error}; it stays open and the workers try again")
            _tell(last, wanted.as_json)
            return FAILED
        if time.monotonic() - moved_at > wanted.stalled_s:
            _say(f"{run.job} {run.slot}: no progress for {wanted.stalled_s:g} s; do workers run? It stays open")
            _tell(last, wanted.as_json)
            return FAILED
        if time.monotonic() - said_at > _SAY_S:
            _say(f"{run.job} {run.slot}: {_text(last)}")
            said_at = time.monotonic()
    _say(f"{run.job} {run.slot}: stopped waiting; what is done stays done, the rest stays open")
    return stop.exit_code


def _patiently(read: Callable[[], Progress]) -> Progress | None:
    try:
        return read()
    except Outage as error:
        log.warning("the database does not answer", error=str(error), then="waiting goes on")
        return None


def _say(line: str) -> None:
    click.echo(line, err=True)


def _text(progress: Progress) -> str:
    return night_text(night_figures(progress))


def _tell(progress: Progress, as_json: bool) -> None:
    if as_json:
        figures = night_figures(progress)
        click.echo(json.dumps(figures, indent=2 if sys.stdout.isatty() else None))
    else:
        click.echo(f"{progress.run.job} {progress.run.slot}: {_text(progress)}")
