"""The Procfile's processes, started for a test and surely ended."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from tests.servers.process import wait_until

BIN = Path(sys.executable).parent
ENDS_S = 4
"""From SIGTERM to the end of a process [G15]."""
INGEST = (str(BIN / "customer-actors"), "ingest")
WORKERS = (
    str(BIN / "dramatiq"),
    "customer_actors.actors.main:setup",
    *(
        "--processes",
        "2",
        "--threads",
        "4",
        "--worker-shutdown-timeout",
        "500",
        "--worker-fork-timeout",
        "5000",
        "--skip-logging",
    ),
)
SCHEDULER = (sys.executable, "-m", "scheduler")


def crons(due: datetime) -> dict[str, str]:
    """Settings by which both nightly jobs are due at this time every day."""
    return {f"CUSTOMER_ACTORS_NIGHTLY_{job}_CRON": f"{due.minute} {due.hour} * * *" for job in ("SEGMENTS", "CREDIT")}


class Process:
    """One process in a session of its own, so that it can be killed with all its children."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self._command = command
        self._env = {**os.environ, **env}
        self.log = log
        self._start()

    def _start(self) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, env=self._env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def kill(self) -> None:
        """kill -9 of it and of every child."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def restart(self) -> None:
        """Kill it and start it again."""
        self.kill()
        self._start()

    def terminate(self, seconds: float = 20) -> int:
        """SIGTERM to it alone, as a supervisor does; returns the exit code. TimeoutExpired when it takes longer."""
        self._process.terminate()
        return self._process.wait(timeout=seconds)

    def wait(self, seconds: float = 60) -> int:
        """The exit code of a process that ends by itself."""
        return self._process.wait(timeout=seconds)

    def logged(self) -> str:
        return self.log.read_text(errors="replace")

    def _signal(self, number: signal.Signals) -> None:
        if self.running:
            os.killpg(self._process.pid, number)


@contextmanager
def running(folder: Path, env: Mapping[str, str], **commands: Sequence[str]) -> Iterator[dict[str, Process]]:
    """Start the commands by name; kill what is left of them at the end, and show their logs if the test failed."""
    processes: dict[str, Process] = {}
    try:
        for name, command in commands.items():
            processes[name] = Process(command, env, folder / f"{name}.log")
        yield processes
    except BaseException:
        for name, process in processes.items():
            print(f"--- {name} ---\n{process.logged()[-3000:]}")
        raise
    finally:
        for process in processes.values():
            process.kill()


__all__ = ["BIN", "ENDS_S", "INGEST", "SCHEDULER", "WORKERS", "Process", "running", "wait_until"]
