"""`run`: files and pipes through everything in one process, resumable at any moment."""

import json
import os
import pty
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from customer_actors.actors.pipeline import now_us
from customer_actors.domain.events import EventType, Message
from customer_actors.embedded import embedded
from customer_actors.ingest.intake import Intake, policies
from customer_actors.settings import load_settings
from customer_actors.simulate import ShopPlan, simulate
from customer_actors.storage.schema import migrate
from customer_actors.storage.summary import held_customers
from tests.cli.running import (
    NOBODY_LISTENS,
    PROGRAM,
    STDERR,
    STDOUT,
    count,
    ended_by,
    file_of,
    invoke,
    opened,
    order,
    started,
    states,
    wait_until,
)
from tests.servers import PrivatePostgres
from tests.storage.test_outage import administer
from tests.tampering import tamper

PLAN = ShopPlan(customers=150, events=1_500, seed=11, organizations=2)
EVENTS = "SELECT count(*) FROM event"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def url(folder: Path) -> str:
    return f"sqlite:///{folder}/shop.db"


@pytest.fixture
def env(url: str) -> dict[str, str]:
    return {"DATABASE_URL": url}


@pytest.fixture(scope="module")
def shop_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    return file_of(tmp_path_factory.mktemp("shop") / "shop.jsonl", (line + "\n" for line in simulate(PLAN)))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, shop_file: str) -> dict[tuple[str, str], dict[str, object]]:
    """Every customer after one run of the whole shop."""
    url = f"sqlite:///{tmp_path_factory.mktemp('undisturbed')}/shop.db"
    assert invoke("run", shop_file, env={"DATABASE_URL": url}).exit_code == 1  # some lines are malformed
    return states(url)


def test_files_are_processed_in_the_order_they_are_named(folder: Path, env: dict[str, str], url: str) -> None:
    first = file_of(folder / "b.jsonl", [order("O1"), order("O2", "C2")])
    second = file_of(folder / "a.jsonl", [order("O3"), order("O1", amount="10.0")])

    done = invoke("run", first, second, env=env)

    assert done.exit_code == 0, done.output
    assert count(url, "SELECT position FROM event WHERE reference = 'O3'") == 2
    assert states(url)["default", "C1"]["stats"]["orders"] == 2
    assert states(url)["default", "C1"]["segment"] is not None


def test_the_summary_counts_every_outcome_and_groups_the_reasons(folder: Path, env: dict[str, str]) -> None:
    lines = [order("O1"), order("O1"), order("O2", amount="-1"), order("O3", amount="-2"), "{\n", "\n"]
    sale = {"transaction_id": "T1", "totals": {"total_amount": 1}}
    anonymous = json.dumps({"event": "pos.transaction.completed", "data": sale})

    done = invoke("run", "--json", file_of(folder / "shop.jsonl", [*lines, anonymous]), env=env)

    summary = json.loads(done.stdout)
    assert done.exit_code == 1
    assert summary["lines"] == 6
    assert summary["outcomes"] == {"accepted": 1, "duplicate": 1, "anonymous": 1, "suppressed": 0, "quarantined": 3}
    assert [(group["code"], group["count"]) for group in summary["quarantined"]] == [("bad_amount", 2), ("bad_json", 1)]
    assert "must not be negative" in summary["quarantined"][0]["reason"]
    assert summary["held"] == []


def test_the_summary_is_readable_and_cannot_be_spoofed(env: dict[str, str]) -> None:
    done = invoke("run", "-", env=env, stdin='{"event": "\\u001b[31mred"}\n' + order("O1"))

    assert done.exit_code == 1
    assert "accepted" in done.stdout
    assert "unknown_type" in done.stdout
    assert "\x1b" not in done.output


def test_quarantine_of_an_earlier_run_is_not_a_problem_of_this_one(env: dict[str, str]) -> None:
    assert invoke("run", "-", env=env, stdin="{\n").exit_code == 1
    assert invoke("run", "-", env=env, stdin=order("O1")).exit_code == 0


def hold_a_customer(url: str) -> None:
    """Append a request whose detail cannot be read, so that the fold of the credit actor fails."""
    settings = load_settings({"DATABASE_URL": url})
    with opened(url) as database:
        migrate(database)
        intake = Intake(database, policies(settings, database, now_us()), lambda _: None, now_us)
        message = Message(EventType.CREDIT_OPENED, "default", "C1", "", 0, None, now_us(), now_us(), "{}", detail="{")
        intake.command(message)


def test_a_held_customer_ends_the_run_with_exit_code_1_and_is_named_by_actor(env: dict[str, str], url: str) -> None:
    hold_a_customer(url)

    done = invoke("run", "--json", "-", env=env, stdin=order("O1") + order("O2", "C2"))

    assert done.exit_code == 1
    assert json.loads(done.stdout)["held"] == [
        {"actor": "credit", "status": "held", "error": "JSONDecodeError", "customers": 1}
    ]
    assert states(url)["default", "C1"]["stats"]["orders"] == 1, "the other actors go on"
    assert states(url)["default", "C2"]["stats"]["orders"] == 1, "the other customers go on"


