"""A pipeline with a real worker on Dramatiq's in-process broker, and what it was seen to do."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dramatiq
from dramatiq.brokers.stub import StubBroker

from customer_actors.actors.broker import make_broker
from customer_actors.actors.pipeline import Pipeline, now_us
from customer_actors.actors.sweeper import Sweeper
from customer_actors.storage.beats import Kind
from customer_actors.storage.overdue import all_behind
from tests.storage.support import Storage

THREADS = 4


class Seen(dramatiq.Middleware):
    """(actor, what it raised) of every message processed."""

    def __init__(self) -> None:
        self.processed: list[tuple[str, type[BaseException] | None]] = []

    def after_process_message(
        self, broker: dramatiq.Broker, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        self.processed.append((message.actor_name, type(exception) if exception else None))


class Running:
    """A pipeline with a worker."""

    def __init__(self, storage: Storage, round_events: int, clock: Callable[[], int]) -> None:
        self.storage = storage
        self.seen = Seen()
        self.broker = make_broker(None)
        self.broker.add_middleware(self.seen)
        self.pipeline = Pipeline(self.broker, storage.stores(round_events), clock=clock)
        self.worker = dramatiq.Worker(self.broker, worker_threads=THREADS, worker_timeout=20)

    def take(self, *messages: Any) -> None:
        """Append one batch and ring its bell."""
        self.pipeline.ring(self.storage.append(messages).bell)

    def idle(self) -> bool:
        """Whether no message waits, is delayed or is worked on."""
        assert isinstance(self.broker, StubBroker)
        return not any(queue.unfinished_tasks for queue in self.broker.queues.values())

    def through(self) -> bool:
        return not any(all_behind(self.storage.stores()).values())


@contextmanager
def running(
    storage: Storage,
    *,
    round_events: int = 500,
    clock: Callable[[], int] = now_us,
    sweep_s: float | None = None,
    kind: Kind | None = None,
) -> Iterator[Running]:
    service = Running(storage, round_events, clock)
    if sweep_s is not None:
        service.broker.add_middleware(Sweeper(service.pipeline, sweep_s, kind=kind))
    service.worker.start()
    try:
        yield service
    finally:
        service.worker.stop(timeout=10_000)
