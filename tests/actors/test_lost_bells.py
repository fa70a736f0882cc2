"""Bells and internal messages that are lost, refused or malformed cost a sweep, and no thread."""

from typing import Any

import dramatiq
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import ConnectionClosed
from structlog.testing import capture_logs

from customer_actors.actors.pipeline import Pipeline, now_us
from customer_actors.actors.sweeper import Sweeper
from tests.actors.working import THREADS, running
from tests.model.examples import order
from tests.servers.process import wait_until
from tests.storage.support import Storage

SWEEP_S = 5
"""A bell is left alone for so long, too."""


class Away(StubBroker):
    """Takes declarations, refuses messages."""

    def enqueue(self, message: Any, *, delay: int | None = None) -> Any:
        raise ConnectionClosed("away")  # type: ignore[no-untyped-call]


def test_a_broker_that_is_away_costs_no_error_and_the_bell_row_stays(storage: Storage) -> None:
    pipeline = Pipeline(Away(middleware=[]), storage.stores())
    bell = storage.append([order("1", "10")]).bell
    with capture_logs() as logs:
        pipeline.ring(bell)
        pipeline.ring_actor("stats", [storage.number()])
        pipeline.ring_held("stats", storage.number(), 1)
        assert pipeline.advance("stats", [storage.number()]).applied == 1
    assert [line["event"] for line in logs if line["log_level"] == "warning"] == ["not rung"] * 4
    assert storage.value("SELECT count(*) FROM bell") == 1


def test_purged_queues_and_lost_bells_cost_one_sweep(storage: Storage) -> None:
    now = [now_us()]
    with running(storage, clock=lambda: now[0]) as service:
        assert isinstance(service.broker, StubBroker)
        sweeper = Sweeper(service.pipeline, SWEEP_S)
        service.worker.pause()
        for number in range(5):
            bell = storage.append(
                [order(f"{number}-{each}", "10", customer_id=f"c{each}") for each in range(9)], now[0]
            )
            service.pipeline.ring(bell.bell)
        assert sum(queue.qsize() for queue in service.broker.queues.values()) > 0
        service.broker.flush_all()
        service.worker.resume()
        assert (service.idle(), service.through()) == (True, False)
        now[0] += 2 * SWEEP_S * 1_000_000
        sweeper.sweep()
        wait_until(service.idle)
        assert service.through()
        assert storage.value("SELECT count(*) FROM stats_state WHERE position = 5") == 9
        sweeper.sweep()
        assert storage.value("SELECT count(*) FROM bell") == 0


def test_start_up_rings_whoever_waits_whatever_became_of_the_bell(storage: Storage) -> None:
    storage.append([order("1", "10", on_credit=True)])
    storage.database.execute("DELETE FROM bell")
    with running(storage, sweep_s=3_600) as service:
        wait_until(service.through)


MALFORMED: dict[str, tuple[Any, ...]] = {
    "dispatcher": ({"no.such.type": [1]},),
    "stats": ("x",),
    "loyalty": (),
    "held": (1,),
}


def test_malformed_internal_messages_take_no_thread_away(storage: Storage) -> None:
    with running(storage) as service:
        for _ in range(2 * THREADS):
            for name, arguments in MALFORMED.items():
                message: dramatiq.Message[Any] = dramatiq.Message(name, name, arguments, {}, {})
                service.broker.enqueue(message)
        service.take(order("1", "10"))
        wait_until(service.through)
    assert any(raised for _, raised in service.seen.processed)
