"""The consumer of the three queues: batches in, committed, then acknowledged [A1, G1].

Two threads. The one that calls `run` owns pika and serves heartbeats; the SQL thread calls `take` with one batch after
another, in delivery order. Between them stands the inbox, bounded by the prefetch [G12].

Each queue has a connection of its own. A message that kills its connection while pika decodes it [M6] then charges
nobody else: with one connection for all, the heads of the other queues were returned with every death, and
dead-lettered together with it.
"""

import math
import random
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

import pika
import structlog
from pika.adapters.select_connection import IOLoop
from pika.exceptions import AMQPError

from customer_actors.domain.envelope import Received
from customer_actors.errors import Outage, UsageError
from customer_actors.ingest import topology
from customer_actors.ingest.connection import parameters, reason
from customer_actors.ingest.link import LOOK_S, Delivery, Inbox, Link
from customer_actors.ingest.losses import Losses, Outages
from customer_actors.ingest.spacing import Spacing
from customer_actors.telemetry import redact

_MOST_PREFETCH: Final = 65_535
"""AMQP has 16 bits for it."""
_FIRST_RETRY_S: Final = 0.2
_LONGEST_RETRY_S: Final = 5.0
_LAST_BATCH_S: Final = 2.5
"""How long a stop waits for the batch in hand."""
_GOODBYE_S: Final = 0.5
"""How long a stop waits for the broker's answer to closing."""


def retry_s(failures: int) -> float:
    """Seconds to wait after so many failures in a row: 0.2, doubling up to 5, with jitter."""
    doubled_s: float = _FIRST_RETRY_S * 2 ** min(failures - 1, 10)
    return min(_LONGEST_RETRY_S, doubled_s * random.uniform(1, 1.5))


