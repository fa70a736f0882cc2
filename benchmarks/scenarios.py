"""What is measured, round by round, everything interleaved so that a noisy minute hits all subjects alike."""

import json
import signal
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks import effects, latency, loaded, pgbench, streams
from benchmarks.latency import Latency
from benchmarks.stage import Measured, Servers, cursor_on
from benchmarks.subjects import SUBJECTS, Round, in_one_process, migrated, our_totals, ours, start_ours
from customer_actors.domain.routing import ACTORS
from customer_actors.storage.actors import Stores

OURS: Final = SUBJECTS[-1].name
PGBENCH: Final = "pgbench, a transaction per event"
PACES: Final = (100, 500, 1_500)
PROCESSES: Final = (1, 2, 4)
LOADED_SPREAD: Final = 500
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
    latency_seconds: float = 20
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
        self.embedded: list[Measured] = []
        self.killed: dict[str, Round] = {}
        """One round per subject with a worker killed half-way."""
        self.latency: dict[int, dict[str, Latency]] = {}
        """Pace -> subject."""


def shapes(results: Results, servers: Servers, pgbench_program: Path, folder: Path, say: Say) -> None:
    """Every subject on every shape of the stream, and what the database and one process can do."""
    for number in range(1, results.sizes.rounds + 1):
        for shape in streams.SHAPES:
            for subject in SUBJECTS:
                say(f"round {number}: {shape}, {subject.name}")
                stream = streams.lines(shape, int(results.sizes.events * subject.share))
                results.rounds[shape][subject.name].append(subject.run(servers, stream, False))
        say(f"round {number}: pgbench")
        results.limit.append(_limit(servers, pgbench_program, folder, results.sizes.events // 10))
        say(f"round {number}: embedded")
        results.embedded.append(in_one_process(folder, streams.lines("uniform", results.sizes.events)))


def _limit(servers: Servers, program: Path, folder: Path, customers: int) -> float:
    with servers.stage() as stage:
        return pgbench.events_per_s(stage.database_url, program, folder, effects.SCHEMA, customers, seconds=10)


def kills(results: Results, servers: Servers, say: Say) -> None:
    """kill -9 of one worker process half-way, every subject once."""
    for subject in SUBJECTS:
        say(f"a worker killed: {subject.name}")
        stream = streams.lines("uniform", int(results.sizes.events * subject.share), seed=2)
        results.killed[subject.name] = subject.run(servers, stream, True)


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
    """Ours at every pace, the peers at those they can keep, and before each what the machine makes of less."""
    seconds = results.sizes.latency_seconds
    for pace in PACES:
        say(f"latency at {pace} events/s")
        results.latency[pace] = {latency.MACHINE: latency.of_machine(seconds)}
        results.latency[pace][OURS] = latency.of_ours(servers, pace, seconds)
        for name, start in latency.PEERS.items():
            if pace <= PACES[1]:
                results.latency[pace][name] = latency.of_peer(servers, start, pace, seconds)


def history(results: Results, servers: Servers, say: Say) -> None:
    """Ours on a full database beside an empty one, the same streams, interleaved."""
    say(f"filling a database with {results.sizes.history_customers * loaded.PER_CUSTOMER:,} events")
    full = servers.postgres.create_database("history")
    loaded.fill(full, results.sizes.history_customers)
    with cursor_on(full) as cursor:
        cursor.execute("SELECT pg_database_size(current_database())")
        stored = results.sizes.history_customers * loaded.PER_CUSTOMER
        results.machine["bytes stored per event"] = f"{cursor.fetchone()[0] / stored:.0f}"
    spread = max(1, min(LOADED_SPREAD, results.sizes.history_customers * 10 // results.sizes.events))
    for number in range(1, results.sizes.rounds + 1):
        stream = streams.lines("uniform", results.sizes.events, seed=10 + number, spread=spread)
        for name, url in (("empty", None), ("full", full)):
            say(f"round {number}: {name} database")
            results.rounds["history"][name].append(_on(servers, stream, url))
    servers.postgres.drop_database("history")


def _customers(cursor: Any, stream: Sequence[str]) -> list[int]:
    """The numbers of the customers a stream names: looking at all of a million would be half of what is measured."""
    names = {json.loads(line)["data"].get("customer_id") for line in stream} - {None}
    cursor.execute("SELECT id FROM customer WHERE customer_id = ANY(%s) ORDER BY id", (list(names),))
    return [number for (number,) in cursor.fetchall()]


def _behind(stores: Stores, customers: Sequence[int]) -> bool:
    return any(stores.of(actor).behind(customers) for actor in ACTORS)


def _on(servers: Servers, stream: Sequence[str], database_url: str | None) -> Round:
    """A round of ours on this database; on a fresh one without."""
    if database_url is None:
        return ours(servers, stream, False)
    with servers.stage() as stage:
        stage.database_url = database_url
        with migrated(database_url) as stores:
            stage.publish(stream)
            with cursor_on(database_url) as cursor:
                buyers = _customers(cursor, stream)
                cursor.execute(our_totals(buyers))
                before = cursor.fetchone()[0]
            start_ours(stage)
            watched = our_totals(buyers[::WATCHED_OF])
            measured = stage.watch(len(stream), watched, lambda _: not _behind(stores, buyers))
            stage.processes["ingest"].end(signal.SIGTERM)
            with cursor_on(database_url) as cursor:
                cursor.execute(our_totals(buyers))
                appended = cursor.fetchone()[0] - before
            assert appended == len(stream), f"{appended} of {len(stream)} events were appended"
            return Round(measured, None)
