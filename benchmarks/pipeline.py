"""The whole pipeline under load, beside the plain way to build it, on one machine in one run.

`python -m benchmarks.pipeline` starts a private PostgreSQL and a private RabbitMQ with their default durability and
measures round by round: the baseline (`plain_dramatiq`), ours, and ours embedded on SQLite, all on the same simulated
stream; then latency at a gentle load. A shared machine makes seconds lie, so what counts is the ratio of each pair.

Both distributed sides start alike: the backlog is in the queues and the workers wait for their first message; then the
consumer of the queues is started, and the clock with it, when the broker sees it subscribe. The clock stops with the
last effect committed. All is known to be there: the baseline's rows are counted beforehand; ours must have nobody
behind and every message acknowledged.
"""

import json
import random
import select
import signal
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

import click
from rich.console import Console
from rich.table import Table

from benchmarks import machine, plain_dramatiq
from benchmarks.stage import Measured, Servers, Stage, cursor_on, program
from customer_actors.domain.events import EventType
from customer_actors.domain.routing import ACTORS
from customer_actors.embedded import embedded
from customer_actors.ingest import topology
from customer_actors.settings import load_settings
from customer_actors.simulate import ShopPlan, simulate
from customer_actors.storage.actors import Stores
from customer_actors.storage.opening import open_database
from customer_actors.storage.overdue import all_behind
from customer_actors.storage.schema import migrate
from customer_actors.telemetry import configure_logging
from tests.servers import PrivatePostgres, PrivateRabbitMQ
from tests.servers.process import server_folder, wait_until

LIMIT_S: Final = 1_800
"""A run that takes longer hangs, and is ended with all its processes."""
LATENCY_PER_S: Final = 100
WARM_UP_S: Final = 1.0

_POSITIONS: Final = {
    "customer": "head",
    "stats_state": "position",
    "loyalty_state": "position",
    "credit_state": "position",
    "customer_segment": "position",
}
TOTALS: Final = " UNION ALL ".join(f"SELECT sum({column})::bigint FROM {table}" for table, column in _POSITIONS.items())
"""Changes with every event and every effect of ours."""

NOTIFY_OF_POINTS: Final = """
    CREATE FUNCTION notify_of_points() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        PERFORM pg_notify('points', reference) FROM event WHERE (customer, position) = (NEW.customer, NEW.position);
        RETURN NULL;
    END $$;
    CREATE TRIGGER notify_of_points AFTER INSERT ON loyalty_entry FOR EACH ROW EXECUTE FUNCTION notify_of_points()
"""
"""PostgreSQL delivers a notification right after its transaction has committed. The trigger is the benchmark's alone;
what it and the delivery cost (a fraction of a millisecond) is counted against us."""


def baseline(servers: Servers, lines: Sequence[str], confirms: bool = True) -> Measured:
    """One round of plain Dramatiq: a consumer, and 2 worker processes of 8 threads."""
    wanted, environment = plain_dramatiq.expected(lines), {"PLAIN_CONFIRMS": str(int(confirms))}
    with servers.stage() as stage:
        with cursor_on(stage.database_url) as cursor:
            cursor.execute(plain_dramatiq.SCHEMA)
        stage.publish(lines)
        module = plain_dramatiq.__name__
        stage.start_workers(plain_dramatiq.ACTORS, module, "--threads", "8", **environment)
        stage.start("consumer", sys.executable, "-m", module, **environment)
        return stage.watch(len(lines), plain_dramatiq.TOTALS, lambda totals: totals[:3] == wanted)


def ours(servers: Servers, lines: Sequence[str]) -> Measured:
    """One round of ours: an ingest, and 2 worker processes of 4 threads, as the Procfile starts them."""
    with servers.stage() as stage, _migrated(stage.database_url) as stores:
        stage.publish(lines)
        _start_ours(stage)
        measured = stage.watch(len(lines), TOTALS, lambda _: not any(all_behind(stores).values()))
        stage.processes["ingest"].end(signal.SIGTERM)
        left = stage.ready()
        assert not left, f"{left} messages were not acknowledged"
        return measured


def _start_ours(stage: Stage) -> None:
    options = ["--threads", "4", "--worker-shutdown-timeout", "1000"]
    stage.start_workers(("dispatcher", *ACTORS), "customer_actors.actors.main:setup", *options)
    stage.start("ingest", program("customer-actors"), "ingest")


