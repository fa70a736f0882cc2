"""`python -m benchmarks`: this project beside its peers, on one machine, in one run.

Starts a private PostgreSQL and a private RabbitMQ with their default durability. A shared machine makes seconds lie, so
what counts is the ratio within a round; the medians over the rounds are printed with their spread.

The backlog is in the queues and the workers wait for their first message when the consumer of the queues is started,
and the clock with it, once the broker sees it subscribe. The clock stops with the last effect committed.
"""

import json
import logging
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

import click
from rich.console import Console
from rich.markdown import Markdown

from benchmarks import machine, report, scenarios
from benchmarks.scenarios import Results, Sizes
from benchmarks.stage import ROOT, Servers, cursor_on
from customer_actors.telemetry import configure_logging
from tests.servers import PrivatePostgres, PrivateRabbitMQ
from tests.servers.process import server_folder

LIMIT_S: Final = 3 * 3_600
"""A run that takes longer hangs, and is ended with all its processes."""
SHARED_BUFFERS: Final = "2GB"
"""PostgreSQL's cache, for every subject: its default of 128 MB is for any machine, and its manual says more, up to a
quarter of the memory. Nothing else of the servers' configuration is changed."""
PARTS: Final = ("shapes", "kills", "processes", "latency", "history")
QUICK: Final = Sizes(events=4_000, rounds=1, backlog=10_000, latency_seconds=5, history_customers=20_000)


def measure(sizes: Sizes, parts: tuple[str, ...], say: Callable[[str], None]) -> Results:
    """Every part asked for."""
    with PrivatePostgres() as postgres, PrivateRabbitMQ() as rabbitmq, server_folder("benchmark") as folder:
        servers, program = Servers(postgres, rabbitmq, folder), postgres.programs / "pgbench"
        with cursor_on(postgres.url()) as cursor:
            cursor.execute(f"ALTER SYSTEM SET shared_buffers = '{SHARED_BUFFERS}'")
            cursor.execute("SHOW server_version")
            results = Results(sizes, machine.describe(cursor.fetchone()[0], rabbitmq.ctl("version").strip()))
        results.machine |= {"fsync of 8 kB": f"{machine.fsync_ms(folder):.2f} ms", "shared_buffers": SHARED_BUFFERS}
        postgres.stop()
        postgres.start()
        work: dict[str, Callable[[], None]] = {
            "shapes": lambda: scenarios.shapes(results, servers, program, folder, say),
            "kills": lambda: scenarios.kills(results, servers, say),
            "processes": lambda: scenarios.processes(results, servers, say),
            "latency": lambda: scenarios.latencies(results, servers, say),
            "history": lambda: scenarios.history(results, servers, say),
        }
        for part in parts:
            work[part]()
    return results


@click.command()
@click.option("--quick", is_flag=True, help="One short round of everything: shows that it works, measures nothing.")
@click.option("--part", "parts", multiple=True, type=click.Choice(PARTS), help="Only this; may be repeated.")
@click.option("--rounds", type=click.IntRange(min=1), help="[default: 3]")
@click.option("--json", "file", type=click.File("w"), help="Write everything measured to this file, too.")
@click.option("--docs", is_flag=True, help="Put tables, plot and JSON into docs/benchmarks.*, of a whole run only.")
def main(quick: bool, parts: tuple[str, ...], rounds: int | None, file: IO[str] | None, docs: bool) -> None:
    """Measure this project and its peers in one run; about forty minutes on two cores."""
    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, lambda number, _: sys.exit(f"ended by {signal.Signals(number).name}"))
    signal.alarm(LIMIT_S)
    configure_logging("WARNING")
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    sizes = QUICK if quick else Sizes()
    sizes = sizes._replace(rounds=rounds or sizes.rounds)
    if docs and (quick or parts or sizes.rounds < Sizes().rounds):
        raise click.UsageError(f"--docs needs a whole run of at least {Sizes().rounds} rounds: leave the others out.")
    console = Console(stderr=True)
    results = measure(sizes, parts or PARTS, lambda text: console.log(text))
    Console().print(Markdown(report.markdown(results)))
    if file is not None:
        json.dump(report.as_json(results), file, indent=2)
    if docs:
        report.write(results, Path(ROOT) / "docs")


if __name__ == "__main__":
    main()
