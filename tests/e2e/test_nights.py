"""The nights in real processes: two schedulers, kill -9 in the middle, and what is left of it afterwards: nothing."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from customer_actors.actors.pipeline import now_us
from customer_actors.domain.routing import ACTORS
from customer_actors.groups.advance import advance
from customer_actors.settings import load_settings
from customer_actors.storage import job_runs
from customer_actors.storage.actors import Stores
from customer_actors.storage.database import Database
from customer_actors.storage.opening import open_database
from customer_actors.storage.schema import migrate
from tests.e2e.processes import BIN, SCHEDULER, WORKERS, crons, running, wait_until
from tests.e2e.slow_nights import CHUNK_CUSTOMERS, jobs
from tests.faults.check import Verdict, check_stored
from tests.faults.order_log import INSTALL, INSTALL_SQLITE, prove
from tests.faults.table import ROWS, SEED, Row
from tests.model.examples import opened, order
from tests.servers import PrivatePostgres
from tests.storage.support import Storage

SLOW_WORKERS = tuple(word.replace("customer_actors.actors.main", "tests.e2e.slow_nights") for word in WORKERS)
DYING_SCHEDULER = (sys.executable, "-m", "tests.e2e.slow_nights", "scheduler")
EMBEDDED = (sys.executable, "-m", "tests.e2e.slow_nights", "embedded")
CUSTOMERS = 3_000
WAIT_S = 120
SQLITE = "sqlite:///"


def shop(database: Database, customers: int = CUSTOMERS) -> None:
    """Customers with an account and an open credit sale of years ago, whom the night suspends; every fifth is anew."""
    migrate(database)
    database.execute("UPDATE schema_migration SET applied = '2020-01-01 00:00:00'")
    storage = Storage(database, load_settings({}).rules())
    for start in range(0, customers, 500):
        batch = []
        for number in range(start, min(start + 500, customers)):
            customer_id = f"c{number}"
            batch.append(opened("1000")._replace(customer_id=customer_id))
            for sale in range(1 + number % 4):
                reference, amount = f"{number}-{sale}", str(1 + number % 700)
                batch.append(order(reference, amount, customer_id=customer_id, on_credit=number % 5 != 0))
        storage.append(batch)
    for actor in ACTORS:
        store = storage.stores(2_000).of(actor)
        assert advance(store, store.all_behind(), now_us=now_us, budget_s=WAIT_S).remaining == []
    database.execute("DELETE FROM bell")


def opened_with_log(url: str) -> Database:
    """With the product's schema and the faults' log of steps, which must be there before the first step."""
    database = open_database(url)
    migrate(database)
    if url.startswith(SQLITE):
        with closing(sqlite3.connect(url.removeprefix(SQLITE))) as connection:
            connection.executescript(INSTALL_SQLITE)
    else:
        database.execute(INSTALL)
    return database


def judged(database: Database) -> Verdict:
    """The final check of the faults, but for two parts: nothing came from a broker that could have confirmed it, and
    the model keeps no due dates and fixed cuts, so that it cannot tell what a night of today leaves."""
    return check_stored(database, prove(lambda sql: database.query(sql)[0][0]))


def missed_crons() -> dict[str, str]:
    """Settings by which both jobs were due a quarter of an hour ago, but today: yesterday's find nothing to do."""
    now = datetime.now(UTC)
    due = max(now - timedelta(minutes=15), now.replace(hour=0, minute=0))
    return crons(due) | {"CUSTOMER_ACTORS_CATCH_UP": "60", "CUSTOMER_ACTORS_SWEEP_SECONDS": "1"}


def chunks_done(database: Database) -> int:
    return int(database.query("SELECT count(*) FROM job_chunk WHERE done_us IS NOT NULL")[0][0])


def nights_done(database: Database) -> list[str]:
    return sorted(job for job, last in job_runs.last_runs(database).items() if last.done_us is not None)


def undisturbed(database: Database, copy_of: Database) -> None:
    """Both nights that `copy_of` claimed, in this thread."""
    stores = Stores(database, load_settings({}).rules())
    nights = job_runs.last_runs(copy_of)
    for name, job in jobs(stores).items():
        run = nights[name].run
        assert job_runs.claim(database, run, now_us())
        assert job_runs.plan(database, job, run, now_us())
        for number in job_runs.open_chunks(database, run):
            assert job_runs.work(database, job, run, number, now_us())
        assert job_runs.finish(database, job, run, now_us())


