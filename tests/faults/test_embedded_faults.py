"""The embedded mode under faults: one process, one SQLite file, the same check."""

import random
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import pytest

from customer_actors.settings import load_settings
from customer_actors.simulate import ShopPlan, simulate
from customer_actors.storage.opening import open_database
from customer_actors.storage.schema import migrate
from tests.e2e.processes import crons
from tests.faults.accounts import Accounts
from tests.faults.check import check
from tests.faults.order_log import INSTALL_SQLITE
from tests.faults.stage import BIN
from tests.faults.table import ROWS, SEED, Row
from tests.servers.process import Child, wait_until

EVENTS: Final = 3_000
_WAIT_S: Final = 60


class Shop:
    """A file of events and the database it goes into."""

    def __init__(self, folder: Path, rng: random.Random) -> None:
        self.folder = folder
        self.lines = list(
            simulate(ShopPlan(customers=EVENTS // 6, events=EVENTS, seed=rng.randrange(10**6), conflict=0))
        )
        (folder / "events.jsonl").write_text("".join(line + "\n" for line in self.lines))
        self.path = folder / "shop.db"
        self.url = f"sqlite:///{self.path}"
        database = open_database(self.url)
        migrate(database)
        database.release()
        with closing(sqlite3.connect(self.path)) as connection:
            connection.executescript(INSTALL_SQLITE)

    @contextmanager
    def run(self) -> Iterator[Child]:
        """`customer-actors run` over the whole file, in small batches. No night falls into it: the final check knows
        fixed cuts only."""
        nights = crons(datetime.now(UTC) + timedelta(hours=12))
        env = {"DATABASE_URL": self.url, "CUSTOMER_ACTORS_BATCH_SIZE": "20", "CUSTOMER_ACTORS_CATCH_UP": "1", **nights}
        child = Child((str(BIN / "customer-actors"), "run", "events.jsonl"), env, self.folder)
        try:
            yield child
        finally:
            child.end(signal.SIGKILL)

    def committed(self) -> int:
        """Events in the streams."""
        with closing(sqlite3.connect(self.path, timeout=30)) as connection:
            return int(connection.execute("SELECT count(*) FROM event").fetchone()[0])

    def wait_for(self, events: int) -> None:
        wait_until(lambda: self.committed() >= events, _WAIT_S)

    def judged(self, name: str, injected: str, recovery_s: float) -> Row:
        """The final check; its row goes into the closing table whatever it says."""
        database = open_database(self.url)
        try:
            found = check(database, load_settings({}).rules(), self.lines, Accounts(), datetime.now(UTC).date())
        finally:
            database.release()
        row = Row(name, injected, len(self.lines), found.lost, found.twice, found.disorder, recovery_s)
        ROWS.append(row)
        assert found.wrong == []
        assert found.applied > EVENTS
        assert found.held == 0
        return row


@pytest.fixture
def shop(tmp_path: Path, request: pytest.FixtureRequest) -> Shop:
    return Shop(tmp_path, random.Random(f"{SEED} {request.node.name}"))


def test_a_killed_embedded_run_goes_on_from_there(shop: Shop) -> None:
    rng, kills = random.Random(f"{SEED} kills"), 5
    for _ in range(kills):
        with shop.run() as process:
            shop.wait_for(shop.committed() + rng.randrange(20, 250))
        assert process.exit_code == -signal.SIGKILL, "it was through before it was killed"
    began_s = time.monotonic()
    with shop.run() as process:
        wait_until(lambda: not process.running, _WAIT_S)
    row = shop.judged("embedded: kill -9", f"{kills} kills", time.monotonic() - began_s)
    assert (row.lost, row.twice, row.disorder) == (0, 0, 0)


@pytest.mark.long_fault
def test_a_database_locked_by_another_process_is_waited_for(shop: Shop) -> None:
    with shop.run() as process:
        shop.wait_for(100)
        with closing(sqlite3.connect(shop.path, timeout=30, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            before = shop.committed()
            until_s = time.monotonic() + 12
            wait_until(lambda: time.monotonic() > until_s, _WAIT_S)
            assert shop.committed() == before
            assert process.running
            other.execute("ROLLBACK")
        began_s = time.monotonic()
        wait_until(lambda: not process.running, _WAIT_S)
    row = shop.judged("embedded: locked by another process", "1 lock of 12 s", time.monotonic() - began_s)
    assert (row.lost, row.twice, row.disorder) == (0, 0, 0)
