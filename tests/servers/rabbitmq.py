"""A private RabbitMQ, or the one the environment names."""

import json
import os
import shutil
import signal
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import product
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self
from urllib.parse import unquote, urlsplit

import pika
import pika.exceptions

from customer_actors.domain.routing import ACTORS
from tests.servers.left_out import without_server
from tests.servers.process import Child, ServerMissingError, free_port, listens, server_folder

PROGRAMS = Path("/usr/lib/rabbitmq/bin")
"""Where Debian keeps the real programs; its commands on the PATH are wrappers that change the user."""

_VHOSTS_AT_ONCE = 10
"""Making one takes rabbitmqctl half a second, making ten takes it hardly longer."""


class RabbitMQ(ABC):
    """A broker that tests may use."""

    url: str

    @property
    @abstractmethod
    def running(self) -> bool:
        """Whether it has neither been stopped nor killed."""

    @abstractmethod
    def new_vhost(self) -> str:
        """The URL of a virtual host without queues."""

    @abstractmethod
    def ctl(self, *args: str) -> str:
        """Run `rabbitmqctl` and return what it printed; CalledProcessError when it fails."""

    @abstractmethod
    def script(self, path: Path, **environment: str) -> str:
        """Run a shell script that calls the `rabbitmqctl` of its variable RABBITMQCTL; what it printed."""

    @abstractmethod
    def stop(self) -> None:
        """Shut down cleanly."""

    @abstractmethod
    def kill(self) -> None:
        """Kill -9 of all its processes at once."""

    @abstractmethod
    def start(self) -> None:
        """Start again on the same port with the same data; returns when it takes connections."""

    @abstractmethod
    def serve(self) -> None:
        """Start it unless it runs; returns when it takes connections."""


