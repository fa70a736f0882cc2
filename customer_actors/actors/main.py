"""What `dramatiq customer_actors.actors.main:setup` runs: importing starts nothing, `setup` checks and declares."""

import os
import signal
import sys

import dramatiq

from customer_actors.actors.broker import make_broker
from customer_actors.actors.pipeline import Pipeline, now_us
from customer_actors.actors.sweeper import Sweeper
from customer_actors.errors import UsageError
from customer_actors.process import Stop, wait_for_database
from customer_actors.settings import Settings, load_settings
from customer_actors.storage.actors import Stores
from customer_actors.storage.database import Database
from customer_actors.storage.opening import open_database
from customer_actors.storage.rules import number_of
from customer_actors.telemetry import configure_logging


def setup() -> None:
    """Declare the dispatcher and the actors on RabbitMQ, for Dramatiq's command line.

    Waits for a database that is away. A wrong setting or schema is one line that names the command, and exit code 2.
    """
    try:
        _setup()
    except UsageError as error:
        print(f"worker: {error}", file=sys.stderr)
        sys.exit(2)


def _setup() -> None:
    settings = load_settings()
    configure_logging(settings.log_level)
    if settings.rabbitmq_url is None:
        raise UsageError("RABBITMQ_URL is not set: workers need a broker. Without one use `customer-actors run FILE`.")
    database = open_database(settings.database_url)
    # Dramatiq's own handler only asks the worker to stop once it runs; while we wait, SIGTERM just ends the process.
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    wait_for_database(database, Stop())
    signal.signal(signal.SIGTERM, handler)
    pipeline = declare(settings, database, make_broker(settings.rabbitmq_url), parent=os.getppid())
    dramatiq.set_broker(pipeline.broker)


def declare(settings: Settings, database: Database, broker: dramatiq.Broker, *, parent: int | None = None) -> Pipeline:
    """All actors and the sweep on one broker; the schema must be current. Without `parent` the process ends."""
    rules = settings.rules()
    number_of(database, rules, now_us())
    stores = Stores(database, rules, settings.round_events)
    pipeline = Pipeline(broker, stores, bundle_size=settings.bundle_size)
    broker.add_middleware(Sweeper(pipeline, settings.sweep_seconds, parent))
    return pipeline
