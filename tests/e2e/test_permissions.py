"""deploy/rabbitmq/permissions.sh: every process works as its user, and a producer can do nothing but produce."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import pika
import pytest
from click.testing import CliRunner
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from customer_actors.actors.broker import make_broker
from customer_actors.cli import main
from customer_actors.doctor import OK, PROBLEM, WARNING, Finding
from customer_actors.doctor_broker import look_at_broker
from customer_actors.ingest.dead_letters import retry
from customer_actors.ingest.publish import PublishReport, publish
from customer_actors.ingest.topology import (
    DEAD_LETTER_EXCHANGE,
    DEAD_LETTER_QUEUE,
    SOURCES,
    UNROUTED_QUEUE,
    declare,
)
from customer_actors.storage.database import Database
from customer_actors.storage.opening import open_database
from customer_actors.storage.schema import migrate
from tests.e2e.processes import INGEST, WORKERS, running, wait_until
from tests.servers import RabbitMQ

SCRIPT: Final = Path(__file__).parents[2] / "deploy/rabbitmq/permissions.sh"
USERS: Final = ("producer", "ingest", "worker", "scheduler", "operator", "monitor")


@dataclass
class Site:
    """A virtual host with the users of the script."""

    url: str

    def url_of(self, user: str) -> str:
        parts = urlsplit(self.url)
        return parts._replace(netloc=f"customer_actors_{user}:secret-{user}@{parts.hostname}:{parts.port}").geturl()

    def refusal(self, user: str, action: Callable[[BlockingChannel], object]) -> int | None:
        """The broker's reply code when the user tries; None when it may."""
        with pika.BlockingConnection(pika.URLParameters(self.url_of(user))) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            try:
                action(channel)
            except ChannelClosedByBroker as refusal:
                return refusal.reply_code
        return None


@pytest.fixture(scope="module")
def users(rabbitmq: RabbitMQ) -> Iterator[None]:
    for user in USERS:
        rabbitmq.ctl("add_user", f"customer_actors_{user}", f"secret-{user}")
    yield
    for user in USERS:
        rabbitmq.ctl("delete_user", f"customer_actors_{user}")


@pytest.fixture
def site(rabbitmq: RabbitMQ, rabbitmq_url: str, users: None) -> Site:
    rabbitmq.script(SCRIPT, VHOST=urlsplit(rabbitmq_url).path[1:])
    return Site(rabbitmq_url)


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    opened = open_database(postgres_url)
    migrate(opened)
    yield opened
    opened.release()


def order(number: int) -> tuple[str, bytes]:
    body = {"event": "order.completed", "data": {"order_id": f"O{number}", "customer_id": "c1", "total_amount": "1.00"}}
    return "order.completed", json.dumps(body | {"timestamp": "2024-06-01T00:00:00Z"}).encode()


def test_ingest_workers_operators_and_monitors_do_their_work_as_their_users(
    site: Site, database: Database, postgres_url: str, tmp_path: Path
) -> None:
    def states() -> list[tuple[int, int]]:
        sql = "SELECT s.position, l.position FROM stats_state s JOIN loyalty_state l ON l.customer = s.customer"
        return database.query(sql)

    env = {"DATABASE_URL": postgres_url, "CUSTOMER_ACTORS_SWEEP_SECONDS": "1"}
    with running(tmp_path, env | {"RABBITMQ_URL": site.url_of("ingest")}, ingest=INGEST) as ingest:
        wait_until(lambda: ingest["ingest"].logged().count('"consuming"') >= 3)
        with running(tmp_path, env | {"RABBITMQ_URL": site.url_of("worker")}, workers=WORKERS) as workers:
            assert publish(site.url_of("producer"), [order(n) for n in range(20)]) == PublishReport(20, 0, 0)
            wait_until(lambda: states() == [(20, 20)])
            assert "ACCESS_REFUSED" not in workers["workers"].logged()
        assert "ACCESS_REFUSED" not in ingest["ingest"].logged()

    with pika.BlockingConnection(pika.URLParameters(site.url)) as connection:
        connection.channel().basic_publish(DEAD_LETTER_EXCHANGE, *order(99))
    assert retry(site.url_of("operator"), dry_run=False).put_back == 1
    status = CliRunner().invoke(
        main, ["status", "--json"], env={"DATABASE_URL": postgres_url, "RABBITMQ_URL": site.url_of("monitor")}
    )
    assert json.loads(status.stdout)["broker"]["queues"][SOURCES[0].queue] == 1
    for user, queue in (("operator", "dispatcher"), ("worker", "dispatcher"), ("scheduler", "nightly")):
        broker = make_broker(site.url_of(user))
        assert isinstance(broker, RabbitmqBroker)
        broker.declare_queue(queue, ensure=True)
        broker.close()


