"""The broker as every process makes it: nothing asynchronous, nothing pickled, nothing unconfirmed."""

import ssl
from typing import Any

import dramatiq
import pytest
from dramatiq.broker import Consumer, MessageProxy
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.encoder import PickleEncoder
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Retries, default_middleware
from structlog.testing import capture_logs

from customer_actors.actors.broker import CarefulBroker, CarefulConsumer, make_broker, require_safe
from customer_actors.actors.encoding import StrictEncoder
from customer_actors.actors.main import declare
from customer_actors.actors.sweeper import Sweeper
from customer_actors.actors.watchdog import Watchdog
from customer_actors.errors import UsageError
from customer_actors.settings import load_settings
from customer_actors.storage.database import Database

URL = "amqp://somebody:s3cret@mq.example:5672/shop"


@pytest.mark.parametrize("url", [None, URL])
def test_the_middleware_is_exactly_ours_and_interrupts_no_thread(database: Database, url: str | None) -> None:
    broker = make_broker(url)
    assert [type(each) for each in broker.middleware] == [Retries]
    assert len(default_middleware) > 1
    watchdog = Watchdog(print)
    broker.add_middleware(watchdog)
    declare(load_settings({}), database, broker, watchdog=watchdog)
    assert [type(each) for each in broker.middleware] == [Retries, Watchdog, Sweeper]


def test_every_broker_confirms_beats_and_speaks_our_json() -> None:
    dramatiq.set_encoder(PickleEncoder())
    broker: Any = make_broker(URL)
    assert isinstance(dramatiq.get_encoder(), StrictEncoder)
    assert broker.confirm_delivery
    assert broker.parameters.heartbeat > 0
    assert broker.parameters.blocked_connection_timeout > 0


def test_a_heartbeat_switched_off_is_refused_with_the_fix() -> None:
    with pytest.raises(UsageError, match="remove heartbeat=0"):
        make_broker(f"{URL}?heartbeat=0")


def test_amqps_verifies_certificate_and_host_name() -> None:
    broker: Any = CarefulBroker("amqps://shop:secret@mq.example/")
    options = broker.parameters.ssl_options
    assert (options.context.verify_mode, options.context.check_hostname) == (ssl.CERT_REQUIRED, True)


def test_an_encoder_of_somebody_else_and_unconfirmed_sends_are_refused() -> None:
    with pytest.raises(UsageError, match="confirm_delivery=True"):
        require_safe(RabbitmqBroker(url=f"{URL}?heartbeat=30", middleware=[]))
    broker = make_broker(URL)
    dramatiq.set_encoder(PickleEncoder())
    try:
        with pytest.raises(UsageError, match="set_encoder"):
            require_safe(broker)
    finally:
        dramatiq.set_encoder(StrictEncoder())


class Inner(Consumer):
    """Hands out what it is given and notes what it is told."""

    def __init__(self, *messages: MessageProxy | None) -> None:
        self.messages = iter(messages)
        self.acked: list[Any] = []
        self.nacked: list[Any] = []

    def __next__(self) -> MessageProxy | None:
        return next(self.messages)

    def ack(self, message: MessageProxy) -> None:
        self.acked.append(message)

    def nack(self, message: MessageProxy) -> None:
        self.nacked.append(message)


def message(queue: str = "stats", actor: str = "stats", args: tuple[Any, ...] = ([1],), **options: Any) -> MessageProxy:
    return MessageProxy(dramatiq.Message(queue, actor, args, {}, options))


@pytest.fixture
def broker() -> CarefulBroker:
    made = CarefulBroker(URL)

    def stats(customers: list[int]) -> None: ...

    made.actors["stats"] = dramatiq.Actor(
        stats, broker=make_broker(None), actor_name="stats", queue_name="stats", priority=0, options={}
    )
    return made


@pytest.mark.parametrize(
    ("queue", "refused"),
    [
        ("stats", message("loyalty", "loyalty")),
        ("stats", message("stats.DQ", eta=1)),
        ("stats.DQ", message("stats.DQ")),
        ("stats", message(args=("text",))),
        ("nobody", message("nobody", "nobody")),
    ],
)
def test_a_message_no_thread_would_survive_is_set_aside(broker: CarefulBroker, queue: str, refused: Any) -> None:
    good = message(queue, "stats", eta=1) if queue == "stats.DQ" else message()
    inner = Inner(refused, None, good)
    consumer = CarefulConsumer(broker, queue, inner)
    with capture_logs() as logs:
        assert next(consumer) is None
    assert inner.nacked == [refused]
    assert [entry["log_level"] for entry in logs] == ["warning"]
    assert next(consumer) is None
    if queue != "nobody":
        assert next(consumer) is good


def test_a_message_of_an_earlier_connection_acknowledges_none_of_this_one(broker: CarefulBroker) -> None:
    """[M1] The numbers of messages begin anew with every connection."""
    first, second = message(), message()
    old, new = Inner(first), Inner(second)
    before, after = CarefulConsumer(broker, "stats", old), CarefulConsumer(broker, "stats", new)
    assert (next(before), next(after)) == (first, second)
    after.ack(first)
    after.nack(first)
    assert (new.acked, new.nacked) == ([], [])
    after.ack(second)
    assert new.acked == [second]


@pytest.mark.parametrize("call", ["close", "requeue"])
def test_an_end_that_meets_the_consumer_s_own_thread_is_a_lost_connection(broker: CarefulBroker, call: str) -> None:
    """Seen at the shutdown of a busy machine: a FileExistsError of pika's poller, and exit code 1."""

    class Busy(Inner):
        def close(self) -> None:
            raise FileExistsError(17, "File exists")

        def requeue(self, messages: Any) -> None:
            self.close()

    consumer = CarefulConsumer(broker, "stats", Busy())
    with pytest.raises(ConnectionClosed):
        consumer.close() if call == "close" else consumer.requeue([])


def test_a_deleted_queue_is_declared_anew(broker: CarefulBroker) -> None:
    broker.queues_pending.clear()
    with pytest.raises(ConnectionClosed, match="deleted"):
        next(CarefulConsumer(broker, "stats.DQ", Inner()))
    assert broker.queues_pending == {"stats"}
