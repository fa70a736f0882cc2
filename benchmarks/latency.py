"""How long an event takes from publishing to committed points, at a steady pace."""

import json
import math
import random
import select
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from typing import Any, Final, NamedTuple

from benchmarks import effects
from benchmarks.stage import Servers, Stage, cursor_on
from benchmarks.subjects import migrated, plain_queues, start_faststream, start_ours, start_plain
from customer_actors.domain.events import EventType
from customer_actors.ingest import topology
from tests.servers.process import wait_until

WARM_UP_S: Final = 2.0
"""Sales of the first seconds, while threads make their connections, are sent and not counted."""
PATIENCE_S: Final = 30.0
"""How long after the last sale a late one is waited for."""

_COUNTERS: Final = 6
_PIECES_PER_S: Final = 50
_PIECE: Final = 100_000
"""Steps of one piece: a millisecond or two, so that all of them together need about half a processor."""

_NOTIFY: Final = """
    CREATE FUNCTION notify_of_points() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        {notify}
        RETURN NULL;
    END $$;
    CREATE TRIGGER notify_of_points AFTER INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION notify_of_points()
"""
"""PostgreSQL delivers a notification right after its transaction has committed. The trigger is the benchmark's alone;
what it and the delivery cost is counted against every subject, once for each of its commits."""
OUR_NOTIFY: Final = _NOTIFY.format(
    table="loyalty_entry",
    notify="PERFORM pg_notify('points', reference) FROM event "
    "WHERE (customer, position) = (NEW.customer, NEW.position);",
)
PEER_NOTIFY: Final = _NOTIFY.format(table="loyalty_ledger", notify="PERFORM pg_notify('points', NEW.order_id);")


class Latency(NamedTuple):
    """Of one subject at one pace, from when an event is due until its points are committed, in milliseconds; None where
    fewer than a hundred were seen."""

    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    late: int
    """Sales without points half a minute after the last one was sent."""
    peak_mb: float = 0.0
    """The most memory a process of the subject had resident, in MB."""


def of_machine(seconds: float) -> Latency:
    """What the machine makes of work that needs nobody: processes that count, from when each piece is due until it is
    done. No subject can be steadier than this; where it is tens of milliseconds, others had the processors."""
    with ProcessPoolExecutor(_COUNTERS, mp_context=get_context("spawn")) as pool:
        took = [ms for each in pool.map(_count, [WARM_UP_S + seconds] * _COUNTERS) for ms in each]
    return _of(took, 0)


MACHINE: Final = f"no service: {_COUNTERS} processes that only count"
"""The name of that row."""


def _count(seconds: float) -> list[float]:
    """Milliseconds of each piece of work, but for those of the warm-up."""
    started, took = time.monotonic(), []
    for number in range(int(seconds * _PIECES_PER_S)):
        due = started + number / _PIECES_PER_S
        time.sleep(max(0.0, due - time.monotonic()))
        for _ in range(_PIECE):
            pass
        took.append((time.monotonic() - due) * 1000)
    return took[int(WARM_UP_S * _PIECES_PER_S) :]


def of_ours(servers: Servers, per_s: int, seconds: float) -> Latency:
    """This project, as the Procfile starts it."""
    with servers.stage() as stage, migrated(stage.database_url):
        return _measure(stage, OUR_NOTIFY, start_ours, per_s, seconds)


def of_peer(servers: Servers, start: Callable[[Stage], None], per_s: int, seconds: float) -> Latency:
    """A peer that keeps its effects in the peers' tables."""
    with servers.stage(plain_queues) as stage:
        with cursor_on(stage.database_url) as cursor:
            cursor.execute(effects.SCHEMA)
        return _measure(stage, PEER_NOTIFY, start, per_s, seconds)


PEERS: Final[dict[str, Callable[[Stage], None]]] = {
    "plain Dramatiq, a message per event": start_plain(split=False),
    "FastStream and asyncpg": start_faststream,
}
"""Peers whose latency is measured."""


def _measure(stage: Stage, notify: str, start: Callable[[Stage], None], per_s: int, seconds: float) -> Latency:
    count = int((WARM_UP_S + seconds) * per_s)
    due: dict[str, float] = {}
    """When a sale is to be sent: where the machine keeps the sender waiting, it keeps the sale waiting."""
    seen: dict[str, float] = {}
    with cursor_on(stage.database_url) as cursor:
        cursor.execute(notify)
        cursor.execute("LISTEN points")
        start(stage)
        wait_until(lambda: all(stage.queue(queue)[1] for queue in topology.QUEUES))
        sent_all = threading.Event()
        listener = threading.Thread(target=_listen, args=(cursor.connection, seen, count, sent_all), daemon=True)
        listener.start()
        send, started = stage.one_by_one(), time.monotonic()
        for number in range(count):
            reference, body = _sale(number)
            due[reference] = started + number / per_s
            time.sleep(max(0.0, due[reference] - time.monotonic()))
            send(EventType.ORDER_COMPLETED, body)
        sent_all.set()
        listener.join()
        peak_mb = max(stage.peak_mb().values())
    took = [(seen[each] - at) * 1000 for each, at in due.items() if at >= started + WARM_UP_S and each in seen]
    return _of(took, count - len(seen), peak_mb)


def _of(took: Sequence[float], late: int, peak_mb: float = 0.0) -> Latency:
    if len(took) < 100:
        return Latency(None, None, None, late, peak_mb)
    cuts = statistics.quantiles(took, n=100, method="inclusive")
    return Latency(cuts[49], cuts[94], cuts[98], late, peak_mb)


def _listen(connection: Any, seen: dict[str, float], count: int, sent_all: threading.Event) -> None:
    """Until everything was seen, or for so long after the last one was sent: a full machine holds up the sender too."""
    over_s = math.inf
    while len(seen) < count and time.monotonic() < over_s:
        select.select([connection], [], [], 0.1)
        connection.poll()
        now = time.monotonic()
        seen.update((notice.payload, now) for notice in connection.notifies)
        connection.notifies.clear()
        if sent_all.is_set():
            over_s = min(over_s, now + PATIENCE_S)


def _sale(number: int) -> tuple[str, str]:
    reference, stamp = f"L-{number:06d}", datetime.now(UTC).isoformat()
    data = {"order_id": reference, "customer_id": f"C{random.randrange(1_000):06d}", "total_amount": 19.9}
    body = {"event": EventType.ORDER_COMPLETED, "timestamp": stamp, "organization_id": "default", "data": data}
    return reference, json.dumps(body)