def test_a_producer_can_do_nothing_but_produce_into_the_three_exchanges(site: Site) -> None:
    with pika.BlockingConnection(pika.URLParameters(site.url)) as connection:
        declare(connection)
        connection.channel().queue_declare("dispatcher")
    for source in SOURCES:
        for key in source.routing_keys:
            assert site.refusal("producer", lambda c, s=source, k=key: c.basic_publish(s.exchange, k, b"")) is None  # type: ignore[misc]
    refused: dict[str, Callable[[BlockingChannel], object]] = {
        "the default exchange": lambda c: c.basic_publish("", "dispatcher", b""),
        "the dead letters": lambda c: c.basic_publish(DEAD_LETTER_EXCHANGE, "order.completed", b""),
        "another exchange": lambda c: c.basic_publish("amq.topic", "order.completed", b""),
        "a new queue": lambda c: c.queue_declare("mine"),
        "a new exchange": lambda c: c.exchange_declare("mine", "topic"),
        "a binding": lambda c: c.queue_bind("dispatcher", "order_events", "#"),
        "reading": lambda c: c.basic_get(DEAD_LETTER_QUEUE),
        "deleting": lambda c: c.queue_delete(SOURCES[0].queue),
        "purging": lambda c: c.queue_purge(SOURCES[0].queue),
    }
    for what, action in refused.items():
        assert site.refusal("producer", action) == 403, what


def test_others_are_refused_what_is_not_their_work(site: Site) -> None:
    with pika.BlockingConnection(pika.URLParameters(site.url)) as connection:
        declare(connection)
        connection.channel().queue_declare("loyalty")
    orders = SOURCES[0]
    refused: list[tuple[str, Callable[[BlockingChannel], object]]] = [
        ("ingest", lambda c: c.basic_publish(orders.exchange, "order.completed", b"")),
        ("ingest", lambda c: c.basic_get("loyalty")),
        ("worker", lambda c: c.basic_publish(orders.exchange, "order.completed", b"")),
        ("worker", lambda c: c.basic_consume(orders.queue, lambda *_: None)),
        ("worker", lambda c: c.queue_delete(DEAD_LETTER_QUEUE)),
        ("scheduler", lambda c: c.basic_get("loyalty")),
        ("operator", lambda c: c.basic_consume(orders.queue, lambda *_: None)),
        ("operator", lambda c: c.queue_delete(orders.queue)),
        ("monitor", lambda c: c.basic_get(DEAD_LETTER_QUEUE)),
        ("monitor", lambda c: c.basic_publish("", "loyalty", b"")),
    ]
    for user, action in refused:
        assert site.refusal(user, action) == 403, user


@pytest.mark.parametrize("user", ["operator", "monitor"])
def test_doctor_says_nothing_of_what_its_user_may_not_compare_and_ingest_s_user_may(site: Site, user: str) -> None:
    classic, forgetful, good = (source.queue for source in SOURCES)
    fanout, _, topic = (source.exchange for source in SOURCES)
    with pika.BlockingConnection(pika.URLParameters(site.url)) as connection:
        declare(connection)
        for queue, durable in ((classic, True), (forgetful, False)):
            connection.channel().queue_delete(queue)
            connection.channel().queue_declare(queue, durable=durable)
        connection.channel().exchange_delete(fanout)
        connection.channel().exchange_declare(fanout, "fanout", durable=True)

    found = doctor_as(site, user)
    assert not {name for name in found if name.startswith(("queue ", "exchange "))}
    blind = found["not compared"]
    names = (f"queue {classic}", f"queue {forgetful}", f"exchange {fanout}", "exchange customer_dead_letter")
    assert (blind.verdict, [name for name in names if name not in blind.found]) == (WARNING, [])
    assert blind.fix[0].startswith('RABBITMQ_URL="$INGEST_RABBITMQ_URL" customer-actors doctor')

    found = doctor_as(site, "ingest")
    verdicts = [found[name].verdict for name in (*names[:3], f"queue {good}", f"exchange {topic}")]
    assert verdicts == [WARNING, PROBLEM, PROBLEM, OK, OK]
    assert "not compared" not in found


def test_doctor_tells_every_user_what_is_not_there(site: Site) -> None:
    assert {f"queue {SOURCES[0].queue}", "exchange customer_unrouted"} <= {
        name for name, each in doctor_as(site, "monitor").items() if each.verdict == PROBLEM
    }


def test_an_ingest_that_may_only_bind_uses_what_exists_without_a_warning(site: Site, rabbitmq: RabbitMQ) -> None:
    with pika.BlockingConnection(pika.URLParameters(site.url)) as connection:
        connection.channel().queue_declare(SOURCES[0].queue, durable=True)
        assert len(declare(connection)) == 1
    vhost = urlsplit(site.url).path[1:]
    rabbitmq.ctl("set_permissions", "--vhost", vhost, "customer_actors_ingest", "^$", ".*", ".*")
    with pika.BlockingConnection(pika.URLParameters(site.url_of("ingest"))) as connection:
        assert declare(connection) == []


def doctor_as(site: Site, user: str) -> dict[str, Finding]:
    return {each.name: each for each in look_at_broker(site.url_of(user))[1]}


def test_a_message_with_an_unknown_routing_key_is_kept(site: Site) -> None:
    with pika.BlockingConnection(pika.URLParameters(site.url)) as connection:
        declare(connection)
    for source in SOURCES:
        assert site.refusal("producer", lambda c, s=source: c.basic_publish(s.exchange, "order.renamed", b"?")) is None  # type: ignore[misc]
    with pika.BlockingConnection(pika.URLParameters(site.url)) as connection:
        found = [connection.channel().basic_get(UNROUTED_QUEUE) for _ in SOURCES]
    assert [method and (method.exchange, method.routing_key) for method, _, _ in found] == [
        (source.exchange, "order.renamed") for source in SOURCES
    ]
