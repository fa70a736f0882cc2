"""Which broker carries the bells, with the middleware listed one by one.

Dramatiq's default set holds TimeLimit and ShutdownNotifications, whose asynchronous exceptions inside a commit leave
the interrupted work to be committed by the next message (docs/guarantees.md M9), and a Prometheus server on all
interfaces. None of them is here: statement, lock and idle timeouts bound the work instead.
"""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import dramatiq
import pika
import structlog
from dramatiq.broker import Consumer, MessageProxy
from dramatiq.brokers.rabbitmq import RabbitmqBroker, _RabbitmqConsumer
from dramatiq.brokers.stub import StubBroker
from dramatiq.common import q_name
from dramatiq.errors import ConnectionClosed
from dramatiq.middleware import Retries
from pika.exceptions import AMQPError

from customer_actors.actors.encoding import StrictEncoder, refusal
from customer_actors.amqp import bounded
from customer_actors.errors import Outage, UsageError
from customer_actors.raw_frames import RawConnection

MIN_BACKOFF_MS: Final = 500
MAX_BACKOFF_MS: Final = 30_000
"""Backoff of a bundle that met an outage; it is tried for ever, for the sweep would ring it again anyway."""


MOST_RETRIES: Final = 10
"""Of a message that fails for another reason: it is malformed or meets a bug. The sweep rings its customers anew."""

_CONSUMER: Final = "customer_actors_consumer"
"""The attribute of a message that names whom it was delivered to."""

log = structlog.get_logger(__name__)


def _again(retries: int, error: BaseException) -> bool:
    return retries < MOST_RETRIES or isinstance(error, Outage | dramatiq.Retry)


def _middleware() -> list[dramatiq.Middleware]:
    return [Retries(retry_when=_again, min_backoff=MIN_BACKOFF_MS, max_backoff=MAX_BACKOFF_MS)]


class _RawConsumer(_RabbitmqConsumer):
    """Dramatiq's consumer on a connection that decodes no header, for one can end its connection, time and again (M6).

    Dramatiq reads bodies only. So a message with such a header is worked on, or refused for its body, like any other.
    """

    def __init__(self, broker: RabbitmqBroker, queue_name: str, prefetch: int, timeout: int) -> None:
        self.broker, self.queue_name = broker, queue_name
        self.logger = logging.getLogger(__name__)
        self.known_tags: set[int] = set()
        try:
            self.connection = pika.BlockingConnection(
                broker.parameters,
                _impl_class=RawConnection,  # type: ignore[arg-type]
            )
            self.channel = self.connection.channel()
            self.channel.basic_qos(prefetch_count=prefetch)
            self.iterator = self.channel.consume(queue_name, inactivity_timeout=timeout / 1_000)
        except AMQPError as error:
            raise ConnectionClosed(error) from None  # type: ignore[no-untyped-call]


class CarefulConsumer(Consumer):
    """Dramatiq's consumer of one queue, which hands on only messages that its worker threads survive.

    What is refused goes to the queue's dead letters (NAME.XQ, seven days), and the sweep rings again. A message of an
    earlier connection is not acknowledged on this one, where its number belongs to another message (M1).
    """

    def __init__(self, broker: RabbitmqBroker, queue_name: str, inner: Consumer) -> None:
        self._broker = broker
        self._queue_name = queue_name
        self._inner = inner

    def __next__(self) -> MessageProxy | None:
        try:
            message = next(self._inner)
        except StopIteration:  # the broker cancelled us: the queue was deleted
            self._broker.queues_pending.add(q_name(self._queue_name))
            raise ConnectionClosed(f"queue {self._queue_name} was deleted") from None  # type: ignore[no-untyped-call]
        if message is None:
            return None
        setattr(message, _CONSUMER, self)
        reason = self._refusal(message)
        if reason is None:
            return message
        log.warning("refused a message between actors", queue=self._queue_name, reason=reason, then="the sweep rings")
        self._inner.nack(message)
        return None

    def _refusal(self, message: MessageProxy) -> str | None:
        """Why the message may not reach a worker thread; None: it may."""
        if message.queue_name != self._queue_name:
            return "belongs to another queue"
        if self._queue_name != q_name(self._queue_name) and not message.options.get("eta"):
            return "waits in a delay queue for no time"
        actor = self._broker.actors.get(message.actor_name)
        return "names no actor of ours" if actor is None else refusal(actor.fn, message.args)

    def ack(self, message: MessageProxy) -> None:
        if getattr(message, _CONSUMER, None) is self:
            self._inner.ack(message)

    def nack(self, message: MessageProxy) -> None:
        if getattr(message, _CONSUMER, None) is self:
            self._inner.nack(message)

    def requeue(self, messages: Iterable[MessageProxy]) -> None:
        with _closing():
            self._inner.requeue(messages)

    def close(self) -> None:
        with _closing():
            self._inner.close()


@contextmanager
def _closing() -> Iterator[None]:
    """Dramatiq ends a worker in the main thread, also while a consumer's own thread has not stopped in time and still
    has the connection, which pika forbids. Whatever comes of it: the broker takes back what is not acknowledged, and
    the process must not end with a traceback.
    """
    try:
        yield
    except Exception as error:
        raise ConnectionClosed(error) from error  # type: ignore[no-untyped-call]


class CarefulBroker(RabbitmqBroker):
    """RabbitMQ with publisher confirms and careful consumers."""

    consumer_class = _RawConsumer

    def __init__(self, url: str) -> None:
        super().__init__(url=bounded(url), confirm_delivery=True, middleware=_middleware())

    def consume(self, queue_name: str, prefetch: int = 1, timeout: int = 5000) -> Consumer:
        return CarefulConsumer(self, queue_name, super().consume(queue_name, prefetch, timeout))


def make_broker(rabbitmq_url: str | None) -> dramatiq.Broker:
    """A RabbitMQ broker with publisher confirms, or the in-process one without a URL. Connects on first use.

    Also makes our strict JSON the encoder of this process, for messages between actors.

    Raises:
        UsageError: the URL switches off what keeps a connection safe.
    """
    dramatiq.set_encoder(StrictEncoder())
    if rabbitmq_url is None:
        return StubBroker(middleware=_middleware())
    broker = CarefulBroker(rabbitmq_url)
    require_safe(broker)
    return broker


def require_safe(broker: Any) -> None:
    """The boot checks of a broker, not connected yet.

    Raises:
        UsageError: messages could be pickled, lost unnoticed, or wait for ever on a dead connection.
    """
    if not isinstance(dramatiq.get_encoder(), StrictEncoder):
        raise UsageError("messages between actors must be our JSON: remove the other call of dramatiq.set_encoder")
    if not broker.confirm_delivery:
        raise UsageError("publisher confirms are off and bells could be lost unnoticed: set confirm_delivery=True")
    if not broker.parameters.heartbeat:
        raise UsageError("RABBITMQ_URL switches the heartbeat off: remove heartbeat=0 from it")
