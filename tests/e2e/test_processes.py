"""The processes as the Procfile names them: together under honcho, alone on a wrong schema, and at their end."""

import os
import signal
from contextlib import closing
from pathlib import Path
from typing import Any

import pika
import psycopg2
import pytest

from customer_actors.ingest.publish import publish
from customer_actors.settings import load_settings
from customer_actors.storage.database import Database
from customer_actors.storage.opening import open_database
from customer_actors.storage.schema import migrate
from customer_actors.storage.views import customer_view
from tests.e2e.processes import BIN, ENDS_S, INGEST, SCHEDULER, WORKERS, Process, running, wait_until
from tests.servers.process import alive, descendants

ROOT = Path(__file__).parents[2]

MINIMAL = [
    ("order.completed", b'{"data": {"customer_id": "C1", "order_id": "O1", "total_amount": 49.90}}'),
    ("order.completed", b'{"data": {"customer_id": "C1", "order_id": "O2", "total_amount": 100}}'),
    ("order.cancelled", b'{"data": {"order_id": "O2"}}'),
    (
        "pos.transaction.completed",
        b'{"data": {"customer_id": "C1", "transaction_id": "T1", "totals": {"total_amount": 12.5}}}',
    ),
    ("payment.received", b'{"data": {"customer_id": "C1", "amount": 20, "payment_reference": "P1"}}'),
]
"""Only the fields that the source contract reads: no event, no event_id, no organization."""


def view(database: Database) -> dict[str, Any]:
    rules = load_settings({}).rules()
    return customer_view(database, rules, "default", "C1") or {}


