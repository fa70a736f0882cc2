"""`health`: probes for whoever supervises the processes."""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NoReturn

import click

from customer_actors.cli.common import (
    OK,
    PROBLEMS,
    json_option,
    leave,
    print_json,
    printable,
    require_file,
    settings_for_command,
)
from customer_actors.cli.overview import broker_view
from customer_actors.errors import UsageError
from customer_actors.health import Check, live_checks, ready_checks
from customer_actors.settings import Settings
from customer_actors.storage.beats import Beat, all_beats
from customer_actors.storage.database import Database
from customer_actors.storage.opening import open_database
from customer_actors.storage.schema import require_current
from customer_actors.storage.vitals import vitals

_START_FIELD: Final = 19
"""Of /proc/PID/stat, counted behind the command's name: clock ticks from the system's start to the process's."""
_CLOCK_SLACK_US: Final = 1_000_000
_KINDS = click.Choice(["worker", "ingest", "scheduler"])


@click.group()
def health() -> None:
    """Probes: exit 0 when all is well, 1 when something is red, 4 when the database cannot be reached."""


@health.command()
@click.option("--kind", type=_KINDS, help="Only processes of this kind, of which there must be one.")
@json_option
def live(kind: str | None, as_json: bool) -> None:
    """Whether this host's processes live, with all their threads. What is red, a restart heals.

    Without RABBITMQ_URL everything runs inside of one command, which tells by its exit code how it went: when none
    runs there is nothing to look at, and that is green.

    Example: customer-actors health live --kind worker
    """
    settings = settings_for_command()
    require_file(settings)
    database = open_database(settings.database_url)
    try:
        require_current(database)
        beats = all_beats(database)
    except UsageError as error:
        _report([Check("schema", False, str(error))], as_json)
    finally:
        database.release()
    _report(live_checks(beats, settings, time.time_ns() // 1_000, _runs, kind), as_json)


@health.command()
@json_option
def ready(as_json: bool) -> None:
    """Whether the whole service does its work within the limits of the settings CUSTOMER_ACTORS_HEALTH_*.

    Example: customer-actors health ready --json
    """
    settings = settings_for_command()
    require_file(settings)
    database = open_database(settings.database_url)
    try:
        checks = _ready(settings, database)
    finally:
        database.release()
    _report(checks, as_json)


def _ready(settings: Settings, database: Database) -> list[Check]:
    reachable = Check("database", True, f"{database.name} answers")
    try:
        require_current(database)
    except UsageError as error:
        return [reachable, Check("schema", False, str(error))]
    now_us = time.time_ns() // 1_000
    figures = vitals(database, now_us, settings.health_max_lag_seconds * 1_000_000)
    beats = all_beats(database)
    broker = None if settings.rabbitmq_url is None else broker_view(settings.rabbitmq_url)
    return [reachable, Check("schema", True, "current"), *ready_checks(beats, figures, broker, settings, now_us)]


def _runs(beat: Beat) -> bool:
    """Whether the process that beat still runs, and not a later one under its number, as in a restarted container."""
    try:
        os.kill(beat.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it is somebody else's
    started_us = _started_us(beat.pid)
    return started_us is None or started_us <= beat.at_us + _CLOCK_SLACK_US


def _started_us(pid: int) -> int | None:
    """When a process was started, by the system's clock of now; None where there is no /proc that tells."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks = int(fields[_START_FIELD])
    except (OSError, ValueError, IndexError):
        return None
    age_us = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000 - ticks * 1_000_000 // os.sysconf("SC_CLK_TCK")
    return time.time_ns() // 1_000 - age_us


def _report(checks: Sequence[Check], as_json: bool) -> NoReturn:
    ok = all(check.ok for check in checks)
    if as_json:
        print_json({"ok": ok, "checks": [check._asdict() for check in checks]})
    else:
        for check in checks:
            line = printable(f"{'ok ' if check.ok else 'red'}  {check.name:<14}  {check.says}")
            click.echo(click.style(line, fg=None if check.ok else "red"))
    leave(OK if ok else PROBLEMS)


VERBS = (health,)
