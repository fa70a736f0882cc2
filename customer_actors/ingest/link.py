"""One connection to one queue, and the inbox where the deliveries of all queues meet."""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import pika
from pika.adapters.select_connection import IOLoop
from pika.channel import Channel
from pika.connection import Connection
from pika.spec import Basic, BasicProperties

from customer_actors.domain.envelope import Received

LOOK_S: Final = 0.1
"""How long a thread waits before it looks whether to stop: a flag, since a signal handler must not take a lock."""

_TRUSTED_RETURNS: Final = 2
"""A message that came back more often may be what ends connections, and is taken alone."""

_HURRY_S: Final = 1.0
_HURRIED_SHARE: Final = 8
"""While one queue floods and another trickles, batches are an eighth: whatever comes waits for two of them."""

_IN_A_ROW: Final = 1_000
"""So many messages of one customer make a flood of one; a backlog that is grouped by customer is everybody's."""
_REST_S: Final = 0.1
"""Such a flood goes alone only when nobody else has come for so long: then others rarely meet its batch."""
_RIDERS: Final = 24
"""Meanwhile so many of its messages, at most, ride along with each batch of the others: a few milliseconds more for
them. Not more after a slow batch, which would make the next one slower still."""


class Delivery(NamedTuple):
    link: "Link"
    """Whence it came and the only place where its tag means anything."""
    tag: int
    received: Received


