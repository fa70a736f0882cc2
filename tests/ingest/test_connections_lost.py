"""Whatever ends the connections, broker, standby or poison, nothing is lost and the order is kept."""

import struct
import threading
from collections.abc import Callable

import pika
import pytest
from pika.spec import BasicProperties

from customer_actors.domain.envelope import Received
from customer_actors.errors import UsageError
from customer_actors.ingest.topology import DEAD_LETTER_QUEUE, SOURCES, declare
from tests.ingest.consuming import (
    ORDER,
    ORDERS,
    PAYMENT,
    POS,
    Database,
    Running,
    assert_acknowledged,
    first_seen,
    numbered,
    running,
    send,
    waiting,
)
from tests.servers.process import wait_until
from tests.servers.rabbitmq import PrivateRabbitMQ, RabbitMQ

# --- the broker is away ----------------------------------------------------------------------------------------------


def test_connections_closed_time_and_again_lose_nothing_keep_the_order_and_get_no_foreign_tags(
    close_connections: Callable[[], None], url: str
) -> None:
    messages = numbered(200)
    database, closed = Database(), 0

    def close(batch: list[Received]) -> None:
        # More is under way than this batch, with tags above those that the next connection begins with.
        nonlocal closed
        if closed < 3 and len(batch) > 1 and consumer.consumes(20, closed + 1, ORDERS):
            close_connections()
            closed += 1
            wait_until(lambda: [entry["queue"] for entry in consumer.said("not connected")].count(ORDERS) == closed)

    database.before_commit = close
    with running(url, database, prefetch=20, batch_size=10) as consumer:
        send(url, messages)
        wait_until(lambda: database.holds(messages))
    assert closed == 3
    assert first_seen(database.bodies()) == list(range(200))
    # Acknowledging a tag that a channel did not hand out makes the broker close it: 406.
    assert not [entry for entry in consumer.said("not connected") if entry["error"].startswith("406")]
    assert_acknowledged(url)


def test_a_killed_broker_is_found_again_and_no_confirmed_message_is_lost(rabbitmq: RabbitMQ, url: str) -> None:
    messages = numbered(60, ORDER, PAYMENT)
    database, go_on = Database(), threading.Event()
    database.before_commit = lambda batch: wait_until(go_on.is_set) if len(database.committed) > 40 else None
    send(url, messages)
    with running(url, database):
        wait_until(lambda: len(database.committed) > 40)
        if isinstance(rabbitmq, PrivateRabbitMQ):
            rabbitmq.settle()
        rabbitmq.kill()
        go_on.set()
        rabbitmq.start()
        send(url, [(ORDER, b"60")])
        wait_until(lambda: database.holds([*messages, (ORDER, b"60")]))
    assert first_seen(database.bodies(ORDER)) == list(range(61))
    assert first_seen(database.bodies(PAYMENT)) == list(range(60))


def test_a_deleted_queue_is_made_again(url: str) -> None:
    database = Database()
    with running(url, database) as consumer:
        wait_until(lambda: consumer.consumes(prefetch=1))
        with pika.BlockingConnection(pika.URLParameters(url)) as connection:
            connection.channel().queue_delete(ORDERS)
        wait_until(lambda: consumer.consumes(prefetch=1, times=4))
        send(url, numbered(1))
        wait_until(lambda: database.bodies() == [b"0"])


def test_a_stop_is_quick_while_the_broker_is_away_and_the_log_shows_no_password() -> None:
    with running("amqp://guest:s3cret@127.0.0.1:1/", Database()) as consumer:
        wait_until(lambda: len(consumer.said("not connected")) >= 3)
    assert "s3cret" not in str(consumer.log)


def test_a_queue_that_loses_events_ends_the_run(rabbitmq_url: str) -> None:
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        connection.channel().queue_declare(ORDERS, durable=False)
    consumer = Running(rabbitmq_url, Database())
    wait_until(lambda: consumer.ended)
    assert isinstance(consumer.failure, UsageError)


def test_a_classic_queue_is_consumed_and_the_warning_is_given_once(rabbitmq_url: str) -> None:
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        connection.channel().queue_declare(ORDERS, durable=True)
        declare(connection)
        send(rabbitmq_url, numbered(20))
        database = Database()
        with running(rabbitmq_url, database) as consumer:
            wait_until(lambda: database.bodies() == [b"%d" % n for n in range(20)])
            connection.channel().queue_delete(SOURCES[1].queue)
            wait_until(lambda: bool(consumer.said("not connected")) and consumer.consumes(prefetch=1, times=4))
    assert len([entry for entry in consumer.log if "x-queue-type" in entry["event"]]) == 1


# --- a standby -------------------------------------------------------------------------------------------------------


