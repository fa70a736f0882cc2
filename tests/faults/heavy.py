"""What the heavy runs need: their size, a flood of one customer, a steady load beside it, memory, a stalled server."""

import json
import os
import select
import signal
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import pika
from pika.spec import BasicProperties

from customer_actors.domain.events import EventType
from customer_actors.ingest.publish import exchange_for, publish
from customer_actors.storage.database import Database
from customer_actors.storage.opening import open_database
from tests.faults.order_log import OrderProof, prove
from tests.faults.stage import Stage
from tests.servers.process import alive, descendants

SHARE: Final = float(os.environ.get("HEAVY") or 1)
"""Of the full size; a fraction while the runs themselves are worked on."""
HOT: Final = "HOT"
HOT_AMOUNT_MINOR: Final = 1_000
OTHERS: Final = 1_000
PER_S: Final = 50
"""The others' sales per second."""
LIMIT_MB: Final = 200
"""Of each process [G12]."""
_WARM_UP: Final = 2 * PER_S
"""First sales of a measurement, sent and not counted."""
_PATIENCE_S: Final = 120.0

_NOTIFY: Final = """
    CREATE FUNCTION tell_points() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        PERFORM pg_notify('points', reference) FROM event WHERE (customer, position) = (NEW.customer, NEW.position)
            AND type = 'order.completed';
        RETURN NULL;
    END $$;
    CREATE TRIGGER tell_points AFTER INSERT ON loyalty_entry FOR EACH ROW
        WHEN (NEW.customer <> {hot}) EXECUTE FUNCTION tell_points()
"""
"""PostgreSQL delivers a notification right after its transaction has committed."""


def sized(full: int) -> int:
    """A number of the full size, as large as this run shall be."""
    return int(full * SHARE)


@contextmanager
def patient(stage: Stage) -> Iterator[Database]:
    """The stage's database for a judge who reads all of it: no time limit, and the planner knows the sizes."""
    stage.sql("ANALYZE")
    database = open_database(stage.postgres.url(stage.database))
    with database.transaction():
        database.execute("SET statement_timeout = 0")
    try:
        yield database
    finally:
        database.release()


def order_proof(database: Database) -> OrderProof:
    """`prove` over millions of positions: the planner, who knows nothing of ranges, would compare all with all."""
    with database.transaction():
        database.execute("CREATE INDEX ON order_log (actor, customer, new_position)")
        database.execute("ANALYZE order_log")
        for method in ("hashjoin", "mergejoin"):
            database.execute(f"SET LOCAL enable_{method} = off")
        return prove(lambda sql: database.execute(sql).fetchone()[0])


# --- the flood -------------------------------------------------------------------------------------------------------


def flood(url: str, events: int, customers: Sequence[str] = (HOT,)) -> float:
    """Publish so many sales at the till, of these customers in turn; returns how many were confirmed per second."""
    began_s = time.monotonic()
    sales = (_till_sale(number, customers[number % len(customers)]) for number in range(events))
    report = publish(url, ((EventType.POS_COMPLETED, sale) for sale in sales), window=2_000)
    assert report.confirmed == events, report
    return events / (time.monotonic() - began_s)


def _till_sale(number: int, customer: str) -> bytes:
    totals = {"total_amount": HOT_AMOUNT_MINOR / 100}
    data = {"transaction_id": f"{customer}-{number}", "customer_id": customer, "totals": totals}
    return json.dumps({"event": EventType.POS_COMPLETED, "timestamp": "2025-06-01T10:00:00Z", "data": data}).encode()


# --- the others ------------------------------------------------------------------------------------------------------


WINDOWS: Final = 5
"""So many times in a row each latency is measured: one p99 is as noisy as the machine, the median of five is not."""


class Latency(NamedTuple):
    """From when a sale is due until its points are committed, in milliseconds; the medians of the windows."""

    p50_ms: float
    p99_ms: float
    sent: int
    missing: int
    """Sales without points when patience ended, in all windows."""


def install_notice(stage: Stage, hot: int) -> None:
    """Have the database tell when points of an online sale of anybody but this customer are committed, and log no
    ledger any more: that would be a row more for every event of the flood. Steps are logged, one for each round.

    So the proof of order says nothing of ledgers here: its REPEATED_FACTS and FOREIGN_FACTS find nothing because there
    is nothing. That no entry of points stands twice is left to the table's key, and that all are there to their sum."""
    stage.sql("DROP FUNCTION log_ledger CASCADE")
    stage.sql(_NOTIFY.format(hot=hot))


