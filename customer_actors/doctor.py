"""What `doctor` looks at, as data: each check with its verdict, what was found, and the commands that fix it.

This half looks at the database and what it tells of the service; `doctor_broker` looks at RabbitMQ.
"""

import shlex
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, NamedTuple
from urllib.parse import unquote, urlsplit
from zoneinfo import ZoneInfo

from customer_actors.errors import Outage, UsageError
from customer_actors.health import stale_us
from customer_actors.ingest.losses import STUCK
from customer_actors.settings import Settings
from customer_actors.storage.beats import Beat, all_beats
from customer_actors.storage.database import Database
from customer_actors.storage.job_runs import first_migrated, last_runs
from customer_actors.storage.opening import open_database, sqlite_file
from customer_actors.storage.postgresql import PostgresDatabase
from customer_actors.storage.rules import require_same_decimals
from customer_actors.storage.schema import require_current
from customer_actors.storage.triage import held_without_details
from customer_actors.storage.vitals import vitals

OK: Final = "ok"
WARNING: Final = "warning"
PROBLEM: Final = "problem"
Verdict = Literal["ok", "warning", "problem"]

MOST_CLOCK_DIFFERENCE_S: Final = 5
LEAST_FREE_CONNECTIONS: Final = 10
ROLES: Final = 'psql "$ADMIN_URL" -f deploy/postgresql/roles.sql    # as a superuser, after every migrate'
_LONGEST_RUN: Final = timedelta(hours=2)
_HISTORY: Final = (
    "event",
    "event_payload",
    "loyalty_entry",
    "credit_allocation",
    "credit_usage",
    "credit_payment",
    "operator_action",
    "rules",
    "rfm_cuts",
    "credit_drift",
    "credit_ageing",
)


class Finding(NamedTuple):
    """One check."""

    name: str
    verdict: Verdict
    found: str
    """What is the case."""
    fix: Sequence[str] = ()
    """Commands, in order, that put it right."""


def look_at_database(settings: Settings, now_us: int | None = None) -> tuple[bool, list[Finding]]:
    """Whether the database answers, and all that it tells."""
    try:
        file = sqlite_file(settings.database_url)
        if file is not None and not file.exists():
            return False, [Finding("database", PROBLEM, f"there is no file {file}", ["customer-actors migrate"])]
        database = open_database(settings.database_url)
    except (UsageError, OSError) as error:
        return False, [Finding("database", PROBLEM, str(error), ["edit .env    # DATABASE_URL"])]
    findings: list[Finding] = []
    try:
        for finding in _database(settings, database, now_us):
            findings.append(finding)
    except (Outage, UsageError) as error:
        fix = (
            [_reach(settings.database_url, str(error))]
            if not findings
            else ["customer-actors doctor    # once it answers again"]
        )
        findings.append(Finding("database", PROBLEM, str(error), fix))
        return len(findings) > 1, findings
    finally:
        database.release()
    return True, findings


def _reach(url: str, said: str) -> str:
    """The command for a database that does not answer, by what the server says, if it does say something."""
    parts = urlsplit(url)
    if parts.scheme == "sqlite":
        return f"ls -l {shlex.quote(str(sqlite_file(url)))}    # a readable SQLite file?"
    server = f"-h {parts.hostname or 'localhost'} -p {parts.port or 5432}"
    if "database" in said and "does not exist" in said:
        return f"createdb {server} {shlex.quote(unquote(parts.path[1:]))}    # or correct DATABASE_URL"
    if "role" in said or "authentication failed" in said or "no password supplied" in said:
        return "edit .env    # user and password in DATABASE_URL; a new user: see deploy/postgresql/roles.sql"
    if "SSL" in said or "sslmode" in said or "certificate" in said:
        return "edit .env    # sslmode and sslrootcert in DATABASE_URL"
    return f"pg_isready {server}    # start it, or correct DATABASE_URL"


def _database(settings: Settings, database: Database, now_us: int | None) -> Iterator[Finding]:
    before_us = time.time_ns() // 1_000
    database.query("SELECT 1")
    yield Finding("database", OK, f"{database.name} answers")
    if isinstance(database, PostgresDatabase):
        yield from _server(database, now_us)
        rights = _rights(database)
        yield rights
        if rights.verdict == PROBLEM:
            return
    try:
        require_current(database)
    except UsageError as error:
        yield Finding("schema", PROBLEM, str(error), ["customer-actors migrate"])
        return
    yield Finding("schema", OK, "current")
    try:
        require_same_decimals(database, settings.rules())
    except UsageError as error:
        yield Finding("currency", PROBLEM, str(error), ["edit .env    # CUSTOMER_ACTORS_CURRENCY_DECIMALS"])
    if isinstance(database, PostgresDatabase):
        yield _history(database)
    now_us = now_us or before_us
    yield from _waiting(settings, database, now_us)
    fresh = [beat for beat in all_beats(database) if beat.is_fresh(now_us, stale_us(settings))]
    if settings.rabbitmq_url is not None:
        yield from _processes(fresh)
    yield from _alarms(fresh)
    if settings.rabbitmq_url is not None:
        yield from _nights(settings, database, now_us)


