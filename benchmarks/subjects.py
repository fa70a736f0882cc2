"""Who is measured: the peers and this project, each started the way its own manual starts it."""

import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import pika

from benchmarks import effects, faststream_peer, plain_dramatiq, procrastinate_peer
from benchmarks.stage import GIVE_UP_S, WORKERS, Measured, Servers, Stage, cursor_on, program, rows_of
from benchmarks.streams import Truth, truth
from benchmarks.verdict import OURS, PEERS, Verdict, judge
from customer_actors.domain.routing import ACTORS
from customer_actors.embedded import embedded
from customer_actors.ingest import topology
from customer_actors.settings import load_settings
from customer_actors.storage.actors import Stores
from customer_actors.storage.opening import open_database
from customer_actors.storage.overdue import all_behind
from customer_actors.storage.schema import migrate
from tests.servers.process import wait_until

OUR_POSITIONS: Final = {
    "customer": "head",
    "stats_state": "position",
    "loyalty_state": "position",
    "credit_state": "position",
    "customer_segment": "position",
}


def our_totals(customers: Sequence[int] = ()) -> str:
    """Figures that change with every event and every effect of ours, of these customers or of all.

    One row: the order of several rows may change while nothing else does.
    """
    of = f" WHERE {{key}} IN ({', '.join(map(str, customers))})" if customers else ""
    return "SELECT " + ", ".join(
        f"(SELECT sum({column})::bigint FROM {table}{of.format(key='id' if table == 'customer' else 'customer')})"
        for table, column in OUR_POSITIONS.items()
    )


class Round(NamedTuple):
    """One measured round of one subject."""

    measured: Measured
    verdict: Verdict | None
    """None where there was nothing to compare with, or the round was stopped."""


class Subject(NamedTuple):
    """A way to process the stream."""

    name: str
    share: float
    """How much of a scenario's stream it gets, from its beginning: a slow one would take an hour for all of it."""
    run: Callable[[Servers, Sequence[str], bool], Round]
    """(servers, stream, kill a worker half-way)"""


def plain_queues(connection: pika.BlockingConnection) -> None:
    """The three queues as peers declare them: durable, and any number may consume."""
    channel = connection.channel()
    for source in topology.SOURCES:
        channel.exchange_declare(source.exchange, "topic", durable=True)
        channel.queue_declare(source.queue, durable=True)
        for key in source.routing_keys:
            channel.queue_bind(source.queue, source.exchange, key)


def _peer(
    start: Callable[[Stage], None], give_up_s: float = GIVE_UP_S
) -> Callable[[Servers, Sequence[str], bool], Round]:
    def run(servers: Servers, stream: Sequence[str], kill: bool) -> Round:
        wanted = truth(stream)
        with servers.stage(plain_queues) as stage:
            with cursor_on(stage.database_url) as cursor:
                cursor.execute(effects.SCHEMA)
            stage.publish(stream)
            start(stage)
            disturb = stage.kill_a_worker if kill else None
            measured = stage.watch(len(stream), effects.TOTALS, lambda now: _all_there(now, wanted), disturb, give_up_s)
            if measured.late:
                print(stage.output(), file=sys.stderr)
                return Round(measured, None)
            return Round(measured, judge(rows_of(stage.database_url), PEERS, stream, wanted))

    return run


def _all_there(now: tuple[Any, ...], wanted: Truth) -> bool:
    """Sales, usages and payments, which no order can change, are in the tables."""
    return bool(now) and all(a >= b for a, b in zip(now, (wanted.sales, wanted.usages, wanted.payments), strict=False))


def start_plain(split: bool) -> Callable[[Stage], None]:
    def start(stage: Stage) -> None:
        module, environment = plain_dramatiq.__name__, {"PLAIN_SPLIT": str(int(split))}
        stage.start_dramatiq(plain_dramatiq.ACTORS, WORKERS, module, "--threads", "8", **environment)
        stage.start("consumer", sys.executable, "-m", module, **environment)

    return start