def test_minimal_payloads_reach_all_four_states_through_the_procfile(
    postgres_url: str, rabbitmq_url: str, tmp_path: Path
) -> None:
    env = {
        "DATABASE_URL": postgres_url,
        "RABBITMQ_URL": rabbitmq_url,
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    database = open_database(postgres_url)
    migrate(database)
    honcho = (str(BIN / "honcho"), "--procfile", str(ROOT / "Procfile"), "--app-root", str(ROOT), "start")
    with running(tmp_path, env, honcho=honcho) as processes:
        wait_until(lambda: processes["honcho"].logged().count('"consuming"') == 3)
        assert publish(rabbitmq_url, MINIMAL).confirmed == len(MINIMAL)
        wait_until(lambda: (segment := view(database).get("segment")) is not None and segment["frequency"] == 2)
        wait_until(lambda: view(database)["stats"]["cancelled_orders"] == 1)
        wait_until(lambda: view(database)["credit"] is not None)
        state = view(database)
        assert state["position"] == 5
        assert state["stats"]["by_channel"] == {"order": 1, "pos": 1}
        assert state["stats"]["total_spent"] == "62.40"
        assert state["loyalty"]["points_balance"] == 49 + 12
        assert state["credit"]["suspense"] == "20.00"
        assert "scheduler" in processes["honcho"].logged()
        processes["honcho"].terminate()
    database.release()


@pytest.mark.parametrize("command", [INGEST, WORKERS, SCHEDULER], ids=["ingest", "worker", "scheduler"])
def test_a_process_refuses_an_old_schema_and_says_the_command(
    postgres_url: str, rabbitmq_url: str, tmp_path: Path, command: tuple[str, ...]
) -> None:
    env = {"DATABASE_URL": postgres_url, "RABBITMQ_URL": rabbitmq_url}
    with running(tmp_path, env, it=command) as processes:
        assert processes["it"].wait() == 2
        assert "customer-actors migrate" in processes["it"].logged()
        assert "Traceback" not in processes["it"].logged()


READY = {"ingest": "consuming", "worker": "ready for action", "scheduler": "event"}


@pytest.mark.parametrize(
    ("name", "command"),
    [("ingest", INGEST), ("worker", WORKERS), ("scheduler", SCHEDULER)],
    ids=lambda each: str(each)[:9],
)
def test_sigterm_ends_a_process_within_four_seconds_with_success(
    postgres_url: str, rabbitmq_url: str, tmp_path: Path, name: str, command: tuple[str, ...]
) -> None:
    database = open_database(postgres_url)
    migrate(database)
    database.release()
    env = {"DATABASE_URL": postgres_url, "RABBITMQ_URL": rabbitmq_url}
    with running(tmp_path, env, it=command) as processes:
        process: Process = processes["it"]
        wait_until(lambda: READY[name] in process.logged())
        assert process.terminate(ENDS_S) == 0


def waits_for(database: Database, table: str) -> bool:
    """Whether a connection waits for this table, which is locked as a whole. For a row any actor may wait a moment."""
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'relation' AND relation = ?::regclass"
    return database.query(waiting, (table,)) != [(0,)]


@pytest.mark.parametrize(
    ("name", "table", "queues"),
    [
        ("ingest", "event", ("customer_order_queue",)),
        # It is in the delay queue when the lock lasted longer than a worker waits for one.
        ("worker", "stats_state", ("stats", "stats.DQ")),
    ],
)
def test_sigterm_ends_a_process_that_hangs_in_a_transaction_and_its_message_comes_again(
    postgres_url: str, rabbitmq_url: str, tmp_path: Path, name: str, table: str, queues: tuple[str, ...]
) -> None:
    """Work that cannot be done in four seconds is given up; nothing was acknowledged for it [G15]."""
    database = open_database(postgres_url)
    migrate(database)
    env = {
        "DATABASE_URL": postgres_url,
        "RABBITMQ_URL": rabbitmq_url,
        "CUSTOMER_ACTORS_SWEEP_SECONDS": "3600",  # nobody else rings
    }
    with running(tmp_path, env, ingest=INGEST, worker=WORKERS) as processes:
        wait_until(lambda: processes["ingest"].logged().count('"consuming"') == 3)
        wait_until(lambda: processes["worker"].logged().count("ready for action") == 2)
        publish(rabbitmq_url, MINIMAL[:1])
        wait_until(lambda: orders(database) == 1)
        with closing(psycopg2.connect(postgres_url)) as other, other.cursor() as cursor:
            cursor.execute(f"LOCK TABLE {table} IN SHARE MODE")
            publish(rabbitmq_url, MINIMAL[1:2])
            wait_until(lambda: waits_for(database, table))
            processes[name].terminate(ENDS_S)
            # A worker's first look at everybody may come this late, and ring the same customer once more.
            wait_until(lambda: sum(ready(rabbitmq_url, queue) for queue in queues) >= 1)
            assert orders(database) == 1
        processes[name].restart()
        wait_until(lambda: orders(database) == 2)
    assert view(database)["stats"]["total_spent"] == "149.90"
    database.release()


def orders(database: Database) -> int:
    """The customer's completed orders, as far as the statistics have come."""
    return int(view(database).get("stats", {}).get("orders", 0))


def ready(url: str, queue: str) -> int:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        count: int = connection.channel().queue_declare(queue, passive=True).method.message_count
        return count


def test_workers_end_when_their_main_process_was_killed(postgres_url: str, rabbitmq_url: str, tmp_path: Path) -> None:
    """Else old code would keep folding beside the new after a deploy."""
    database = open_database(postgres_url)
    migrate(database)
    database.release()
    env = {"DATABASE_URL": postgres_url, "RABBITMQ_URL": rabbitmq_url, "CUSTOMER_ACTORS_SWEEP_SECONDS": "1"}
    with running(tmp_path, env, it=WORKERS) as processes:
        main = processes["it"]
        wait_until(lambda: main.logged().count("ready for action") == 2)
        workers = [pid for pid in descendants(main.pid) if alive(pid)]
        assert len(workers) >= 2
        os.kill(main.pid, signal.SIGKILL)
        wait_until(lambda: not any(alive(pid) for pid in workers))
