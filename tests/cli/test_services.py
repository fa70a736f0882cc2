"""`ingest` and `migrate`: the processes a supervisor starts, in any order, and stops at any moment."""

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pika
import pytest
import structlog

from customer_actors.cli.services import report
from customer_actors.domain.events import Outcome
from customer_actors.ingest.publish import publish
from customer_actors.process import Stop
from tests.cli.running import NOBODY_LISTENS, PROGRAM, count, invoke, order, wait_until
from tests.servers import PrivatePostgres

EVENTS = "SELECT count(*) FROM event"


class Ingest:
    """An `ingest` process with its log in a file."""

    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self.process = process
        self._log = log

    def logged(self) -> str:
        return self._log.read_text()

    def wait_for(self, text: str) -> None:
        wait_until(lambda: text in self.logged())

    def ended(self) -> int:
        return self.process.wait(timeout=30)


Start = Callable[..., Ingest]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `ingest` with these variables; whatever still runs at the end is killed."""
    started: list[Ingest] = []

    def start(**env: str) -> Ingest:
        log = tmp_path / f"ingest-{len(started)}.log"
        with log.open("wb") as file:
            command = [PROGRAM, "ingest"]
            process = subprocess.Popen(command, env={**os.environ, **env}, cwd=tmp_path, stdout=file, stderr=file)
        started.append(Ingest(process, log))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.wait()


@pytest.fixture
def env(postgres_url: str, rabbitmq_url: str) -> dict[str, str]:
    return migrated(postgres_url, rabbitmq_url)


def migrated(database_url: str, rabbitmq_url: str) -> dict[str, str]:
    """The environment of an `ingest` whose database is ready for it."""
    env = {"DATABASE_URL": database_url, "RABBITMQ_URL": rabbitmq_url}
    assert invoke("migrate", env=env).exit_code == 0
    return env


def messages(*numbers: int) -> list[tuple[str, bytes]]:
    return [("order.completed", order(f"secret-order-{n}", f"secret-customer-{n % 3}").encode()) for n in numbers]


def test_what_is_published_stands_in_the_streams_and_no_id_in_the_log(start: Start, env: dict[str, str]) -> None:
    ingest = start(**env)
    ingest.wait_for('"consuming"')
    publish(env["RABBITMQ_URL"], [*messages(*range(50)), *messages(1, 2), ("order.completed", b"{")])
    wait_until(lambda: count(env["DATABASE_URL"], EVENTS) == 50)
    wait_until(lambda: count(env["DATABASE_URL"], "SELECT count(*) FROM quarantine") == 1)
    ingest.process.terminate()
    assert ingest.ended() == 0
    (stopped,) = [json.loads(line) for line in ingest.logged().splitlines() if '"stopped"' in line]
    counts = {name: stopped[name] for name in ("accepted", "duplicate", "anonymous", "suppressed", "quarantined")}
    assert counts == {"accepted": 50, "duplicate": 2, "anonymous": 0, "suppressed": 0, "quarantined": 1}
    assert "secret" not in ingest.logged()
    assert re.search("[^/]//[^*@]+@", ingest.logged()) is None, "no credentials either"


def test_what_was_committed_is_logged_as_counts_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("customer_actors.cli.services.REPORT_EVERY_S", 0.01)
    outcomes, stop = Counter({Outcome.ACCEPTED: 3}), Stop()
    with structlog.testing.capture_logs() as logged:
        reporter = threading.Thread(target=report, args=(outcomes, stop))
        reporter.start()
        wait_until(lambda: len(logged) == 1)
        outcomes.update({Outcome.ACCEPTED: 1, Outcome.DUPLICATE: 2})
        wait_until(lambda: len(logged) == 2)
        stop.ask(signal.SIGTERM)
        reporter.join()
    nothing = dict.fromkeys(("accepted", "duplicate", "anonymous", "suppressed", "quarantined"), 0)
    first, second = ({name: line[name] for name in nothing} for line in logged)
    assert first == nothing | {"accepted": 3}
    assert second == nothing | {"accepted": 1, "duplicate": 2}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_within_four_seconds(start: Start, env: dict[str, str], number: signal.Signals) -> None:
    ingest = start(**env)
    ingest.wait_for('"consuming"')
    began = time.monotonic()
    ingest.process.send_signal(number)
    assert ingest.ended() == 0
    assert time.monotonic() - began < 4


def test_a_database_that_comes_later_is_waited_for(
    start: Start, stoppable_postgres: PrivatePostgres, stoppable_url: str, rabbitmq_url: str
) -> None:
    env = migrated(stoppable_url, rabbitmq_url)
    stoppable_postgres.stop()
    ingest = start(**env)
    ingest.wait_for("does not answer")
    stoppable_postgres.start()
    ingest.wait_for('"consuming"')
    publish(env["RABBITMQ_URL"], messages(1))
    wait_until(lambda: count(env["DATABASE_URL"], EVENTS) == 1)


def test_while_it_waits_for_the_database_a_signal_ends_it(start: Start, tmp_path: Path) -> None:
    away = "postgresql://postgres:x@127.0.0.1:1/shop"
    ingest = start(DATABASE_URL=away, RABBITMQ_URL=NOBODY_LISTENS)
    ingest.wait_for("does not answer")
    began = time.monotonic()
    ingest.process.terminate()
    assert ingest.ended() == 0
    assert time.monotonic() - began < 4


def test_an_old_schema_is_refused_with_the_command_to_run(start: Start, postgres_url: str) -> None:
    ingest = start(DATABASE_URL=postgres_url, RABBITMQ_URL=NOBODY_LISTENS)
    assert ingest.ended() == 2
    assert "customer-actors migrate" in ingest.logged()


def test_without_a_broker_named_it_ends_with_2_and_names_the_variable(tmp_path: Path) -> None:
    done = invoke("ingest", env={"DATABASE_URL": f"sqlite:///{tmp_path}/shop.db"})
    assert done.exit_code == 2
    assert "RABBITMQ_URL" in done.stderr


def test_a_queue_that_would_lose_events_is_refused(start: Start, env: dict[str, str]) -> None:
    with broken_queue(env["RABBITMQ_URL"]):
        ingest = start(**env)
        assert ingest.ended() == 2
        assert "customer_order_queue is" in ingest.logged()


@contextmanager
def broken_queue(url: str) -> Iterator[None]:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        connection.channel().queue_declare("customer_order_queue", durable=False, exclusive=True)
        yield


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/shop.db"
    found: str = request.getfixturevalue("postgres_url")
    return found


def test_migrate_names_what_it_applied_and_then_has_nothing_to_do(empty_url: str) -> None:
    first, second = (invoke("migrate", env={"DATABASE_URL": empty_url}) for _ in range(2))
    assert (first.exit_code, second.exit_code) == (0, 0)
    assert first.stdout.startswith("applied 0001_")
    assert second.stdout == "already current\n"
    assert json.loads(invoke("migrate", "--json", env={"DATABASE_URL": empty_url}).stdout) == {"applied": []}


def test_migrate_from_several_hosts_at_once_is_safe(empty_url: str) -> None:
    env = {**os.environ, "DATABASE_URL": empty_url}
    runs = [subprocess.Popen([PROGRAM, "migrate"], env=env, stdout=subprocess.PIPE) for _ in range(3)]
    printed = sorted(run.communicate(timeout=60)[0].decode() for run in runs)
    assert [run.returncode for run in runs] == [0, 0, 0]
    assert printed[:2] == ["already current\n"] * 2
    assert printed[2].startswith("applied 0001_")


@pytest.mark.parametrize(
    ("wrong", "code", "named"),
    [
        ("mysql://host/shop", 2, "DATABASE_URL"),
        ("sqlite:///no/such/folder/shop.db", 2, "folder"),
        ("postgresql://postgres:x@127.0.0.1:1/shop", 4, "PostgreSQL"),
    ],
)
def test_migrate_without_a_database_says_what_is_wrong(wrong: str, code: int, named: str) -> None:
    done = invoke("migrate", env={"DATABASE_URL": wrong})
    assert done.exit_code == code
    assert named in done.stderr


@pytest.mark.parametrize("verb", ["ingest", "migrate"])
def test_help_explains_with_an_example(verb: str) -> None:
    assert "Example: " in invoke(verb, "--help").stdout
