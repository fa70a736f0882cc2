"""One fault's place: a database, a virtual host, the Procfile's processes, and a publisher with its traffic."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import pika
import psycopg2
from pika.exceptions import AMQPError

from customer_actors.errors import CustomerActorsError
from customer_actors.ingest import topology
from customer_actors.settings import load_settings
from customer_actors.storage.actors import Stores
from customer_actors.storage.opening import open_database
from customer_actors.storage.overdue import all_behind
from customer_actors.storage.schema import migrate
from tests.faults.accounts import Accounts
from tests.faults.order_log import INSTALL
from tests.faults.proxy import Proxy
from tests.faults.publisher import Publisher
from tests.servers import PrivatePostgres, PrivateRabbitMQ
from tests.servers.process import Child, alive, descendants

ROOT: Final = Path(__file__).parents[2]
BIN: Final = Path(sys.executable).parent
INGEST: Final = "ingest"
WORKER: Final = "worker"
COMMANDS: Final = {
    INGEST: (str(BIN / "customer-actors"), "ingest"),
    WORKER: (
        *(str(BIN / "dramatiq"), "customer_actors.actors.main:setup", "--processes", "2", "--threads", "4"),
        *("--worker-shutdown-timeout", "500", "--worker-fork-timeout", "5000", "--skip-logging"),
    ),
}
"""As in the Procfile."""
MOST_CONNECTIONS: Final = 2 * (4 + 1) + (3 + 1)
"""Threads + 1 per process [G22]: two workers of four, and the three of ingest."""
SERVICE: Final = "shop_service"
"""The role the service logs in as: unlike a superuser it has to obey limits."""
WAIT_S: Final = 60
OUTAGE_S: Final = float(os.environ.get("OUTAGE_S") or 10)
"""How long a server is down or a row locked, in the faults that are about that; ten minutes in the long run."""
_PATIENCE_S: Final = 8
"""From SIGTERM to the end of a process, whatever a fault has left behind."""
_UNDER_WAY_S: Final = 1
"""Whatever was under way when a fault began is through or has failed after that."""
_LOOK_S: Final = 0.05

Row = tuple[Any, ...]


def make_template(postgres: PrivatePostgres, name: str) -> None:
    """A database with the product's schema and the suite's order log, to copy from."""
    url = postgres.create_database(name)
    database = open_database(url)
    migrate(database)
    database.release()
    connection = psycopg2.connect(url)
    with connection, connection.cursor() as cursor:
        cursor.execute(INSTALL)
        cursor.execute(f"CREATE ROLE {SERVICE} LOGIN")
        cursor.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {SERVICE}")
        cursor.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {SERVICE}")
    connection.close()


class Stage:
    """Everything one fault needs. Processes that end are started again, as every supervisor does; nobody looks after
    them otherwise."""

    def __init__(
        self, postgres: PrivatePostgres, rabbitmq: PrivateRabbitMQ, folder: Path, database: str, rabbitmq_url: str
    ) -> None:
        self.postgres = postgres
        self.rabbitmq = rabbitmq
        self.folder = folder
        self.database = database
        self.rabbitmq_url = rabbitmq_url
        self.vhost = rabbitmq_url.rsplit("/", 1)[1]
        self.env: dict[str, str] = {"CUSTOMER_ACTORS_SWEEP_SECONDS": "1"}
        """What the processes are told besides the two URLs."""
        self.database_port = postgres.port
        self.rabbitmq_options = ""
        """Appended to the processes' RABBITMQ_URL."""
        self.commands: dict[str, tuple[str, ...]] = dict(COMMANDS)
        self.processes: dict[str, Child] = {}
        self.accounts = Accounts()
        self.publisher: Publisher | None = None
        self.proxy: Proxy | None = None
        self.cleanup = ExitStack()
        """Closed at the end, before the processes are killed."""
        self.supervised = True
        self.restarts = 0
        """How often a process that had ended was started again."""
        self.open_matters = ""
        """What `settled` still waited for."""
        self._log_read: dict[str, int] = {}
        self._admin: Any = None
        self._own = open_database(postgres.url(database))
        self._stores = Stores(self._own, load_settings({}).rules())

    # --- processes ---------------------------------------------------------------------------------------------------

    def start(self, *names: str) -> None:
        for name in names:
            folder = self.folder / name
            folder.mkdir(exist_ok=True)
            self._log_read[name] = len(self.logged(name))
            self.processes[name] = Child(self.commands[name], self._environment(), folder)

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "DATABASE_URL": f"postgresql://{SERVICE}@127.0.0.1:{self.database_port}/{self.database}",
            "RABBITMQ_URL": self.rabbitmq_url + self.rabbitmq_options,
            **self.env,
        }

    def supervise(self) -> None:
        """Start again what has ended."""
        ended = [name for name, child in self.processes.items() if not child.running]
        if self.supervised and ended:
            self.restarts += len(ended)
            self.start(*ended)

    def worker_children(self) -> list[int]:
        """The processes that run the actors."""
        return [pid for pid in descendants(self.processes[WORKER].pid) if alive(pid)]

    @contextmanager
    def frozen(self, name: str) -> Iterator[int]:
        """A process and its children stand still meanwhile; yields how many they are."""
        family = [self.processes[name].pid, *descendants(self.processes[name].pid)]
        try:
            for pid in family:
                os.kill(pid, signal.SIGSTOP)
            yield len(family)
        finally:
            for pid in filter(alive, family):
                os.kill(pid, signal.SIGCONT)

    def orphans(self) -> list[int]:
        """Processes of this stage that nobody waits for any more, told by the database they were given."""
        ours = f"DATABASE_URL={self._environment()['DATABASE_URL']}".encode()
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if ours in (path / "environ").read_bytes().split(b"\0") and alive(int(path.name)):
                    found.append(int(path.name))
        return found

    def logged(self, name: str) -> str:
        """Everything a process has written since the first start."""
        log = self.folder / name / "output.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def workers_ready(self) -> bool:
        """Whether the workers started last are all at work."""
        return self.logged(WORKER)[self._log_read[WORKER] :].count("ready for action") == 2

    def assert_nothing_hangs(self, dead_letters: int = 0) -> None:
        """Everything acknowledged, so many dead letters, no transaction or lock left, no connection too many."""
        self.until(lambda: not any(in_transaction or waits for _, in_transaction, waits in self.connections()), 10)
        # Workers whose main process was killed notice with their next sweep.
        self.until(lambda: len(self.connections()) <= MOST_CONNECTIONS, 15)
        self.until(lambda: not self.left(*topology.QUEUES), 20)
        expected = {topology.DEAD_LETTER_QUEUE: dead_letters} if dead_letters else {}
        self.until(lambda: self.left(topology.DEAD_LETTER_QUEUE) == expected)

    def terminate(self, *names: str, seconds: float = _PATIENCE_S) -> None:
        """SIGTERM to these, one after the other; AssertionError when one had to be killed."""
        killed = [name for name in names if not self.processes[name].end(signal.SIGTERM, seconds)]
        assert not killed, f"killed, for they still ran {seconds} s after SIGTERM: {killed}"

    def terminate_all(self) -> None:
        """As at the end of every shift; nobody starts them again."""
        self.supervised = False
        self.terminate(*self.processes)

    def command(self, *words: str, seconds: float = 60) -> None:
        """Run one `customer-actors` command to its end; CalledProcessError when it fails."""
        self.run(str(BIN / "customer-actors"), *words, seconds=seconds).check_returncode()

    def run(self, *command: str, seconds: float = 60) -> "subprocess.CompletedProcess[bytes]":
        """Run any command in the stage's environment, to its end."""
        return subprocess.run(
            command, env=self._environment(), cwd=self.folder, check=False, capture_output=True, timeout=seconds
        )

    def red(self) -> list[str]:
        """What `health ready` is not content with."""
        done = self.run(str(BIN / "customer-actors"), "health", "ready", "--json")
        return [check["name"] for check in json.loads(done.stdout)["checks"] if not check["ok"]]

    # --- what is stored ----------------------------------------------------------------------------------------------

    def sql(self, text: str, parameters: tuple[Any, ...] = ()) -> list[Row]:
        """Run one statement as the database's superuser, on a connection that autocommits."""
        if self._admin is None or self._admin.closed:
            self._admin = self.connect()
            self._admin.autocommit = True
        with self._admin.cursor() as cursor:
            cursor.execute(text, parameters or None)
            return cursor.fetchall() if cursor.description else []

    def connect(self) -> Any:
        """One more connection as superuser; the caller closes it."""
        return psycopg2.connect(self.postgres.url(self.database), application_name="fault suite", connect_timeout=5)

    def events(self) -> int:
        """Events in the streams; 0 while the database is away."""
        try:
            return int(self.sql("SELECT count(*) FROM event")[0][0])
        except psycopg2.Error:
            self.forget_connections()
            return 0

    def forget_connections(self) -> None:
        """Ours do not survive a restart of the server either."""
        if self._admin is not None:
            with suppress(psycopg2.Error):
                self._admin.close()
        self._admin = None
        self._own.release()

    def behind(self) -> int:
        """How many customers some actor is behind for or holds."""
        return self.waiting() + int(self.sql("SELECT count(*) FROM held_group")[0][0])

    def waiting(self) -> int:
        """How many customers some actor has work for at once."""
        return sum(len(customers) for customers in all_behind(self._stores).values())

    # --- waiting -----------------------------------------------------------------------------------------------------

    def until(self, condition: Callable[[], bool], seconds: float = WAIT_S) -> None:
        """Wait for the condition, starting again meanwhile whatever ends; AssertionError after `seconds`."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"not within {seconds} s: {self.open_matters}"
            self.supervise()
            time.sleep(_LOOK_S)

    def reached(self, condition: Callable[[], bool], seconds: float) -> bool:
        """As `until`, but tells whether the condition came to hold."""
        try:
            self.until(condition, seconds)
        except AssertionError:
            return False
        return True

    def pause(self, seconds: float) -> None:
        """Let a fault last."""
        end_s = time.monotonic() + seconds
        self.until(lambda: time.monotonic() >= end_s, seconds + WAIT_S)

    def assert_stands_still(self, seconds: float) -> None:
        """Let a fault last in which nothing can be committed: events that come all the same show there was none."""
        self.pause(_UNDER_WAY_S)
        before = self.events()
        self.pause(seconds)
        assert self.events() == before, "events are committed: the fault did not reach the service"

    def more(self, events: int) -> None:
        """Wait until so many more events have been committed: faults must meet traffic."""
        assert self.publisher is not None
        # After a restart of the database the first look finds our own connection broken, and would count from 0.
        self.until(lambda: self.events() > 0)
        wanted = self.events() + events
        more_came = self.reached(lambda: self.events() >= wanted, WAIT_S)
        why = "" if self.publisher.is_alive() else ": the publisher is through: raise LASTING"
        assert more_came, f"{wanted - self.events()} of {events} more events did not come{why}"

    def missing(self) -> list[str]:
        """Lines the broker has confirmed and that have no outcome yet."""
        assert self.publisher is not None
        return self.accounts.missing(self.publisher.confirmed, self._own.query)

    def settled(self) -> bool:
        """Whether everything the broker confirmed has its outcome and every actor is at every head."""
        assert self.publisher is not None
        if self.publisher.is_alive():
            self.open_matters = f"{len(self.publisher.confirmed)} lines confirmed so far"
            return False
        try:
            missing = self.missing()
            behind = self.behind()
        except (CustomerActorsError, psycopg2.Error) as error:
            self.forget_connections()
            self.open_matters = str(error)
            return False
        self.open_matters = f"{len(missing)} lines without outcome {missing[:2]}, {behind} customers behind or held"
        return not missing and not behind

    # --- the broker --------------------------------------------------------------------------------------------------

    @contextmanager
    def channel(self) -> Iterator[Any]:
        """A channel of a connection of ours."""
        connection = pika.BlockingConnection(pika.URLParameters(self.rabbitmq_url))
        try:
            yield connection.channel()
        finally:
            with suppress(AMQPError):
                connection.close()

    def left(self, *queues: str) -> dict[str, int]:
        """Ready messages of queues that have any."""
        counts: dict[str, int] = {}
        for queue in queues:
            with self.channel() as channel:
                counts[queue] = channel.queue_declare(queue, passive=True).method.message_count
        return {queue: count for queue, count in counts.items() if count}

    # --- the end -----------------------------------------------------------------------------------------------------

    def connections(self) -> list[Row]:
        """The service's connections to the database: state, whether in a transaction, whether it waits for a lock."""
        return self.sql(
            "SELECT state, xact_start IS NOT NULL, wait_event_type = 'Lock' FROM pg_stat_activity "
            "WHERE datname = current_database() AND usename = %s",
            (SERVICE,),
        )

    def end(self) -> None:
        self.cleanup.close()
        if self.publisher is not None:
            self.publisher.end()
        for child in self.processes.values():
            child.kill()
        for pid in self.orphans():
            os.kill(pid, signal.SIGKILL)
        self.forget_connections()


@contextmanager
def stage(
    postgres: PrivatePostgres,
    rabbitmq: PrivateRabbitMQ,
    folder: Path,
    database: str,
    template: str,
    env: Mapping[str, str],
) -> Iterator[Stage]:
    """A stage with a fresh database and virtual host; its processes are ended with it."""
    for server in (postgres, rabbitmq):
        server.serve()
    with ExitStack() as cleanup:
        postgres.create_database(database, template)
        made = Stage(postgres, rabbitmq, folder, database, rabbitmq.new_vhost())
        made.env.update(env)
        cleanup.callback(made.end)
        yield made


def declare_topology(stage: Stage) -> None:
    """The exchanges and queues, as an earlier start of ingest leaves them."""
    connection = pika.BlockingConnection(pika.URLParameters(stage.rabbitmq_url))
    topology.declare(connection)
    connection.close()
