"""What a run was measured on, and what processes used, read from Linux's /proc."""

import os
import platform
import re
import sqlite3
import statistics
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from tests.servers.process import descendants

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PEAK: Final = re.compile(r"^VmHWM:\s*(\d+) kB$", re.M)
_LIBRARIES: Final = (
    "dramatiq",
    "pika",
    "psycopg2-binary",
    "peewee",
    "faststream",
    "asyncpg",
    "procrastinate",
    "psycopg",
)


def _version(name: str) -> str | None:
    """None where it is not installed: only `make bench` installs the peers."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def describe(postgres: str, rabbitmq: str) -> dict[str, str]:
    """Cores, load and versions, for printing beside the numbers. The servers' versions come from the servers.

    Call it before any work: what runs beside the benchmark lengthens every latency.
    """
    usable = len(os.sched_getaffinity(0))
    facts = {
        "cores": f"{usable} ({platform.machine()})",
        "load before": f"{os.getloadavg()[0]:.1f}",
        "Python": platform.python_version(),
        "PostgreSQL": postgres,
        "RabbitMQ": rabbitmq,
        "SQLite": sqlite3.sqlite_version,
    }
    return _hardware() | facts | {name: installed for name in _LIBRARIES if (installed := _version(name))}


def _hardware() -> dict[str, str]:
    """Processor, memory and kernel, as far as Linux names them."""
    names = {
        "/proc/cpuinfo": ("processor", r"^model name\s*: (.+)$"),
        "/proc/meminfo": ("memory", r"^MemTotal:\s*(.+)$"),
    }
    found = {}
    for file, (name, pattern) in names.items():
        match = re.search(pattern, Path(file).read_text(), re.M)
        if match:
            found[name] = match[1]
    return found | {"kernel": platform.release()}


def fsync_ms(folder: Path) -> float:
    """What the disk under a folder takes to keep 8 kB, in milliseconds, the median of a hundred."""
    took = []
    with (folder / "fsync").open("wb") as file:
        for _ in range(100):
            file.write(bytes(8192))
            file.flush()
            started = time.monotonic()
            os.fsync(file.fileno())
            took.append((time.monotonic() - started) * 1000)
    return statistics.median(took)


def tree(pid: int) -> list[int]:
    """The process and everything it started that still runs."""
    return [pid, *descendants(pid)]


def peak_mb(pid: int) -> float:
    """The most memory the process ever had resident, in MB (10**6 bytes); 0 when it is gone."""
    try:
        found = _PEAK.search(Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0.0
    return int(found[1]) * 1024 / 1e6 if found else 0.0


def cpu_s(pid: int) -> float:
    """CPU seconds, user and system, of a process and all it started, ended ones included."""
    return sum(map(_ticks, tree(pid))) / _TICKS_PER_S


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return sum(map(int, fields[11:15]))  # utime, stime, and those of children that were waited for
