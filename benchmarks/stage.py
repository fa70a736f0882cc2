"""One round's place: a database, a broker with the three queues, processes, and a watch over their progress."""

import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

import pika
import psycopg2
from pika.exceptions import ChannelClosedByBroker
from pika.spec import BasicProperties

from benchmarks import machine
from customer_actors.ingest import topology
from customer_actors.ingest.publish import exchange_for, publish
from tests.servers import PrivatePostgres, PrivateRabbitMQ
from tests.servers.process import Child, wait_until

ROOT: Final = Path(__file__).parents[1]
LOOK_S: Final = 0.05
"""How often progress is looked at: what the seconds of a round may be wrong by."""
QUIET_S: Final = 1.5
"""Nothing changed for so long: the work may be done."""
IDLE_S: Final = 0.5
"""The database has had nothing to do for so long: whoever started has looked around."""
GIVE_UP_S: Final = 15.0
"""A disturbed side on which nothing changes for so long will not get further by itself, where nothing of it waits
longer."""
WORKERS: Final = 2
"""Worker processes of every subject."""


class Measured(NamedTuple):
    """One round of one side."""

    seconds: float
    events_per_s: float
    cpu_s: dict[str, float]
    """CPU seconds per 10,000 events, by process."""
    peak_mb: dict[str, float]
    """The most memory each process ever had resident, in MB."""
    late: bool = False
    """Stopped before it was through: it is slower than `events_per_s` says."""


class Servers:
    """The two servers of a run, and a folder for its processes."""

    def __init__(self, postgres: PrivatePostgres, rabbitmq: PrivateRabbitMQ, folder: Path) -> None:
        self.postgres = postgres
        self.rabbitmq = rabbitmq
        self.folder = folder
        self._stages = 0

    @contextmanager
    def stage(
        self,
        declare: Callable[[pika.BlockingConnection], object] = topology.declare,
        template: str = "template1",
    ) -> Iterator["Stage"]:
        """A fresh stage, gone afterwards with its processes and data.

        `declare` makes the three queues. The database starts as a copy of `template`.
        """
        self._stages += 1
        logging.getLogger("pika").setLevel(logging.CRITICAL)  # it warns of every queue that is not there yet
        name = f"stage_{self._stages}"
        with ExitStack() as cleanup:
            database_url = self.postgres.create_database(name, template=template)
            cleanup.callback(self.postgres.drop_database, name)
            rabbitmq_url = self.rabbitmq.new_vhost()
            connection = cleanup.enter_context(pika.BlockingConnection(pika.URLParameters(rabbitmq_url)))
            declare(connection)
            stage = Stage(self, database_url, rabbitmq_url, connection)
            cleanup.callback(stage.end)
            yield stage


