"""`doctor`: each problem is named with the command that fixes it, and running that command makes it go away."""

import json
import os
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from datetime import date
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pika
import psycopg2
import pytest
from click.testing import CliRunner, Result

from customer_actors.cli import main
from customer_actors.doctor import OK, PROBLEM, WARNING, Finding, look_at_database
from customer_actors.doctor_broker import look_at_broker
from customer_actors.domain.events import Rejected
from customer_actors.ingest.losses import STUCK
from customer_actors.ingest.publish import publish
from customer_actors.ingest.topology import DEAD_LETTER_EXCHANGE, DEAD_LETTER_QUEUE, QUEUES, UNROUTED_QUEUE, declare
from customer_actors.settings import load_settings
from customer_actors.storage import job_runs
from customer_actors.storage.beats import beat
from customer_actors.storage.database import Database
from customer_actors.storage.job_runs import Run
from customer_actors.storage.opening import open_database
from customer_actors.storage.schema import migrate
from tests.e2e.processes import INGEST, SCHEDULER, WORKERS, running, wait_until
from tests.model.examples import order
from tests.servers import PrivatePostgres, RabbitMQ
from tests.storage.support import Storage

NOBODY_LISTENS = "127.0.0.1:9"
HOUR_US = 3_600_000_000


def doctor(*args: str, **env: str) -> Result:
    return CliRunner().invoke(main, ["doctor", *args], env=env)


def by_name(findings: Sequence[Finding]) -> dict[str, Finding]:
    return {each.name: each for each in findings}


def database_findings(url: str, now_us: int | None = None, **env: str) -> dict[str, Finding]:
    connected, findings = look_at_database(load_settings({"DATABASE_URL": url, **env}), now_us)
    assert connected
    return by_name(findings)


def broker_findings(url: str) -> dict[str, Finding]:
    connected, findings = look_at_broker(url)
    assert connected
    return by_name(findings)


def problems(findings: dict[str, Finding]) -> set[str]:
    return {name for name, each in findings.items() if each.verdict == PROBLEM}


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    opened = open_database(postgres_url)
    migrate(opened)
    yield opened
    opened.release()


def administer(url: str, sql: str) -> None:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(sql)
    connection.close()


def test_settings_that_cannot_be_read_are_named() -> None:
    done = doctor("--json", CUSTOMER_ACTORS_TIMEZONE="Nowhere/At-All")
    assert done.exit_code == 1
    (check,) = json.loads(done.stdout)["checks"]
    assert (check["name"], check["verdict"]) == ("settings", "problem")
    assert "CUSTOMER_ACTORS_TIMEZONE" in check["found"]


def test_when_nothing_can_be_connected_the_exit_code_is_4_and_no_password_shows() -> None:
    done = doctor(
        DATABASE_URL=f"postgresql://shop:secret-1@{NOBODY_LISTENS}/shop",
        RABBITMQ_URL=f"amqp://shop:secret-2@{NOBODY_LISTENS}/shop",
    )
    assert done.exit_code == 4
    assert "pg_isready -h 127.0.0.1 -p 9" in done.stdout
    assert "rabbitmq-diagnostics check_running" in done.stdout
    assert "secret" not in done.output


