"""A consumer in this process, and a database in memory that can be away."""

import threading
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import pika
import structlog

from customer_actors.domain.envelope import Received
from customer_actors.errors import Outage
from customer_actors.ingest.publish import PublishReport, publish
from customer_actors.ingest.rabbitmq import Consumer
from customer_actors.ingest.topology import SOURCES
from tests.servers.process import wait_until

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
