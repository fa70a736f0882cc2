"""Real processes whose connections are closed by both servers, over and over, end with no thread or connection more.

RECONNECTS=200 in the environment makes it the long run: so many rounds, in each of which every connection is ended.
"""

import json
import os
import re
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import psycopg2
import pytest

from customer_actors.domain.events import EventType
from customer_actors.ingest.publish import publish
from customer_actors.settings import load_settings
from customer_actors.storage.beats import Beat, all_beats
from customer_actors.storage.opening import open_database
from customer_actors.storage.overdue import all_behind
from customer_actors.storage.schema import migrate
from tests.e2e.processes import BIN, INGEST, running
from tests.faults.accounts import Accounts
from tests.faults.check import Verdict, check
from tests.faults.order_log import INSTALL
from tests.faults.table import ROWS, Row
from tests.servers import RabbitMQ
from tests.servers.process import descendants, wait_until
from tests.storage.support import Storage

ROUNDS = int(os.environ.get("RECONNECTS", "6"))
LONG, LONG_ENDS = 200, 1_000
"""From so many rounds on, at least so many connections must have been ended [G22]."""
WARM_UP = 12
"""Rounds without a fault: after them every thread that ever works has its connections."""
LAST = 3
FIRST = max(1, min(20, ROUNDS - LAST))
"""The least of the last rounds must not have more open than the most of the first disturbed ones: a thread reconnects
to the broker when it next sends, so that a round has 22 to 24 connections. What is left behind is in all."""
EVENTS = 30
"""Of each round, each of a customer of its own."""
THREADS = 4
WORKER = (
    *(str(BIN / "dramatiq"), "customer_actors.actors.main:setup", "--processes", "1", "--threads", str(THREADS)),
    *("--worker-shutdown-timeout", "500", "--worker-fork-timeout", "5000", "--skip-logging"),
)


@pytest.fixture
def storage(postgres_url: str) -> Iterator[Storage]:
    database = open_database(postgres_url)
    migrate(database)
    database.execute(INSTALL)
    yield Storage(database)
    database.release()


class Connections:
    """The processes' connections, and their end."""

    def __init__(self, url: str, storage: Storage, rabbitmq: RabbitMQ, vhost: str) -> None:
        self._administrator = psycopg2.connect(url)
        self._administrator.autocommit = True
        self._storage = storage
        self._rabbitmq = rabbitmq
        self._vhost = vhost

    def close(self) -> None:
        self._administrator.close()

    def postgres(self) -> int:
        return len(self._each("pid"))

    def rabbitmq(self) -> int:
        listed = self._rabbitmq.ctl("list_connections", "--quiet", "vhost", "state")
        return sum(line.split() == [self._vhost, "running"] for line in listed.splitlines())

    def end_all(self) -> int:
        """What a failover of both servers does; returns how many connections it has ended, some of each."""
        said = self._rabbitmq.ctl("close_all_connections", "--vhost", self._vhost, "a test")
        closed = re.search(r"Closed (\d+) connections", said)
        assert closed, said
        ended = self._each("pg_terminate_backend(pid, 5000)")
        assert int(closed[1]) > 0
        assert ended
        assert all(ended)
        return int(closed[1]) + len(ended)

    def _each(self, what: str) -> list[object]:
        """Of every connection of the service, but for this test's own."""
        own = self._storage.value("SELECT pg_backend_pid()")
        with self._administrator.cursor() as cursor:
            cursor.execute(
                f"SELECT {what} FROM pg_stat_activity WHERE application_name = 'customer_actors' "
                "AND datname = current_database() AND pid <> %s",
                (own,),
            )
            return [row[0] for row in cursor.fetchall()]


