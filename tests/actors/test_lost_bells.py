"""Bells and internal messages that are lost, refused or malformed cost a sweep, and no thread."""

from typing import Any

import dramatiq
from dramatiq.brokers.stub import StubBroker
from dramatiq.errors import ConnectionClosed
from structlog.testing import capture_logs

from customer_actors.actors.pipeline import Pipeline, now_us
from tests.actors.working import THREADS, running
from tests.model.examples import order
from tests.servers.process import wait_until
from tests.storage.support import Storage


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
    with running(storage, sweep_s=0.05) as service:
        for number in range(5):
            service.storage.append([order(str(number), "10"), order(f"{number}-2", "10", customer_id="c2")], now_us())
        wait_until(service.through)
        wait_until(lambda: storage.value("SELECT count(*) FROM bell") == 0)


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