def test_a_hold_of_an_earlier_run_is_tried_again_once_it_is_due(env: dict[str, str], url: str) -> None:
    hold_a_customer(url)
    assert invoke("run", "-", env=env).exit_code == 1
    assert invoke("run", "-", env=env).exit_code == 0, "its time has not come, and this run held nobody"
    with opened(url) as database:
        tamper(database, """UPDATE event SET detail = '{"terms_days": 7}'""")
        database.execute("UPDATE held_group SET next_try_us = 0")

    assert invoke("run", "-", env=env).exit_code == 0
    assert states(url)["default", "C1"]["held"] == []
    assert states(url)["default", "C1"]["credit"]["status"] == "active"


def test_who_is_held_before_the_first_line_is_read_is_held_by_this_run(env: dict[str, str], url: str) -> None:
    """The workers begin with what an earlier run left, and that may fail at once."""
    hold_a_customer(url)
    with embedded(load_settings(env)) as service:
        wait_until(lambda: bool(held_customers(service.database)))
        assert service.held_before == frozenset()


@pytest.mark.parametrize("name", ["missing.jsonl", "."])
def test_a_file_that_cannot_be_read_changes_nothing(folder: Path, env: dict[str, str], name: str) -> None:
    good = file_of(folder / "good.jsonl", [order("O1")])

    done = invoke("run", good, name, env=env)

    assert done.exit_code == 2
    assert name in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["good.jsonl"]


def test_no_file_at_all_is_a_usage_error() -> None:
    assert invoke("run").exit_code == 2


def test_a_file_that_fails_on_the_way_is_reported_and_what_came_before_stays(
    folder: Path, env: dict[str, str], url: str
) -> None:
    good = file_of(folder / "good.jsonl", [order("O1")])

    done = invoke("run", good, "/proc/self/mem", env=env)  # opens, but its first byte cannot be read

    assert done.exit_code == 1
    assert "/proc/self/mem cannot be read" in done.stderr
    assert states(url)["default", "C1"]["stats"]["orders"] == 1


def test_a_broker_that_is_named_is_ignored(env: dict[str, str]) -> None:
    assert invoke("run", "-", env={**env, "RABBITMQ_URL": NOBODY_LISTENS}, stdin=order("O1")).exit_code == 0


def test_a_wrong_setting_is_named_before_anything_changes(folder: Path, env: dict[str, str]) -> None:
    done = invoke("run", "-", env={**env, "CUSTOMER_ACTORS_BATCH_SIZE": "0"}, stdin=order("O1"))

    assert done.exit_code == 2
    assert "CUSTOMER_ACTORS_BATCH_SIZE" in done.stderr
    assert [*folder.iterdir()] == []


def orders_of(url: str, customer_id: str) -> int:
    return count(
        url,
        "SELECT s.sales_order FROM stats_state s JOIN customer c ON c.id = s.customer "
        f"WHERE c.customer_id = '{customer_id}' UNION ALL SELECT 0",
    )


def test_a_pipe_that_trickles_is_worked_on_within_a_second(folder: Path, env: dict[str, str], url: str) -> None:
    with started("run", "-", env=env, folder=folder) as process:
        assert process.stdin is not None
        for number in range(1, 4):
            process.stdin.write(order(f"O{number}").encode())
            process.stdin.flush()
            sent = time.monotonic()
            wait_until(lambda number=number: orders_of(url, "C1") == number)  # type: ignore[misc]
            if number > 1:  # the first one waits for the program to start
                assert time.monotonic() - sent < 1
        process.stdin.close()
        assert process.wait(timeout=20) == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_silent_pipe_within_four_seconds_and_keeps_what_was_committed(
    folder: Path, env: dict[str, str], url: str, number: signal.Signals, code: int
) -> None:
    with started("run", "-", env=env, folder=folder) as process:
        assert process.stdin is not None
        process.stdin.write(order("O1").encode())
        process.stdin.flush()
        wait_until(lambda: orders_of(url, "C1") == 1)

        exit_code, seconds = ended_by(process, number)

    assert number.name in (folder / STDERR).read_text()
    assert "accepted          1" in (folder / STDOUT).read_text()
    assert exit_code == code
    assert seconds < 4
    assert orders_of(url, "C1") == 1


def test_a_signal_ends_it_within_four_seconds_although_another_process_locks_the_file(
    folder: Path, env: dict[str, str], url: str
) -> None:
    with started("run", "-", env=env, folder=folder) as process, opened(url) as other:
        assert process.stdin is not None
        process.stdin.write(order("O1").encode())
        process.stdin.flush()
        wait_until(lambda: orders_of(url, "C1") == 1)
        with other.transaction():
            process.stdin.write(order("O2").encode())
            process.stdin.flush()
            exit_code, seconds = ended_by(process, signal.SIGTERM)
    assert exit_code == 143
    assert seconds < 4