def threads(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def steady(reading: Callable[[], int]) -> int:
    """What it reads once it has not changed for a hundred looks: a thread may be about to start or to end."""
    looks: list[int] = []

    def unchanged() -> bool:
        looks.append(reading())
        return len(looks) >= 100 and len({*looks[-100:]}) == 1

    wait_until(unchanged)
    return looks[-1]


def worker_beat(storage: Storage) -> Beat | None:
    """The worker's last sign of life."""
    return next((beat for beat in all_beats(storage.database) if beat.kind == "worker"), None)


class Traffic:
    """Sales through ingest, the dispatcher and every actor, a round at a time."""

    def __init__(self, url: str, storage: Storage) -> None:
        self._url = url
        self._storage = storage
        self.confirmed: list[str] = []

    def round(self) -> None:
        """Send a round, and wait until everybody is at the head and the worker has beaten with all its threads."""
        sales = [self._sale(number) for number in range(EVENTS)]
        since_us = time.time_ns() // 1_000
        report = publish(self._url, ((EventType.ORDER_COMPLETED, sale.encode()) for sale in sales))
        assert report.confirmed == EVENTS
        self.confirmed += sales
        wait_until(partial(self._settled, since_us))

    def _sale(self, number: int) -> str:
        data = {"order_id": f"{len(self.confirmed)}-{number}", "customer_id": f"c{number}", "total_amount": 10}
        return json.dumps({"event": EventType.ORDER_COMPLETED, "data": data})

    def _settled(self, since_us: int) -> bool:
        beat = worker_beat(self._storage)
        beats = beat is not None and beat.at_us > since_us and beat.trouble is None
        stored = self._storage.value("SELECT count(*) FROM event")
        return beats and stored == len(self.confirmed) and not any(all_behind(self._storage.stores()).values())


@pytest.mark.timeout(300 + 10 * ROUNDS)
def test_forced_reconnects_leave_no_thread_and_no_connection_behind(
    storage: Storage, postgres_url: str, rabbitmq: RabbitMQ, rabbitmq_url: str, tmp_path: Path
) -> None:
    env = {
        "DATABASE_URL": postgres_url,
        "RABBITMQ_URL": rabbitmq_url,
        "CUSTOMER_ACTORS_SWEEP_SECONDS": "1",
        "dramatiq_restart_delay": "200",
    }
    traffic = Traffic(rabbitmq_url, storage)
    connections = Connections(postgres_url, storage, rabbitmq, rabbitmq_url.rpartition("/")[2])
    with running(tmp_path, env, worker=WORKER, ingest=INGEST) as processes:
        wait_until(lambda: processes["ingest"].logged().count('"consuming"') >= 3)
        traffic.round()
        [worker] = descendants(processes["worker"].pid)[-1:]
        beat = worker_beat(storage)
        assert beat is not None
        assert worker == beat.pid
        pids = (worker, processes["ingest"].pid)
        undisturbed = []
        for _ in range(WARM_UP):
            traffic.round()
            undisturbed.append(connections.postgres())
        database = max(undisturbed)
        # One for each thread of the worker that folds and for its sweep; three of ingest.
        assert database <= THREADS + 1 + 3
        before = [steady(partial(threads, pid)) for pid in pids]
        took_s, opened, ended = [], [], 0
        for number in range(ROUNDS):
            ended += connections.end_all()
            began_s = time.monotonic()
            traffic.round()
            took_s.append(time.monotonic() - began_s)
            assert connections.postgres() <= database
            if number < FIRST or number >= ROUNDS - LAST:
                opened.append((connections.rabbitmq(), files(pids[1])))
        # To the broker: one to consume per queue, of the worker and of ingest; one to send for each thread that ever
        # sent, perhaps closed by now: four files each.
        consumers = beat.threads_expected - THREADS + 3
        most = consumers + beat.threads_expected + 2
        wait_until(lambda: consumers <= connections.rabbitmq() <= most)
        after = [steady(partial(threads, pid)) for pid in pids]
        print(
            f"{ROUNDS} rounds, {ended} connections ended: {before} {after}",
            undisturbed,
            opened,
            connections.rabbitmq(),
            *map(files, pids),
        )
        assert after == before
        assert connections.postgres() <= database
        # A thread that first sends in a late round opens its four files then.
        assert files(worker) <= 4 * most + THREADS + 1 + 15
        for at_first, at_last in zip(zip(*opened[:FIRST], strict=True), zip(*opened[-LAST:], strict=True), strict=True):
            assert min(at_last) <= max(at_first)
    found = judged(storage, traffic.confirmed)
    sent = len(traffic.confirmed)
    injected = f"{ROUNDS} times, {ended} connections"
    ROWS.append(Row("forced reconnects of all", injected, sent, found.lost, found.twice, found.disorder, max(took_s)))
    assert ended >= LONG_ENDS or ROUNDS < LONG
    assert (found.lost, found.twice, found.disorder, found.wrong) == (0, 0, 0, [])
    assert (found.applied > sent, found.held) == (True, 0)
    connections.close()


def judged(storage: Storage, confirmed: list[str]) -> Verdict:
    """The final check of the faults. The log of a thousand rounds may take longer to read than a service may wait."""
    with storage.database.transaction():
        storage.database.execute("SET statement_timeout = 0")
    return check(storage.database, load_settings({}).rules(), confirmed, Accounts(), datetime.now(UTC).date())
