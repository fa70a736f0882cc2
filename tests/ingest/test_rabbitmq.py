"""The consumer loses nothing, keeps the order and comes back by itself, whatever happens to broker and database."""

import threading
import time
from itertools import count

import pika
import pytest
from pika.spec import BasicProperties

from customer_actors.domain.envelope import Received
from customer_actors.errors import Outage, UsageError
from customer_actors.ingest import losses
from customer_actors.ingest import rabbitmq as module
from customer_actors.ingest.topology import DEAD_LETTER_QUEUE, SOURCES
from customer_actors.storage.opening import open_database
from tests.ingest.consuming import (
    ORDER,
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
        wait_until(lambda: database.holds(numbered(3)))
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


def test_a_consumer_that_can_commit_nothing_says_so_until_it_can(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As without a grant, with a full disk or a locked row: `ready` is content."""
    monkeypatch.setattr(module, "_FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(module, "_LONGEST_RETRY_S", 0.02)
    monkeypatch.setattr(losses, "WINDOW_S", 0.1)
    send(url, numbered(3))
    database = Database()

    def refuse(batch: list[Received]) -> None:
        raise Outage("no grant on event at postgresql://us:s3cret@host/shop")

    database.before_commit = refuse
    with running(url, database) as consumer:
        wait_until(lambda: consumer.consumer.alarm() is not None)
        alarm = consumer.consumer.alarm()
        assert alarm is not None
        assert alarm.startswith("nothing can be committed for 0 s: no grant on event")
        assert "s3cret" not in alarm
        database.before_commit = lambda batch: None
        wait_until(lambda: database.holds(numbered(3)))
        wait_until(lambda: consumer.consumer.alarm() is None)


def test_a_usage_error_of_the_readiness_check_ends_the_run(url: str) -> None:
    def outdated() -> None:
        raise UsageError("type: customer-actors migrate")

    consumer = Running(url, Database(), ready=outdated)
    wait_until(lambda: consumer.ended)
    assert isinstance(consumer.failure, UsageError)
