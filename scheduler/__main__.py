"""`python -m scheduler` claims the nightly jobs' slots when they are due; `list` shows the jobs, `run` runs one."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import click
import structlog

from customer_actors.errors import CustomerActorsError, Outage
from customer_actors.process import stopping_on_signals, wait_for_database
from customer_actors.settings import Settings, load_settings
from customer_actors.storage.beats import beat, end_beat
from customer_actors.storage.database import Database
from customer_actors.storage.job_runs import Progress, last_runs
from customer_actors.storage.nights_view import night_figures, night_text
from customer_actors.storage.opening import open_database, sqlite_file
from customer_actors.storage.schema import require_current
from customer_actors.telemetry import configure_logging
from scheduler.clock import Clock, microseconds, running_clock, utc_now
from scheduler.jobs import JOBS, job_named, next_due
from scheduler.running import STALLED_S, Wanted, run_job
from scheduler.words import in_words
from scheduler.workers import workers

log = structlog.get_logger("scheduler")

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
_USAGE, _CANNOT_CONNECT = 2, 4
_FOR_EVER_S = 3600.0


@click.group(invoke_without_command=True, context_settings=CONTEXT)
@click.pass_context
def scheduler(context: click.Context) -> None:
    """Run the nightly jobs at the times the settings name, until SIGTERM or Ctrl-C.

    Any number may run at once: a slot takes effect once. A slot missed while everything was down runs once at start-up
    if it is not older than CUSTOMER_ACTORS_CATCH_UP minutes. The workers do the work; without RABBITMQ_URL this process
    does it itself. A database that is away is waited for; a wrong setting or an old schema ends it at once (exit 2).

    Example: python -m scheduler
    """
    if context.invoked_subcommand is None:
        serve()


def serve() -> None:
    """Check settings and schema, then run the clock until asked to stop.

    Raises:
        UsageError: a setting is wrong or the schema is old.
    """
    settings = load_settings()
    configure_logging(settings.log_level)
    database = open_database(settings.database_url)
    with stopping_on_signals() as stop:
        try:
            if not wait_for_database(database, stop):
                return
            for job in JOBS:
                due = next_due(job, settings, utc_now())
                log.info("job", name=job.name, cron=getattr(settings, job.cron), next_at=str(due))
            with workers(settings, database) as (ring, alarm):
                clock = Clock(settings, database, ring)

                def sign_of_life() -> None:
                    beat(database, "scheduler", microseconds(utc_now()), alarm=alarm())

                with running_clock(clock, database, sign_of_life):
                    log.info("started", jobs=len(JOBS), timezone=settings.timezone)
                    while not stop.wait(_FOR_EVER_S):
                        pass
            _end_beat(database)
        finally:
            database.release()
    log.info("stopped")


def _end_beat(database: Database) -> None:
    try:
        end_beat(database, "scheduler")
    except Outage as error:
        log.warning("the last sign of life stays", error=str(error), then="it goes stale")


@scheduler.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def list_(as_json: bool) -> None:
    """Show every job: when it is due, in words and next, and how its last run went.

    Example: python -m scheduler list
    """
    settings = load_settings()
    configure_logging("WARNING")
    last, now = _last_runs(settings), utc_now()
    rows = [_row(settings, name, now, last.get(name)) for name in (job.name for job in JOBS)]
    if as_json:
        click.echo(json.dumps(rows, indent=2 if sys.stdout.isatty() else None))
        return
    for row in rows:
        click.echo(f"{row['name']}: {row['in_words']} ({row['timezone']}, {row['cron']}), next {row['next_at']}")
        click.echo(f"  {row['does']}")
        night = row["last_run"]
        click.echo(f"  last run {night['slot']}: {night_text(night)}" if night else "  never ran")


def _last_runs(settings: Settings) -> dict[str, Progress]:
    """From the database; none where there is no file yet."""
    file = sqlite_file(settings.database_url)
    if file is not None and not Path(file).exists():
        return {}
    with _opened(settings) as database:
        return last_runs(database)


def _row(settings: Settings, name: str, now: datetime, last: Progress | None) -> dict[str, Any]:
    job = job_named(name)
    due, cron = next_due(job, settings, now), getattr(settings, job.cron)
    return {
        "name": name,
        "cron": cron,
        "in_words": in_words(cron),
        "timezone": settings.timezone,
        "next_at": due.isoformat(),
        "does": job.does,
        "last_run": None if last is None else night_figures(last),
    }


@scheduler.command("run")
@click.argument("name", type=click.Choice([job.name for job in JOBS]))
@click.option("--as-of", type=click.DateTime(["%Y-%m-%d"]), metavar="DATE", help="Business date to calculate for.")
@click.option("--wait", is_flag=True, help="Wait until it is done, with its progress on standard error.")
@click.option("--dry-run", is_flag=True, help="Only report what would change. Takes no slot.")
@click.option(
    "--stalled-after",
    type=click.FloatRange(min=0, min_open=True),
    default=STALLED_S,
    show_default=True,
    metavar="SECONDS",
    help="With --wait: give up after so long without progress.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def run(name: str, as_of: datetime | None, wait: bool, dry_run: bool, stalled_after: float, as_json: bool) -> None:
    """Run one job once: for a person, a system cron or a Kubernetes CronJob.

    Without --as-of this is the slot that was due within the last CUSTOMER_ACTORS_CATCH_UP minutes, which a scheduler
    would have claimed as well, else today; each takes effect once. With --as-of it is that date. The workers do the
    work; without RABBITMQ_URL this process does it, and waits. A run that stopped half-way goes on.

    Exit code 0 done (without --wait: handed to the workers), 1 failed, 3 already ran.

    Example: python -m scheduler run credit --as-of 2026-11-24 --wait
    """
    settings = load_settings()
    configure_logging("WARNING" if settings.log_level == "INFO" else settings.log_level)
    wanted = Wanted(job_named(name), as_of.date() if as_of else None, dry_run, wait, stalled_after, as_json)
    with stopping_on_signals() as stop, _opened(settings) as database:
        code = run_job(settings, database, wanted, stop)
    raise click.exceptions.Exit(code)


@contextmanager
def _opened(settings: Settings) -> Iterator[Database]:
    database = open_database(settings.database_url)
    try:
        require_current(database)
        database.require_durable()
        yield database
    finally:
        database.release()


def main() -> None:
    """Errors become one line and an exit code, as in `customer-actors`."""
    try:
        scheduler()
    except CustomerActorsError as error:
        click.echo(f"scheduler: {error}", err=True)
        sys.exit(_CANNOT_CONNECT if isinstance(error, Outage) else _USAGE)


if __name__ == "__main__":
    main()
