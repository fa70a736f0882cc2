"""The consumer loses nothing, keeps the order and comes back by itself, whatever happens to broker and database."""

import struct
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from itertools import count
from typing import Any

import pika
import pytest
import structlog
from pika.spec import BasicProperties

from customer_actors.domain.envelope import Received
from customer_actors.errors import Outage, UsageError
from customer_actors.ingest import rabbitmq as module
from customer_actors.ingest.connection import parameters
from customer_actors.ingest.publish import PublishReport, publish
from customer_actors.ingest.rabbitmq import Consumer
from customer_actors.ingest.topology import DEAD_LETTER_QUEUE, SOURCES, declare
from customer_actors.storage.opening import open_database
from tests.servers.process import wait_until
from tests.servers.rabbitmq import PrivateRabbitMQ, RabbitMQ

ORDER, POS, PAYMENT = ("order.completed", "pos.transaction.completed", "payment.received")
ORDERS = SOURCES[0].queue
STOP_S = 4.0


class Database:
    """What `take` commits to: remembers every message, and can be away or slow."""

    def __init__(self) -> None:
        self.committed: list[Received] = []
        self.batches: list[int] = []
        self.away = False
        self.before_commit: Callable[[list[Received]], object] = lambda batch: None

    def take(self, batch: list[Received]) -> list[str | None]:
        self.before_commit(batch)
        if self.away:
            raise Outage("the database is away")
        self.batches.append(len(batch))
        self.committed += batch
        return [None] * len(batch)

    def ready(self) -> None:
        if self.away:
            raise Outage("the database is away")

    def bodies(self, routing_key: str = ORDER) -> list[bytes]:
        """As committed, redelivered ones again."""
        return [received.body for received in list(self.committed) if received.routing_key == routing_key]

    def holds(self, messages: list[tuple[str, bytes]]) -> bool:
        committed = {(received.routing_key, received.body) for received in list(self.committed)}
        return committed.issuperset(messages)


class Running:
    """A consumer in a thread."""

    def __init__(
        self,
        url: str,
        database: Database,
        *,
        batch_size: int = 50,
        prefetch: int = 5,
        ready: Callable[[], None] | None = None,
    ) -> None:
        capture = structlog.testing.LogCapture()
        self.log = capture.entries
        self.failure: BaseException | None = None
        self.consumer = Consumer(
            url,
            database.take,
            batch_size=batch_size,
            batch_age_s=0.005,
            prefetch=prefetch,
            ready=ready or database.ready,
            log=structlog.wrap_logger(None, [capture], structlog.make_filtering_bound_logger(0)),
        )
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.consumer.run()
        except BaseException as error:
            self.failure = error

    @property
    def ended(self) -> bool:
        return not self._thread.is_alive()

    def said(self, event: str) -> list[MutableMapping[str, Any]]:
        return [entry for entry in list(self.log) if entry["event"] == event]

    def consumes(self, prefetch: int, times: int = 3, queue: str = "") -> bool:
        """Whether it has begun to so often, from one queue or in all."""
        begun = [entry for entry in self.said("consuming") if entry["prefetch"] == prefetch]
        return len([entry for entry in begun if entry["queue"] == (queue or entry["queue"])]) >= times

    def stop(self) -> float:
        """Stop it; how many seconds that took."""
        begun_s = time.monotonic()
        self.consumer.stop()
        self._thread.join(2 * STOP_S)
        assert self.ended
        return time.monotonic() - begun_s


@contextmanager
def running(url: str, database: Database, **how: Any) -> Iterator[Running]:
    """A consumer that ends with the block and did not fail."""
    consumer = Running(url, database, **how)
    try:
        yield consumer
    finally:
        took_s = consumer.stop()
    assert consumer.failure is None
    assert took_s < STOP_S


@pytest.fixture
def url(rabbitmq_url: str) -> str:
    """Of a broker that has our topology."""
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        declare(connection)
    return rabbitmq_url


def numbered(number: int, *types: str) -> list[tuple[str, bytes]]:
    """So many messages of each type, in turn."""
    return [(type_, b"%d" % n) for n in range(number) for type_ in types or (ORDER,)]