def together(*databases: Database) -> Database:
    """Let these processes commit to one database, in the order in which they do."""
    for database in databases:
        database.committed = databases[0].committed
    return databases[0]


def test_two_processes_keep_the_order_while_each_widens_its_prefetch(url: str) -> None:
    messages = numbered(200, ORDER, POS, PAYMENT)
    mine, standby = Database(), Database()
    database = together(mine, standby)
    with running(url, mine, prefetch=20, batch_size=7) as first:
        wait_until(lambda: first.consumes(prefetch=1, times=3))
        with running(url, standby, prefetch=20, batch_size=7) as second:
            wait_until(lambda: second.consumes(prefetch=1, times=3))
            # Who comes first has all three, so one is handed over: each shall have something to do.
            link = first.consumer._links[SOURCES[1].queue]
            first.consumer._loop.add_callback_threadsafe(link.close)
            wait_until(lambda: first.consumes(prefetch=1, times=4))
            send(url, messages)
            wait_until(lambda: database.holds(messages))
    assert mine.batches
    assert standby.batches
    for type_ in (ORDER, POS, PAYMENT):
        assert first_seen(database.bodies(type_)) == list(range(200))


@pytest.mark.parametrize("how", ["it stops", "it has an outage", "all connections are closed"])
def test_a_standby_takes_over_in_order(close_connections: Callable[[], None], url: str, how: str) -> None:
    active, standby = Database(), Database()
    database = together(active, standby)
    with running(url, active, batch_size=2) as first:
        send(url, numbered(10))
        wait_until(lambda: database.holds(numbered(10)) and first.consumes(prefetch=5, times=1))

        stands_by = threading.Event()

        def hand_over(batch: list[Received]) -> None:
            active.before_commit = lambda batch: None
            assert stands_by.wait(20)
            match how:
                case "it stops":
                    first.consumer.stop()
                case "it has an outage":
                    active.away = True
                case _:
                    close_connections()
                    wait_until(lambda: len(first.said("not connected")) >= 1)

        active.before_commit = hand_over
        send(url, [(ORDER, b"%d" % n) for n in range(10, 40)])
        with running(url, standby) as second:
            wait_until(lambda: second.consumes(prefetch=1))
            stands_by.set()
            wait_until(lambda: database.holds(numbered(40)))
    # Both lose their connections, and either may be back first.
    assert standby.batches or how == "all connections are closed"
    assert first_seen(database.bodies()) == list(range(40))


# --- poison ----------------------------------------------------------------------------------------------------------


class Poison(BasicProperties):
    """Properties that the broker takes and pika cannot decode: one header, given in its encoded form."""

    def __init__(self, value: bytes) -> None:
        super().__init__()
        self._table = b"\x04when" + value

    def encode(self) -> list[bytes]:
        return [struct.pack(">HI", BasicProperties.FLAG_HEADERS, len(self._table)), self._table]


def deep_table(depth: int) -> bytes:
    table = b""
    for _ in range(depth):
        table = b"\x01aF" + struct.pack(">I", len(table)) + table
    return b"F" + struct.pack(">I", len(table)) + table


YEAR_20000 = b"T" + struct.pack(">Q", 568_971_820_800)


def test_messages_that_kill_the_connection_are_given_up_within_a_minute_and_take_no_valid_one_with_them(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Neighbours that are under way with the first one for long and then, if they still are, with the second.
    messages = numbered(100, ORDER, POS)
    poison = [(60, b"year 20000", YEAR_20000), (150, b"3,000 deep", deep_table(3000))]
    for (after, body, header), before in zip(poison, (0, 60), strict=True):
        send(url, messages[before:after])
        with pika.BlockingConnection(pika.URLParameters(url)) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            channel.basic_publish(SOURCES[0].exchange, ORDER, body, Poison(header))
    send(url, messages[150:])

    database = Database()
    # As long as a real commit: what arrives together with poison is not acknowledged before the connection is lost.
    database.before_commit = lambda batch: threading.Event().wait(0.005 * len(batch))
    with running(url, database, prefetch=60) as consumer:
        wait_until(lambda: database.holds(messages), 60)
        wait_until(lambda: waiting(url, DEAD_LETTER_QUEUE) == 2)
    for type_ in (ORDER, POS):
        assert first_seen(database.bodies(type_)) == list(range(100))
    assert {entry["queue"] for entry in consumer.said("not connected")} == {ORDERS}
    assert_acknowledged(url)

    monkeypatch.setattr(BasicProperties, "decode", lambda self, encoded, offset=0: self)
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        dead = [channel.basic_get(DEAD_LETTER_QUEUE, auto_ack=True)[2] for _ in range(3)]
    assert set(dead) == {b"3,000 deep", b"year 20000", None}