def test_an_embedded_database_that_is_well_is_ok_and_a_missing_one_names_migrate(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shop.db"
    missing = doctor(DATABASE_URL=url)
    assert (missing.exit_code, "-> customer-actors migrate" in missing.stdout) == (4, True)
    assert CliRunner().invoke(main, ["migrate"], env={"DATABASE_URL": url}).exit_code == 0
    done = doctor(DATABASE_URL=url)
    assert done.exit_code == 0
    assert "0 problems, 0 warnings" in done.stdout


@pytest.mark.parametrize(
    ("change", "fix"),
    [
        ({"path": "/no such"}, "createdb -h 127.0.0.1 -p {port} 'no such'"),
        ({"user": "nobody"}, "edit .env    # user and password in DATABASE_URL"),
        ({"query": "sslmode=require"}, "edit .env    # sslmode"),
        ({"port": 9}, "pg_isready -h 127.0.0.1 -p 9"),
    ],
)
def test_a_database_that_cannot_be_connected_to_names_the_command_for_what_it_says(
    postgres_url: str, change: dict[str, Any], fix: str
) -> None:
    parts = urlsplit(postgres_url)
    netloc = f"{change.pop('user', parts.username)}@127.0.0.1:{change.pop('port', parts.port)}"
    connected, (found,) = look_at_database(
        load_settings({"DATABASE_URL": parts._replace(netloc=netloc, **change).geturl().replace(" ", "%20")})
    )
    assert (connected, found.verdict) == (False, PROBLEM)
    assert found.fix[0].startswith(fix.format(port=parts.port)), found


def test_a_file_that_is_no_database_is_a_matter_of_settings_and_not_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "shop.db"
    file.write_text("no database at all " * 1000)
    env = {"DATABASE_URL": f"sqlite:///{file}"}
    assert "check DATABASE_URL" in doctor(**env).stdout
    assert CliRunner().invoke(main, ["health", "ready"], env=env).exit_code == 1


def test_an_old_schema_names_migrate(postgres_url: str) -> None:
    found = database_findings(postgres_url)
    assert found["schema"].fix == ["customer-actors migrate"]


@pytest.mark.parametrize(
    "where", ["ROLE ALL", "DATABASE {database}", "ROLE {role}", "ROLE {role} IN DATABASE {database}"]
)
def test_commits_that_do_not_wait_for_the_disk_are_a_problem_until_the_command_is_run(
    database: Database, postgres_url: str, where: str
) -> None:
    name = urlsplit(postgres_url).path[1:]
    role = f"careless_{name}"
    administer(postgres_url, f'CREATE ROLE "{role}" LOGIN SUPERUSER')
    scope = where.format(database=f'"{name}"', role=f'"{role}"')
    administer(postgres_url, f"ALTER {scope} SET synchronous_commit = off")
    url = postgres_url.replace("postgres@", f"{role}@")
    found = database_findings(url)["durability"]
    assert (found.verdict, "acknowledged" in found.found) == (PROBLEM, True)
    for command in found.fix:
        administer(postgres_url, command)
    mended = database_findings(url)["durability"]
    assert (mended.verdict, mended.found) == (OK, "synchronous_commit = on")


@pytest.mark.parametrize(("seconds", "says"), [(60, "ahead of"), (-60, "behind")])
def test_a_clock_that_differs_is_a_problem(database: Database, postgres_url: str, seconds: int, says: str) -> None:
    now_us = time.time_ns() // 1_000
    found = database_findings(postgres_url, now_us + seconds * 1_000_000)["clock"]
    assert (found.verdict, says in found.found, "timedatectl" in found.fix[0]) == (PROBLEM, True, True)
    assert "clock" not in problems(database_findings(postgres_url, now_us))


def test_rights_are_named_with_the_file_that_grants_them(database: Database, postgres_url: str) -> None:
    assert database_findings(postgres_url)["rights"].verdict == WARNING  # the tests' superuser
    user = f"stranger_{urlsplit(postgres_url).path[1:]}"
    administer(postgres_url, f"CREATE ROLE {user} LOGIN")
    found = database_findings(postgres_url.replace("postgres@", f"{user}@"))
    assert (found["rights"].verdict, "customer" in found["rights"].found) == (PROBLEM, True)
    assert "deploy/postgresql/roles.sql" in found["rights"].fix[0]
    assert "schema" not in found, "what it may not read it does not judge"


def test_a_history_that_can_be_changed_is_a_problem_until_the_command_is_run(
    database: Database, postgres_url: str
) -> None:
    administer(postgres_url, "ALTER TABLE event DISABLE TRIGGER USER")
    found = database_findings(postgres_url)["history"]
    assert (found.verdict, found.found) == (PROBLEM, "can be changed: event")
    for command in found.fix:
        administer(postgres_url, command)
    assert "history" not in problems(database_findings(postgres_url))


def test_a_history_whose_triggers_were_dropped_is_a_problem_until_the_commands_are_run(
    database: Database, postgres: PrivatePostgres, postgres_url: str
) -> None:
    administer(postgres_url, "DROP TRIGGER event_no_delete ON event; ALTER TABLE event DISABLE TRIGGER USER")
    empty = postgres.create_database("empty_after_migrate")
    new = open_database(empty)
    migrate(new)
    new.release()
    env = {
        "PATH": f"{postgres.programs}:{os.environ['PATH']}",
        "DATABASE_URL": postgres_url,
        "EMPTY_DATABASE_URL": empty,
    }
    pipe, enable = database_findings(postgres_url)["history"].fix
    done = subprocess.run(pipe, shell=True, env=env, check=True, capture_output=True, text=True)
    assert done.stdout.count("CREATE TRIGGER") == 1
    administer(postgres_url, enable)
    assert "history" not in problems(database_findings(postgres_url))


@pytest.mark.parametrize(
    ("kind", "alarm", "fix"),
    [
        ("worker", "mass failure", "held list"),
        ("embedded", "mass failure", "held list"),
        ("ingest", "customer_pos_queue: 5 connections lost in a row", "customer-actors status"),
        ("ingest", f"{STUCK} for 61 s: permission denied", "roles.sql"),
    ],
)
def test_an_alarm_of_a_process_is_a_problem(
    database: Database, postgres_url: str, kind: Literal["worker", "embedded", "ingest"], alarm: str, fix: str
) -> None:
    now_us = time.time_ns() // 1_000
    beat(database, kind, now_us, alarm=alarm)
    found = database_findings(postgres_url, now_us, RABBITMQ_URL=f"amqp://{NOBODY_LISTENS}")["alarm"]
    assert (found.verdict, alarm in found.found, fix in found.fix[0]) == (PROBLEM, True, True)
    beat(database, kind, now_us)
    assert "alarm" not in problems(database_findings(postgres_url, now_us, RABBITMQ_URL=f"amqp://{NOBODY_LISTENS}"))


def test_an_alarm_is_seen_where_there_is_no_broker(database: Database, postgres_url: str) -> None:
    now_us = time.time_ns() // 1_000
    beat(database, "embedded", now_us, alarm="mass failure")
    found = database_findings(postgres_url, now_us)
    assert (found["alarm"].verdict, "worker" in found) == (PROBLEM, False)


def test_a_hold_that_has_lost_its_details_names_the_command_that_releases_it(
    database: Database, postgres_url: str
) -> None:
    storage = Storage(database)
    storage.settle(order("1", "5", customer_id="it's c1"))
    with database.transaction():
        database.execute("UPDATE loyalty_state SET held_position = 2")
    found = database_findings(postgres_url)["forgotten holds"]
    assert (found.verdict, len(found.fix)) == (PROBLEM, 1)
    done = CliRunner().invoke(main, shlex.split(found.fix[0])[1:], env={"DATABASE_URL": postgres_url})
    assert done.exit_code == 0, done.output
    assert "forgotten holds" not in problems(database_findings(postgres_url))


def test_what_waits_for_a_person_names_the_triage_command(database: Database, postgres_url: str) -> None:
    now_us = time.time_ns() // 1_000
    storage = Storage(database)
    storage.append([order("1", "5"), Rejected("bad_json", "no JSON")], now_us=now_us)
    with database.transaction():
        for actor, next_try in (("loyalty", None), ("credit", now_us)):
            database.execute(f"UPDATE {actor}_state SET held_position = 1")
            database.execute(
                "INSERT INTO held_group (actor, customer, position, attempts, next_try_us, error, traceback, since_us) "
                "VALUES (?, ?, 1, 10, ?, 'ValueError', '', 0)",
                (actor, storage.number(), next_try),
            )
    found = database_findings(postgres_url, now_us)
    assert (found["parked"].verdict, found["held"].verdict, found["quarantine"].verdict) == (PROBLEM, WARNING, WARNING)
    assert found["parked"].fix[0].startswith("customer-actors held list")
    assert found["quarantine"].fix[0] == "customer-actors quarantine list"
    for command in (*found["parked"].fix, *found["quarantine"].fix):
        done = CliRunner().invoke(main, shlex.split(command)[1:], env={"DATABASE_URL": postgres_url})
        assert done.exit_code != 2, f"{command} is no command: {done.output}"


def test_an_event_that_waits_too_long_is_a_problem(database: Database, postgres_url: str) -> None:
    now_us = time.time_ns() // 1_000
    Storage(database).append([order("1", "5")._replace(received_at_us=now_us)], now_us=now_us)
    assert "lag" not in problems(database_findings(postgres_url, now_us + 1_000_000))
    found = database_findings(postgres_url, now_us + HOUR_US)["lag"]
    assert (found.verdict, found.found) == (PROBLEM, "an event waits for 3600 s")
    assert found.fix[0].startswith("customer-actors status")


def test_too_few_free_connections_are_a_warning(database: Database, postgres_url: str) -> None:
    assert database_findings(postgres_url)["connections"].verdict == "ok"
    most = int(database.query("SELECT current_setting('max_connections')")[0][0])
    with ExitStack() as all_of_them:
        for _ in range(most):
            try:
                all_of_them.enter_context(closing(psycopg2.connect(postgres_url)))
            except psycopg2.OperationalError:
                break
            found = database_findings(postgres_url)["connections"]
            if found.verdict != "ok":
                break
    assert (found.verdict, "SET max_connections" in found.fix[0]) == (WARNING, True)


def test_another_number_of_decimals_than_the_database_began_with_is_a_problem(
    database: Database, postgres_url: str
) -> None:
    Storage(database).append([order("1", "5")])
    found = database_findings(postgres_url, CUSTOMER_ACTORS_CURRENCY_DECIMALS="3")["currency"]
    assert (found.verdict, "set it to 2" in found.found) == (PROBLEM, True)


def test_a_night_that_was_claimed_and_is_not_done_names_the_workers(database: Database, postgres_url: str) -> None:
    now_us = time.time_ns() // 1_000
    assert job_runs.claim(database, Run("credit", "2026-11-24T03:15", date(2026, 11, 24)), now_us)
    env = {"RABBITMQ_URL": "amqp://guest:guest@localhost/"}
    assert "night credit" not in problems(database_findings(postgres_url, now_us + HOUR_US, **env))
    found = database_findings(postgres_url, now_us + 3 * HOUR_US, **env)["night credit"]
    assert (found.verdict, "not done" in found.found) == (PROBLEM, True)
    assert found.fix[1] == "python -m scheduler run credit"


def test_processes_without_a_sign_of_life_and_nights_that_were_missed_name_how_to_start_them(
    database: Database, postgres_url: str
) -> None:
    env = {"RABBITMQ_URL": "amqp://guest:guest@localhost/"}
    now_us = time.time_ns() // 1_000
    found = database_findings(postgres_url, now_us, **env)
    assert {"ingest", "worker", "scheduler"} <= problems(found)
    assert found["ingest"].fix == ["customer-actors ingest"]
    assert not {"night segments", "night credit"} & problems(found), "not due yet"

    beat(database, "ingest", now_us)
    beat(database, "worker", now_us, expected=4, alive=3)
    found = database_findings(postgres_url, now_us, **env)
    assert "ingest" not in problems(found)
    assert "1 of 4 threads are dead" in found["worker"].found

    found = database_findings(postgres_url, now_us + 48 * HOUR_US, **env)
    assert "python -m scheduler run segments" in found["night segments"].fix
    assert "night credit" in problems(found)


# --- the broker ------------------------------------------------------------------------------------------------------


@pytest.fixture
def connection(rabbitmq_url: str) -> Iterator[pika.BlockingConnection]:
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        yield connection


def test_an_empty_broker_lacks_everything_and_ingest_makes_it(
    connection: pika.BlockingConnection, rabbitmq_url: str
) -> None:
    found = broker_findings(rabbitmq_url)
    missing = {f"queue {queue}" for queue in (*QUEUES, DEAD_LETTER_QUEUE, UNROUTED_QUEUE)} | {"consumers", "workers"}
    assert missing <= problems(found)
    assert found["consumers"].fix == ["customer-actors ingest"]
    declare(connection)
    assert problems(broker_findings(rabbitmq_url)) == {"consumers", "workers"}


def test_a_classic_queue_is_a_warning_that_names_what_is_lost_and_its_migration_works(
    connection: pika.BlockingConnection, rabbitmq: RabbitMQ, rabbitmq_url: str
) -> None:
    connection.channel().queue_declare(QUEUES[0], durable=True)
    declare(connection)
    found = broker_findings(rabbitmq_url)[f"queue {QUEUES[0]}"]
    assert found.verdict == WARNING
    assert "two ingest processes would take its messages out of order" in found.found
    commands = [shlex.split(step, comments=True) for step in found.fix if step.startswith("rabbitmqctl ")]
    assert [command[1] for command in commands] == ["list_queues", "delete_queue"]
    assert QUEUES[0] in rabbitmq.ctl(*commands[0][1:])
    rabbitmq.ctl(*commands[1][1:])
    assert declare(connection) == []
    assert broker_findings(rabbitmq_url)[f"queue {QUEUES[0]}"].verdict == "ok"


def test_a_queue_that_loses_events_is_a_problem(connection: pika.BlockingConnection, rabbitmq_url: str) -> None:
    connection.channel().queue_declare(QUEUES[1], durable=False)
    found = broker_findings(rabbitmq_url)[f"queue {QUEUES[1]}"]
    assert (found.verdict, "not durable" in found.found) == (PROBLEM, True)


def test_an_exchange_of_another_type_is_a_problem(connection: pika.BlockingConnection, rabbitmq_url: str) -> None:
    connection.channel().exchange_declare("order_events", "fanout", durable=True)
    found = broker_findings(rabbitmq_url)["exchange order_events"]
    assert (found.verdict, found.found.startswith("is no durable topic exchange")) == (PROBLEM, True)


def test_a_queue_of_another_connection_alone_is_a_problem_and_does_not_hide_the_rest(
    connection: pika.BlockingConnection, rabbitmq_url: str
) -> None:
    connection.channel().queue_declare(QUEUES[1], exclusive=True)
    found = broker_findings(rabbitmq_url)
    assert (found[f"queue {QUEUES[1]}"].verdict, "exclusive" in found[f"queue {QUEUES[1]}"].found) == (PROBLEM, True)
    assert {f"queue {QUEUES[2]}", "workers"} <= problems(found)
    assert found["broker"].verdict == "ok"


def test_the_policy_for_unknown_routing_keys_is_seen_and_its_printed_command_sets_it(
    connection: pika.BlockingConnection, rabbitmq: RabbitMQ, rabbitmq_url: str
) -> None:
    declare(connection)
    found = broker_findings(rabbitmq_url)["policy unrouted"]
    assert (found.verdict, "vanishes" in found.found) == (WARNING, True)
    (command,) = found.fix
    rabbitmq.ctl(*shlex.split(command)[1:])

    assert broker_findings(rabbitmq_url)["policy unrouted"].verdict == "ok"

    connection.channel().basic_publish("order_events", "order.renamed", b"{}")

    def unrouted() -> Finding:
        return broker_findings(rabbitmq_url)["unrouted"]

    wait_until(lambda: unrouted().verdict == WARNING)
    assert "order.completed" in unrouted().found
    with pytest.raises(pika.exceptions.ChannelClosedByBroker, match="NOT_FOUND"):
        connection.channel().exchange_declare("customer_probe", passive=True)


def test_dead_letters_name_the_command_that_puts_them_back(
    connection: pika.BlockingConnection, database: Database, postgres_url: str, rabbitmq_url: str
) -> None:
    declare(connection)
    connection.channel().basic_publish(DEAD_LETTER_EXCHANGE, "order.completed", b"{}")
    wait_until(lambda: "dead letters" in problems(broker_findings(rabbitmq_url)))
    (command,) = broker_findings(rabbitmq_url)["dead letters"].fix
    env = {"DATABASE_URL": postgres_url, "RABBITMQ_URL": rabbitmq_url}
    done = CliRunner().invoke(main, shlex.split(command)[1:], env=env)
    assert done.exit_code == 0, done.output
    assert "dead letters" not in problems(broker_findings(rabbitmq_url))


@pytest.mark.parametrize(
    ("change", "says", "fix"),
    [
        ({"netloc": "guest:wrong"}, "does not know this user and password", "rabbitmqctl add_user"),
        ({"path": "/no-such"}, "has no virtual host 'no-such'", "rabbitmqctl add_vhost no-such"),
    ],
)
def test_a_user_or_virtual_host_that_is_unknown_is_told_apart(
    rabbitmq_url: str, change: dict[str, Any], says: str, fix: str
) -> None:
    parts = urlsplit(rabbitmq_url)
    if "netloc" in change:
        change = {"netloc": f"{change['netloc']}@{parts.hostname}:{parts.port}"}
    connected, (found,) = look_at_broker(parts._replace(**change).geturl())
    assert (connected, found.verdict) == (False, PROBLEM)
    assert says in found.found
    assert fix in found.fix[0]


def test_a_service_that_runs_has_no_problems(
    database: Database, postgres_url: str, rabbitmq_url: str, tmp_path: Path
) -> None:
    env = {"DATABASE_URL": postgres_url, "RABBITMQ_URL": rabbitmq_url}

    def found() -> list[str]:
        checks = json.loads(doctor("--json", **env).stdout)["checks"]
        return [check["name"] for check in checks if check["verdict"] == PROBLEM]

    with running(tmp_path, env, ingest=INGEST, workers=WORKERS, scheduler=SCHEDULER) as processes:
        wait_until(lambda: processes["ingest"].logged().count('"consuming"') >= 3, 60)
        publish(
            rabbitmq_url, [("order.completed", b'{"data": {"order_id": "1", "customer_id": "c", "total_amount": 1}}')]
        )
        wait_until(lambda: not found(), 60)
        assert doctor(**env).exit_code == 0
