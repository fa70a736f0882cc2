"""Who does the nights' work: workers behind RabbitMQ, or, without a broker, threads of this process."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final

import dramatiq

from customer_actors.actors.broker import make_broker
from customer_actors.actors.main import declare
from customer_actors.actors.nightly import ring_night
from customer_actors.actors.pipeline import BROKER_ERRORS
from customer_actors.settings import Settings
from customer_actors.storage.database import Database
from customer_actors.storage.job_runs import Run
from scheduler.clock import Ring

_STOP_MS: Final = 1_000


@contextmanager
def workers(settings: Settings, database: Database) -> Iterator[Ring]:
    """How to tell the workers of a run. Without RABBITMQ_URL they are started here and end with the block."""
    if settings.rabbitmq_url is not None:
        make_broker(settings.rabbitmq_url)  # what is wrong with the URL is said now, not at night
        yield partial(_ring_once, settings.rabbitmq_url)
        return
    pipeline = declare(settings, database, make_broker(None))
    worker = dramatiq.Worker(pipeline.broker, worker_threads=settings.worker_threads, worker_timeout=100)
    worker.start()
    try:
        yield partial(ring_night, pipeline.broker)
    finally:
        worker.stop(timeout=_STOP_MS)


def _ring_once(url: str, run: Run) -> None:
    """Over a connection of its own: one that waits for the next night would be closed by the broker."""
    broker = make_broker(url)
    try:
        ring_night(broker, run)
    finally:
        with suppress(*BROKER_ERRORS):
            broker.close()
