"""What is made on an empty broker, and what happens to queues and exchanges that exist already."""

import shlex
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker, UnroutableError

from customer_actors.errors import UsageError
from customer_actors.ingest import topology
from customer_actors.ingest.publish import PublishReport, publish
from customer_actors.ingest.topology import (
    DEAD_LETTER_EXCHANGE,
    DEAD_LETTER_QUEUE,
    SOURCES,
    UNROUTED_EXCHANGE,
    UNROUTED_QUEUE,
    declare,
)
from tests.servers import RabbitMQ

ORDERS = SOURCES[0].queue


@pytest.fixture
def connection(rabbitmq_url: str) -> Iterator[pika.BlockingConnection]:
    """To a broker that has nothing of ours and that finds nothing odd afterwards."""
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        forget_exchanges(connection)
        yield connection
        forget_exchanges(connection)


def forget_exchanges(connection: pika.BlockingConnection) -> None:
    for exchange in (DEAD_LETTER_EXCHANGE, UNROUTED_EXCHANGE, *(source.exchange for source in SOURCES)):
        connection.channel().exchange_delete(exchange)


def accepts(connection: pika.BlockingConnection, queue: str, arguments: dict[str, Any]) -> bool:
    """Whether the queue is durable and has exactly these arguments."""
    try:
        connection.channel().queue_declare(queue, durable=True, arguments=arguments)
    except ChannelClosedByBroker:
        return False
    return True


def test_the_names_are_the_contract_with_the_other_services() -> None:
    assert SOURCES == (
        ("customer_order_queue", "order_events", ("order.completed", "order.cancelled")),
        ("customer_pos_queue", "pos_events", ("pos.transaction.completed",)),
        ("customer_payment_queue", "payment_events", ("payment.received",)),
    )


def test_missing_queues_are_made_and_every_event_type_reaches_one(
    connection: pika.BlockingConnection, rabbitmq_url: str
) -> None:
    assert declare(connection) == []

    types = [routing_key for source in SOURCES for routing_key in source.routing_keys]
    assert publish(rabbitmq_url, [(type_, b"{}") for type_ in types]) == PublishReport(4, 0, 0)
    quorum = {
        "x-queue-type": "quorum",
        "x-single-active-consumer": True,
        "x-delivery-limit": 20,
        "x-dead-letter-exchange": "customer_dead_letter",
    }
    assert all(accepts(connection, source.queue, quorum) for source in SOURCES)
    assert all(accepts(connection, queue, {"x-queue-type": "quorum"}) for queue in (DEAD_LETTER_QUEUE, UNROUTED_QUEUE))


def test_declaring_again_changes_nothing_and_warns_of_nothing(connection: pika.BlockingConnection) -> None:
    declare(connection)
    assert declare(connection) == []


def test_what_a_queue_gives_up_arrives_among_the_dead_letters(
    connection: pika.BlockingConnection, rabbitmq_url: str
) -> None:
    declare(connection)
    publish(rabbitmq_url, [("order.completed", b"unwanted")])

    channel = connection.channel()
    for method, _, _ in channel.consume(ORDERS, inactivity_timeout=10):
        assert method
        assert method.delivery_tag
        channel.basic_reject(method.delivery_tag, requeue=False)
        break
    channel.cancel()

    for method, _, body in channel.consume(DEAD_LETTER_QUEUE, inactivity_timeout=10):
        assert (method and method.routing_key, body) == ("order.completed", b"unwanted")
        break


def test_a_message_of_an_unknown_type_vanishes_without_the_policy_and_is_kept_with_it(
    connection: pika.BlockingConnection, rabbitmq: RabbitMQ, rabbitmq_url: str
) -> None:
    declare(connection)
    channel = connection.channel()
    channel.confirm_delivery()
    with pytest.raises(UnroutableError):
        channel.basic_publish("order_events", "order.renamed", b"lost", mandatory=True)

    command = shlex.split(topology.unrouted_policy(urlsplit(rabbitmq_url).path[1:]))
    assert command[0] == "rabbitmqctl"
    rabbitmq.ctl(*command[1:])

    for source in SOURCES:
        channel.basic_publish(source.exchange, "order.renamed", b"kept", mandatory=True)
    found = [channel.basic_get(UNROUTED_QUEUE, auto_ack=True)[2] for _ in range(len(SOURCES) + 1)]
    assert found == [b"kept", b"kept", b"kept", None]
    for source in SOURCES:
        channel.exchange_declare(source.exchange, "topic", durable=True)  # a publisher's plain declaration still works