def test_a_stopped_run_goes_on_where_it_was(
    folder: Path, env: dict[str, str], url: str, shop_file: str, undisturbed: object
) -> None:
    with started("run", shop_file, env={**env, "CUSTOMER_ACTORS_BATCH_SIZE": "20"}, folder=folder) as process:
        wait_until(lambda: count(url, EVENTS) > 100)
        exit_code, seconds = ended_by(process, signal.SIGTERM)
        assert exit_code == 143
        assert seconds < 4

    assert invoke("run", shop_file, env=env).exit_code == 1
    assert states(url) == undisturbed


@pytest.mark.parametrize("after", [1, 300, 900])
def test_kill_9_at_any_moment_and_a_second_run_give_the_state_of_one_run(
    folder: Path, env: dict[str, str], url: str, shop_file: str, undisturbed: object, after: int
) -> None:
    with started("run", shop_file, env={**env, "CUSTOMER_ACTORS_BATCH_SIZE": "20"}, folder=folder) as process:
        wait_until(lambda: count(url, EVENTS) >= after)
        process.kill()
        process.wait()

    assert invoke("run", shop_file, env=env).exit_code == 1
    assert states(url) == undisturbed
    assert count(url, "SELECT count(*) FROM held_group") == 0


def test_postgresql_gives_what_sqlite_gives(postgres_url: str, shop_file: str, undisturbed: object) -> None:
    assert invoke("run", shop_file, env={"DATABASE_URL": postgres_url}).exit_code == 1
    assert states(postgres_url) == undisturbed


def test_a_database_that_is_away_from_the_start_is_exit_code_4() -> None:
    done = invoke("run", "-", env={"DATABASE_URL": "postgresql://postgres:x@127.0.0.1:1/shop"}, stdin=order("O1"))
    assert done.exit_code == 4
    assert "PostgreSQL" in done.stderr


@pytest.mark.parametrize("command", [("run", "-"), ("credit", "open", "C1", "--limit", "1")])
def test_a_database_that_forgets_commits_is_refused_with_the_fix(command: tuple[str, ...], postgres_url: str) -> None:
    env, name = {"DATABASE_URL": postgres_url}, postgres_url.rpartition("/")[2]
    assert invoke("run", "-", env=env, stdin=order("O1")).exit_code == 0
    administer(postgres_url, f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    done = invoke(*command, env=env, stdin=order("O2"))
    assert (done.exit_code, f'ALTER DATABASE "{name}" SET synchronous_commit = on' in done.stderr) == (2, True)
    assert count(postgres_url, EVENTS) == 1
    for looking in (("status",), ("health", "ready")):
        assert invoke(*looking, env=env).exit_code == 0, "who looks for what is wrong can"


def test_a_database_that_restarts_meanwhile_is_waited_for(
    folder: Path, stoppable_postgres: PrivatePostgres, stoppable_url: str
) -> None:
    with started("run", "-", env={"DATABASE_URL": stoppable_url}, folder=folder) as process:
        assert process.stdin is not None
        process.stdin.write(order("O1").encode())
        process.stdin.flush()
        wait_until(lambda: orders_of(stoppable_url, "C1") == 1)
        stoppable_postgres.kill()
        process.stdin.write(order("O2").encode())
        process.stdin.flush()
        stoppable_postgres.start()
        process.stdin.close()
        assert process.wait(timeout=240) == 0
    assert orders_of(stoppable_url, "C1") == 2


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal."""
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)


def test_progress_is_live_on_a_terminal(
    folder: Path, env: dict[str, str], shop_file: str, terminal: tuple[int, int]
) -> None:
    ours, theirs = terminal
    process = subprocess.Popen(
        [PROGRAM, "run", shop_file], env={**os.environ, **env, "TERM": "xterm"}, cwd=folder, stderr=theirs, stdout=-3
    )
    os.close(theirs)
    seen = b""
    while chunk := _read(ours):
        seen += chunk
    process.wait(timeout=20)
    assert b"lines/s" in seen
    assert b"customers waiting" in seen
    assert b"\x1b[" in seen, "it is drawn in place"


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # how Linux says that the other end is closed
        return b""


def test_progress_is_plain_lines_where_there_is_no_terminal(
    env: dict[str, str], shop_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("customer_actors.cli.progress.PLAIN_EVERY_S", 0)

    done = invoke("run", shop_file, env=env)

    lines = done.stderr.splitlines()
    assert len(lines) > 2
    assert all("lines/s" in line and "customers waiting" in line for line in lines)
    assert "1,500 lines" in lines[-1]
