"""Who does the nights' work: workers behind RabbitMQ, or, without a broker, threads of this process."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final, NamedTuple

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


class Workers(NamedTuple):
    """How the scheduler deals with those who do the work."""

    ring: Ring
    alarm: Callable[[], str | None]
    """What this process sees of the service, for its beat; workers behind a broker have beats of their own."""


@contextmanager
def workers(settings: Settings, database: Database) -> Iterator[Workers]:
    """Those behind the broker. Without RABBITMQ_URL they are started here and end with the block."""
    if settings.rabbitmq_url is not None:
        make_broker(settings.rabbitmq_url)  # what is wrong with the URL is said now, not at night
        yield Workers(partial(_ring_once, settings.rabbitmq_url), lambda: None)
        return
    pipeline = declare(settings, database, make_broker(None))
    worker = dramatiq.Worker(pipeline.broker, worker_threads=settings.worker_threads, worker_timeout=100)
    worker.start()
    try:
        yield Workers(partial(ring_night, pipeline.broker), pipeline.alarm_text)
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
