"""The night of the credit accounts beside one plain SQL statement that rewrites the same figures, on the same data.

`python -m benchmarks.nightly_credit` fills a private PostgreSQL of default durability with accounts (8 usages,
6 payments and 6 allocations each), once healthy and once with every hundredth account's figures wrong. Both sides are
run in turn on the same rows, VACUUM between them, while payments keep arriving:

- plain: one statement that recomputes usages, payments and accounts and rewrites what differs;
- ours: the job's plan, chunks and finish in one process, its report of every difference included.
"""

import json
import os
import random
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any, Final

import click
import psycopg2

from benchmarks import machine
from customer_actors.domain.events import EventType, Message
from customer_actors.domain.rules import Rules
from customer_actors.groups.advance import advance
from customer_actors.storage import job_runs
from customer_actors.storage.actors import Stores
from customer_actors.storage.append import AppendPolicy, Incoming, append
from customer_actors.storage.job_runs import Run
from customer_actors.storage.nightly_credit import NightlyCredit
from customer_actors.storage.opening import open_database
from customer_actors.storage.rules import number_of
from customer_actors.storage.schema import migrate
from tests.servers import PrivatePostgres

QUIET_S: Final = 5.0
PAYMENTS_PER_S: Final = 20
_MORE: Final = 1_000
"""Positions are given from here on, behind everything made here."""
_FILL: Final = (
    "INSERT INTO customer (id, organization_id, customer_id, head, head_stats, head_loyalty, head_credit) "
    f"OVERRIDING SYSTEM VALUE SELECT n, 'default', 'C' || n, {_MORE}, 0, 0, {_MORE} FROM generate_series(1, %(n)s) n",
    "SELECT setval(pg_get_serial_sequence('customer', 'id'), %(n)s)",
    "INSERT INTO stats_state (customer) SELECT id FROM customer",
    "INSERT INTO loyalty_state (customer, tier) SELECT id, 'bronze' FROM customer",
    "INSERT INTO customer_segment (customer) SELECT id FROM customer",
    "INSERT INTO credit_state (customer, position, status, limit_minor, terms_days, used_minor) "
    f"SELECT id, {_MORE}, 'active', 100000, 30, 20000 FROM customer",
    "INSERT INTO credit_usage SELECT id, p, 'order', 'O' || id || '-' || p, 10000, CASE WHEN p > 7 THEN 10000 ELSE 0 "
    "END, '2099-01-0' || (p - 1), NULL, false, false FROM customer, generate_series(2, 9) p",
    "INSERT INTO credit_payment SELECT id, p, 'P' || p, 10000, 0, NULL, NULL FROM customer, generate_series(10, 15) p",
    "INSERT INTO credit_allocation SELECT id, p - 8, p, p, 10000 FROM customer, generate_series(10, 15) p",
)
_CORRUPT: Final = (
    "UPDATE credit_state SET used_minor = used_minor + 1 WHERE customer %% 100 = 0",
    "UPDATE credit_usage SET outstanding_minor = 5 WHERE customer %% 100 = 0 AND position = 9",
    "UPDATE credit_payment SET unapplied_minor = 5 WHERE customer %% 100 = 0 AND position = 11",
)
_TABLES: Final = ("credit_state", "credit_usage", "credit_payment", "credit_allocation", "credit_drift", "customer")
_PLAIN: Final = """
    WITH paid AS (
        SELECT customer, usage_position AS position, sum(amount_minor)::bigint AS net FROM credit_allocation
        GROUP BY 1, 2
    ), spent AS (
        SELECT customer, payment_position AS position, sum(amount_minor)::bigint AS net FROM credit_allocation
        GROUP BY 1, 2
    ), usages AS (
        SELECT u.customer, u.position, u.outstanding_minor AS stored, CASE WHEN u.cancelled_position IS NULL
            THEN u.amount_minor - coalesce(paid.net, 0) ELSE 0 END AS expected
        FROM credit_usage u LEFT JOIN paid USING (customer, position)
    ), payments AS (
        SELECT p.customer, p.position, p.unapplied_minor AS stored, p.amount_minor - coalesce(spent.net, 0) AS expected
        FROM credit_payment p LEFT JOIN spent USING (customer, position)
    ), accounts AS (
        SELECT s.customer, coalesce(u.total, 0) AS used, coalesce(p.total, 0) AS idle FROM credit_state s
        LEFT JOIN (SELECT customer, sum(expected)::bigint AS total FROM usages GROUP BY 1) u USING (customer)
        LEFT JOIN (SELECT customer, sum(expected)::bigint AS total FROM payments GROUP BY 1) p USING (customer)
    ), set_usages AS (
        UPDATE credit_usage t SET outstanding_minor = n.expected FROM usages n
        WHERE t.customer = n.customer AND t.position = n.position AND n.stored <> n.expected RETURNING 1
    ), set_payments AS (
        UPDATE credit_payment t SET unapplied_minor = n.expected FROM payments n
        WHERE t.customer = n.customer AND t.position = n.position AND n.stored <> n.expected RETURNING 1
    ), set_accounts AS (
        UPDATE credit_state t SET used_minor = n.used,
            unapplied_minor = CASE WHEN t.status IS NULL THEN 0 ELSE n.idle END,
            suspense_minor = CASE WHEN t.status IS NULL THEN n.idle ELSE 0 END
        FROM accounts n WHERE t.customer = n.customer AND (t.used_minor <> n.used
            OR t.unapplied_minor <> CASE WHEN t.status IS NULL THEN 0 ELSE n.idle END
            OR t.suspense_minor <> CASE WHEN t.status IS NULL THEN n.idle ELSE 0 END) RETURNING 1
    )
    SELECT (SELECT count(*) FROM set_usages) + (SELECT count(*) FROM set_payments)
        + (SELECT count(*) FROM set_accounts)
"""