class Stage:
    """One round's database, broker and processes. For one thread."""

    def __init__(
        self, servers: Servers, database_url: str, rabbitmq_url: str, connection: pika.BlockingConnection
    ) -> None:
        self.servers = servers
        self.database_url = database_url
        self.rabbitmq_url = rabbitmq_url
        self.processes: dict[str, Child] = {}
        self._commands: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {}
        self._connection = connection
        self._channel = connection.channel()

    def start(self, name: str, *args: str, **environment: str) -> Child:
        """Start a process that knows nothing but the two URLs and `environment`."""
        own = {"DATABASE_URL": self.database_url, "RABBITMQ_URL": self.rabbitmq_url, "PYTHONPATH": str(ROOT)}
        child = Child(args, {"PATH": os.environ["PATH"], **own, **environment}, self.servers.folder)
        self.processes[name] = child
        self._commands[name] = args, environment
        return child

    def start_dramatiq(self, queues: Sequence[str], processes: int, *args: str, **environment: str) -> None:
        """Start the processes of Dramatiq's command line and wait until all of them consume all queues."""
        child = self.start("workers", program("dramatiq"), *args, "--processes", str(processes), **environment)
        child.wait_until(lambda: all(self.queue(queue)[1] == processes for queue in queues))

    def wait_until_database_idle(self) -> None:
        """Return once no process of the stage has had a statement under way for a while."""
        busy = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() "
            "AND backend_type = 'client backend' AND (state <> 'idle' OR now() - state_change < interval '%s s')"
        )
        with cursor_on(self.database_url) as cursor:

            def idle() -> bool:
                cursor.execute(busy, (IDLE_S,))
                return not cursor.fetchone()[0]

            wait_until(idle, 120)

    def kill_a_worker(self) -> None:
        """kill -9 of the process that works most under the name "workers"; what ends with it is started again."""
        child = self.processes["workers"]
        os.kill(max(machine.tree(child.pid)[-WORKERS:], key=machine.cpu_s), signal.SIGKILL)
        with suppress(AssertionError):  # a supervisor of its own may have started another worker: then it goes on
            wait_until(lambda: not child.running, 5)
        if not child.running:
            args, environment = self._commands["workers"]
            self.start("workers", *args, **environment)

    def output(self) -> str:
        """The end of what the processes wrote."""
        return (self.servers.folder / "output.log").read_text(errors="replace")[-3000:]

    def end(self) -> None:
        """End what still runs."""
        for child in self.processes.values():
            child.end(signal.SIGTERM, 5)

    def queue(self, name: str) -> tuple[int, int]:
        """Ready messages and consumers of a queue; zeros when there is none."""
        try:
            declared = self._channel.queue_declare(name, passive=True).method
        except ChannelClosedByBroker:
            self._channel = self._connection.channel()
            return 0, 0
        return declared.message_count or 0, declared.consumer_count or 0

    def ready(self) -> int:
        """Messages of the three queues that nobody took yet."""
        return sum(self.queue(queue)[0] for queue in topology.QUEUES)

    def publish(self, lines: Sequence[str]) -> None:
        """Put lines into the queues by the type each names."""
        report = publish(self.rabbitmq_url, ((json.loads(line)["event"], line.encode()) for line in lines))
        assert report.confirmed == len(lines), report

    def one_by_one(self) -> Callable[[str, str], None]:
        """What sends one event, of this type with this body, and waits for nobody: a slow broker must not slow the
        pace."""
        channel = self._connection.channel()

        def send(type_: str, body: str) -> None:
            channel.basic_publish(exchange_for(type_), type_, body.encode(), BasicProperties(delivery_mode=2))

        return send

    def watch(
        self,
        events: int,
        totals: str,
        complete: Callable[[tuple[Any, ...]], bool],
        disturb: Callable[[], None] | None = None,
        give_up_s: float = GIVE_UP_S,
    ) -> Measured:
        """Measure from the subscription to the queues until the last change of the totals; then all must be there.

        A round that is not through in time is stopped. `disturb` is called once, when half of the messages are taken
        from the queues; a disturbed round may end incomplete, when nothing has changed for `give_up_s`.
        """
        deadline = time.monotonic() + 40 + events / 50 + (give_up_s if disturb is not None else 0)
        wait_until(lambda: any(self.queue(queue)[1] for queue in topology.QUEUES), 60)
        before, started = self._cpu_s(), time.monotonic()
        changed, last, disturbed, late = started, (), disturb is None, False
        unfinished = started
        with cursor_on(self.database_url) as cursor:
            while True:
                if time.monotonic() - changed >= QUIET_S:
                    if complete(last):
                        break
                    unfinished = time.monotonic()
                late = time.monotonic() > deadline
                if late or (disturb is not None and disturbed and time.monotonic() - changed > give_up_s):
                    break
                time.sleep(LOOK_S)
                ready = self.ready()
                if not disturbed and disturb is not None and ready <= events // 2:
                    disturb()
                    disturbed = True
                if ready:
                    changed = time.monotonic()
                    continue
                cursor.execute(totals)
                now = tuple(figure for row in cursor.fetchall() for figure in row)
                if now != last:
                    changed, last = time.monotonic(), now
        late = late and disturb is None
        after, seconds = self._cpu_s(), (time.monotonic() if late else max(changed, unfinished)) - started
        cpu_s = {name: (after[name] - before.get(name, 0)) * 10_000 / events for name in after}
        return Measured(seconds, events / seconds, cpu_s, self.peak_mb(), late)

    def _cpu_s(self) -> dict[str, float]:
        pids = {name: child.pid for name, child in self.processes.items()}
        pids |= {"PostgreSQL": self.servers.postgres.pid, "RabbitMQ": self.servers.rabbitmq.pid}
        return {name: machine.cpu_s(pid) for name, pid in pids.items()}

    def peak_mb(self) -> dict[str, float]:
        """The most memory each process that still runs ever had resident, in MB."""
        return {
            f"{name} {number}" if number else name: machine.peak_mb(pid)
            for name, child in self.processes.items()
            for number, pid in enumerate(machine.tree(child.pid))
        }


def rows_of(database_url: str) -> Callable[[str], list[tuple[Any, ...]]]:
    """What runs a query in this database."""

    def rows(sql: str) -> list[tuple[Any, ...]]:
        with cursor_on(database_url) as cursor:
            cursor.execute(sql)
            found: list[tuple[Any, ...]] = cursor.fetchall()
            return found

    return rows


def program(name: str) -> str:
    """A command of this interpreter's environment."""
    return str(Path(sys.executable).with_name(name))


@contextmanager
def cursor_on(database_url: str) -> Iterator[Any]:
    """A cursor on a connection of its own that commits every statement."""
    connection = psycopg2.connect(database_url)
    try:
        connection.autocommit = True
        yield connection.cursor()
    finally:
        connection.close()