class PrivateRabbitMQ(RabbitMQ):
    """A server for the time of a `with`: user guest, 127.0.0.1 only, no plugins.

    Raises ServerMissingError on entering when no RabbitMQ is installed.
    """

    def __init__(self) -> None:
        self._cleanup = ExitStack()
        self._server: Child | None = None
        self._vhosts: list[str] = []
        self._made = 0

    def __enter__(self) -> Self:
        with self._cleanup:
            self._bin = find_programs()
            self._folder = self._cleanup.enter_context(server_folder("rabbitmq"))
            self.port, self._dist_port, self._epmd_port = free_port(), free_port(), free_port()
            self.url = f"amqp://guest:guest@127.0.0.1:{self.port}/"
            (self._folder / "enabled_plugins").write_text("[].\n")
            (self._folder / "rabbitmq.conf").write_text("")
            self._start_epmd()
            self._cleanup.callback(self._end)
            self.start()
            self._cleanup = self._cleanup.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._cleanup.close()

    @property
    def folder(self) -> Path:
        return self._folder

    @property
    def pid(self) -> int:
        """Of the Erlang VM."""
        return self._child().pid

    @property
    def epmd_pid(self) -> int:
        """Of the port mapper, which lives through `stop` and `kill`."""
        return self._epmd.pid

    @property
    def ports(self) -> tuple[int, int, int]:
        """Of AMQP, of Erlang's distribution and of its port mapper."""
        return self.port, self._dist_port, self._epmd_port

    @property
    def running(self) -> bool:
        return self._server is not None and self._server.running

    def new_vhost(self) -> str:
        if not self._vhosts:
            self._make_vhosts()
        return self.url + self._vhosts.pop(0)

    def ctl(self, *args: str) -> str:
        return self._run(str(self._bin / "rabbitmqctl"), "--quiet", *args)

    def script(self, path: Path, **environment: str) -> str:
        return self._run("/bin/sh", str(path), RABBITMQCTL=str(self._bin / "rabbitmqctl"), **environment)

    def _run(self, *command: str, **environment: str) -> str:
        done = subprocess.run(
            command,
            env={**self._environment(), **environment},
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        try:
            done.check_returncode()
        except subprocess.CalledProcessError as error:
            error.add_note(done.stdout + done.stderr)
            raise
        return done.stdout

    def logged(self) -> str:
        """What the server has written to its log."""
        return "".join(path.read_text(errors="replace") for path in (self._folder / "log").glob("*.log"))

    def settle(self) -> None:
        """Bring to disk what the server itself would bring there within a second.

        A quorum queue that is younger than that at a kill -9 finds no leader afterwards: its name was not on disk yet.
        """
        self.ctl("eval", "[ok = dets:sync(Table) || Table <- dets:all()].")

    def start(self) -> None:
        self._server = Child([str(self._bin / "rabbitmq-server")], self._environment(), self._folder)
        self._server.wait_until(self._takes_connections)

    def serve(self) -> None:
        if self.running:
            self._child().wait_until(self._takes_connections)
        else:
            self.start()

    def stop(self) -> None:
        self._child().end(signal.SIGTERM)

    def kill(self) -> None:
        self._child().kill()

    def _child(self) -> Child:
        assert self._server is not None, "not started"
        return self._server

    def _end(self) -> None:
        # Nothing on its disk is needed any more, and a clean stop takes a second.
        if self._server is not None:
            self._server.kill()

    def _start_epmd(self) -> None:
        """The port mapper as a child of ours: one started by Erlang would outlive it as nobody's child."""
        epmd = shutil.which("epmd")
        if epmd is None:
            raise ServerMissingError("Erlang's epmd is missing: type  sudo apt-get install --yes rabbitmq-server")
        args = [epmd, "-address", "127.0.0.1", "-port", str(self._epmd_port)]
        self._epmd = Child(args, {"PATH": os.environ["PATH"]}, self._folder)
        self._cleanup.callback(self._epmd.kill)
        # An Erlang VM that finds none starts one of its own.
        self._epmd.wait_until(lambda: listens(self._epmd_port))

    def _make_vhosts(self) -> None:
        """Through a definitions file, the one way to make several in one call."""
        names = [f"test-{self._made + number}" for number in range(_VHOSTS_AT_ONCE)]
        definitions = {
            "vhosts": [{"name": name} for name in names],
            "permissions": [
                {"user": "guest", "vhost": name, "configure": ".*", "write": ".*", "read": ".*"} for name in names
            ],
        }
        path = self._folder / "definitions.json"
        path.write_text(json.dumps(definitions))
        self.ctl("import_definitions", str(path))
        self._made += len(names)
        self._vhosts += names

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            # Of the Erlang cookie, made there by the server.
            "HOME": str(self._folder),
            "LANG": "C.UTF-8",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_MNESIA_BASE": str(self._folder / "data"),
            "RABBITMQ_LOG_BASE": str(self._folder / "log"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._folder / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(self._folder / "rabbitmq.conf"),
            # The machine's own configuration does not concern us.
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            # Makes the start script become the Erlang VM instead of its parent: our child is the server itself.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _takes_connections(self) -> bool:
        if not listens(self.port):
            return False
        try:
            pika.BlockingConnection(pika.URLParameters(self.url)).close()
        except (pika.exceptions.AMQPError, OSError):
            return False
        return True


class GivenRabbitMQ(RabbitMQ):
    """A server that others run. Tests share one virtual host of it, whose queues are deleted before each."""

    def __init__(self, url: str) -> None:
        self.url = url

    @property
    def running(self) -> bool:
        return True

    def new_vhost(self) -> str:
        with pika.BlockingConnection(pika.URLParameters(self.url)) as connection:
            channel = connection.channel()
            for queue in _our_queues():
                channel.queue_delete(queue)
        return self.url

    def ctl(self, *args: str) -> NoReturn:
        self._not_ours()

    def script(self, path: Path, **environment: str) -> NoReturn:
        self._not_ours()

    def stop(self) -> NoReturn:
        self._not_ours()

    def kill(self) -> NoReturn:
        self._not_ours()

    def start(self) -> NoReturn:
        self._not_ours()

    def serve(self) -> None:
        """Others do."""

    def _not_ours(self) -> NoReturn:
        without_server("only a private RabbitMQ may be stopped or administered: unset RABBITMQ_URL")


@contextmanager
def open_rabbitmq(given_url: str | None) -> Iterator[RabbitMQ]:
    """The server at `given_url` when its virtual host is for tests, else a private one."""
    if given_url and is_for_tests(given_url):
        yield GivenRabbitMQ(given_url)
        return
    with PrivateRabbitMQ() as server:
        yield server


def is_for_tests(url: str) -> bool:
    """Whether the virtual host's name contains "test": the tests delete its queues, and a URL found in the environment
    may well name a broker in use."""
    return "test" in unquote(urlsplit(url).path)


def find_programs() -> Path:
    """The folder of `rabbitmq-server` and `rabbitmqctl`; ServerMissingError when there is none.

    Debian's commands on the PATH are wrappers that change the user, so the real ones are looked for first.
    """
    on_path = shutil.which("rabbitmq-server")
    for folder in (PROGRAMS, *([Path(on_path).resolve().parent] if on_path else [])):
        if (folder / "rabbitmq-server").exists():
            return folder
    raise ServerMissingError("RabbitMQ is missing: type  sudo apt-get install --yes rabbitmq-server")


def _our_queues() -> list[str]:
    sources = [f"customer_{name}_queue" for name in ("order", "pos", "payment", "dead_letter", "unrouted")]
    actors = [name + suffix for name, suffix in product(("dispatcher", "held", *ACTORS), ("", ".DQ", ".XQ"))]
    return sources + actors