class Inbox:
    """Deliveries on their way from the pika thread to the SQL thread.

    Each connection has its share of a batch: what comes by a trickle does not wait behind the flood of another queue,
    and while it comes, batches are small. Floods alone, or together, have full ones. A flood of one customer beside
    a trickle rides along with its batches besides, so that the others rarely wait for one of the flood, or for the
    processors it would take; one of many customers does not: those wait for each other anyway.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._hurried = max(1, size // _HURRIED_SHARE)
        self._waiting: dict[Link, deque[tuple[int, Delivery]]] = {}
        """Numbered in order of arrival, by connection."""
        self._arrived = 0
        self._taken = 0
        self._hurry_until_s = 0.0
        self._urgent = False
        self._changed = threading.Condition()

    def put(self, delivery: Delivery, urgent: bool) -> None:
        """Urgent: nothing more will come before this one is acknowledged, so do not wait for company."""
        with self._changed:
            self._arrived += 1
            first = delivery.link not in self._waiting
            self._waiting.setdefault(delivery.link, deque()).append((self._arrived, delivery))
            self._urgent |= urgent
            # Waking the other thread for every message would cost more than the message.
            if urgent or first or self._arrived - self._taken in (self._hurried, self._size):
                self._changed.notify()

    def take(self, not_before_s: float) -> list[Delivery]:
        """The next batch, full or at `not_before_s` (monotonic), in order of arrival; empty when nothing comes for a
        while."""
        with self._changed:
            if not self._changed.wait_for(self._awake, self._look_s()):
                return []
            self._changed.wait_for(self._complete, not_before_s - time.monotonic())
            self._urgent = False
            return self._batch()

    def pace(self, batch: Sequence[Delivery], customers: Sequence[str | None]) -> None:
        """Have a flood of one customer rest while others trickle: it only rides along with them.

        Args:
            batch: what was taken last, and is committed.
            customers: whom each of its messages is about; None: nobody, or it was refused.
        """
        for delivery, customer in zip(batch, customers, strict=True):
            if customer is None:  # whom nobody waits for
                continue
            link = delivery.link
            link.in_a_row = link.in_a_row + 1 if customer == link.whom else 1
            link.whom = customer
        with self._changed:
            now_s = time.monotonic()
            for link in {delivery.link for delivery in batch}:
                floods = len(self._waiting.get(link, ())) > self._hurried
                of_one = link.whom is not None and link.in_a_row >= _IN_A_ROW
                rests = floods and of_one and now_s <= self._hurry_until_s
                link.rests_until_s = now_s + _REST_S if rests else 0.0

    def _awake(self) -> "list[Link]":
        """Who has something waiting and does not rest."""
        now_s = time.monotonic()
        return [link for link in self._waiting if not link.rests(now_s)]

    def _look_s(self) -> float:
        """How long to wait for somebody to be awake."""
        now_s = time.monotonic()
        return min(LOOK_S, *(link.rests_until_s - now_s for link in self._waiting)) if self._waiting else LOOK_S

    def _complete(self) -> bool:
        return self._urgent or sum(len(self._waiting[link]) for link in self._awake()) >= self._full(time.monotonic())

    def _full(self, now_s: float) -> int:
        """How many messages are a batch at present."""
        return self._size if now_s > self._hurry_until_s else self._hurried

    def _batch(self) -> list[Delivery]:
        """The oldest of each connection, evenly; what one does not need of its share is the others'. Besides, whoever
        rides along, in nobody's room."""
        numbered: list[tuple[int, Delivery]] = []
        size, now_s = self._batch_size(), time.monotonic()
        resting = [link for link in self._waiting if link.rests(now_s)]
        links = sorted(self._waiting.keys() - resting, key=lambda link: self._turn(link, size))
        for left, link in zip(range(len(links), 0, -1), links, strict=True):
            numbered += self._oldest(link, -(-(size - len(numbered)) // left))
        for link in resting:
            numbered += self._oldest(link, min(_RIDERS, self._hurried, self._size - len(numbered)))
        self._taken += len(numbered)
        numbered.sort(key=lambda each: each[0])
        return [delivery for _, delivery in numbered]

    def _oldest(self, link: "Link", most: int) -> list[tuple[int, Delivery]]:
        waiting = self._waiting[link]
        taken = [waiting.popleft() for _ in range(min(most, len(waiting)))]
        if not waiting:
            del self._waiting[link]
        return taken

    def _batch_size(self) -> int:
        lengths, now_s = [len(waiting) for waiting in self._waiting.values()], time.monotonic()
        if min(lengths) < self._size // len(lengths) < max(lengths):
            self._hurry_until_s = now_s + _HURRY_S
        return self._full(now_s)

    def _turn(self, link: "Link", size: int) -> int:
        """The shortest first, who leaves most to the others. Where not everybody can have one: who waits longest."""
        waiting = self._waiting[link]
        return len(waiting) if size >= len(self._waiting) else waiting[0][0]


class Link:
    """One connection to one queue; lives in the pika thread. It is never used again once lost.

    It starts with a prefetch of one, and changes to the full one as soon as the message in hand has not come back more
    than twice. So a message that kills the connection takes others with it two or three times, far from their delivery
    limit, and is then met alone [M7]. Not sooner: what a quorum queue gets back it puts behind what it got back before,
    so returning fewer messages than the last time, twice in a row, would change their order. (Only a second loss within
    the milliseconds of a connection's first message still moves that one message.)

    A prefetch changes only with the consumer, and nothing may be under way then: a cancelled consumer's standby is
    given the messages that follow. So the one in hand is committed, then the consumer cancelled, then it acknowledged.
    """

    def __init__(
        self,
        queue: str,
        prefetch: int,
        inbox: Inbox,
        consuming: "Callable[[Link, int], None]",
        lost: "Callable[[Link, BaseException | None], None]",
    ) -> None:
        """
        Args:
            consuming: told, with the prefetch, when the broker starts to deliver.
            lost: told when the connection is closed or could not be made; without an error after `close`.
        """
        self.queue = queue
        self.alive = True
        """False once its messages are the broker's again; the SQL thread may say so too."""
        self.whom: str | None = None
        self.in_a_row = 0
        """Whom its last message was about, and how many before it too; with what follows, the inbox's."""
        self.rests_until_s = 0.0
        """Monotonic: as a flood of one customer (`Inbox.pace`)."""
        self.prefetch = 1
        """Most messages under way: one, later the full prefetch."""
        self._full_prefetch = prefetch
        self._alone = False
        self._inbox = inbox
        self._report_consuming = consuming
        self._report_lost = lost
        self._connection: Connection | None = None
        self._channel: Channel | None = None
        self._consumer_tag = ""
        self._error: BaseException | None = None

    @property
    def closed(self) -> bool:
        return self._connection is None

    def rests(self, now_s: float) -> bool:
        """Whether it only rides along; what a lost connection has left is not kept back."""
        return self.alive and now_s < self.rests_until_s

    def open(self, to: pika.URLParameters, loop: IOLoop) -> None:
        self._connection = pika.SelectConnection(
            to,
            on_open_callback=lambda connection: connection.channel(on_open_callback=self._on_channel),
            on_open_error_callback=self._on_lost,
            on_close_callback=self._on_lost,
            custom_ioloop=loop,
        )

    def acknowledge(self, tag: int) -> None:
        """Everything up to this tag is committed."""
        channel = self._channel
        if channel is None or not channel.is_open:
            return
        if self.prefetch < self._full_prefetch and not self._alone:
            self.prefetch = self._full_prefetch
            channel.basic_cancel(self._consumer_tag, callback=lambda _: self._consume(channel))
        channel.basic_ack(tag, multiple=True)

    def close(self) -> None:
        """Close the connection; whatever is not acknowledged is the broker's again."""
        self.alive = False
        if self._channel is not None:
            # pika would cancel the consumer first: the broker would hand the standby what follows our messages before
            # it has these back.
            self._channel.basic_cancel = lambda *_, **__: None  # type: ignore[method-assign]
        if self._connection is not None and not (self._connection.is_closing or self._connection.is_closed):
            self._connection.close()

    def _on_channel(self, channel: Channel) -> None:
        self._channel = channel
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_cancel_callback(self._on_queue_gone)
        self._consume(channel)

    def _consume(self, channel: Channel) -> None:
        def start(_: Any) -> None:
            if channel.is_open:
                self._consumer_tag = channel.basic_consume(
                    self.queue, self._on_message, callback=lambda _: self._report_consuming(self, self.prefetch)
                )

        if channel.is_open:
            channel.basic_qos(prefetch_count=self.prefetch, callback=start)

    def _on_message(self, _: Channel, method: Basic.Deliver, properties: BasicProperties, body: bytes) -> None:
        assert method.delivery_tag is not None
        # The broker's count of returns to a quorum queue; on a new message a publisher may have set the header.
        returns = (properties.headers or {}).get("x-delivery-count")
        self._alone = bool(method.redelivered) and isinstance(returns, int) and returns > _TRUSTED_RETURNS
        received = Received.of(
            body, _text(method.routing_key), time.time_ns() // 1000, _text(properties.content_encoding)
        )
        self._inbox.put(Delivery(self, method.delivery_tag, received), urgent=self.prefetch == 1)

    def _on_queue_gone(self, _: Any) -> None:
        if self._channel is not None and self._channel.is_open:
            self._channel.close(reply_text="the queue is gone")

    def _on_channel_closed(self, _: Channel, error: BaseException) -> None:
        self._error = error
        if self._connection is not None and self._connection.is_open:
            self._connection.close()

    def _on_lost(self, _: Connection, error: BaseException) -> None:
        self._connection = self._channel = None
        self._report_lost(self, (self._error or error) if self.alive else None)
        self.alive = False


def _text(value: str | bytes | None) -> str | None:
    """A property as text: pika leaves one that is not UTF-8 as bytes."""
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value