def in_one_process(folder: Path, lines: Sequence[str]) -> Measured:
    """Ours embedded: a file into a fresh SQLite database, from its first line until nobody is behind."""
    source, path = folder / "events.jsonl", folder / "embedded.db"
    source.write_text("".join(line + "\n" for line in lines))
    with embedded(load_settings({"DATABASE_URL": f"sqlite:///{path}"})) as service, source.open("rb") as file:
        before_s, started = time.process_time(), time.monotonic()
        service.feed(file)
        service.drain()
        seconds, cpu_s = time.monotonic() - started, time.process_time() - before_s
    for made in folder.glob("embedded.db*"):
        made.unlink()
    return Measured(seconds, len(lines) / seconds, {"embedded": cpu_s * 10_000 / len(lines)}, {})


def latencies_ms(servers: Servers, seconds: float) -> list[float]:
    """For sales at a steady pace: from just before publishing until another connection sees the points committed.

    Sales of the first second, while threads make their connections, are sent and not counted.
    """
    count = int((WARM_UP_S + seconds) * LATENCY_PER_S)
    sent: dict[str, float] = {}
    seen: dict[str, float] = {}
    with servers.stage() as stage, _migrated(stage.database_url), cursor_on(stage.database_url) as cursor:
        cursor.execute(NOTIFY_OF_POINTS)
        cursor.execute("LISTEN points")
        _start_ours(stage)
        wait_until(lambda: all(stage.queue(queue)[1] for queue in topology.QUEUES))
        listener = threading.Thread(target=_listen, args=(cursor.connection, seen, count, seconds + 30), daemon=True)
        listener.start()
        send, started = stage.one_by_one(), time.monotonic()
        for number in range(count):
            time.sleep(max(0.0, started + number / LATENCY_PER_S - time.monotonic()))
            reference, body = _sale(number)
            sent[reference] = time.monotonic()
            send(EventType.ORDER_COMPLETED, body)
        listener.join()
    assert len(seen) == count, f"{count - len(seen)} of {count} sales earned no points in time"
    return [(seen[each] - at) * 1000 for each, at in sent.items() if at >= started + WARM_UP_S]


