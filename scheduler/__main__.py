"""`python -m scheduler` runs the nightly jobs at their times; `python -m scheduler list` shows them."""

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

import click
import structlog
from apscheduler.events import EVENT_SCHEDULER_STARTED

from customer_actors.errors import CustomerActorsError, Outage
from customer_actors.process import stopping_on_signals, wait_for_database
from customer_actors.settings import load_settings
from customer_actors.storage.opening import open_database
from customer_actors.telemetry import configure_logging
from scheduler.jobs import JOBS, Job, due_times, make_scheduler

log = structlog.get_logger("scheduler")

CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
_USAGE, _CANNOT_CONNECT = 2, 4


@click.group(invoke_without_command=True, context_settings=CONTEXT)
@click.pass_context
def scheduler(context: click.Context) -> None:
    """Run the nightly jobs at the times the settings name, until SIGTERM or Ctrl-C.

    Any number may run at once. A database that is away is waited for; a wrong setting or an old schema ends it at once
    (exit 2).

    Example: python -m scheduler
    """
    if context.invoked_subcommand is None:
        run()


@scheduler.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def list_(as_json: bool) -> None:
    """Show every job, its cron expression and when it is due next.

    Example: python -m scheduler list
    """
    print_jobs(JOBS, as_json)


def run(jobs: Sequence[Job] = JOBS) -> None:
    """Check settings and schema, then run these jobs until asked to stop.

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
        finally:
            database.release()
        clock = make_scheduler(settings, jobs)
        for due in due_times(settings, datetime.now(UTC), jobs):
            log.info("job", name=due.job.name, cron=due.cron, next_at=str(due.next_at))
        log.info("started", jobs=len(jobs), timezone=settings.timezone)
        # Only a scheduler that runs can be shut down, so it is told once it does.
        clock.add_listener(lambda _: stop.when_asked(lambda: clock.shutdown(wait=False)), EVENT_SCHEDULER_STARTED)
        clock.start()
    log.info("stopped")


def print_jobs(jobs: Sequence[Job], as_json: bool) -> None:
    """What `list` shows."""
    settings = load_settings()
    rows = [
        {"name": job.name, "cron": cron, "next_at": next_at.isoformat() if next_at else None, "does": job.does}
        for job, cron, next_at in due_times(settings, datetime.now(UTC), jobs)
    ]
    if as_json:
        click.echo(json.dumps(rows, indent=2 if sys.stdout.isatty() else None))
        return
    for row in rows:
        click.echo("{name}: {cron} ({timezone}), next {next_at}; {does}".format(**row, timezone=settings.timezone))
    if not rows:
        click.echo("no jobs")


def main() -> None:
    """Errors become one line and an exit code, as in `customer-actors`."""
    try:
        scheduler()
    except CustomerActorsError as error:
        click.echo(f"scheduler: {error}", err=True)
        sys.exit(_CANNOT_CONNECT if isinstance(error, Outage) else _USAGE)


if __name__ == "__main__":
    main()
