"""Sends messages as a publisher would: persistent, mandatory and confirmed (the `publish` command)."""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from itertools import takewhile
from typing import Any, Final, NamedTuple

import pika
from pika.adapters.select_connection import IOLoop
from pika.channel import Channel
from pika.connection import Connection
from pika.exceptions import ChannelClosedByBroker
from pika.frame import Method
from pika.spec import Basic, BasicProperties

from customer_actors.errors import CustomerActorsError, Outage, UsageError
from customer_actors.ingest.connection import parameters, reason
from customer_actors.ingest.topology import SOURCES

_EXCHANGES: Final = {str(routing_key): source.exchange for source in SOURCES for routing_key in source.routing_keys}
_PROPERTIES: Final = BasicProperties(content_type="application/json", delivery_mode=2)
_GOODBYE_S: Final = 2.0
"""How long to wait for the broker's answer to closing."""


class PublishReport(NamedTuple):
    """What the broker said of each message; the three add up to all of them."""

    confirmed: int
    """In a queue, on disk."""
    returned: int
    """No queue is bound for it; it is gone."""
    nacked: int
    """The broker could not take it."""


def exchange_for(routing_key: str) -> str:
    """The exchange of an event type. Raises `UsageError` for a type that no queue listens to."""
    try:
        return _EXCHANGES[routing_key]
    except KeyError:
        known = ", ".join(_EXCHANGES)
        raise UsageError(f"no exchange carries events of type {routing_key[:64]!r}; the types are {known}") from None


def publish(
    url: str,
    messages: Iterable[tuple[str, bytes]],
    *,
    progress: Callable[[int], None] | None = None,
    window: int = 500,
) -> PublishReport:
    """Send (routing key, body) pairs in order and wait until the broker has answered for each.

    Messages are drawn only as the broker confirms, so an endless iterable needs no memory.

    Args:
        progress: called in this thread with the number confirmed so far, whenever it has grown.
        window: most messages under way without an answer.

    Raises:
        UsageError: a bad URL or window, an unknown routing key (what came before it is sent), or an exchange that is
            missing or forbidden.
        Outage: no connection, or it was lost. The text says how many messages were confirmed; others may have arrived.
    """
    if window < 1:
        raise UsageError("the window must be at least 1")
    sender = _Sender(parameters(url, "customer-actors publish"), window, progress or (lambda _: None))
    try:
        sender.wait_until_open()
        try:
            for routing_key, body in messages:
                sender.send(exchange_for(routing_key), routing_key, body)
        except Exception:
            sender.wait_until_answered()
            raise
        return sender.wait_until_answered()
    finally:
        sender.close()


class _Sender:
    """A connection in a thread of its own, so that heartbeats go on however slowly the messages come."""

    def __init__(self, to: pika.URLParameters, window: int, progress: Callable[[int], None]) -> None:
        self._broker = f"RabbitMQ at {to.host}:{to.port}"
        self._window = window
        self._progress = progress
        self._reported = 0
        # Shared by the two threads and guarded by the condition.
        self._changed = threading.Condition()
        self._outbox: deque[tuple[str, str, bytes]] = deque()
        self._sent = self._acked = self._returned = self._nacked = 0
        self._opened = False
        self._failure: BaseException | None = None
        # The pika thread's own.
        self._published = 0
        self._unanswered: dict[int, None] = {}
        self._loop = IOLoop()
        self._connection = pika.SelectConnection(
            to,
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._on_channel),
            on_open_error_callback=self._on_lost,
            on_close_callback=self._on_lost,
            custom_ioloop=self._loop,
        )
        self._thread = threading.Thread(target=self._run, name="publish", daemon=True)
        self._thread.start()

    # --- the caller's thread -----------------------------------------------------------------------------------------

    def wait_until_open(self) -> None:
        self._wait_for(lambda: self._opened)

    def send(self, exchange: str, routing_key: str, body: bytes) -> None:
        """Hand a message over as soon as the window has room."""
        self._wait_for(lambda: self._failure is None and self._under_way() < self._window)
        with self._changed:
            self._sent += 1
            self._outbox.append((exchange, routing_key, body))
            asleep = len(self._outbox) == 1
        if asleep:
            self._loop.add_callback_threadsafe(self._empty_outbox)

    def wait_until_answered(self) -> PublishReport:
        self._wait_for(lambda: self._under_way() == 0)
        return PublishReport(self._confirmed(), self._returned, self._nacked)

    def close(self) -> None:
        self._loop.add_callback_threadsafe(self._say_goodbye)
        self._thread.join(_GOODBYE_S)
        self._loop.add_callback_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _wait_for(self, reached: Callable[[], bool]) -> None:
        """Wait, reporting progress meanwhile; raises why it cannot be reached any more."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: reached() or self._failure or self._confirmed() > self._reported)
                confirmed, over, failure = self._confirmed(), reached(), self._failure
            if confirmed > self._reported:
                self._reported = confirmed
                self._progress(confirmed)
            if over:
                return
            if failure is not None:
                raise self._explained(failure)

    def _under_way(self) -> int:
        return self._sent - self._acked - self._nacked

    def _confirmed(self) -> int:
        # A message is returned first and then acknowledged like any other.
        return self._acked - self._returned

    def _explained(self, failure: BaseException) -> CustomerActorsError:
        confirmed = f"{self._confirmed()} messages were confirmed"
        if isinstance(failure, ChannelClosedByBroker):
            return UsageError(
                f"{self._broker} refused: {reason(failure)}; {confirmed}. "
                "`customer-actors ingest` makes missing exchanges; publishers need the permission to write to them"
            )
        happened = "went away" if self._opened else "cannot be reached"
        return Outage(f"{self._broker} {happened} ({reason(failure)}); {confirmed}")

    # --- the pika thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._loop.start()
        except Exception as error:
            self._fail(error)

    def _on_channel(self, channel: Channel) -> None:
        self._channel = channel
        channel.add_on_close_callback(lambda _, error: self._fail(error))
        channel.add_on_return_callback(self._on_returned)
        channel.confirm_delivery(self._on_answer, callback=self._on_open)

    def _on_open(self, _: Any) -> None:
        with self._changed:
            self._opened = True
            self._changed.notify()

    def _empty_outbox(self) -> None:
        with self._changed:
            messages, self._outbox = self._outbox, deque()
        for exchange, routing_key, body in messages:
            if not self._channel.is_open:
                return
            self._channel.basic_publish(exchange, routing_key, body, _PROPERTIES, mandatory=True)
            self._published += 1
            self._unanswered[self._published] = None

    def _on_answer(self, frame: Method[Basic.Ack | Basic.Nack]) -> None:
        tag, several = frame.method.delivery_tag, frame.method.multiple
        answered = list(takewhile(lambda each: each <= tag, self._unanswered)) if several else [tag]
        for each in answered:
            del self._unanswered[each]
        with self._changed:
            if isinstance(frame.method, Basic.Nack):
                self._nacked += len(answered)
            else:
                self._acked += len(answered)
            self._changed.notify()

    def _on_returned(self, *_: object) -> None:
        with self._changed:
            self._returned += 1

    def _on_lost(self, _: Connection, error: BaseException) -> None:
        self._fail(error)
        self._loop.stop()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._failure = self._failure or error
            self._changed.notify()

    def _say_goodbye(self) -> None:
        if not (self._connection.is_closing or self._connection.is_closed):
            self._connection.close()