def send(url: str, messages: list[tuple[str, bytes]]) -> None:
    assert publish(url, messages) == PublishReport(len(messages), 0, 0)


def first_seen(bodies: list[bytes]) -> list[int]:
    """Without what came again."""
    return list(dict.fromkeys(map(int, bodies)))


def waiting(url: str, queue: str = ORDERS) -> int:
    """Messages of a queue that no consumer has in hand."""
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        found: int = connection.channel().queue_declare(queue, passive=True).method.message_count
        return found


def assert_acknowledged(url: str) -> None:
    """Everything sent so far has left the queues: a new consumer gets only what is sent now."""
    last = [(type_, b"last") for type_ in (ORDER, POS, PAYMENT)]
    send(url, last)
    rest = Database()
    with running(url, rest):
        wait_until(lambda: rest.holds(last))
    assert {received.body for received in rest.committed} == {b"last"}


@pytest.fixture
def close_connections(rabbitmq: RabbitMQ, url: str) -> Callable[[], None]:
    """Makes the broker close all connections to this test's virtual host."""

    def close() -> None:
        rabbitmq.ctl("close_all_connections", "--vhost", parameters(url, "").virtual_host, "closed by the test")

    close()  # not for the first time in another thread, which could not skip the test on a broker that is not ours
    return close


# --- the ordinary ----------------------------------------------------------------------------------------------------


def test_all_messages_arrive_in_order_as_they_were_sent_and_are_acknowledged(url: str) -> None:
    messages = numbered(200, ORDER, POS, PAYMENT)
    send(url, messages)
    before_us = time.time_ns() // 1000
    database = Database()
    with running(url, database, prefetch=20):
        wait_until(lambda: database.holds(messages))
    for type_ in (ORDER, POS, PAYMENT):
        assert database.bodies(type_) == [b"%d" % n for n in range(200)]
    assert before_us < min(received.received_at_us for received in database.committed)
    assert {received.content_encoding for received in database.committed} == {None}
    assert_acknowledged(url)


def test_the_content_encoding_is_handed_on(url: str) -> None:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        properties = BasicProperties(content_encoding="gzip")
        connection.channel().basic_publish(SOURCES[0].exchange, ORDER, b"\x1f\x8b", properties)
    database = Database()
    with running(url, database):
        wait_until(lambda: bool(database.committed))
    assert database.committed[0][:2] == (b"\x1f\x8b", ORDER)
    assert database.committed[0].content_encoding == "gzip"


def test_no_batch_is_larger_than_the_batch_size_and_messages_travel_together_under_load(url: str) -> None:
    send(url, numbered(400))
    database = Database()
    with running(url, database, prefetch=40, batch_size=25):
        wait_until(lambda: database.holds(numbered(400)))
    assert max(database.batches) <= 25
    assert len(database.batches) < 100


def test_a_connection_begins_with_one_message_and_never_has_more_than_the_prefetch(url: str) -> None:
    send(url, numbered(60))
    database, in_hand = Database(), list[int]()

    def look(batch: list[Received]) -> None:
        if len(database.committed) in (0, 10):
            # Nothing is acknowledged meanwhile, so what was under way has arrived when this is reached.
            most = 5 if database.committed else 1
            wait_until(lambda: waiting(url) <= 60 - len(database.committed) - most, 10)
        # What is acknowledged is committed, so no more than this can have left the queue.
        in_hand.append(60 - len(database.committed) - waiting(url))

    database.before_commit = look
    with running(url, database, prefetch=5, batch_size=1):
        wait_until(lambda: database.holds(numbered(60)))
    assert in_hand[0] == 1
    assert in_hand[10] == max(in_hand) == 5


# --- acknowledged means committed ------------------------------------------------------------------------------------


def test_a_batch_abandoned_at_a_stop_is_not_acknowledged_and_the_stop_takes_less_than_4_seconds(url: str) -> None:
    send(url, numbered(3))
    database, reached, go_on = Database(), threading.Event(), threading.Event()

    def hang(batch: list[Received]) -> None:
        reached.set()
        go_on.wait(30)

    database.before_commit = hang
    with running(url, database):
        assert reached.wait(10)
    other = Database()
    with running(url, other):
        wait_until(lambda: other.holds(numbered(3)))
    assert other.bodies() == [b"0", b"1", b"2"]
    go_on.set()