RESULTS = ("customer_segment", "rfm_cuts", "credit_state", "credit_usage", "credit_drift", "credit_ageing", "event")


def results(database: Database) -> dict[str, list[dict[str, Any]]]:
    """What the nights left, without moments. A snapshot of cuts is called by what makes it one: a plan that was killed
    has used up a number."""
    snapshots = {
        number: f"{organization_id} as of {as_of}"
        for number, organization_id, as_of in database.query("SELECT number, organization_id, as_of FROM rfm_cuts")
    }
    found = {}
    for table in RESULTS:
        cursor = database.execute(f"SELECT * FROM {table}")
        names = [column[0] for column in cursor.description]
        rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        kept = [{name: row[name] for name in names if name != "id" and not name.endswith("_us")} for row in rows]
        for row in kept:
            row.update({name: snapshots[row[name]] for name in ("cuts", "number") if row.get(name) is not None})
        found[table] = sorted(kept, key=repr)
    chunks = database.query("SELECT job, slot, number, first, last, examined FROM job_chunk ORDER BY 1, 2, 3")
    return {**found, "job_chunk": [{"chunk": chunk} for chunk in chunks]}


def same(database: Database, expected: Database, fault: str, injected: str, recovery_s: float) -> None:
    """Results are equal, and something was done at all; the fault's row in the closing table of `make faults`."""
    got, wanted = results(database), results(expected)
    lost, surplus = (sum(_surplus(*pair, table) for table in RESULTS) for pair in ((wanted, got), (got, wanted)))
    found = judged(database)
    counts = lost + found.lost, surplus + found.twice, found.disorder
    ROWS.append(Row(fault, injected, len(got["event"]), *counts, recovery_s))
    for table, rows in wanted.items():
        assert got[table] == rows, table
    assert (*counts, found.held, found.wrong) == (0, 0, 0, 0, [])
    assert found.applied > len(got["event"])
    suspended = [row for row in wanted["event"] if row["type"] == "credit.suspended"]
    assert len(suspended) == len(wanted["credit_ageing"]) > 0
    assert len(wanted["job_chunk"]) >= 2 * len(suspended) // CHUNK_CUSTOMERS


def _surplus(one: dict[str, list[dict[str, Any]]], other: dict[str, list[dict[str, Any]]], table: str) -> int:
    """Rows of one that the other lacks."""
    more = Counter(map(repr, one[table]))
    more.subtract(Counter(map(repr, other[table])))
    return sum(count for count in more.values() if count > 0)


@pytest.fixture
def databases(postgres: PrivatePostgres, postgres_url: str) -> Iterator[tuple[Database, Database]]:
    """Two shops that are equal."""
    one = opened_with_log(postgres_url)
    shop(one)
    one.release()
    name = postgres_url.split("?")[0].rsplit("/", 1)[1]
    two = open_database(postgres.create_database(f"{name}_copy", name))
    yield one, two
    one.release()
    two.release()


def test_kills_of_workers_and_scheduler_in_the_middle_of_both_jobs_change_no_result(
    databases: tuple[Database, Database], postgres_url: str, rabbitmq_url: str, tmp_path: Path
) -> None:
    database, copy = databases
    print(f"replay: make faults SEED={SEED}")
    chance = random.Random(SEED)
    env = {"DATABASE_URL": postgres_url, "RABBITMQ_URL": rabbitmq_url, **missed_crons()}
    with running(tmp_path, env, workers=SLOW_WORKERS, dying=DYING_SCHEDULER, scheduler=SCHEDULER) as processes:
        assert processes["dying"].wait(WAIT_S) == -signal.SIGKILL
        kills = 1
        for part in (1, 3, 5):
            goal = part * CUSTOMERS // CHUNK_CUSTOMERS // 4 + chance.randrange(3)
            wait_until(lambda goal=goal: chunks_done(database) >= goal, WAIT_S)  # type: ignore[misc]
            assert nights_done(database) != ["credit", "segments"]
            for name in ("workers", "scheduler"):
                assert processes[name].running, name
                processes[name].kill()
                kills += 1
            processes["scheduler"].restart()
            processes["workers"].restart()
        began_s = time.monotonic()
        wait_until(lambda: nights_done(database) == ["credit", "segments"], WAIT_S)
    recovery_s = time.monotonic() - began_s
    assert len(database.query("SELECT 1 FROM job_run")) == 2
    undisturbed(copy, database)
    same(database, copy, "nights: kill -9 of workers and scheduler", f"{kills} kills", recovery_s)


