"""The command line as a person or a script meets it: in this process where that does, else in one of its own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from customer_actors.cli import main
from customer_actors.domain.rules import Rules
from customer_actors.storage.database import Database
from customer_actors.storage.opening import open_database
from customer_actors.storage.views import customer_view
from tests.servers.process import wait_until

PROGRAM = str(Path(sys.executable).parent / "customer-actors")
STDOUT, STDERR = "stdout.txt", "stderr.txt"
NOBODY_LISTENS = "amqp://127.0.0.1:1/"


def invoke(*args: str, env: Mapping[str, str] | None = None, stdin: str = "") -> Result:
    """Run a verb in this process; an exception that no verb may let out fails the test."""
    return CliRunner().invoke(main, args, env=env, input=stdin, catch_exceptions=False)


def stopped(at: datetime) -> type[datetime]:
    """A `datetime` whose now is this moment, for a module whose clock is not handed to it."""

    class Stopped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Stopped":
            return cls.fromtimestamp(at.timestamp(), tz)

    return Stopped


@contextmanager
def started(*args: str, env: Mapping[str, str], folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A verb in a process of its own, which surely ends with the block; it writes to two files in the folder.

    Not to pipes: a process that nobody reads from stops when its pipe is full, and how much one holds depends on the
    machine.
    """
    with (
        (folder / STDOUT).open("wb") as out,
        (folder / STDERR).open("wb") as err,
        subprocess.Popen(
            [PROGRAM, *args], env={**os.environ, **env}, cwd=folder, stdin=subprocess.PIPE, stdout=out, stderr=err
        ) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def ended_by(process: "subprocess.Popen[bytes]", number: signal.Signals) -> tuple[int, float]:
    """Send a signal; returns the exit code, and the seconds until it ended."""
    began = time.monotonic()
    process.send_signal(number)
    return process.wait(timeout=20), time.monotonic() - began


@contextmanager
def opened(url: str) -> Iterator[Database]:
    database = open_database(url)
    try:
        yield database
    finally:
        database.release()


def count(url: str, sql: str) -> int:
    """The number a query gives; 0 while there is no such table yet."""
    with opened(url) as database:
        try:
            return int(database.execute(sql).fetchall()[0][0])
        except Exception as error:
            if "no such table" in str(error) or "does not exist" in str(error):
                return 0
            raise


def states(url: str) -> dict[tuple[str, str], dict[str, Any]]:
    """What `show --json` prints of every customer, without the moment a segment was calculated."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    with opened(url) as database:
        for organization_id, customer_id in database.query("SELECT organization_id, customer_id FROM customer"):
            view = customer_view(database, Rules(), organization_id, customer_id)
            assert view is not None
            if view["segment"] is not None:
                del view["segment"]["calculated_at"]
            found[organization_id, customer_id] = view
    return found


def order(order_id: str, customer_id: str = "C1", amount: str = "10.00", **data: object) -> str:
    """An order as a line."""
    body = {"order_id": order_id, "customer_id": customer_id, "total_amount": amount, **data}
    return json.dumps({"event": "order.completed", "timestamp": "2025-01-31T12:00:00Z", "data": body}) + "\n"


def file_of(path: Path, lines: Iterable[str]) -> str:
    path.write_text("".join(lines))
    return str(path)


__all__ = [
    "NOBODY_LISTENS",
    "PROGRAM",
    "count",
    "ended_by",
    "file_of",
    "invoke",
    "opened",
    "order",
    "started",
    "states",
    "wait_until",
]
