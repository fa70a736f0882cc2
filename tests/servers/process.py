"""Starting and surely ending a server process."""

import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

PORTS = range(20_000, 32_000)
"""Below the range from which systems take ports for outgoing connections: one of those could sit on a server's port
while the server is down."""


START_S = 240
"""The most a server may take until it is ready: one that was killed recovers first, on a slow machine for minutes. Less
than the limit of a test, so that what went wrong is told."""
WAIT_S = 120
"""The most a wait takes that names no time of its own. It is for what hangs: no machine is so slow."""


class ServerMissingError(Exception):
    """No such server is installed; the text names the one command that installs it."""


class Child:
    """A server process in a session of its own, so that Ctrl-C reaches only us and servers end in order.

    A guard, which sees our end of a pipe close, kills the server when this process dies without saying goodbye.
    """

    def __init__(
        self, args: Sequence[str], env: Mapping[str, str], folder: Path, user: pwd.struct_passwd | None = None
    ) -> None:
        self._log = folder / "output.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                list(args),
                env=dict(env),
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                user=user.pw_uid if user else None,
                group=user.pw_gid if user else None,
                extra_groups=[] if user else None,
            )
        self._guard = subprocess.Popen(
            ["/bin/sh", "-c", f"read -r _; kill -KILL {self.pid}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """Negative: the signal that ended it; None while it runs."""
        return self._process.poll()

    def wait_until(self, ready: Callable[[], bool], seconds: float = START_S) -> None:
        """Wait for `ready()`; RuntimeError with the end of the log when the process ends or time runs out first."""
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline or self._ended_within(0.02):
                log = self._log.read_text(errors="replace")[-3000:]
                raise RuntimeError(f"{self._process.args!r} did not get ready; its log ends:\n{log}")

    def end(self, how: signal.Signals, seconds: float = WAIT_S) -> bool:
        """Ask it to end with the signal `how`; kill it when it does not within `seconds`. Whether it did."""
        family = descendants(self.pid)
        if self.running:
            self._process.send_signal(how)
        ended = self._ended_within(seconds)
        if not ended:
            self._process.kill()
        self._bury(family)
        return ended

    def kill(self) -> None:
        """Kill -9 of the server and everything it started."""
        family = descendants(self.pid)
        if self.running:
            self._process.kill()
        self._bury(family)

    def _ended_within(self, seconds: float) -> bool:
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def _bury(self, family: Sequence[int]) -> None:
        self._guard.kill()
        self._guard.communicate()
        self._process.wait()
        for pid in family:
            if alive(pid):
                os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(map(alive, family)))


def wait_until(condition: Callable[[], bool], seconds: float = WAIT_S) -> None:
    """Wait until the condition holds; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.01)


def descendants(pid: int) -> list[int]:
    """The processes that `pid` started, directly or not, and that run now."""
    parents = {int(path.name): parent for path in Path("/proc").glob("[0-9]*") if (parent := _stat(path)[1])}
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found[1:]


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    return _stat(Path(f"/proc/{pid}"))[0] not in ("", "Z", "X")


def _stat(process: Path) -> tuple[str, int]:
    """State letter and parent of a process; ("", 0) when there is none."""
    try:
        state, parent = (process / "stat").read_text().rpartition(")")[2].split()[:2]
    except OSError:
        return "", 0
    return state, int(parent)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def listens(port: int) -> bool:
    """Whether somebody takes connections on a port of 127.0.0.1."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def server_folder(name: str) -> Iterator[Path]:
    """A temporary folder that every user can pass through: servers may have to run as another user."""
    # As root the usual one may be closed to others.
    parent = "/tmp" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix=f"customer-actors-{name}-", dir=parent))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
