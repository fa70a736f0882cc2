"""Everything in one process: SQLite (or PostgreSQL), Dramatiq's in-process broker with worker threads, ingest from lines.

The streams are durable, so a killed run resumes where it stopped: the next start rings everybody who is behind.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import IO, NamedTuple

import dramatiq
from dramatiq.brokers.stub import StubBroker

from customer_actors.actors.broker import make_broker
from customer_actors.actors.main import declare
from customer_actors.actors.pipeline import Pipeline, now_us
from customer_actors.domain.envelope import Received
from customer_actors.ingest.files import received_lines
from customer_actors.ingest.intake import Intake, policies
from customer_actors.settings import Settings
from customer_actors.storage.database import Database, open_database
from customer_actors.storage.overdue import all_behind
from customer_actors.storage.schema import migrate

QUEUES = ("dispatcher", "stats", "loyalty", "credit", "segmentation")
"""The queues to wait for; `held` waits by itself."""


class Progress(NamedTuple):
    """How far a run is."""

    lines: int
    """Lines committed so far."""
    waiting: int
    """Customers some actor is behind for; -1 while lines are still read."""


class Embedded:
    """A running embedded service; made by `embedded()`."""

    def __init__(self, database: Database, pipeline: Pipeline, intake: Intake, batch_size: int) -> None:
        self.database = database
        self.pipeline = pipeline
        self.intake = intake
        self._batch_size = batch_size

    def feed(self, lines: IO[bytes], progress: Callable[[Progress], object] = lambda _: None) -> int:
        """Admit every line of a JSON-lines stream, batch by batch; returns how many there were."""
        total = 0
        for batch in _batches(received_lines(lines, self.pipeline.clock), self._batch_size):
            self.intake.take(batch)
            total += len(batch)
            progress(Progress(total, -1))
        return total

    def drain(self, lines: int, progress: Callable[[Progress], object] = lambda _: None) -> None:
        """Wait until every customer is at its head or held, for every actor; rings again whoever was missed."""
        while behind := all_behind(self.database_stores):
            if not any(behind.values()):
                return
            progress(Progress(lines, len({customer for customers in behind.values() for customer in customers})))
            if not self._queues_busy():
                for actor, customers in behind.items():
                    self.pipeline.ring_actor(actor, customers)
            time.sleep(0.05)

    @property
    def database_stores(self):  # type: ignore[no-untyped-def]
        return self.pipeline.stores

    def _queues_busy(self) -> bool:
        broker = self.pipeline.broker
        return isinstance(broker, StubBroker) and any(broker.queues[name].unfinished_tasks for name in QUEUES)


def _batches(messages: Iterable[Received], size: int) -> Iterator[list[Received]]:
    iterator = iter(messages)
    while batch := list(islice(iterator, size)):
        yield batch


@contextmanager
def embedded(settings: Settings) -> Iterator[Embedded]:
    """Migrate, start the workers, and stop them at the end. Whatever an earlier run left behind is rung at once."""
    database = open_database(settings.database_url)
    migrate(database)
    pipeline = declare(settings, database, make_broker(None))
    intake = Intake(database, policies(settings, database, now_us()), pipeline.ring, pipeline.clock)
    worker = dramatiq.Worker(pipeline.broker, worker_threads=settings.worker_threads, worker_timeout=100)
    worker.start()
    try:
        yield Embedded(database, pipeline, intake, settings.batch_size)
    finally:
        worker.stop(timeout=5_000)
        database.release()
