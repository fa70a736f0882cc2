"""The private servers are real, private, and gone afterwards."""

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pika
import psycopg2
import pytest

from tests.servers import GivenRabbitMQ, PrivatePostgres, PrivateRabbitMQ, ServerMissingError, left_out, open_rabbitmq
from tests.servers import rabbitmq as rabbitmq_module
from tests.servers.process import alive, descendants, wait_until

LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def one(url: str, statement: str) -> object:
    connection = psycopg2.connect(url)
    try:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            row = cursor.fetchone() if cursor.description else None
            return row[0] if row else None
    finally:
        connection.close()


def listening_addresses(port: int) -> set[str]:
    """Where somebody listens on `port`, as the kernel writes addresses."""
    lines = [line for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    sockets = [(line.split()[1].split(":"), line.split()[3]) for line in lines]
    return {address for (address, number), state in sockets if int(number, 16) == port and state == "0A"}


# PostgreSQL


@pytest.mark.parametrize("setting", ["fsync", "synchronous_commit", "full_page_writes"])
def test_postgres_runs_with_default_durability(postgres_url: str, setting: str) -> None:
    assert one(postgres_url, f"SHOW {setting}") == "on"


def test_postgres_listens_on_loopback_only(postgres: PrivatePostgres, postgres_url: str) -> None:
    assert listening_addresses(postgres.port) == {"0100007F"}


def test_every_postgres_url_is_an_empty_database_of_its_own(postgres: PrivatePostgres, postgres_url: str) -> None:
    other = postgres.create_database("another")
    one(other, "CREATE TABLE t (i int)")
    tables = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    assert (one(other, tables), one(postgres_url, tables)) == (1, 0)
    postgres.drop_database("another")


def test_a_database_can_be_a_copy_of_a_prepared_one(postgres: PrivatePostgres) -> None:
    one(postgres.create_database("prepared"), "CREATE TABLE t AS SELECT 7 AS i")
    assert one(postgres.create_database("copy", template="prepared"), "SELECT i FROM t") == 7
    for name in ("copy", "prepared"):
        postgres.drop_database(name)


@pytest.mark.parametrize("end", [PrivatePostgres.kill, PrivatePostgres.stop], ids=["kill", "stop"])
def test_what_postgres_committed_survives_its_end(
    stoppable_postgres: PrivatePostgres, stoppable_url: str, end: Callable[[PrivatePostgres], None]
) -> None:
    one(stoppable_url, "CREATE TABLE t AS SELECT 7 AS i")
    first, family = stoppable_postgres.pid, descendants(stoppable_postgres.pid)
    end(stoppable_postgres)
    assert not stoppable_postgres.running
    assert family
    assert not any(map(alive, [first, *family]))
    stoppable_postgres.start()
    assert one(stoppable_url, "SELECT i FROM t") == 7


# RabbitMQ


def declared(channel: "pika.adapters.blocking_connection.BlockingChannel", queue: str) -> bool:
    try:
        channel.queue_declare(queue, passive=True)
    except pika.exceptions.ChannelClosedByBroker:
        return False
    return True


@pytest.fixture
def own_rabbitmq(rabbitmq_url: str, rabbitmq: object) -> PrivateRabbitMQ:
    """The running server, provided it is private."""
    if not isinstance(rabbitmq, PrivateRabbitMQ):
        left_out.without_server("some are about the private RabbitMQ: unset RABBITMQ_URL")
    return rabbitmq


def test_every_rabbitmq_url_is_a_virtual_host_without_queues(own_rabbitmq: PrivateRabbitMQ) -> None:
    urls = [own_rabbitmq.new_vhost() for _ in range(12)]
    assert len(set(urls)) == 12
    with pika.BlockingConnection(pika.URLParameters(urls[0])) as first:
        first.channel().queue_declare("q", durable=True)
        with pika.BlockingConnection(pika.URLParameters(urls[-1])) as last:
            assert not declared(last.channel(), "q")
            assert declared(first.channel(), "q")


def test_rabbitmq_listens_on_loopback_only(own_rabbitmq: PrivateRabbitMQ) -> None:
    for port in own_rabbitmq.ports:
        assert listening_addresses(port)
        assert listening_addresses(port) <= LOOPBACK


def test_rabbitmq_runs_no_plugins(own_rabbitmq: PrivateRabbitMQ) -> None:
    assert own_rabbitmq.ctl("eval", "rabbit_plugins:active().").strip() == "[]"


@pytest.mark.parametrize("end", [PrivateRabbitMQ.kill, PrivateRabbitMQ.stop], ids=["kill", "stop"])
def test_what_rabbitmq_confirmed_survives_its_end(
    own_rabbitmq: PrivateRabbitMQ, rabbitmq_url: str, end: Callable[[PrivateRabbitMQ], None]
) -> None:
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        channel = connection.channel()
        channel.queue_declare("q", durable=True, arguments={"x-queue-type": "quorum"})
        channel.confirm_delivery()
        channel.basic_publish("", "q", b"seven", pika.BasicProperties(delivery_mode=2), mandatory=True)
    own_rabbitmq.settle()
    first, family = own_rabbitmq.pid, descendants(own_rabbitmq.pid)
    end(own_rabbitmq)
    assert not own_rabbitmq.running
    assert family
    assert not any(map(alive, [first, *family]))
    own_rabbitmq.start()
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        _method, _properties, body = next(connection.channel().consume("q", inactivity_timeout=30))
        assert body == b"seven"


def test_a_given_rabbitmq_is_used_with_its_queues_deleted_and_never_stopped(
    own_rabbitmq: PrivateRabbitMQ,
) -> None:
    url = own_rabbitmq.new_vhost()
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        connection.channel().queue_declare("customer_order_queue", durable=True)
        connection.channel().queue_declare("somebody_elses", durable=True)
        with open_rabbitmq(url) as given:
            assert isinstance(given, GivenRabbitMQ)
            assert given.new_vhost() == url
            assert not declared(connection.channel(), "customer_order_queue")
            assert declared(connection.channel(), "somebody_elses")
            with pytest.raises((pytest.skip.Exception, pytest.fail.Exception), match="unset RABBITMQ_URL"):
                given.kill()
        assert connection.is_open


@pytest.mark.parametrize(
    ("path", "ours"), [("", False), ("/", False), ("/%2F", False), ("/production", False), ("/test", True)]
)
def test_only_a_virtual_host_named_for_tests_is_ours_to_empty(path: str, ours: bool) -> None:
    assert rabbitmq_module.is_for_tests(f"amqp://test:test@test.example{path}") == ours


# Both

OWNER = """
import sys
from tests.servers import PrivatePostgres, PrivateRabbitMQ
from tests.servers.process import descendants
with {server}() as server:
    print(server.folder, server.pid, *descendants(server.pid), getattr(server, "epmd_pid", server.pid), flush=True)
    sys.stdin.read()
"""


@pytest.mark.services
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
@pytest.mark.parametrize("server", ["PrivatePostgres", "PrivateRabbitMQ"])
@pytest.mark.usefixtures("postgres", "rabbitmq")
def test_no_server_outlives_its_owner(server: str, how: signal.Signals) -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER.format(server=server)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    with owner:
        assert owner.stdout is not None
        folder, *pids = owner.stdout.readline().split()
        assert alive(int(pids[0]))
        owner.send_signal(how)
    wait_until(lambda: not any(alive(int(pid)) for pid in pids))
    if how is signal.SIGINT:
        assert not Path(folder).exists()
    shutil.rmtree(folder, ignore_errors=True)


def test_a_missing_server_names_one_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rabbitmq_module, "PROGRAMS", Path("/nowhere"))
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ServerMissingError, match="sudo apt-get install --yes rabbitmq-server"):
        rabbitmq_module.find_programs()


def test_a_missing_server_fails_on_ci() -> None:
    with pytest.raises(pytest.fail.Exception, match="RabbitMQ is missing"):
        left_out.without_server("RabbitMQ is missing", on_ci=True)


def test_a_missing_server_is_loud_elsewhere() -> None:
    with pytest.raises(pytest.skip.Exception) as skipped:
        left_out.without_server("RabbitMQ is missing", on_ci=False)
    place = ("test_any.py", 1, f"Skipped: {skipped.value}")
    report = pytest.TestReport("test_any.py::test", (*place[:2], ""), {}, "skipped", place, "setup")
    assert left_out.reasons([report, report]) == ["RabbitMQ is missing"]
