"""What `dramatiq customer_actors.actors.main:setup` runs: importing starts nothing, `setup` checks and declares."""

import multiprocessing
import os
import signal
import sys

import dramatiq

from customer_actors.actors import nightly
from customer_actors.actors.broker import make_broker
from customer_actors.actors.pipeline import Pipeline, now_us
from customer_actors.actors.sweeper import Sweeper
from customer_actors.actors.watchdog import Watchdog
from customer_actors.errors import UsageError
from customer_actors.process import Stop, wait_for_database
from customer_actors.settings import Settings, load_settings
from customer_actors.storage.actors import Stores
from customer_actors.storage.beats import Kind, beat
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
    broker = make_broker(settings.rabbitmq_url)
    # Dramatiq's own handler only asks the worker to stop once it runs; while we wait, SIGTERM just ends the process.
    handler = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    wait_for_database(database, Stop())
    signal.signal(signal.SIGTERM, handler)
    watchdog = Watchdog(lambda problem: beat(database, "worker", now_us(), problem=problem))
    broker.add_middleware(watchdog)
    pipeline = declare(settings, database, broker, parent=_main_process(), watchdog=watchdog, kind="worker")
    dramatiq.set_broker(pipeline.broker)
    database.release()  # this thread only waits from now on


def _main_process() -> int:
    """Of Dramatiq's processes the one that started this one; it may have been killed since, so the system's answer to
    who the parent is now would not do."""
    started_by = multiprocessing.parent_process()
    return os.getppid() if started_by is None or started_by.pid is None else started_by.pid


def declare(
    settings: Settings,
    database: Database,
    broker: dramatiq.Broker,
    *,
    parent: int | None = None,
    watchdog: Watchdog | None = None,
    kind: Kind | None = None,
) -> Pipeline:
    """All actors and the sweep on one broker; the schema must be current. Without `parent` the process ends.

    With a `kind` the process beats as one.
    """
    rules = settings.rules()
    number_of(database, rules, now_us())
    stores = Stores(database, rules, settings.round_events)
    pipeline = Pipeline(broker, stores, bundle_size=settings.bundle_size)
    nights = nightly.Nights(pipeline, nightly.nightly_jobs(stores))
    broker.add_middleware(Sweeper(pipeline, settings.sweep_seconds, parent, watchdog, nights, kind))
    return pipeline
