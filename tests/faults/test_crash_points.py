"""Every named point of ingest, advance and release, killed there once per actor; nothing random is in it."""

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, closing
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
from tests.faults.conftest import ROWS
from tests.faults.crash import ACKNOWLEDGED, ADVANCE, INGEST, RELEASE
from tests.faults.order_log import INSTALL_SQLITE
from tests.faults.publisher import Publisher
from tests.faults.stage import BIN, ROOT, Stage, declare_topology
from tests.faults.stage import INGEST as INGEST_PROCESS
from tests.faults.stage import WORKER as WORKER_PROCESS
from tests.faults.table import Row

EVENTS: Final = 300
LINES: Final = list(simulate(ShopPlan(customers=40, events=EVENTS, seed=7, conflict=0, credit_share=0.4)))
KILLED: Final = -signal.SIGKILL
_NEVER: Final = "1000000"


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
        return self._run(sys.executable, "-m", "tests.faults.crash", point, actor, number, *arguments)

    def _run(self, *command: str) -> int:
        env = {"DATABASE_URL": self.url, "PYTHONPATH": str(ROOT), "CUSTOMER_ACTORS_BATCH_SIZE": "25"}
        done = subprocess.run(
            command, env=env, cwd=self.folder, capture_output=True, text=True, timeout=60, check=False
        )
        print(done.stdout[-1000:], done.stderr[-2000:])
        return done.returncode

    def judge(self, name: str, began_s: float) -> None:
        """The final check, and its row in the table."""
        database = open_database(self.url)
        try:
            found = check(database, load_settings({}).rules(), LINES, Accounts(), datetime.now(UTC).date())
        finally:
            database.release()
        recovery_s = time.monotonic() - began_s
        ROWS.append(Row(name, "1 kill", EVENTS, found.lost, found.twice, found.disorder, recovery_s))
        assert found.wrong == []
        assert (found.lost, found.twice, found.disorder) == (0, 0, 0)


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
    shop.judge(f"crash: release of {actor} {point}", began_s)


@pytest.mark.services
@pytest.mark.parametrize("point", [*(pytest.param(p, marks=pytest.mark.long_fault) for p in INGEST), *ACKNOWLEDGED])
def test_the_ingest_process_killed(
    open_stage: Callable[[Mapping[str, str]], AbstractContextManager[Stage]], point: str
) -> None:
    """The same points with a broker: what was not acknowledged comes again."""
    with open_stage({"CUSTOMER_ACTORS_BATCH_SIZE": "25"}) as stage:
        declare_topology(stage)
        stage.publisher = Publisher(stage.rabbitmq_url, LINES)
        stage.publisher.start()
        sound = stage.commands[INGEST_PROCESS]
        stage.commands[INGEST_PROCESS] = (sys.executable, "-m", "tests.faults.crash", point, "-", "3", "ingest")
        stage.supervised = False
        stage.start(INGEST_PROCESS, WORKER_PROCESS)
        stage.until(lambda: not stage.processes[INGEST_PROCESS].running)
        assert stage.processes[INGEST_PROCESS].exit_code == -signal.SIGKILL
        began_s = time.monotonic()
        stage.commands[INGEST_PROCESS] = sound
        stage.start(INGEST_PROCESS)
        stage.until(stage.settled)
        recovery_s = time.monotonic() - began_s
        stage.assert_nothing_hangs()
        stage.terminate()
        database = open_database(stage.postgres.url(stage.database))
        try:
            found = check(database, load_settings({}).rules(), LINES, stage.accounts, datetime.now(UTC).date())
        finally:
            database.release()
        ROWS.append(Row(f"crash: ingest process {point}", "1 kill", EVENTS, *found[:3], recovery_s))
        assert found.wrong == []
        assert found[:3] == (0, 0, 0)
