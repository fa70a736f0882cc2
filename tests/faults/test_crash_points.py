"""Every named point of ingest, advance and release, killed there once per actor; nothing random is in it."""

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import pytest

from customer_actors.domain.routing import ACTORS
from customer_actors.settings import load_settings
from customer_actors.simulate import ShopPlan, simulate
from customer_actors.storage.opening import open_database
from customer_actors.storage.schema import migrate
from tests.faults.accounts import Accounts
from tests.faults.check import check
from tests.faults.crash import ACKNOWLEDGED, ADVANCE, DRAINING, INGEST, RELEASE
from tests.faults.order_log import INSTALL_SQLITE
from tests.faults.publisher import Publisher
from tests.faults.stage import BIN, COMMANDS, ROOT, Stage, declare_topology
from tests.faults.stage import INGEST as INGEST_PROCESS
from tests.faults.stage import WORKER as WORKER_PROCESS
from tests.faults.table import ROWS, Row

EVENTS: Final = 300
LINES: Final = list(simulate(ShopPlan(customers=40, events=EVENTS, seed=7, conflict=0, credit_share=0.4)))
KILLED: Final = -signal.SIGKILL
CHILD_KILLED: Final = f"exited unexpectedly (code {KILLED})"
"""What the workers' main process logs, before it ends itself."""
_NEVER: Final = "1000000"


def crashing(point: str, actor: str, number: str, *arguments: str) -> tuple[str, ...]:
    """The command of a process that dies at the point."""
    return (sys.executable, "-m", "tests.faults.crash", point, actor, number, *arguments)


def _each(points: Iterable[str]) -> list[Any]:
    """Every point with every actor; `make test` takes each point once, with another actor every time."""
    return [
        pytest.param(point, actor, marks=() if actor == ACTORS[number % len(ACTORS)] else pytest.mark.long_fault)
        for number, point in enumerate(points)
        for actor in ACTORS
    ]


