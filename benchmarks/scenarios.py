"""What is measured, round by round, everything interleaved so that a noisy minute hits all subjects alike."""

import json
import signal
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks import effects, latency, loaded, pgbench, streams
from benchmarks.latency import Latency
from benchmarks.stage import Servers, cursor_on
from benchmarks.subjects import SUBJECTS, Round, in_one_process, migrated, our_totals, ours, start_ours
from customer_actors.domain.routing import ACTORS

OURS: Final = SUBJECTS[-1].name
PGBENCH: Final = "pgbench, a transaction per event"
PACES: Final = (100, 500, 1_500)
PROCESSES: Final = (1, 2, 4)
LOADED_SPREAD: Final = 499
"""Distance of the customers that buy in a loaded database, so that they stand all over its tables."""

WATCHED_OF: Final = 8
"""One of so many customers is watched for changes there, so that the meter costs next to nothing: each of the last
batches is of hundreds of them."""

Say = Callable[[str], None]


class Sizes(NamedTuple):
    """How much is measured."""

    events: int = 20_000
    """Of ours per round; the peers get a share."""
    rounds: int = 3
    backlog: int = 200_000
    latency_seconds: float = 10
    history_customers: int = 1_000_000
    """Customers of the loaded database, ten events each."""


class Results:
    """Everything measured in a run."""

    def __init__(self, sizes: Sizes, machine: dict[str, str]) -> None:
        self.sizes = sizes
        self.machine = machine
        self.rounds: defaultdict[str, defaultdict[str, list[Round]]] = defaultdict(lambda: defaultdict(list))
        """Scenario -> subject -> rounds, in the order they were run."""
        self.limit: list[float] = []
        """Transactions per second of pgbench, by round."""
        self.embedded: list[Round] = []
        self.killed: dict[str, Round] = {}
        """One round per subject with a worker killed half-way."""
        self.latency: defaultdict[int, defaultdict[str, list[Latency]]] = defaultdict(lambda: defaultdict(list))
        """Pace -> subject -> rounds."""


def shapes(results: Results, servers: Servers, pgbench_program: Path, folder: Path, say: Say) -> None:
    """Every subject on every shape of the stream; beside the uniform one what the database and one process can do."""
    events = results.sizes.events
    for number in range(1, results.sizes.rounds + 1):
        for shape in streams.SHAPES:
            stream = streams.lines(shape, events)
            for subject in SUBJECTS:
                say(f"round {number}: {shape}, {subject.name}")
                part = stream[: int(events * subject.share)]
                results.rounds[shape][subject.name].append(subject.run(servers, part, False))
            if shape == "uniform":
                say(f"round {number}: pgbench")
                results.limit.append(_limit(servers, pgbench_program, folder, events // 10))
                say(f"round {number}: embedded")
                results.embedded.append(in_one_process(folder, stream))


def _limit(servers: Servers, program: Path, folder: Path, customers: int) -> float:
    with servers.stage() as stage:
        return pgbench.events_per_s(stage.database_url, program, folder, effects.SCHEMA, customers, seconds=10)


def kills(results: Results, servers: Servers, say: Say) -> None:
    """kill -9 of one worker process half-way, every subject once."""
    stream = streams.lines("uniform", results.sizes.events, seed=2)
    for subject in SUBJECTS:
        say(f"a worker killed: {subject.name}")
        part = stream[: int(results.sizes.events * subject.share)]
        results.killed[subject.name] = subject.run(servers, part, True)


def processes(results: Results, servers: Servers, say: Say) -> None:
    """Ours with 1, 2 and 4 worker processes, and a backlog to drain."""
    for number in range(1, results.sizes.rounds + 1):
        for count in PROCESSES:
            say(f"round {number}: {count} worker processes")
            stream = streams.lines("uniform", results.sizes.events, seed=3)
            results.rounds["processes"][str(count)].append(ours(servers, stream, False, count))
        say(f"round {number}: a backlog of {results.sizes.backlog:,}")
        stream = streams.lines("heavy", results.sizes.backlog, seed=4)
        results.rounds["backlog"][OURS].append(ours(servers, stream, False))


def latencies(results: Results, servers: Servers, say: Say) -> None:
    """Ours at every pace, the peers at the lower two, and before each what the machine makes of less."""
    seconds = results.sizes.latency_seconds
    for number in range(1, results.sizes.rounds + 1):
        for pace in PACES:
            say(f"round {number}: latency at {pace} events/s")
            results.latency[pace][latency.MACHINE].append(latency.of_machine(seconds))
            results.latency[pace][OURS].append(latency.of_ours(servers, pace, seconds))
            for name, start in latency.PEERS.items():
                if pace <= PACES[1]:
                    results.latency[pace][name].append(latency.of_peer(servers, start, pace, seconds))


def history(results: Results, servers: Servers, say: Say) -> None:
    """Ours on a full database beside an empty one, the same streams and the same meter, interleaved."""
    say(f"filling a database with {results.sizes.history_customers * loaded.PER_CUSTOMER:,} events")
    full = servers.postgres.create_database("history")
    loaded.fill(full, results.sizes.history_customers)
    with cursor_on(full) as cursor:
        cursor.execute("SELECT pg_database_size(current_database())")
        stored = results.sizes.history_customers * loaded.PER_CUSTOMER
        results.machine["bytes stored per event"] = f"{cursor.fetchone()[0] / stored:.0f}"
    spread = min(LOADED_SPREAD, results.sizes.history_customers * 10 // results.sizes.events)
    spread = (spread - 1) | 1  # odd, so that every second of them buys at a till, as everywhere else
    for number in range(1, results.sizes.rounds + 1):
        stream = streams.lines("uniform", results.sizes.events, seed=10 + number, spread=spread)
        both = [("empty", None), ("full", full)]
        for name, url in both if number % 2 else reversed(both):
            say(f"round {number}: {name} database")
            results.rounds["history"][name].append(_beside_history(servers, stream, url))
    servers.postgres.drop_database("history")


def _customers(cursor: Any, stream: Sequence[str]) -> list[int]:
    """The numbers of the customers a stream names, those it will make included: looking at all of a million would be
    half of what is measured."""
    names = {json.loads(line)["data"].get("customer_id") for line in stream} - {None}
    cursor.execute("SELECT id FROM customer WHERE customer_id = ANY(%s) ORDER BY id", (list(names),))
    return [number for (number,) in cursor.fetchall()] or list(range(1, len(names) + 1))


def _beside_history(servers: Servers, stream: Sequence[str], full: str | None) -> Round:
    """A round of ours on this database; on a fresh one without. Those events that were there are not judged again."""
    with servers.stage() as stage:
        stage.database_url = full or stage.database_url
        with migrated(stage.database_url) as stores:
            stage.publish(stream)
            with cursor_on(stage.database_url) as cursor:
                buyers = _customers(cursor, stream)
                cursor.execute(our_totals(buyers))
                before = cursor.fetchone()[0] or 0
            start_ours(stage)
            watched = our_totals(buyers[::WATCHED_OF])
            measured = stage.watch(
                len(stream), watched, lambda _: not any(stores.of(actor).behind(buyers) for actor in ACTORS)
            )
            stage.processes["ingest"].end(signal.SIGTERM)
            with cursor_on(stage.database_url) as cursor:
                cursor.execute(our_totals(buyers))
                appended = cursor.fetchone()[0] - before
            assert appended == len(stream), f"{appended} of {len(stream)} events were appended"
            return Round(measured, None)