def _listen(connection: Any, seen: dict[str, float], count: int, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while len(seen) < count and time.monotonic() < deadline:
        select.select([connection], [], [], 0.1)
        connection.poll()
        now = time.monotonic()
        seen.update((notice.payload, now) for notice in connection.notifies)
        connection.notifies.clear()


def _sale(number: int) -> tuple[str, str]:
    reference, stamp = f"L-{number:06d}", datetime.now(UTC).isoformat()
    data = {"order_id": reference, "customer_id": f"C{random.randrange(1_000):06d}", "total_amount": 19.9}
    body = {"event": EventType.ORDER_COMPLETED, "timestamp": stamp, "organization_id": "default", "data": data}
    return reference, json.dumps(body)


@contextmanager
def _migrated(database_url: str) -> Iterator[Stores]:
    database = open_database(database_url)
    try:
        migrate(database)
        yield Stores(database, load_settings({}).rules())
    finally:
        database.release()


class Results(NamedTuple):
    """Everything measured in a run."""

    machine: dict[str, str]
    baseline: list[Measured]
    baseline_unconfirmed: Measured
    ours: list[Measured]
    embedded: list[Measured]
    latencies_ms: list[float]

    def times(self, side: Sequence[Measured]) -> float:
        """Median over the rounds of how many times the baseline's events per second this side did."""
        return statistics.median(b.events_per_s / a.events_per_s for a, b in zip(self.baseline, side, strict=True))

    def percentile_ms(self, percent: int) -> float:
        return statistics.quantiles(self.latencies_ms, n=100, method="inclusive")[percent - 1]

    def worst_peak_mb(self) -> float:
        return max(peak for measured in self.ours for peak in measured.peak_mb.values())

    def goals(self) -> list[tuple[str, str, bool]]:
        """(goal, measured, whether it was met)"""
        times, alone = self.times(self.ours), self.times(self.embedded)
        p99_ms, peak_mb = self.percentile_ms(99), self.worst_peak_mb()
        return [
            ("ours at least 8 x plain Dramatiq", f"{times:.1f} x", times >= 8),
            ("embedded at least 8 x plain Dramatiq", f"{alone:.1f} x", alone >= 8),
            (f"p99 below 100 ms at {LATENCY_PER_S} events/s", f"{p99_ms:.0f} ms", p99_ms < 100),
            ("every process below 200 MB", f"{peak_mb:.0f} MB", peak_mb < 200),
        ]


def measure(events: int, baseline_events: int, rounds: int, latency_seconds: float, say: Any) -> Results:
    """All rounds, interleaved; `say` is told what begins."""
    lines = [*simulate(ShopPlan(max(100, events // 10), events, seed=1, malformed=0, conflict=0))]
    sides: dict[str, list[Measured]] = {"baseline": [], "ours": [], "embedded": []}
    with PrivatePostgres() as postgres, PrivateRabbitMQ() as rabbitmq, server_folder("benchmark") as folder:
        servers = Servers(postgres, rabbitmq, folder)
        with cursor_on(postgres.url()) as cursor:
            cursor.execute("SHOW server_version")
            facts = machine.describe(cursor.fetchone()[0], rabbitmq.ctl("version").strip())
        for number in range(1, rounds + 1):
            say(f"round {number} of {rounds}")
            sides["baseline"].append(baseline(servers, lines[:baseline_events]))
            sides["ours"].append(ours(servers, lines))
            sides["embedded"].append(in_one_process(folder, lines))
        say("baseline without publisher confirms")
        unconfirmed = baseline(servers, lines[:baseline_events], confirms=False)
        say(f"latency at {LATENCY_PER_S} events/s")
        latencies = latencies_ms(servers, latency_seconds)
    return Results(facts, sides["baseline"], unconfirmed, sides["ours"], sides["embedded"], latencies)


def print_results(results: Results, console: Console) -> None:
    """Speed, CPU, latency, memory, the machine, and the goals."""
    sides = {"plain Dramatiq": results.baseline, "ours": results.ours, "ours, embedded": results.embedded}
    table = Table("side", "events/s, median", "each round", "x plain")
    for name, side in sides.items():
        each = [measured.events_per_s for measured in side]
        rounds = " ".join(f"{one:,.0f}" for one in each)
        table.add_row(name, f"{statistics.median(each):,.0f}", rounds, f"{results.times(side):.1f}")
    table.add_row("plain, unconfirmed", f"{results.baseline_unconfirmed.events_per_s:,.0f}", "", "")
    console.print(table)
    console.print("unconfirmed: without publisher confirms, so messages are lost when the broker dies; one round only")
    for name, side in sides.items():
        used = {key: statistics.median(measured.cpu_s[key] for measured in side) for key in side[0].cpu_s}
        each_s = ", ".join(f"{key} {value:.2f}" for key, value in used.items())
        console.print(f"CPU seconds per 10,000 events, {name}: {sum(used.values()):.2f} ({each_s})")
    p50, p95, p99 = (results.percentile_ms(percent) for percent in (50, 95, 99))
    console.print(f"latency, publish to committed points: p50 {p50:.1f} ms, p95 {p95:.1f} ms, p99 {p99:.1f} ms")
    peaks = {key: max(measured.peak_mb.get(key, 0) for measured in results.ours) for key in results.ours[0].peak_mb}
    console.print("peak memory:", ", ".join(f"{key} {value:.0f} MB" for key, value in peaks.items()))
    console.print("machine:", ", ".join(f"{key} {value}" for key, value in results.machine.items()))
    goals = Table("goal", "measured", "")
    for goal, measured, met in results.goals():
        goals.add_row(goal, measured, "[green]met" if met else "[red]missed")
    console.print(goals)


@click.command()
@click.option("--events", type=click.IntRange(min=500), default=20_000, show_default=True, help="Of ours, per round.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--baseline-events", type=click.IntRange(min=100), default=3_000, show_default=True, help="Per round.")
@click.option("--latency-seconds", type=click.FloatRange(min=1), default=20, show_default=True)
@click.option("--json", "file", type=click.File("w"), help="Write everything measured to this file, too.")
def main(events: int, rounds: int, baseline_events: int, latency_seconds: float, file: IO[str] | None) -> None:
    """Measure the pipeline and the plain way to build it in one run."""
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, lambda number, _: sys.exit(f"ended by {signal.Signals(number).name}"))
    signal.alarm(LIMIT_S)
    configure_logging("WARNING")
    console = Console()
    with console.status("servers") as status:
        results = measure(events, baseline_events, rounds, latency_seconds, status.update)
    print_results(results, console)
    if file is not None:
        sides = {side: [m._asdict() for m in getattr(results, side)] for side in ("baseline", "ours", "embedded")}
        goals = [{"goal": goal, "measured": measured, "met": met} for goal, measured, met in results.goals()]
        json.dump(results._asdict() | sides | {"goals": goals}, file, indent=2)


if __name__ == "__main__":
    main()
