"""Messages that the broker gave up, put back where they came from (`quarantine retry --dead-letters`).

What is put back goes to exactly the queue it came from, not through the publishers' exchange, where others listen too.
It goes with its body, routing key and encoding, which is all that ingest reads, and without its headers: those may be
what ended the consumers. So a message that stood beside a poisonous one comes back as it was, and the poisonous one
comes back harmless.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final, NamedTuple

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import (
    AMQPError,
    ChannelClosedByBroker,
    NackError,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
    UnroutableError,
)
from pika.spec import Basic, BasicProperties

from customer_actors.errors import Outage, UsageError
from customer_actors.ingest.connection import parameters, reason
from customer_actors.ingest.topology import DEAD_LETTER_EXCHANGE, DEAD_LETTER_QUEUE, QUEUES, SOURCES
from customer_actors.raw_frames import Death, RawConnection, RawProperties, joined, last_death, split

RETRY_EXCHANGE_PREFIX: Final = "customer_retry."
"""A fanout for each queue, made for the time of a retry."""

NO_ORIGIN: Final = "nothing tells which queue it came from"
OTHER_QUEUE: Final = "it came from a queue that is not ours"
QUEUE_GONE: Final = "its queue does not exist (`customer-actors ingest` makes it)"
REFUSED: Final = "the broker could not take it back"

_NOT_FOUND: Final = 404
_ACCESS_REFUSED: Final = 403
_MOST_HELD_BYTES: Final = 32 * 1024 * 1024
"""Of kept messages in memory; a run that meets more of them ends early."""
_QUEUE_OF: Final = {str(key): source.queue for source in SOURCES for key in source.routing_keys}


class DeadLetterReport(NamedTuple):
    """What became of the dead letters that were looked at: `found` = `put_back` + `kept`."""

    found: int
    put_back: int
    """In their queue again, confirmed by the broker; in a dry run: those that would be."""
    kept: int
    """Still dead letters."""
    reasons: dict[str, int]
    """Why they were kept -> how many."""


class _Dead(NamedTuple):
    tag: int
    routing_key: str
    body: bytes
    properties: dict[str, bytes]
    """Each as its bytes on the wire."""
    death: Death | None


def retry(rabbitmq_url: str, *, dry_run: bool, limit: int | None = None) -> DeadLetterReport:
    """Put dead letters back to the queues they came from, behind what waits there by now.

    A message leaves the dead letters only after the broker has confirmed its copy, so a killed run loses nothing; a
    message that was copied and not yet taken out is a duplicate, which admission recognizes [A2]. What is kept, in a
    dry run everything, moves to the end of the dead letters.

    Args:
        dry_run: count only.
        limit: most messages to look at; None: all.

    Raises:
        UsageError: a bad URL, no such queue, or a missing permission.
        Outage: the broker is away; the text says how many had been put back.
    """
    report = _Progress()
    with _errors(report):
        how = parameters(rabbitmq_url, "customer-actors quarantine retry")
        connection = pika.BlockingConnection(how, _impl_class=RawConnection)  # type: ignore[arg-type]
        try:
            _retry(connection, report, dry_run, limit)
        finally:
            if connection.is_open:
                connection.close()
    return DeadLetterReport(report.found, report.put_back, sum(report.reasons.values()), dict(report.reasons))


class _Progress:
    def __init__(self) -> None:
        self.found = self.put_back = 0
        self.reasons: Counter[str] = Counter()


def _retry(connection: pika.BlockingConnection, report: _Progress, dry_run: bool, limit: int | None) -> None:
    channel = connection.channel()
    channel.confirm_delivery()
    kept: list[_Dead] = []
    with _ways_back(connection) as ways:
        for dead in _dead_letters(channel, kept, limit):
            report.found += 1
            why = _obstacle(dead, ways) or ("" if dry_run else _put_back(channel, dead))
            if why or dry_run:
                kept.append(dead)
            if why:
                report.reasons[why] += 1
            else:
                report.put_back += 1
    for dead in kept:
        _keep(channel, dead)


def _dead_letters(channel: BlockingChannel, kept: list[_Dead], limit: int | None) -> Iterator[_Dead]:
    seen = 0
    while (limit is None or seen < limit) and sum(len(each.body) for each in kept) < _MOST_HELD_BYTES:
        method, properties, body = channel.basic_get(DEAD_LETTER_QUEUE)
        if method is None:
            return
        seen += 1
        yield _dead(method, properties, body)


def _dead(method: Basic.GetOk, properties: BasicProperties | None, body: bytes | None) -> _Dead:
    assert isinstance(properties, RawProperties)
    assert method.delivery_tag is not None
    try:
        found = split(properties.raw)
    except ValueError:
        found = {}
    return _Dead(method.delivery_tag, method.routing_key or "", body or b"", found, last_death(found))


def _obstacle(dead: _Dead, ways: set[str]) -> str:
    """Why it cannot go back, or an empty string."""
    queue = _queue_of(dead)
    if queue is None:
        return NO_ORIGIN
    if queue not in QUEUES:
        return OTHER_QUEUE
    return "" if queue in ways else QUEUE_GONE


def _queue_of(dead: _Dead) -> str | None:
    """Where it was given up, or, for one that was sent straight to the dead letters, where its kind belongs."""
    return _QUEUE_OF.get(dead.routing_key) if dead.death is None else dead.death.queue


def _put_back(channel: BlockingChannel, dead: _Dead) -> str:
    """Send it to its queue and then take it out of the dead letters; why that failed, or an empty string."""
    exchange = f"{RETRY_EXCHANGE_PREFIX}{_queue_of(dead)}"
    routing_key = (dead.death and dead.death.routing_key) or dead.routing_key
    read = {name: value for name, value in dead.properties.items() if name in ("content_type", "content_encoding")}
    try:
        channel.basic_publish(exchange, routing_key, dead.body, _persistent(read), mandatory=True)
    except (NackError, UnroutableError):
        return REFUSED
    channel.basic_ack(dead.tag)
    return ""


def _keep(channel: BlockingChannel, dead: _Dead) -> None:
    """Put it behind the other dead letters: a copy, not a return, for brokers may drop what is returned too often."""
    # A user's name is accepted from that user only.
    kept = {name: value for name, value in dead.properties.items() if name not in ("user_id", "expiration")}
    channel.basic_publish(DEAD_LETTER_EXCHANGE, dead.routing_key, dead.body, _persistent(kept), mandatory=True)
    channel.basic_ack(dead.tag)


def _persistent(properties: dict[str, bytes]) -> BasicProperties:
    found = RawProperties()
    found.raw = joined({**properties, "delivery_mode": b"\x02"})
    return found


@contextmanager
def _ways_back(connection: pika.BlockingConnection) -> Iterator[set[str]]:
    """The queues that exist, each bound to a fanout of its own for the time of the block, however it ends."""
    bound: set[str] = set()
    try:
        bound.update(queue for queue in QUEUES if _bind(connection, queue))
        yield bound
    except BaseException:
        # On a connection that is gone this fails, too, and what ended the block says more.
        with suppress(AMQPError, OSError):
            _unbind(connection, bound)
        raise
    _unbind(connection, bound)


def _unbind(connection: pika.BlockingConnection, bound: set[str]) -> None:
    channel = connection.channel()
    for queue in sorted(bound):
        channel.queue_unbind(queue, RETRY_EXCHANGE_PREFIX + queue)


def _bind(connection: pika.BlockingConnection, queue: str) -> bool:
    channel = connection.channel()
    exchange = RETRY_EXCHANGE_PREFIX + queue
    try:
        channel.queue_declare(queue, passive=True)
        channel.exchange_declare(exchange, "fanout", auto_delete=True)
        channel.queue_bind(queue, exchange)
    except ChannelClosedByBroker as refusal:
        if refusal.reply_code == _NOT_FOUND:
            return False
        raise
    channel.close()
    return True


@contextmanager
def _errors(report: _Progress) -> Iterator[None]:
    try:
        yield
    except ChannelClosedByBroker as refusal:
        if refusal.reply_code == _NOT_FOUND:
            raise UsageError(f"there is no {DEAD_LETTER_QUEUE} yet: `customer-actors ingest` makes it") from None
        if refusal.reply_code == _ACCESS_REFUSED:
            raise UsageError(
                f"the broker refused ({reason(refusal)}): this needs the operators' permissions, "
                "see deploy/rabbitmq/permissions.sh"
            ) from None
        raise Outage(_lost(refusal, report)) from None
    except (ProbableAuthenticationError, ProbableAccessDeniedError) as error:
        raise UsageError(f"the broker refused user or virtual host of RABBITMQ_URL ({reason(error)})") from None
    except (AMQPError, OSError) as error:
        raise Outage(_lost(error, report)) from None


def _lost(error: BaseException, report: _Progress) -> str:
    return f"RabbitMQ cannot be reached ({reason(error)}); {report.put_back} dead letters were put back before"
