"""The night of the segments beside one plain SQL statement that rewrites them all, on copies of the same data.

`python -m benchmarks.nightly_segments` fills a private PostgreSQL of default durability with customers (see
`benchmarks.customers`), scored as of yesterday. Then, round by round and each on a copy of its own:

- plain: one UPDATE that scores everybody by cuts it is given, in SQL; what the cuts took is told beside it;
- ours: `python -m scheduler run segments`, done by two worker processes through a private RabbitMQ: the seconds go from
  the claim of the slot to the run's last commit, and hold the calculation of the cuts.

Sales keep arriving during both, at the same pace. A sale counts from the moment it was due until its segment is
committed; the same while nothing else happens is told beside it.
"""

import json
import logging
import random
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import IO, Any, Final, NamedTuple

import click
from rich.console import Console
from rich.table import Table

from benchmarks import customers as made
from benchmarks import machine
from benchmarks.stage import Servers, Stage, cursor_on
from customer_actors.actors.nightly import QUEUES
from customer_actors.domain.events import EventType, Message, business_date
from customer_actors.domain.routing import SEGMENTATION, STATS
from customer_actors.domain.rules import Rules
from customer_actors.groups.advance import advance
from customer_actors.settings import load_settings
from customer_actors.storage.actors import Stores
from customer_actors.storage.append import AppendPolicy, Incoming, append
from customer_actors.storage.opening import open_database
from customer_actors.storage.rules import number_of
from customer_actors.telemetry import configure_logging
from tests.servers import PrivatePostgres, PrivateRabbitMQ
from tests.servers.process import server_folder, wait_until

WORKERS: Final = 2
SALES_PER_S: Final = 20
"""Few enough that a busy machine keeps pace, for else the queue is measured."""
QUIET_SALES_S: Final = 8.0
_LIMIT_S: Final = 900
_TEMPLATE: Final = "customers"
_SELLERS: Final = 4
"""Threads, as a worker process has them."""
_SOME_CUSTOMERS: Final = "SELECT customer_id FROM customer WHERE organization_id = %s ORDER BY random() LIMIT 20000"


class Night(NamedTuple):
    """One run of ours."""

    seconds: float
    """From the claim of the slot to the end of the run."""
    planning_s: float
    """Of these, until the cuts were published and the first chunk was done."""
    examined: int
    rewritten: int
    chunks: int
    peak_mb: dict[str, float]
    """The most memory each process ever had resident, in MB."""
    quiet_ms: list[float]
    """Milliseconds from a sale to its segment, without a night."""
    sales_ms: list[float]
    """The same during the night."""


def now_us() -> int:
    return time.time_ns() // 1_000


