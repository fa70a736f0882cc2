"""Verbs that run the service: the process that takes events from the broker, and the schema."""

import threading
from collections import Counter
from typing import Final

import click
import structlog

from customer_actors.actors.broker import make_broker
from customer_actors.actors.pipeline import Pipeline, now_us
from customer_actors.cli.common import json_option, print_json, settings_for_command
from customer_actors.domain.events import Outcome
from customer_actors.errors import UsageError
from customer_actors.ingest.intake import Intake, policies
from customer_actors.ingest.rabbitmq import Consumer
from customer_actors.process import Stop, beating, stopping_on_signals, wait_for_database
from customer_actors.settings import Settings, load_settings
from customer_actors.storage.actors import Stores
from customer_actors.storage.database import Database
from customer_actors.storage.opening import open_database
from customer_actors.storage.schema import migrate as migrate_schema
from customer_actors.storage.schema import require_current
from customer_actors.telemetry import configure_logging

REPORT_EVERY_S: Final = 10.0

log = structlog.get_logger(__name__)


@click.command()
def ingest() -> None:
    """Take events from the broker's three queues into the streams, until SIGTERM or Ctrl-C.

    Needs DATABASE_URL (PostgreSQL) and RABBITMQ_URL. Run as many as you like: one takes each queue, the others stand
    by. A database or broker that is away is waited for; a wrong setting or an old schema ends it at once (exit 2).

    Example: customer-actors migrate && customer-actors ingest
    """
    settings = load_settings()
    configure_logging(settings.log_level)
    if settings.rabbitmq_url is None:
        raise UsageError("RABBITMQ_URL is not set: ingest needs a broker. Without one use `customer-actors run FILE`.")
    database = open_database(settings.database_url)
    with stopping_on_signals() as stop:
        try:
            if wait_for_database(database, stop):
                _consume(settings, settings.rabbitmq_url, database, stop)
        finally:
            database.release()


def _consume(settings: Settings, rabbitmq_url: str, database: Database, stop: Stop) -> None:
    pipeline = Pipeline(make_broker(rabbitmq_url), Stores(database, settings.rules()), bundle_size=settings.bundle_size)
    intake = Intake(database, policies(settings, database, now_us()), pipeline.ring, now_us)
    consumer = Consumer(
        rabbitmq_url,
        lambda batch: [decision.customer_id for decision in intake.take(batch)],
        batch_size=settings.batch_size,
        batch_age_s=settings.batch_age_ms / 1000,
        prefetch=settings.prefetch,
        ready=lambda: require_current(database),
    )
    stop.when_asked(consumer.stop)
    reporter = threading.Thread(target=report, args=(intake.outcomes, stop), name="report", daemon=True)
    reporter.start()
    log.info("started", batch_size=settings.batch_size, prefetch=settings.prefetch)
    with beating(database, "ingest", settings.sweep_seconds, consumer.alarm):
        consumer.run()
    log.info("stopped", **_named(intake.outcomes))


def report(outcomes: Counter[Outcome], stop: Stop) -> None:
    """Log every few seconds how many messages were committed since the last line; counts only, never an id [G23]."""
    before: Counter[Outcome] = Counter()
    while not stop.wait(REPORT_EVERY_S):
        now = outcomes.copy()
        if now != before:
            log.info("committed", **_named(now - before))
        before = now


def _named(outcomes: Counter[Outcome]) -> dict[str, int]:
    return {outcome.value: outcomes[outcome] for outcome in Outcome}


@click.command()
@json_option
def migrate(as_json: bool) -> None:
    """Bring the database's schema up to this version. Safe to repeat, and to run from several hosts at once.

    Example: DATABASE_URL=postgresql://user:password@host/shop customer-actors migrate
    """
    database = open_database(settings_for_command().database_url)
    try:
        applied = migrate_schema(database)
        require_current(database)
    finally:
        database.release()
    if as_json:
        print_json({"applied": applied})
    else:
        click.echo("\n".join(f"applied {name}" for name in applied) or "already current")


VERBS = (ingest, migrate)