# --- the server ------------------------------------------------------------------------------------------------------


def _server(database: PostgresDatabase, now_us: int | None) -> Iterator[Finding]:
    ours_us = now_us or time.time_ns() // 1_000
    ((server_us,),) = database.query("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS bigint)")
    durability, switch_on = database.synchronous_commit()
    unsafe = [
        setting
        for setting in ("fsync", "full_page_writes")
        if database.query("SELECT current_setting(?)", (setting,)) == [("off",)]
    ]
    if switch_on is not None or unsafe:
        off = ", ".join([*(["synchronous_commit"] if switch_on is not None else []), *unsafe])
        fix = [switch_on] if switch_on is not None else []
        fix += [f"ALTER SYSTEM SET {setting} = on; SELECT pg_reload_conf();" for setting in unsafe]
        yield Finding(
            "durability", PROBLEM, f"{off} off: a crash of the server loses events that were acknowledged", fix
        )
    else:
        yield Finding("durability", OK, f"synchronous_commit = {durability}")
    difference_s = (ours_us - server_us) / 1_000_000
    if abs(difference_s) > MOST_CLOCK_DIFFERENCE_S:
        who = "ahead of" if difference_s > 0 else "behind"
        found = f"this host is {abs(difference_s):.0f} s {who} the database"
        yield Finding("clock", PROBLEM, found, ["timedatectl set-ntp true    # on both hosts"])
    else:
        yield Finding("clock", OK, f"within {MOST_CLOCK_DIFFERENCE_S} s of the database's")
    yield _connections(database)


def _connections(database: Database) -> Finding:
    most, used = database.query(
        "SELECT CAST(current_setting('max_connections') AS int) "
        "- CAST(current_setting('superuser_reserved_connections') AS int), "
        "(SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend')"
    )[0]
    found = f"{used} of {most} in use; each process takes one per thread and one more"
    if most - used >= LEAST_FREE_CONNECTIONS:
        return Finding("connections", OK, found)
    fix = f"ALTER SYSTEM SET max_connections = {2 * most + 20};    -- then restart PostgreSQL"
    return Finding("connections", WARNING, found, [fix])


def _rights(database: Database) -> Finding:
    """Whether this user may read what `doctor` looks at; what else it may do is said."""
    (user, superuser), *_ = database.query(
        "SELECT current_user, (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)"
    )
    hidden = database.query(
        "SELECT c.relname FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r' "
        "AND NOT has_table_privilege(c.oid, 'SELECT') ORDER BY 1"
    )
    if hidden:
        names = ", ".join(row[0] for row in hidden)
        fix = [ROLES, "customer-actors doctor    # as a member of customer_actors_reader, _worker or _operator"]
        return Finding("rights", PROBLEM, f"database user {user} may not read {names}", fix)
    if superuser:
        found = f"database user {user} is a superuser, whom no trigger and no right stops"
        return Finding("rights", WARNING, found, [ROLES])
    return Finding("rights", OK, f"database user {user} may read everything")


def _history(database: Database) -> Finding:
    """Whether the triggers that keep what happened stand."""
    rows = database.query(
        "SELECT c.relname, count(t.oid) FROM pg_class c LEFT JOIN pg_trigger t ON t.tgrelid = c.oid "
        "AND t.tgname IN (c.relname || '_no_update', c.relname || '_no_delete', c.relname || '_no_truncate') "
        "WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY(?) GROUP BY c.relname "
        "HAVING 3 > count(t.oid) FILTER (WHERE t.tgenabled IN ('O', 'A')) ORDER BY 1",
        (list(_HISTORY),),
    )
    if not rows:
        return Finding("history", OK, "events and ledgers refuse to be changed")
    fix = [_triggers_again(table) for table, there in rows if there < 3]
    fix += [f"ALTER TABLE {table} ENABLE TRIGGER USER;" for table, _ in rows]
    return Finding("history", PROBLEM, f"can be changed: {', '.join(table for table, _ in rows)}", fix)


def _triggers_again(table: str) -> str:
    """Those that were dropped, taken from a schema in which they are."""
    return (
        f'pg_dump "$EMPTY_DATABASE_URL" --schema-only --section=post-data --table={table} | grep "^CREATE TRIGGER" '
        '| psql "$DATABASE_URL"    # EMPTY_DATABASE_URL: a new database, after customer-actors migrate'
    )


# --- the service -----------------------------------------------------------------------------------------------------


_MOST_NAMED: Final = 10
"""Customers named at once; whoever has put them right looks again."""


