"""Dead letters go back to where they came from; none is lost, whatever its headers are [G1, G13, G21]."""

from collections.abc import Iterator
from typing import Any

import pika
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker
from pika.spec import BasicProperties

from customer_actors.errors import Outage, UsageError
from customer_actors.ingest.dead_letters import (
    NO_ORIGIN,
    OTHER_QUEUE,
    QUEUE_GONE,
    RETRY_EXCHANGE_PREFIX,
    DeadLetterReport,
    _ways_back,
    retry,
)
from customer_actors.ingest.topology import DEAD_LETTER_EXCHANGE, DEAD_LETTER_QUEUE, SOURCES, declare
from tests.servers.amqp_frames import FramePublisher, nested, properties, table, timestamp
from tests.servers.process import wait_until

ORDERS, POS = SOURCES[0].queue, SOURCES[1].queue
YEAR_20000 = 568_971_820_800
POISON = {
    "year 20000": properties(table((b"when", timestamp(YEAR_20000)))),
    "3,000 deep": properties(table((b"deep", nested(3_000)))),
    "bad UTF-8": properties(table((b"\xff\xfe", b"S\x00\x00\x00\x02\xff\xfe")), content_encoding=b"\xff"),
}


@pytest.fixture
def channel(rabbitmq_url: str) -> Iterator[BlockingChannel]:
    """Of a broker with our topology, and another service that listens to orders."""
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        declare(connection)
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("another_service", durable=True)
        channel.queue_bind("another_service", SOURCES[0].exchange, "#")
        yield channel
        channel.queue_delete("another_service")


def count(channel: BlockingChannel, queue: str) -> int:
    found: int = channel.queue_declare(queue, passive=True).method.message_count
    return found


def give_up(channel: BlockingChannel, queue: str, number: int) -> None:
    """Let the broker give up the first messages of a queue, as a consumer's deaths do."""
    before = count(channel, DEAD_LETTER_QUEUE)
    for tag, *_ in take(channel, queue, number):
        channel.basic_nack(tag, requeue=False)
    wait_until(lambda: count(channel, DEAD_LETTER_QUEUE) == before + number)


def take(channel: BlockingChannel, queue: str, number: int) -> Iterator[tuple[int, str, BasicProperties, bytes]]:
    """The first messages of a queue, not acknowledged; a single active consumer's queue refuses basic.get."""
    channel.basic_qos(prefetch_count=1)
    deliveries = channel.consume(queue)
    for _ in range(number):
        method, properties, body = next(deliveries)
        assert method is not None
        assert method.delivery_tag is not None
        assert properties is not None
        yield method.delivery_tag, method.routing_key or "", properties, body or b""
    channel.cancel()


def bodies(channel: BlockingChannel, queue: str) -> list[tuple[str, bytes]]:
    """Take everything out of a queue."""
    found = []
    for tag, routing_key, _, body in take(channel, queue, count(channel, queue)):
        channel.basic_ack(tag)
        found.append((routing_key, body))
    assert count(channel, queue) == 0
    return found


def test_dead_letters_go_back_to_their_own_queue_alone(channel: BlockingChannel, rabbitmq_url: str) -> None:
    sent = [("order.completed", b"1"), ("order.cancelled", b"2"), ("pos.transaction.completed", b"3")]
    for routing_key, body in sent:
        exchange = SOURCES[0 if routing_key.startswith("order") else 1].exchange
        channel.basic_publish(exchange, routing_key, body, BasicProperties(user_id="guest", headers={"a": 1}))
    give_up(channel, ORDERS, 2)
    give_up(channel, POS, 1)
    bodies(channel, "another_service")

    assert retry(rabbitmq_url, dry_run=False) == DeadLetterReport(3, 3, 0, {})

    assert bodies(channel, ORDERS) == sent[:2]
    assert bodies(channel, POS) == sent[2:]
    assert bodies(channel, DEAD_LETTER_QUEUE) == []
    assert bodies(channel, "another_service") == [], "who else listens must not get them again"