class Steady(threading.Thread):
    """Sends the others' sales at their pace and learns when the points of each were committed.

    Nobody waits for the broker to confirm a sale, and each counts from when it was due: a broker that keeps the sender
    waiting would slow the pace, and hide what it did to those that follow. A sale that did not arrive is missing.
    """

    def __init__(self, stage: Stage, name: str, seconds: float) -> None:
        super().__init__(name=name, daemon=True)
        self._sales = _WARM_UP + int(seconds * PER_S)
        self._url = stage.rabbitmq_url
        self._listening = stage.connect()
        self._listening.autocommit = True
        with self._listening.cursor() as cursor:  # before the first sale: what was told earlier is not told again
            cursor.execute("LISTEN points")
        self._due: dict[str, float] = {}
        self._seen: dict[str, float] = {}

    def run(self) -> None:
        listener = threading.Thread(target=self._listen, daemon=True)
        listener.start()
        connection = pika.BlockingConnection(pika.URLParameters(self._url))
        channel = connection.channel()
        exchange, began_s = exchange_for(EventType.ORDER_COMPLETED), time.monotonic()
        for number in range(self._sales):
            reference, body = self._sale(number)
            self._due[reference] = began_s + number / PER_S
            time.sleep(max(0.0, self._due[reference] - time.monotonic()))
            channel.basic_publish(exchange, EventType.ORDER_COMPLETED, body, BasicProperties(delivery_mode=2))
        listener.join()
        connection.close()  # not sooner: what nobody confirmed may go with its channel
        self._listening.close()

    def _sale(self, number: int) -> tuple[str, bytes]:
        reference = f"{self.name}-{number:06d}"
        data = {"order_id": reference, "customer_id": f"C{number % OTHERS:06d}", "total_amount": 19.9}
        stamp = datetime.now(UTC).isoformat()
        return reference, json.dumps({"event": EventType.ORDER_COMPLETED, "timestamp": stamp, "data": data}).encode()

    def _listen(self) -> None:
        connection: Any = self._listening
        deadline = time.monotonic() + self._sales / PER_S + _PATIENCE_S
        while len(self._seen) < self._sales and time.monotonic() < deadline:
            select.select([connection], [], [], 0.1)
            connection.poll()
            now_s = time.monotonic()
            self._seen.update((notice.payload, now_s) for notice in connection.notifies)
            connection.notifies.clear()

    def latency(self) -> Latency:
        """What was measured; call it after `join`."""
        counted = list(self._due)[_WARM_UP:]
        took = [(self._seen[each] - self._due[each]) * 1_000 for each in counted if each in self._seen]
        cuts = statistics.quantiles(took, n=100, method="inclusive")
        return Latency(cuts[49], cuts[98], len(self._due), len(self._due.keys() - self._seen.keys()))


def measured(stage: Stage, name: str, seconds: float, windows: int = WINDOWS) -> Latency:
    """The others' latency, in windows of so many seconds."""
    each = [_window(stage, f"{name}{number}", seconds) for number in range(windows)]
    print(f"{name}: p99 of the windows " + ", ".join(f"{window.p99_ms:.0f}" for window in each))
    p50s, p99s, sent, missing = zip(*each, strict=True)
    return Latency(statistics.median(p50s), statistics.median(p99s), sum(sent), sum(missing))


def _window(stage: Stage, name: str, seconds: float) -> Latency:
    steady = Steady(stage, name, seconds)
    steady.start()
    stage.until(lambda: not steady.is_alive(), 2 * seconds + _PATIENCE_S)
    return steady.latency()


# --- memory ----------------------------------------------------------------------------------------------------------


class Memory(threading.Thread):
    """Watches the most memory that each process of the stage has ever had resident, those that end included."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(name="memory", daemon=True)
        self._stage = stage
        self._over = threading.Event()
        self.peaks_mb: dict[str, float] = {}
        """Process -> megabytes."""

    def run(self) -> None:
        while not self._over.wait(0.5):
            for name, child in list(self._stage.processes.items()):
                for pid in (child.pid, *descendants(child.pid)):
                    if alive(pid):
                        peak_mb = _peak_mb(pid)
                        self.peaks_mb[f"{name} {pid}"] = max(peak_mb, self.peaks_mb.get(f"{name} {pid}", 0.0))

    def end(self) -> None:
        self._over.set()
        self.join()


def _peak_mb(pid: int) -> float:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it ended just now
        return 0.0
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(lines[0].split()[1]) / 1024 if lines else 0.0


# --- the database ----------------------------------------------------------------------------------------------------


@contextmanager
def stalled_database(stage: Stage) -> Iterator[Sequence[int]]:
    """No process of the server does anything while inside; connections stay open and nothing is answered."""
    family = [stage.postgres.pid, *descendants(stage.postgres.pid)]
    for pid in family:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield family
    finally:
        for pid in family:
            if alive(pid):
                os.kill(pid, signal.SIGCONT)