def _waiting(settings: Settings, database: Database, now_us: int) -> Iterator[Finding]:
    """What waits for a person."""
    figures = vitals(database, now_us, settings.health_max_lag_seconds * 1_000_000)
    if figures.oldest_us is None:
        yield Finding("lag", OK, f"no event waits for {settings.health_max_lag_seconds} s")
    else:
        waits_s = (now_us - figures.oldest_us) // 1_000_000
        yield Finding("lag", PROBLEM, f"an event waits for {waits_s} s", ["customer-actors status    # which actor?"])
    release = 'customer-actors held release --all --reason "what was corrected"'
    look = "customer-actors held list --customers"
    if figures.parked:
        found = f"{figures.parked} times a customer is parked: its tries are used up, it waits for a person"
        yield Finding("parked", PROBLEM, found, [look, release])
    else:
        yield Finding("parked", OK, "none")
    if figures.held:
        yield Finding("held", WARNING, f"{figures.held} times a customer is held and tried again by itself", [look])
    else:
        yield Finding("held", OK, "none")
    forgotten = held_without_details(database, _MOST_NAMED)
    if forgotten:
        fix = [
            f"customer-actors held release {shlex.quote(customer)} --org {shlex.quote(org)} --actor {actor} "
            '--reason "its hold had lost its details"'
            for org, customer, actor in forgotten
        ]
        found = "customers stand still at an event whose hold has lost its details: nobody tries them again"
        yield Finding("forgotten holds", PROBLEM, found, fix)
    else:
        yield Finding("forgotten holds", OK, "none")
    if figures.quarantined:
        fix = [
            "customer-actors quarantine list",
            'customer-actors quarantine retry --all --reason "what was corrected"',
        ]
        found = f"{figures.quarantined} messages of the last 24 hours are in quarantine"
        yield Finding("quarantine", WARNING, found, fix)
    else:
        yield Finding("quarantine", OK, "no message of the last 24 hours")


_START: Final = {
    "ingest": "customer-actors ingest",
    "worker": "dramatiq customer_actors.actors.main:setup    # with the options of the Procfile",
    "scheduler": "python -m scheduler",
}


_QUEUE_LOST: Final = [
    "customer-actors status    # its queue: what keeps ending its connections is met alone, then given up"
]
_NO_COMMIT: Final = [
    'psql "$ADMIN_URL" -f deploy/postgresql/roles.sql    # if a permission is missing, as after a migration',
    "SELECT pid, usename, query FROM pg_stat_activity WHERE pid IN (SELECT unnest(pg_blocking_pids(pid)) "
    "FROM pg_stat_activity);    # if a lock is: who holds it",
]
_MOST_FAIL: Final = [
    "customer-actors held list    # what fails for most customers; deploy the fix, they go on by themselves",
    'customer-actors held release --all --reason "what was corrected"    # or at once',
]
"""For workers, and for whatever else advances customers; only ingest does not."""


def _processes(fresh: Sequence[Beat]) -> Iterator[Finding]:
    for kind, start in _START.items():
        ours = [beat for beat in fresh if beat.kind == kind]
        if not ours:
            yield Finding(kind, PROBLEM, f"no {kind} has given a sign of life lately", [start])
            continue
        trouble = [f"{beat.process}: {beat.trouble}" for beat in ours if beat.trouble]
        if trouble:
            restart = [f"kill {beat.pid}    # on {beat.host}; its supervisor starts it again" for beat in ours]
            yield Finding(kind, PROBLEM, "; ".join(trouble), restart)
        else:
            yield Finding(kind, OK, f"{len(ours)} alive")


def _alarms(fresh: Sequence[Beat]) -> Iterator[Finding]:
    """What processes see of the service; without a broker the embedded one does."""
    alarms = [beat for beat in fresh if beat.alarm]
    for beat in alarms:
        yield Finding("alarm", PROBLEM, f"{beat.process}: {beat.alarm}", _alarm_fix(beat))
    if not alarms:
        yield Finding("alarm", OK, "none")


def _alarm_fix(beat: Beat) -> list[str]:
    if beat.kind != "ingest":
        return _MOST_FAIL
    return _NO_COMMIT if STUCK in (beat.alarm or "") else _QUEUE_LOST


def _nights(settings: Settings, database: Database, now_us: int) -> Iterator[Finding]:
    """Whether the last slot of each nightly job was run, and ended."""
    from apscheduler.triggers.cron import CronTrigger

    runs, now = last_runs(database), datetime.fromtimestamp(now_us / 1_000_000, UTC)
    for job, cron in (("segments", settings.nightly_segments_cron), ("credit", settings.nightly_credit_cron)):
        run = runs.get(job)
        since = first_migrated(database) if run is None else datetime.fromtimestamp(run.claimed_us / 1_000_000, UTC)
        trigger = CronTrigger.from_crontab(cron, timezone=ZoneInfo(settings.timezone))
        due = trigger.get_next_fire_time(None, since.astimezone(UTC) + timedelta(minutes=1))
        by_hand = f"python -m scheduler run {job}"
        if due is not None and now > due + timedelta(minutes=settings.catch_up):
            found = f"not run since {since.astimezone(UTC):%Y-%m-%d %H:%M} UTC, though it was due"
            yield Finding(f"night {job}", PROBLEM, found, ["python -m scheduler", by_hand])
        elif run is not None and run.done_us is None and now > since + _LONGEST_RUN:
            found = f"claimed at {since:%Y-%m-%d %H:%M} UTC and not done" + (f": {run.error}" if run.error else "")
            yield Finding(f"night {job}", PROBLEM, found, [_START["worker"], by_hand])
        else:
            yield Finding(f"night {job}", OK, "never due yet" if run is None else f"slot {run.run.slot}")