@pytest.mark.parametrize("encoded", POISON.values(), ids=POISON.keys())
def test_a_message_that_kills_consumers_goes_back_harmless(
    channel: BlockingChannel, rabbitmq_url: str, encoded: bytes
) -> None:
    with FramePublisher(rabbitmq_url) as frames:
        frames.publish(DEAD_LETTER_EXCHANGE, b"order.completed", b"poison", encoded)
    assert retry(rabbitmq_url, dry_run=True) == DeadLetterReport(1, 1, 0, {})
    assert retry(rabbitmq_url, dry_run=False) == DeadLetterReport(1, 1, 0, {})
    ((_, routing_key, found, body),) = take(channel, ORDERS, 1)
    assert (routing_key, body) == ("order.completed", b"poison")
    assert (found.headers, found.delivery_mode) == (None, 2)
    assert bodies(channel, DEAD_LETTER_QUEUE) == []


def test_what_cannot_go_back_is_kept_as_it_was_and_counted_with_the_reason(
    channel: BlockingChannel, rabbitmq_url: str
) -> None:
    channel.queue_declare(
        "not_ours",
        durable=True,
        arguments={"x-dead-letter-exchange": DEAD_LETTER_EXCHANGE, "x-dead-letter-routing-key": "elsewhere"},
    )
    sent = BasicProperties(headers={"kept": "yes"}, message_id="m-1", user_id="guest", delivery_mode=2)
    channel.basic_publish("", "not_ours", b"theirs", sent)
    give_up(channel, "not_ours", 1)
    channel.basic_publish(DEAD_LETTER_EXCHANGE, "who.knows", b"stray")
    channel.basic_publish(SOURCES[1].exchange, "pos.transaction.completed", b"homeless")
    give_up(channel, POS, 1)
    channel.queue_delete(POS)

    for dry_run in (True, False):
        report = retry(rabbitmq_url, dry_run=dry_run)
        assert report == DeadLetterReport(3, 0, 3, {OTHER_QUEUE: 1, NO_ORIGIN: 1, QUEUE_GONE: 1})

    ((_, routing_key, found, body),) = take(channel, DEAD_LETTER_QUEUE, 1)
    assert (routing_key, body) == ("elsewhere", b"theirs")
    headers: Any = found.headers
    assert (headers["kept"], found.message_id, headers["x-death"][0]["queue"]) == ("yes", "m-1", "not_ours")
    channel.queue_delete("not_ours")


def test_a_dry_run_moves_nothing_out_and_a_limit_is_kept(channel: BlockingChannel, rabbitmq_url: str) -> None:
    for number in range(5):
        channel.basic_publish(DEAD_LETTER_EXCHANGE, "order.completed", b"%d" % number)
    assert retry(rabbitmq_url, dry_run=True) == DeadLetterReport(5, 5, 0, {})
    assert retry(rabbitmq_url, dry_run=True, limit=2) == DeadLetterReport(2, 2, 0, {})
    assert retry(rabbitmq_url, dry_run=False, limit=3) == DeadLetterReport(3, 3, 0, {})
    assert (len(bodies(channel, ORDERS)), len(bodies(channel, DEAD_LETTER_QUEUE))) == (3, 2)


def test_no_queue_no_broker_and_a_bad_url_are_told_apart(rabbitmq_url: str) -> None:
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        connection.channel().queue_delete(DEAD_LETTER_QUEUE)
    with pytest.raises(UsageError, match="customer-actors ingest"):
        retry(rabbitmq_url, dry_run=False)
    with pytest.raises(UsageError, match="RABBITMQ_URL"):
        retry("http://nowhere", dry_run=False)
    with pytest.raises(Outage, match="0 dead letters were put back"):
        retry("amqp://guest:guest@127.0.0.1:9/?connection_attempts=1", dry_run=False)


def test_a_retry_that_fails_on_the_way_leaves_no_queue_bound(channel: BlockingChannel, rabbitmq_url: str) -> None:
    channel.queue_delete(DEAD_LETTER_QUEUE)
    with pytest.raises(UsageError, match="customer-actors ingest"):
        retry(rabbitmq_url, dry_run=False)
    with pytest.raises(ChannelClosedByBroker, match="NOT_FOUND"):  # it goes with its last binding
        channel.connection.channel().exchange_declare(RETRY_EXCHANGE_PREFIX + ORDERS, passive=True)


def test_a_connection_that_is_lost_on_the_way_does_not_hide_what_was_wrong(
    channel: BlockingChannel, rabbitmq_url: str
) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(rabbitmq_url))

    def lose() -> None:
        connection.close()
        raise ValueError("the first")

    with pytest.raises(ValueError, match="the first"), _ways_back(connection):
        lose()