class Sales:
    """Sells at a steady pace, in threads of its own, and advances statistics and segment at once.

    The pace does not wait for the answers, so a sale that comes late because the one before was slow counts as slow.
    """

    def __init__(self, database_url: str, rules: Rules) -> None:
        self._url, self._rules = database_url, rules
        self._end = threading.Event()
        self.latencies_ms: list[float] = []
        with cursor_on(database_url) as cursor:
            cursor.execute(_SOME_CUSTOMERS, (made.LARGEST,))
            self._customers = [name for (name,) in cursor.fetchall()]

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Sell while the block runs."""
        threads = [threading.Thread(target=self._run, args=(number,)) for number in range(_SELLERS)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._end.set()
            for thread in threads:
                thread.join()

    def _run(self, seller: int) -> None:
        database, numbers = open_database(self._url), random.Random(seller)
        stores = Stores(database, self._rules)
        policy = AppendPolicy(number_of(database, self._rules, now_us()), self._rules.tiers[0].name, None)
        due = time.monotonic() + numbers.random() * _SELLERS / SALES_PER_S
        while not self._end.wait(max(0.0, due - time.monotonic())):
            sale = _sale(numbers.choice(self._customers), f"N-{seller}-{due}")
            done = append(database, [Incoming(None, sale)], policy, now_us())
            customers = sorted({customer for group in done.bell.values() for customer in group})
            advance(stores.of(STATS), customers, now_us=now_us)
            segmentation = stores.of(SEGMENTATION)
            advance(segmentation, customers, now_us=now_us)
            while segmentation.behind(customers):  # somebody holds the row: again, as the sweep would
                time.sleep(0.002)
                advance(segmentation, customers, now_us=now_us)
            self.latencies_ms.append((time.monotonic() - due) * 1_000)
            due += _SELLERS / SALES_PER_S
        database.release()


def _sale(customer_id: str, reference: str) -> Message:
    moment = now_us()
    type_, amount_minor = EventType.ORDER_COMPLETED, 4_900
    return Message(type_, made.LARGEST, customer_id, reference, amount_minor, None, moment, moment, "{}")


class Plain(NamedTuple):
    """One run of the one statement."""

    cuts_s: float
    """What the cuts it is given took before: it could not run without them."""
    seconds: float
    rewritten: int
    sales_ms: list[float]


def plain(servers: Servers, rules: Rules) -> Plain:
    """The one statement, with sales during it."""
    today = business_date(now_us(), rules.zone)
    with servers.stage(template=_TEMPLATE) as stage, cursor_on(stage.database_url) as cursor:
        cursor.execute("VACUUM ANALYZE")
        started = time.monotonic()
        made.give_cuts(cursor, stage.database_url, today, rules)
        cuts_s = time.monotonic() - started
        cursor.execute("ANALYZE given_cuts")
        cursor.execute("CHECKPOINT")
        sales = Sales(stage.database_url, rules)
        with sales.going_on():
            started = time.monotonic()
            cursor.execute(made.REWRITE_ALL, (now_us(),))
            seconds = time.monotonic() - started
        return Plain(cuts_s, seconds, cursor.rowcount, sales.latencies_ms)


def ours(servers: Servers, rules: Rules) -> Night:
    """One night, with sales before and during it."""
    with servers.stage(template=_TEMPLATE) as stage, cursor_on(stage.database_url) as cursor:
        options = [
            "--threads",
            "4",
            "--worker-shutdown-timeout",
            "500",
            "--worker-fork-timeout",
            "5000",
            "--skip-logging",
        ]
        stage.start_dramatiq(QUEUES, WORKERS, "customer_actors.actors.main:setup", *options)
        cursor.execute("VACUUM ANALYZE")
        cursor.execute("CHECKPOINT")
        quiet, busy = (Sales(stage.database_url, rules) for _ in range(2))
        with quiet.going_on():
            time.sleep(QUIET_SALES_S)
        cursor.execute("CHECKPOINT")
        with busy.going_on():
            seconds, planning_s = _run_the_night(stage, cursor)
        cursor.execute("SELECT count(*), sum(examined), sum(changed) FROM job_chunk")
        chunks, examined, rewritten = cursor.fetchone()
        peaks = {
            f"{name} {number}" if number else name: machine.peak_mb(pid)
            for name, child in stage.processes.items()
            for number, pid in enumerate(machine.tree(child.pid))
        }
        return Night(
            seconds, planning_s, int(examined), int(rewritten), chunks, peaks, quiet.latencies_ms, busy.latencies_ms
        )


def _run_the_night(stage: Stage, cursor: Any) -> tuple[float, float]:
    """Seconds from the claim to the end of the run, and to its first chunk."""
    today = datetime.now(UTC).date().isoformat()
    stage.start("scheduler", sys.executable, "-m", "scheduler", "run", "segments", "--as-of", today, "--wait")

    def done() -> bool:
        cursor.execute("SELECT done_us - claimed_us FROM job_run WHERE done_us IS NOT NULL")
        return bool(cursor.rowcount)

    wait_until(done, _LIMIT_S)
    cursor.execute("SELECT done_us - claimed_us, (SELECT min(done_us) FROM job_chunk) - claimed_us FROM job_run")
    whole, first = cursor.fetchone()
    return float(whole) / 1e6, float(first) / 1e6


def _percentiles(values: list[float]) -> str:
    if len(values) < 2:
        return "too few"
    of_hundred = statistics.quantiles(values, n=100)
    return f"{of_hundred[49]:.0f} / {of_hundred[98]:.0f} of {len(values)}"


@click.command()
@click.option("--customers", type=click.IntRange(min=1_000), default=1_000_000, show_default=True)
@click.option("--rounds", type=click.IntRange(min=1), default=2, show_default=True)
@click.option("--json", "file", type=click.File("w"), help="Write everything measured to this file, too.")
def main(customers: int, rounds: int, file: IO[str] | None) -> None:
    """Measure both, interleaved; a few minutes with a million customers on two cores."""
    configure_logging("WARNING")
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    rules, console = load_settings({}).rules(), Console(stderr=True)
    with PrivatePostgres() as postgres, PrivateRabbitMQ() as rabbitmq, server_folder("benchmark") as folder:
        servers = Servers(postgres, rabbitmq, folder)
        facts = _describe(postgres, rabbitmq)
        url = postgres.create_database(_TEMPLATE)
        with cursor_on(url) as cursor:
            made.make(cursor, url, customers, business_date(now_us(), rules.zone), rules)
        console.log(f"made {customers:,} customers")
        plains, nights = [], []
        for _ in range(rounds):
            plains.append(plain(servers, rules))
            console.log(f"plain {plains[-1].seconds:.1f} s")
            nights.append(ours(servers, rules))
            console.log(f"ours {nights[-1].seconds:.1f} s, {nights[-1].rewritten:,} rows")
    _print(Console(), facts, plains, nights)
    if file is not None:
        json.dump(
            {"facts": facts, "plain": [one._asdict() for one in plains], "ours": [night._asdict() for night in nights]},
            file,
            indent=2,
        )


def _describe(postgres: PrivatePostgres, rabbitmq: PrivateRabbitMQ) -> dict[str, str]:
    with cursor_on(postgres.url()) as cursor:
        cursor.execute("SHOW server_version")
        return machine.describe(cursor.fetchone()[0], rabbitmq.ctl("version").strip())


def _print(console: Console, facts: dict[str, str], plains: list[Plain], nights: list[Night]) -> None:
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()))
    table = Table("", *(f"round {number}" for number in range(1, len(nights) + 1)))

    def row(name: str, figure: Callable[[int], str]) -> None:
        table.add_row(name, *map(figure, range(len(nights))))

    row("plain statement, s", lambda i: f"{plains[i].seconds:.1f}")
    row("the cuts it was given, s", lambda i: f"{plains[i].cuts_s:.1f}")
    row("rows it rewrote", lambda i: f"{plains[i].rewritten:,}")
    row("night, s", lambda i: f"{nights[i].seconds:.1f}")
    row("of these until the first chunk, s", lambda i: f"{nights[i].planning_s:.1f}")
    row("night / plain", lambda i: f"{nights[i].seconds / plains[i].seconds:.2f}")
    row("night / plain with its cuts", lambda i: f"{nights[i].seconds / (plains[i].seconds + plains[i].cuts_s):.2f}")
    row("customers examined", lambda i: f"{nights[i].examined:,}")
    row("rows rewritten", lambda i: f"{nights[i].rewritten:,}")
    row("sale to segment p50 / p99, quiet, ms", lambda i: _percentiles(nights[i].quiet_ms))
    row("the same during the night, ms", lambda i: _percentiles(nights[i].sales_ms))
    row("the same during the plain statement, ms", lambda i: _percentiles(plains[i].sales_ms))
    console.print(table)
    peaks = {name: max(night.peak_mb.get(name, 0.0) for night in nights) for name in nights[0].peak_mb}
    console.print("peak MB: " + ", ".join(f"{name} {peak:.0f}" for name, peak in peaks.items()))


if __name__ == "__main__":
    main()