def test_a_publisher_may_declare_its_exchange_plainly_before_and_after_us(connection: pika.BlockingConnection) -> None:
    connection.channel().exchange_declare("order_events", "topic", durable=True)
    assert declare(connection) == []
    for source in SOURCES:
        connection.channel().exchange_declare(source.exchange, "topic", durable=True)


def test_an_exchange_with_arguments_of_its_publisher_is_used_as_it_is(
    connection: pika.BlockingConnection, rabbitmq_url: str
) -> None:
    connection.channel().exchange_declare(
        "order_events", "topic", durable=True, arguments={"alternate-exchange": "unroutable"}
    )
    assert declare(connection) == []
    assert publish(rabbitmq_url, [("order.completed", b"{}")]).confirmed == 1


def test_a_durable_classic_queue_is_used_with_a_warning_that_names_what_is_lost(
    connection: pika.BlockingConnection, rabbitmq_url: str
) -> None:
    connection.channel().queue_declare(ORDERS, durable=True)

    [warning] = declare(connection)

    assert ORDERS in warning
    assert "x-queue-type is not set: it is not replicated" in warning
    assert "x-single-active-consumer is not set: two ingest processes" in warning
    assert "x-dead-letter-exchange is not set: messages given up do not go to" in warning
    assert "docs/operating.md" in warning
    assert publish(rabbitmq_url, [("order.completed", b"{}")]) == PublishReport(1, 0, 0)
    assert accepts(connection, ORDERS, {})


def test_every_difference_of_an_existing_queue_is_named(connection: pika.BlockingConnection) -> None:
    arguments = {**topology.QUEUE_ARGUMENTS, "x-delivery-limit": 5, "x-max-length": 10, "x-message-ttl": 60_000}
    connection.channel().queue_declare(ORDERS, durable=True, arguments=arguments)

    [warning] = declare(connection)

    for difference in ("x-delivery-limit is 5", "x-max-length is 10", "x-message-ttl is 60000"):
        assert difference in warning
    for same in ("x-queue-type", "x-single-active-consumer", "x-dead-letter-exchange"):
        assert same not in warning


def test_dead_letters_that_would_expire_are_warned_of(connection: pika.BlockingConnection) -> None:
    arguments = {"x-queue-type": "quorum", "x-message-ttl": 1000}
    connection.channel().queue_declare(DEAD_LETTER_QUEUE, durable=True, arguments=arguments)

    [warning] = declare(connection)

    assert f"queue {DEAD_LETTER_QUEUE} is used as it is; x-message-ttl is 1000" in warning


@pytest.mark.parametrize(
    ("properties", "why"),
    [
        ({"durable": False}, "not durable"),
        ({"durable": True, "auto_delete": True}, "auto-delete"),
        ({"durable": True, "exclusive": True}, "exclusive"),
        ({"durable": True, "arguments": {"x-queue-type": "stream"}}, "a stream"),
    ],
)
def test_a_queue_that_would_lose_events_is_refused(
    connection: pika.BlockingConnection, rabbitmq_url: str, properties: dict[str, Any], why: str
) -> None:
    connection.channel().queue_declare(ORDERS, **properties)
    with (
        pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as ours,
        pytest.raises(UsageError, match=f"{ORDERS} is {why}.*rabbitmqctl delete_queue {ORDERS}"),
    ):
        declare(ours)


def test_a_dead_letter_exchange_that_would_drop_letters_is_refused(connection: pika.BlockingConnection) -> None:
    connection.channel().exchange_declare(DEAD_LETTER_EXCHANGE, "headers", durable=True)
    with pytest.raises(UsageError, match=f"{DEAD_LETTER_EXCHANGE} exists with type 'headers'"):
        declare(connection)