def test_two_schedulers_of_which_one_is_killed_at_the_slot_let_it_take_effect_once(
    postgres_url: str, rabbitmq_url: str, tmp_path: Path
) -> None:
    """The slot is the next minute, so this takes up to a minute."""
    database = opened_with_log(postgres_url)
    shop(database, 50)
    in_debt = "SELECT count(*) FROM credit_state WHERE used_minor > 0"
    expected = database.query(in_debt)[0][0]
    due = (datetime.now(UTC) + timedelta(seconds=70)).replace(second=0, microsecond=0)
    env = {"DATABASE_URL": postgres_url, "RABBITMQ_URL": rabbitmq_url, "CUSTOMER_ACTORS_SWEEP_SECONDS": "1"}
    commands = {"one": SCHEDULER, "dying": DYING_SCHEDULER, "workers": WORKERS}
    with running(tmp_path, {**env, **crons(due)}, **commands) as processes:
        assert processes["dying"].wait(100) == -signal.SIGKILL
        began_s = time.monotonic()
        wait_until(lambda: nights_done(database) == ["credit", "segments"], WAIT_S)
        recovery_s = time.monotonic() - began_s
        slot = f"{due:%Y-%m-%dT%H:%M}"
        assert database.query("SELECT job, slot FROM job_run ORDER BY job") == [("credit", slot), ("segments", slot)]
        done = waited(env, "credit", "--as-of", "2025-01-01")
        assert (done.returncode, b"done, as of 2025-01-01" in done.stdout) == (0, True)
        assert waited(env, "credit", "--as-of", "2025-01-01").returncode == 3
        status = subprocess.run(
            [BIN / "customer-actors", "status"], env=environment(env), capture_output=True, check=True
        )
        assert b"night of segments " + slot.encode() + b": done, as of" in status.stdout
    suspensions = "SELECT customer, count(*) FROM event WHERE type = 'credit.suspended' GROUP BY customer"
    counts = [count for _, count in database.query(suspensions)]
    found = judged(database)
    lost, twice = expected - len(counts) + found.lost, sum(counts) - len(counts) + found.twice
    row = Row(
        "nights: two schedulers, one killed at the slot", "1 kill", expected, lost, twice, found.disorder, recovery_s
    )
    ROWS.append(row)
    assert (lost, twice, found.disorder, found.held, found.wrong) == (0, 0, 0, 0, [])
    assert expected > 0
    assert database.query("SELECT count(*) FROM credit_state WHERE status = 'suspended'")[0][0] == expected
    database.release()


def waited(env: Mapping[str, str], *arguments: str) -> "subprocess.CompletedProcess[bytes]":
    return subprocess.run([*SCHEDULER, "run", *arguments, "--wait"], env=environment(env), capture_output=True)


def environment(env: Mapping[str, str]) -> dict[str, str]:
    return {**os.environ, **env}


def test_embedded_nights_killed_in_the_middle_end_as_undisturbed_ones(tmp_path: Path) -> None:
    """Standard input stays open, as a pipe that lives through the night."""
    urls = [f"{SQLITE}{tmp_path}/{name}.db" for name in ("killed", "undisturbed")]
    database = opened_with_log(urls[0])
    shop(database, 1_000)
    copy = copied(*urls)
    env = environment({"DATABASE_URL": urls[0], **missed_crons()})
    with embedded(env) as process:
        wait_until(lambda: chunks_done(database) >= 3, WAIT_S)
        process.kill()
    assert nights_done(database) != ["credit", "segments"]
    began_s = time.monotonic()
    with embedded(env) as process:
        wait_until(lambda: nights_done(database) == ["credit", "segments"], WAIT_S)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) == 0
    recovery_s = time.monotonic() - began_s
    undisturbed(copy, database)
    same(database, copy, "nights: kill -9 of the embedded mode", "1 kill", recovery_s)
    database.release()
    copy.release()


def copied(url: str, to: str) -> Database:
    """An SQLite database with all that another has: a second shop could be of the day after."""
    paths = [each.removeprefix(SQLITE) for each in (url, to)]
    with closing(sqlite3.connect(paths[0])) as source, closing(sqlite3.connect(paths[1])) as target:
        source.backup(target)
    return open_database(to)


def embedded(env: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(EMBEDDED, env=env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