class Consumer:
    """Consumes the queues of the topology until told to stop."""

    def __init__(
        self,
        url: str,
        take: Callable[[list[Received]], Sequence[str | None]],
        *,
        batch_size: int,
        batch_age_s: float,
        prefetch: int,
        ready: Callable[[], None] | None = None,
        log: structlog.typing.FilteringBoundLogger | None = None,
    ) -> None:
        """
        Args:
            take: commits a batch and says whom each message is about. Returning means committed; `Outage` means the
                database is away, everything goes back to the broker and is delivered again; anything else ends `run`.
            batch_size: most messages in a batch.
            batch_age_s: least seconds between the starts of two batches unless one is full; more on a busy machine
                (`Spacing`). After a pause the first message is handed over at once, so this costs a trickle nothing and
                bounds the bells per second.
            prefetch: most messages of one queue in memory; every connection starts with one (`Link` says why).
            ready: called in the SQL thread before a connection consumes; raises `Outage` while the database is away.

        Raises:
            UsageError: a bad URL or number.
        """
        if batch_size < 1 or not 1 <= prefetch <= _MOST_PREFETCH or batch_age_s < 0:
            raise UsageError(
                f"batch size and prefetch ({_MOST_PREFETCH} at most) must be positive, the batch age not less"
            )
        self._parameters = {queue: parameters(url, f"customer-actors ingest {queue}") for queue in topology.QUEUES}
        self._take = take
        self._ready = ready
        self._prefetch = prefetch
        self._spacing = Spacing(batch_age_s)
        self._log: structlog.typing.FilteringBoundLogger = log or structlog.get_logger(__name__)
        # A batch must not wait for messages that the broker will not send.
        self._inbox = Inbox(min(batch_size, prefetch))
        self._links: dict[str, Link] = {}
        self._due_s = dict.fromkeys(topology.QUEUES, 0.0)
        """When to connect to a queue, in monotonic seconds; infinite while there is a link."""
        self._failures = dict.fromkeys(topology.QUEUES, 0)
        self._losses = Losses()
        self._warned: set[str] = set()
        self._batch: list[Delivery] = []
        self._begun_s = 0.0
        self._outages = Outages()
        self._stopping = False
        self._abandon_s = math.inf
        self._end_s = math.inf
        self._failure: BaseException | None = None

    def run(self) -> None:
        """Consume until `stop`, reconnecting by itself. Call it once.

        Raises:
            UsageError: a queue or the database cannot be used as it is.
            Exception: what else `take` raised, after the connections were closed; the broker keeps the messages.
        """
        self._loop = IOLoop()
        self._loop.call_later(0, self._watch)
        worker = threading.Thread(target=self._work, name="ingest-sql", daemon=True)
        worker.start()
        try:
            self._loop.start()
        finally:
            self._stopping = True
            worker.join(LOOK_S)
            self._loop.close()
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Make `run` return within 4 s [G15]; from any thread or a signal handler.

        The batch in hand is finished and acknowledged, or else abandoned without an acknowledgement.
        """
        self._stopping = True

    def alarm(self) -> str | None:
        """What an operator should know about the queues and about committing what comes; from any thread."""
        now_s = time.monotonic()
        says = [f"{queue}: {lost}" for queue, lost in self._losses.alarming(now_s).items()]
        if stuck := self._outages.alarming(now_s):
            says.append(stuck)
        return "; ".join(says) or None

    # --- the SQL thread ----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            while not self._stopping:
                try:
                    self._connect()
                    self._commit()
                except Outage as outage:
                    self._step_back(outage)
        except BaseException as error:
            self._failure = error
        finally:
            self._stopping = True
            self._loop.add_callback_threadsafe(self._close)

    def _connect(self) -> None:
        """Connect to the queues whose time has come, if the database and the topology are fit for it."""
        now_s = time.monotonic()
        due = [queue for queue, due_s in self._due_s.items() if due_s <= now_s]
        if not due:
            return
        if self._ready is not None:
            self._ready()
        try:
            self._declare()
        except (AMQPError, OSError) as error:
            for queue in due:
                self._postpone(queue, error)
            return
        if self._stopping:
            return
        # In any order, lest one queue's head always be handed over together with another's that ends the process.
        for queue in random.sample(due, len(due)):
            self._due_s[queue] = math.inf
            link = Link(queue, self._prefetch, self._inbox, self._consuming, self._lost)
            self._links[queue] = link
            self._loop.add_callback_threadsafe(partial(link.open, self._parameters[queue], self._loop))

    def _declare(self) -> None:
        connection = pika.BlockingConnection(self._parameters[topology.QUEUES[0]])
        try:
            warnings = topology.declare(connection)
        finally:
            if connection.is_open:
                connection.close()
        for warning in warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                self._log.warning(warning)

    def _commit(self) -> None:
        """Commit the next batch and have it acknowledged."""
        deliveries = self._batch or self._inbox.take(self._begun_s + self._spacing.seconds)
        # What came over a lost connection is the broker's again, and will be delivered again.
        self._batch = [delivery for delivery in deliveries if delivery.link.alive]
        if not self._batch:
            return
        self._begun_s = time.monotonic()
        customers = self._take([delivery.received for delivery in self._batch])
        self._spacing.took(time.monotonic() - self._begun_s)
        self._inbox.pace(self._batch, customers)
        last_tags = {delivery.link: delivery.tag for delivery in self._batch}
        self._batch = []
        self._outages.committed()
        self._loop.add_callback_threadsafe(partial(_acknowledge, last_tags))

    def _step_back(self, outage: Outage) -> None:
        """Give everything back to the broker at once, and wait.

        A return counts towards the delivery limit. An outage that `ready` does not see (a lock held for minutes, a full
        disk) would send the same messages back time and again until they are dead letters. So while `ready` is content,
        a link that has one message only keeps it, to be tried again.
        """
        ready = self._is_ready()
        # The text ends in the beat, which no log's redaction passes.
        self._outages.failed(redact(str(outage)), time.monotonic(), away=not ready)
        wait_s = retry_s(self._outages.in_a_row)
        for link in self._links.values():
            if not ready or link.prefetch > 1:
                link.alive = False
                self._loop.add_callback_threadsafe(link.close)
        self._batch = [delivery for delivery in self._batch if delivery.link.alive]
        self._log.warning("outage", error=str(outage), kept=len(self._batch), retry_in_s=round(wait_s, 1))
        end_s = time.monotonic() + wait_s
        while not self._stopping and (left_s := end_s - time.monotonic()) > 0:
            time.sleep(min(left_s, LOOK_S))

    def _is_ready(self) -> bool:
        try:
            if self._ready is not None:
                self._ready()
        except Outage:
            return False
        return self._ready is not None

    # --- the pika thread ---------------------------------------------------------------------------------------------

    def _consuming(self, link: Link, prefetch: int) -> None:
        self._failures[link.queue] = 0
        if prefetch > 1:
            self._losses.through(link.queue)
        self._log.info("consuming", queue=link.queue, prefetch=prefetch)

    def _lost(self, link: Link, error: BaseException | None) -> None:
        if error is None:
            self._due_s[link.queue] = 0.0
        else:
            self._postpone(link.queue, error)

    def _postpone(self, queue: str, error: BaseException) -> None:
        self._failures[queue] += 1
        wait_s = retry_s(self._failures[queue])
        self._losses.lost(queue, reason(error), time.monotonic())
        self._log.warning("not connected", queue=queue, error=reason(error), retry_in_s=round(wait_s, 1))
        self._due_s[queue] = time.monotonic() + wait_s

    def _watch(self) -> None:
        """Keep what `stop` promises, however long the database or the broker take."""
        now_s = time.monotonic()
        if self._stopping and self._abandon_s == math.inf:
            self._abandon_s = now_s + _LAST_BATCH_S
        if now_s > self._abandon_s:
            self._close()
        closing = self._end_s < math.inf
        if now_s > self._end_s or (closing and all(link.closed for link in self._links.values())):
            self._loop.stop()
        else:
            self._loop.call_later(LOOK_S, self._watch)

    def _close(self) -> None:
        if self._end_s == math.inf:
            self._end_s = time.monotonic() + _GOODBYE_S
            for link in self._links.values():
                link.close()


def _acknowledge(last_tags: dict[Link, int]) -> None:
    for link, tag in last_tags.items():
        link.acknowledge(tag)
