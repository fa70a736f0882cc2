"""A real worker whose connections are closed by both servers, over and over, ends with no thread or connection more.

RECONNECTS=200 in the environment makes it the long run.
"""

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import psycopg2
import pytest

from customer_actors.storage.beats import all_beats
from customer_actors.storage.opening import open_database
from customer_actors.storage.overdue import all_behind
from customer_actors.storage.schema import migrate
from tests.e2e.processes import BIN, running
from tests.model.examples import order
from tests.servers import PrivatePostgres, RabbitMQ
from tests.servers.process import descendants, wait_until
from tests.storage.support import Storage

ROUNDS = int(os.environ.get("RECONNECTS", "6"))
THREADS = 4
WORKER = (
    *(str(BIN / "dramatiq"), "customer_actors.actors.main:setup", "--processes", "1", "--threads", str(THREADS)),
    *("--worker-shutdown-timeout", "500", "--worker-fork-timeout", "5000", "--skip-logging"),
)


@pytest.fixture
def storage(postgres_url: str) -> Iterator[Storage]:
    database = open_database(postgres_url)
    migrate(database)
    yield Storage(database)
    database.release()


class Connections:
    """The worker's connections and threads, and their end."""

    def __init__(self, url: str, storage: Storage, rabbitmq: RabbitMQ, vhost: str, pid: int) -> None:
        self._administrator = psycopg2.connect(url)
        self._administrator.autocommit = True
        self._storage = storage
        self._rabbitmq = rabbitmq
        self._vhost = vhost
        self.pid = pid

    def close(self) -> None:
        self._administrator.close()

    def _ours(self) -> int:
        pid: int = self._storage.value("SELECT pg_backend_pid()")
        return pid

    def postgres(self) -> int:
        """Of the worker."""
        return len(self._query("SELECT pid FROM pg_stat_activity WHERE application_name = 'customer_actors' AND "))

    def end_all(self) -> None:
        """What a failover of both servers does."""
        self._rabbitmq.ctl("close_all_connections", "--vhost", self._vhost, "a test")
        self._query(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
            "WHERE application_name = 'customer_actors' AND "
        )

    def _query(self, sql: str) -> list[tuple[object, ...]]:
        with self._administrator.cursor() as cursor:
            cursor.execute(sql + "datname = current_database() AND pid <> %s", (self._ours(),))
            return cursor.fetchall()

    def rabbitmq(self) -> int:
        listed = self._rabbitmq.ctl("list_connections", "--quiet", "vhost", "state")
        return sum(line.split() == [self._vhost, "running"] for line in listed.splitlines())

    def threads(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/task").iterdir()))

    def files(self) -> int:
        return len(list(Path(f"/proc/{self.pid}/fd").iterdir()))


def settled(storage: Storage, since_us: int) -> bool:
    """Everybody is at the head, and the worker has beaten with all its threads since."""
    beats = [beat for beat in all_beats(storage.database) if beat.at_us > since_us and beat.trouble is None]
    return bool(beats) and not any(all_behind(storage.stores()).values())


def steady(reading: Callable[[], int]) -> int:
    """What it reads once it has not changed for a hundred looks: a thread may be about to start or to end."""
    looks: list[int] = []

    def unchanged() -> bool:
        looks.append(reading())
        return len(looks) >= 100 and len({*looks[-100:]}) == 1

    wait_until(unchanged, 60)
    return looks[-1]


def test_forced_reconnects_leave_no_thread_and_no_connection_behind(
    storage: Storage,
    postgres: PrivatePostgres,
    postgres_url: str,
    rabbitmq: RabbitMQ,
    rabbitmq_url: str,
    tmp_path: Path,
) -> None:
    env = {
        "DATABASE_URL": postgres_url,
        "RABBITMQ_URL": rabbitmq_url,
        "CUSTOMER_ACTORS_SWEEP_SECONDS": "1",
        "dramatiq_restart_delay": "200",
    }
    with running(tmp_path, env, worker=WORKER) as processes:
        wait_until(lambda: settled(storage, 0), 60)
        [worker] = descendants(processes["worker"].pid)[-1:]
        [beat] = all_beats(storage.database)
        assert worker == beat.pid
        consumers = beat.threads_expected - THREADS
        vhost = rabbitmq_url.rpartition("/")[2]
        connections = Connections(postgres_url, storage, rabbitmq, vhost, worker)
        before = steady(connections.threads)
        for number in range(ROUNDS):
            storage.append([order(f"{number}-{each}", "10", customer_id=f"c{each}") for each in range(30)])
            connections.end_all()
            wait_until(partial(settled, storage, time.time_ns() // 1_000), 60)
            assert connections.postgres() <= THREADS + 1
        # One to consume per queue; one to send for each thread that ever sent, perhaps closed by now: four files each.
        most = consumers + beat.threads_expected + 1
        wait_until(lambda: consumers <= connections.rabbitmq() <= most, 60)
        print(
            f"{ROUNDS} rounds:",
            connections.threads(),
            connections.postgres(),
            connections.rabbitmq(),
            connections.files(),
        )
        assert steady(connections.threads) == before
        assert connections.postgres() <= THREADS + 1
        assert connections.files() <= 4 * most + THREADS + 1 + 15
        assert storage.value("SELECT count(*) FROM held_group") == 0
        connections.close()