class Shop:
    """An SQLite database and two files that go into it, one after the other."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.url = f"sqlite:///{folder}/shop.db"
        for name, lines in {"all": LINES, "first": LINES[: EVENTS // 2]}.items():
            (folder / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines))
        database = open_database(self.url)
        migrate(database)
        database.release()
        with closing(sqlite3.connect(folder / "shop.db")) as connection:
            connection.executescript(INSTALL_SQLITE)

    def run(self, *arguments: str) -> int:
        """`customer-actors ARGUMENTS…` to its end; returns the exit code."""
        return self._run(str(BIN / "customer-actors"), *arguments)

    def crash(self, point: str, actor: str, number: str, *arguments: str) -> int:
        """The same, dying at the point."""
        return self._run(*crashing(point, actor, number, *arguments))

    def _run(self, *command: str) -> int:
        env = {"DATABASE_URL": self.url, "PYTHONPATH": str(ROOT), "CUSTOMER_ACTORS_BATCH_SIZE": "25"}
        done = subprocess.run(
            command, env=env, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False
        )
        print(done.stdout[-1000:], done.stderr[-2000:])
        return done.returncode

    def judge(self, name: str, began_s: float, holds: bool = False) -> None:
        """The final check, and its row in the table; whether customers were held on the way is as it must be."""
        database = open_database(self.url)
        try:
            found = check(database, load_settings({}).rules(), LINES, Accounts(), datetime.now(UTC).date())
        finally:
            database.release()
        recovery_s = time.monotonic() - began_s
        ROWS.append(Row(name, "1 kill", EVENTS, found.lost, found.twice, found.disorder, recovery_s))
        assert found.wrong == []
        assert (found.lost, found.twice, found.disorder, found.held > 0) == (0, 0, 0, holds)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


@pytest.mark.parametrize("number", ["1", pytest.param("2", marks=pytest.mark.long_fault)])
@pytest.mark.parametrize("point", INGEST)
def test_ingest_killed(shop: Shop, point: str, number: str) -> None:
    assert shop.crash(point, "-", number, "run", "all.jsonl") == KILLED
    began_s = time.monotonic()
    assert shop.run("run", "all.jsonl") in (0, 1)  # 1: it quarantined the malformed lines
    shop.judge(f"crash: ingest {point} ({number})", began_s)


@pytest.mark.parametrize(("point", "actor"), _each(ADVANCE))
def test_an_actor_killed(shop: Shop, point: str, actor: str) -> None:
    assert shop.crash(point, actor, "2", "run", "all.jsonl") == KILLED
    began_s = time.monotonic()
    assert shop.run("run", "all.jsonl") in (0, 1)
    shop.judge(f"crash: {actor} {point}", began_s)


@pytest.mark.parametrize(("point", "actor"), _each(RELEASE))
def test_a_release_killed(shop: Shop, point: str, actor: str) -> None:
    """A fold that raised, a fix, a release that dies, and one that does not."""
    shop.run("run", "first.jsonl")
    assert shop.crash("broken", actor, _NEVER, "run", "all.jsonl") == 1
    release = ("held", "release", "--actor", actor, "--reason", "fixed")
    assert shop.crash(point, actor, "1", *release) == KILLED
    began_s = time.monotonic()
    assert shop.run(*release) == 0
    shop.run("run", "all.jsonl")
    shop.judge(f"crash: release of {actor} {point}", began_s, holds=True)


Open = Callable[[Mapping[str, str]], AbstractContextManager[Stage]]


@contextmanager
def _live_stage(open_stage: Open, name: str) -> Iterator[tuple[Stage, Publisher]]:
    """The same points in the Procfile's processes, on PostgreSQL and RabbitMQ. Nothing is started again by itself; when
    the caller has what it wanted and sound processes run, all must be through, and the final check is made."""
    with open_stage({"CUSTOMER_ACTORS_BATCH_SIZE": "25"}) as stage:
        declare_topology(stage)
        publisher = stage.publisher = Publisher(stage.rabbitmq_url, LINES)
        stage.supervised = False
        yield stage, publisher
        began_s = time.monotonic()
        stage.until(stage.settled)
        recovery_s = time.monotonic() - began_s
        stage.assert_nothing_hangs()
        stage.terminate_all()
        database = open_database(stage.postgres.url(stage.database))
        try:
            found = check(database, load_settings({}).rules(), LINES, stage.accounts, datetime.now(UTC).date())
        finally:
            database.release()
        ROWS.append(Row(name, "1 kill", EVENTS, *found[:3], recovery_s))
        assert found.wrong == []
        assert found[:3] == (0, 0, 0)


@pytest.mark.services
@pytest.mark.parametrize("point", [*(pytest.param(p, marks=pytest.mark.long_fault) for p in INGEST), *ACKNOWLEDGED])
def test_the_ingest_process_killed(open_stage: Open, point: str) -> None:
    """What was not acknowledged comes again."""
    with _live_stage(open_stage, f"crash: ingest process {point}") as (stage, publisher):
        publisher.start()
        stage.commands[INGEST_PROCESS] = crashing(point, "-", "3", "ingest")
        stage.start(INGEST_PROCESS, WORKER_PROCESS)
        stage.until(lambda: not stage.processes[INGEST_PROCESS].running)
        assert stage.processes[INGEST_PROCESS].exit_code == KILLED
        stage.commands[INGEST_PROCESS] = COMMANDS[INGEST_PROCESS]
        stage.start(INGEST_PROCESS)


WORKERS: Final = ("dramatiq", *COMMANDS[WORKER_PROCESS][1:])


@pytest.mark.services
@pytest.mark.parametrize(("point", "actor"), _each(ADVANCE))
def test_a_worker_process_killed(open_stage: Open, point: str, actor: str) -> None:
    """What it was working on is delivered again, to workers started anew."""
    with _live_stage(open_stage, f"crash: {actor} in a worker, {point}") as (stage, publisher):
        publisher.start()
        stage.commands[WORKER_PROCESS] = crashing(point, actor, "2", *WORKERS)
        stage.start(INGEST_PROCESS, WORKER_PROCESS)
        stage.until(lambda: not stage.processes[WORKER_PROCESS].running)
        assert CHILD_KILLED in stage.logged(WORKER_PROCESS)
        stage.commands[WORKER_PROCESS] = COMMANDS[WORKER_PROCESS]
        stage.start(WORKER_PROCESS)


@contextmanager
def _held_by_a_bad_deploy(open_stage: Open, name: str, actor: str) -> Iterator[Stage]:
    """Bad workers hold whoever comes, and are stopped; good ones come next."""
    with _live_stage(open_stage, name) as (stage, publisher):
        publisher.hurry()
        publisher.start()
        stage.commands[WORKER_PROCESS] = crashing("broken", actor, _NEVER, *WORKERS)
        stage.start(INGEST_PROCESS, WORKER_PROCESS)
        stage.until(lambda: not publisher.is_alive() and not stage.missing())
        stage.until(lambda: stage.sql("SELECT count(*) > 10 FROM held_group WHERE actor = %s", (actor,)) == [(True,)])
        stage.processes[WORKER_PROCESS].kill()
        stage.commands[WORKER_PROCESS] = COMMANDS[WORKER_PROCESS]
        yield stage


def _release(actor: str) -> tuple[str, ...]:
    return ("held", "release", "--actor", actor, "--reason", "fixed")


@pytest.mark.services
@pytest.mark.parametrize(("point", "actor"), _each(point for point in RELEASE if point != DRAINING))
def test_a_release_killed_beside_live_processes(open_stage: Open, point: str, actor: str) -> None:
    """The first release dies, the second does not."""
    with _held_by_a_bad_deploy(open_stage, f"crash: live release of {actor} {point}", actor) as stage:
        assert stage.run(*crashing(point, actor, "1", *_release(actor))).returncode == KILLED
        stage.start(WORKER_PROCESS)
        stage.command(*_release(actor))


@pytest.mark.services
@pytest.mark.parametrize(("point", "actor"), _each([DRAINING]))
def test_workers_killed_while_they_drain_what_was_released(open_stage: Open, point: str, actor: str) -> None:
    """Where there are workers, the command leaves the draining to them."""
    with _held_by_a_bad_deploy(open_stage, f"crash: {actor} in a worker, {point}", actor) as stage:
        stage.command(*_release(actor))
        stage.commands[WORKER_PROCESS] = crashing("saved, before commit", actor, "1", *WORKERS)
        stage.start(WORKER_PROCESS)
        stage.until(lambda: not stage.processes[WORKER_PROCESS].running)
        assert CHILD_KILLED in stage.logged(WORKER_PROCESS)
        stage.commands[WORKER_PROCESS] = COMMANDS[WORKER_PROCESS]
        stage.start(WORKER_PROCESS)
