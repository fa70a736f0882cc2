"""Runs the sweep in a thread of every worker process, from start-up to shutdown."""

import os
import signal
import threading
from collections.abc import Callable
from typing import Final

import dramatiq
import structlog
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.stub import StubBroker
from pika.exceptions import AMQPError

from customer_actors.actors.nightly import Nights
from customer_actors.actors.pipeline import BROKER_ERRORS, Pipeline
from customer_actors.actors.watchdog import Watchdog
from customer_actors.errors import CustomerActorsError
from customer_actors.groups.sweep import sweep
from customer_actors.storage.beats import Kind, beat, end_beat
from customer_actors.storage.bells import remove_bells
from customer_actors.storage.overdue import all_behind, overdue

_END_S: Final = 3.0
"""How long a worker whose main process is gone may take to begin its shutdown."""

log = structlog.get_logger(__name__)


class Sweeper(dramatiq.Middleware):
    """Starts with the worker, looks at everybody once, then every `interval_s` at the customers of old bells."""

    def __init__(
        self,
        pipeline: Pipeline,
        interval_s: float,
        parent: int | None = None,
        watchdog: Watchdog | None = None,
        nights: Nights | None = None,
        kind: Kind | None = None,
    ) -> None:
        """`parent`: the process without which this one has to end, lest a killed one leaves its workers behind.

        With a `kind` the sweep's thread also writes this process's beat, so that it needs no connection of its own; the
        `watchdog` tells of its threads.
        """
        self.pipeline = pipeline
        self.interval_s = interval_s
        self._parent = parent
        self._watchdog = watchdog
        self._nights = nights
        self._kind = kind
        self._after = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sweep", daemon=True)

    def after_worker_boot(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        self._thread.start()

    def before_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        self._stopping.set()
        self._thread.join(timeout=1)

    def _run(self) -> None:
        self._guarded(self._beat)
        self._guarded(self.look_at_everybody)
        if self._nights is not None:
            self._guarded(self._nights.ring_open)
        while not self._stopping.wait(self.interval_s):
            if self._parent not in (None, os.getppid()):
                self._end_with_the_main_process()
                break
            self._guarded(self._beat)
            self._guarded(self.sweep)
            self._guarded(self.sweep_nights)
        self._guarded(self._end_beat)
        self.pipeline.stores.database.release()

    def _end_with_the_main_process(self) -> None:
        log.warning("the main process is gone", then="this worker ends")
        os.kill(os.getpid(), signal.SIGTERM)
        # While starting, our main thread tells that one that it is ready, and would wait for its answer for ever.
        if not self._stopping.wait(_END_S):
            os._exit(os.EX_SOFTWARE)

    def _beat(self) -> None:
        if self._kind is not None:
            expected, alive = (1, 1) if self._watchdog is None else self._watchdog.threads()
            pipeline = self.pipeline
            now_us, alarm = pipeline.clock(), pipeline.alarm_text()
            beat(pipeline.stores.database, self._kind, now_us, expected=expected, alive=alive, alarm=alarm)

    def _end_beat(self) -> None:
        if self._kind is not None:
            end_beat(self.pipeline.stores.database, self._kind)

    def _guarded(self, work: Callable[[], object]) -> None:
        """A sweep that fails is only late: the next one does its work too."""
        try:
            with self.pipeline.stores.database.scope():
                work()
        except (CustomerActorsError, *BROKER_ERRORS) as error:
            log.warning("sweep failed", error=str(error), then=f"again in {self.interval_s:g} s")
        except Exception:
            log.exception("sweep failed", then=f"again in {self.interval_s:g} s")

    def look_at_everybody(self) -> None:
        """Ring every customer whose head is past a position, whoever appended it and whatever became of the bell."""
        for actor, customers in all_behind(self.pipeline.stores).items():
            self.pipeline.ring_actor(actor, customers)

    def sweep(self) -> int:
        """One sweep; returns how many customers were rung."""
        pipeline = self.pipeline
        found = overdue(pipeline.stores, pipeline.clock(), int(self.interval_s * 1_000_000), self._after)
        self._after = found.last_bell
        database = pipeline.stores.database
        rung = sweep(found, pipeline, self._busy, lambda bells: remove_bells(database, bells))
        if rung:
            log.info("swept", customers=rung)
        return rung

    def sweep_nights(self) -> None:
        """Ring the nightly runs that nobody works on."""
        if self._nights is not None and (rung := self._nights.sweep(int(self.interval_s * 1_000_000), self._busy)):
            log.info("swept", nights=rung)

    def _busy(self, actor: str) -> bool:
        """Whether the actor's queue has messages nobody took yet: then ringing again would only lengthen it."""
        broker = self.pipeline.broker
        if isinstance(broker, RabbitmqBroker):
            try:
                ready: int = broker.get_queue_message_counts(actor)[0]
            except AMQPError:
                # This thread's connection was closed, perhaps for being idle. Ringing makes a new one, asking does not.
                del broker.connection
                return False
            return ready > 0
        return isinstance(broker, StubBroker) and broker.queues[actor].qsize() > 0