def start_faststream(stage: Stage) -> None:
    app = f"{faststream_peer.__name__}:app"
    stage.start("workers", program("faststream"), "run", app, "--workers", str(WORKERS), "--log-level", "warning")


def _start_procrastinate(stage: Stage) -> None:
    module = procrastinate_peer.__name__
    schema = stage.start("schema", sys.executable, "-m", module, "schema")
    wait_until(lambda: not schema.running)
    for name in ("workers", "more workers"):
        stage.start(name, sys.executable, "-m", module, "work")
    registered = rows_of(stage.database_url)
    wait_until(lambda: registered("SELECT count(*) FROM procrastinate_workers") == [(WORKERS,)])
    stage.start("consumer", sys.executable, "-m", module, "consume")


def start_ours(stage: Stage, processes: int = WORKERS) -> None:
    """An ingest and worker processes of 4 threads, as the Procfile starts them, the ingest last.

    A worker process that starts compares all customers with their heads, once. That is waited for: of a million
    customers it takes longer than what is measured, and it happens at a start only.
    """
    options = ["--threads", "4", "--worker-shutdown-timeout", "500", "--worker-fork-timeout", "5000", "--skip-logging"]
    stage.start_dramatiq(("dispatcher", *ACTORS), processes, "customer_actors.actors.main:setup", *options)
    stage.wait_until_database_idle()
    stage.start("ingest", program("customer-actors"), "ingest")


def ours(servers: Servers, stream: Sequence[str], kill: bool, processes: int = WORKERS) -> Round:
    """One round of this project."""
    with servers.stage() as stage, migrated(stage.database_url) as stores:
        stage.publish(stream)
        start_ours(stage, processes)
        disturb = stage.kill_a_worker if kill else None
        measured = stage.watch(len(stream), our_totals(), lambda _: not any(all_behind(stores).values()), disturb)
        stage.processes["ingest"].end(signal.SIGTERM)
        left = stage.ready()
        assert not measured.late, "not through in time"
        assert not left, f"{left} messages were not acknowledged"
        return Round(measured, judge(rows_of(stage.database_url), OURS, stream, truth(stream)))


@contextmanager
def migrated(database_url: str) -> Iterator[Stores]:
    """The stores of a database with the current schema."""
    database = open_database(database_url)
    try:
        migrate(database)
        yield Stores(database, load_settings({}).rules())
    finally:
        database.release()


def in_one_process(folder: Path, stream: Sequence[str]) -> Round:
    """Ours embedded: a file into a fresh SQLite database, from its first line until nobody is behind."""
    source, path = folder / "events.jsonl", folder / "embedded.db"
    source.write_text("".join(line + "\n" for line in stream))
    settings = load_settings({"DATABASE_URL": f"sqlite:///{path}"})
    with embedded(settings, nights=False) as service, source.open("rb") as file:
        before_s, started = time.process_time(), time.monotonic()
        service.feed(file)
        service.drain()
        seconds, cpu_s = time.monotonic() - started, time.process_time() - before_s
        verdict = judge(service.database.query, OURS, stream, truth(stream))
    for made in folder.glob("embedded.db*"):
        made.unlink()
    return Round(Measured(seconds, len(stream) / seconds, {"embedded": cpu_s * 10_000 / len(stream)}, {}), verdict)


SUBJECTS: Final = (
    Subject("plain Dramatiq, a message per event", 0.2, _peer(start_plain(split=False))),
    Subject("plain Dramatiq, a message per actor", 0.1, _peer(start_plain(split=True))),
    Subject("FastStream and asyncpg", 0.25, _peer(start_faststream)),
    Subject("Procrastinate, lock=customer", 0.05, _peer(_start_procrastinate, procrastinate_peer.RECOVERED_S)),
    Subject("this project", 1.0, ours),
)
