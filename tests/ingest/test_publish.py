"""Publishing counts what the broker said, and never more."""

from collections.abc import Iterator
from itertools import count

import pika
import pytest

from customer_actors.errors import Outage, UsageError
from customer_actors.ingest.connection import parameters
from customer_actors.ingest.publish import PublishReport, exchange_for, publish
from customer_actors.ingest.topology import SOURCES, declare
from tests.servers.rabbitmq import RabbitMQ

ORDER, POS = SOURCES[0], SOURCES[1]
NOBODY_LISTENS = "amqp://guest:s3cret@127.0.0.1:1/"


@pytest.fixture
def broker(rabbitmq_url: str) -> Iterator[pika.BlockingConnection]:
    """A connection to a broker that has our topology."""
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        declare(connection)
        yield connection


def bodies(broker: pika.BlockingConnection, queue: str, number: int) -> list[bytes]:
    """The bodies of the first messages of a queue."""
    channel, found = broker.channel(), list[bytes]()
    for method, properties, body in channel.consume(queue, auto_ack=True, inactivity_timeout=10):
        assert method, f"{queue} held {len(found)} messages"
        assert properties
        assert properties.delivery_mode == 2
        found.append(body or b"")
        if len(found) == number:
            return found
    raise AssertionError("the broker cancelled the consumer")


def test_what_is_confirmed_is_in_the_queues_in_order(broker: pika.BlockingConnection, rabbitmq_url: str) -> None:
    messages = [(("order.completed", "pos.transaction.completed")[n % 2], b"%d" % n) for n in range(3000)]

    assert publish(rabbitmq_url, messages) == PublishReport(confirmed=3000, returned=0, nacked=0)

    assert bodies(broker, ORDER.queue, 1500) == [b"%d" % n for n in range(0, 3000, 2)]
    assert bodies(broker, POS.queue, 1500) == [b"%d" % n for n in range(1, 3000, 2)]


def test_a_message_that_no_queue_takes_is_counted_as_returned_and_not_as_confirmed(
    broker: pika.BlockingConnection, rabbitmq_url: str
) -> None:
    broker.channel().queue_unbind(POS.queue, POS.exchange, POS.routing_keys[0])
    messages = [("order.completed", b"1"), ("pos.transaction.completed", b"2"), ("order.cancelled", b"3")]

    assert publish(rabbitmq_url, messages) == PublishReport(confirmed=2, returned=1, nacked=0)


def test_a_message_that_the_queue_refuses_is_counted_as_nacked(
    broker: pika.BlockingConnection, rabbitmq_url: str
) -> None:
    channel = broker.channel()
    channel.queue_delete(POS.queue)
    channel.queue_declare(POS.queue, durable=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    channel.queue_bind(POS.queue, POS.exchange, POS.routing_keys[0])

    report = publish(rabbitmq_url, [("pos.transaction.completed", b"{}")] * 5, window=1)

    assert report == PublishReport(confirmed=1, returned=0, nacked=4)


def test_progress_grows_up_to_the_number_confirmed(broker: pika.BlockingConnection, rabbitmq_url: str) -> None:
    seen: list[int] = []
    publish(rabbitmq_url, [("order.completed", b"{}")] * 1000, progress=seen.append, window=100)
    assert seen == sorted(set(seen))
    assert len(seen) >= 10
    assert seen[-1] == 1000


def test_no_more_than_a_window_is_drawn_ahead_of_the_confirmations(
    broker: pika.BlockingConnection, rabbitmq_url: str
) -> None:
    drawn, confirmed, ahead = 0, 0, 0

    def endless() -> Iterator[tuple[str, bytes]]:
        nonlocal drawn, ahead
        for drawn in range(1, 2001):
            # One more may be drawn and wait for room.
            ahead = max(ahead, drawn - confirmed)
            yield "order.completed", b"{}"

    def progress(number: int) -> None:
        nonlocal confirmed
        confirmed = number

    publish(rabbitmq_url, endless(), progress=progress, window=50)

    assert drawn == 2000
    assert 1 < ahead <= 51


@pytest.mark.parametrize(
    ("routing_key", "exchange"), [(key, source.exchange) for source in SOURCES for key in source.routing_keys]
)
def test_every_event_type_has_its_exchange(routing_key: str, exchange: str) -> None:
    assert exchange_for(routing_key) == exchange


def test_an_unknown_event_type_is_named_and_what_came_before_it_is_sent(
    broker: pika.BlockingConnection, rabbitmq_url: str
) -> None:
    seen: list[int] = []
    with pytest.raises(UsageError, match=r"'credit\.opened'.*order\.completed"):
        publish(rabbitmq_url, [("order.completed", b"1"), ("credit.opened", b"2")], progress=seen.append)
    assert seen == [1]
    assert bodies(broker, ORDER.queue, 1) == [b"1"]


def test_a_missing_exchange_is_the_operators_fault_and_the_fix_is_named(
    broker: pika.BlockingConnection, rabbitmq_url: str
) -> None:
    broker.channel().exchange_delete(ORDER.exchange)
    with pytest.raises(UsageError, match=r"no exchange 'order_events'.*0 messages.*customer-actors ingest"):
        publish(rabbitmq_url, (("order.completed", b"{}") for _ in count()))


def test_a_lost_connection_is_an_outage_that_claims_no_more_than_was_confirmed(
    rabbitmq: RabbitMQ, rabbitmq_url: str
) -> None:
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        declare(connection)
    seen = [0]

    def endless() -> Iterator[tuple[str, bytes]]:
        for number in count():
            yield "order.completed", b"%d" % number
            if seen[-1] >= 300 and number % 300 == 0:
                rabbitmq.ctl("close_all_connections", "--vhost", parameters(rabbitmq_url, "").virtual_host, "test")

    with pytest.raises(Outage, match=r"went away.*messages were confirmed") as caught:
        publish(rabbitmq_url, endless(), progress=seen.append)

    claimed = int(str(caught.value).split("; ")[1].split()[0])
    assert claimed >= 300
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as again:
        assert bodies(again, ORDER.queue, claimed) == [b"%d" % number for number in range(claimed)]


def test_an_unreachable_broker_is_an_outage_that_shows_no_password() -> None:
    with pytest.raises(Outage, match=r"127\.0\.0\.1:1 cannot be reached \(ConnectionRefusedError\)") as caught:
        publish(NOBODY_LISTENS, [("order.completed", b"{}")])
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "127.0.0.1", "http://guest:s3cret@h/", "amqp://guest:s3cret@h:port/"])
def test_an_unreadable_url_is_a_usage_error_that_shows_no_password(url: str) -> None:
    with pytest.raises(UsageError, match="RABBITMQ_URL cannot be read") as caught:
        publish(url, [])
    assert "s3cret" not in str(caught.value)


def test_a_window_without_room_is_refused() -> None:
    with pytest.raises(UsageError, match="window"):
        publish(NOBODY_LISTENS, [], window=0)


def test_heartbeat_and_blocked_timeout_are_set_unless_the_url_sets_them() -> None:
    ours, theirs = parameters("amqp://h/", "n"), parameters("amqps://h/?heartbeat=7&blocked_connection_timeout=9", "n")
    assert (ours.heartbeat, ours.blocked_connection_timeout, ours.ssl_options) == (30, 60, None)
    assert (theirs.heartbeat, theirs.blocked_connection_timeout) == (7, 9)
    assert theirs.ssl_options is not None
    assert theirs.ssl_options.context.check_hostname
    assert theirs.client_properties == {"connection_name": "n"}