def test_a_stop_finishes_and_acknowledges_the_batch_in_hand(url: str) -> None:
    database = Database()
    database.before_commit = lambda batch: consumer.consumer.stop()
    consumer = Running(url, database)
    send(url, numbered(1))
    wait_until(lambda: consumer.ended)
    assert database.bodies() == [b"0"]
    assert_acknowledged(url)


def test_what_take_raises_ends_the_run_and_the_messages_stay(url: str) -> None:
    send(url, numbered(3))
    database = Database()

    def fail(batch: list[Received]) -> None:
        raise ZeroDivisionError

    database.before_commit = fail
    consumer = Running(url, database)
    wait_until(lambda: consumer.ended)
    assert isinstance(consumer.failure, ZeroDivisionError)

    other = Database()
    with running(url, other):
        wait_until(lambda: other.holds(numbered(3)))


def test_heartbeats_are_served_while_a_statement_runs_for_long(url: str, postgres_url: str) -> None:
    """The broker ends a connection that is silent for two heartbeats; the statement takes four."""
    send(url, numbered(3))
    database, real = Database(), open_database(postgres_url)

    def hang(batch: list[Received]) -> None:
        real.query("SELECT pg_sleep(8)" if not database.committed else "SELECT 1")
        real.release()  # of this thread, which is not the test's

    database.before_commit = hang
    with running(f"{url}?heartbeat=2", database) as consumer:
        wait_until(lambda: database.holds(numbered(3)), 60)
    assert database.bodies() == [b"0", b"1", b"2"], "nothing was delivered again"
    assert not consumer.said("not connected")
    assert_acknowledged(url)


# --- the database is away --------------------------------------------------------------------------------------------


def test_an_outage_gives_everything_back_at_once_and_work_resumes_by_itself(url: str) -> None:
    messages = numbered(100, ORDER, POS)
    database = Database()

    def leave(batch: list[Received]) -> None:
        database.away = database.away or len(database.committed) == 40

    database.before_commit = leave
    with running(url, database, batch_size=4) as consumer:
        send(url, messages[:40])
        wait_until(lambda: database.holds(messages[:40]))
        send(url, messages[40:])
        wait_until(lambda: bool(consumer.said("outage")))
        # A process whose database answers can have them all.
        wait_until(lambda: (waiting(url), waiting(url, SOURCES[1].queue)) == (80, 80), 10)
        database.before_commit = lambda batch: None
        database.away = False
        wait_until(lambda: database.holds(messages))
    for type_ in (ORDER, POS):
        assert first_seen(database.bodies(type_)) == list(range(100))
    assert_acknowledged(url)


def test_nothing_is_consumed_before_the_database_is_ready(url: str) -> None:
    send(url, numbered(1))
    database = Database()
    database.away = True
    with running(url, database) as consumer:
        wait_until(lambda: len(consumer.said("outage")) >= 2)
        assert not consumer.said("consuming")
        database.away = False
        wait_until(lambda: database.bodies() == [b"0"])


def test_an_outage_that_the_readiness_check_does_not_see_never_makes_dead_letters(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(module, "_LONGEST_RETRY_S", 0.02)
    send(url, numbered(3, ORDER, POS))
    database, tries = Database(), count()

    def locked(batch: list[Received]) -> None:
        if next(tries) < 30:
            raise Outage("a row is locked")

    database.before_commit = locked
    with running(url, database):
        wait_until(lambda: database.holds(numbered(3, ORDER, POS)))
    assert database.bodies(ORDER) == database.bodies(POS) == [b"0", b"1", b"2"]
    assert waiting(url, DEAD_LETTER_QUEUE) == 0


def test_a_usage_error_of_the_readiness_check_ends_the_run(url: str) -> None:
    def outdated() -> None:
        raise UsageError("type: customer-actors migrate")

    consumer = Running(url, Database(), ready=outdated)
    wait_until(lambda: consumer.ended)
    assert isinstance(consumer.failure, UsageError)


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