def now_us() -> int:
    return time.time_ns() // 1_000


# --- what runs in a process of its own ---------------------------------------------------------------------------


def _ours(url: str, slot: str) -> None:
    """One night; prints its seconds and figures."""
    database = open_database(url)
    job, run = NightlyCredit(Stores(database, Rules())), Run("credit", slot, date(2026, 1, 1))
    began = time.monotonic()
    job_runs.claim(database, run, now_us())
    job_runs.plan(database, job, run, now_us())
    for number in job_runs.open_chunks(database, run):
        job_runs.work(database, job, run, number, now_us())
    job_runs.finish(database, job, run, now_us())
    seconds = time.monotonic() - began
    progress = job_runs.progress_of(database, "credit", slot)
    assert progress is not None
    peak = machine.peak_mb(os.getpid())
    print(json.dumps({"seconds": seconds, "rewritten": progress.changed, "peak_mb": peak}))


def _live(url: str, customers: str) -> None:
    """Pays at a steady pace until standard input ends; prints the milliseconds of every payment from when it was due
    until its allocation is committed."""
    database = open_database(url)
    stores = Stores(database, Rules())
    policy = AppendPolicy(number_of(database, Rules(), now_us()), "bronze")
    waited: list[tuple[float, float]] = []
    print("ready", flush=True)
    seeded, due = random.Random(7), time.monotonic()
    while not _input_ended():
        due += 1 / PAYMENTS_PER_S
        time.sleep(max(0.0, due - time.monotonic()))
        customer = seeded.randrange(1, int(customers) + 1)
        append(database, [Incoming(None, _payment(customer, len(waited)))], policy, now_us())
        advance(stores.of("credit"), [customer], now_us=now_us)
        waited.append((time.time(), (time.monotonic() - due) * 1_000))
    print(json.dumps({"waited": waited, "peak_mb": machine.peak_mb(os.getpid())}))


def _payment(customer: int, number: int) -> Message:
    at = now_us()
    kind, name = EventType.PAYMENT_RECEIVED, f"C{customer}"
    return Message(kind, "default", name, f"live-{at}-{number}", 100, None, at, at, "{}")


def _input_ended() -> bool:
    return bool(select.select([sys.stdin], [], [], 0)[0])


# --- the bench ---------------------------------------------------------------------------------------------------


def _role(role: str, *args: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "benchmarks.nightly_credit", "--role", role, *args]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _answer(process: "subprocess.Popen[str]") -> Any:
    out, _ = process.communicate()
    return json.loads(out.strip().splitlines()[-1])


@contextmanager
def _paying(url: str, customers: int) -> Iterator[Callable[[], Any]]:
    """Payments arrive; the callable ends them and tells how long each took."""
    process = _role("live", url, str(customers))
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield lambda: _answer(process)
    finally:
        process.kill()


def _p99(waited: list[tuple[float, float]], since: float, until: float) -> float:
    inside = sorted(ms for at, ms in waited if since <= at <= until)
    return statistics.quantiles(inside, n=100)[98] if len(inside) > 1 else float("nan")


def _beside_payments(url: str, customers: int, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    with _paying(url, customers) as paid:
        time.sleep(QUIET_S)
        began = time.time()
        result = work()
        ended = time.time()
        live = paid()
    waited = live["waited"]
    quiet, during = _p99(waited, began - QUIET_S, began), _p99(waited, began, ended)
    return {**result, "quiet p99 ms": quiet, "p99 ms": during, "payments": len(waited), "live_peak_mb": live["peak_mb"]}


def _plain(url: str) -> dict[str, Any]:
    with psycopg2.connect(url) as connection, connection.cursor() as cursor:
        began = time.monotonic()
        cursor.execute(_PLAIN)
        ((rewritten,),) = cursor.fetchall()
        connection.commit()
        return {"seconds": time.monotonic() - began, "rewritten": rewritten}


def _each(url: str, *statements: str, **given: int) -> None:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement, given)
    connection.close()


@click.command()
@click.option("--accounts", default=200_000, show_default=True)
@click.option("--rounds", default=1, show_default=True)
@click.option("--role", hidden=True)
@click.argument("args", nargs=-1)
def main(accounts: int, rounds: int, role: str | None, args: tuple[str, ...]) -> None:
    """Ours beside plain SQL, healthy and with 1 % wrong."""
    if role is not None:
        {"ours": _ours, "live": _live}[role](*args)
        return
    print(json.dumps(machine.describe("", "")))
    with PrivatePostgres() as server:
        url = server.create_database("credit")
        database = open_database(url)
        migrate(database)
        database.release()
        _each(url, *_FILL, n=accounts)
        for number in range(rounds):
            for wrong in (False, True):
                for side in ("ours", "plain"):
                    if wrong:
                        _each(url, *_CORRUPT, n=accounts)
                    _each(url, *(f"VACUUM ANALYZE {table}" for table in _TABLES))
                    slot = f"{number}-{wrong}"
                    works: dict[str, Callable[[], dict[str, Any]]] = {
                        "ours": lambda slot=slot: _answer(_role("ours", url, slot)),  # type: ignore[misc]
                        "plain": lambda: _plain(url),
                    }
                    result = _beside_payments(url, accounts, works[side])
                    print(json.dumps({"side": side, "wrong": wrong, **result}), flush=True)


if __name__ == "__main__":
    main()
