"""Exchanges, queues and routing keys (DOMAIN 1) as data, and their declaration."""

import re
import shlex
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import pika
from pika.adapters.blocking_connection import BlockingChannel
from pika.exceptions import ChannelClosedByBroker

from customer_actors.domain.events import EventType
from customer_actors.errors import UsageError


class Source(NamedTuple):
    """A queue of ours and what publishers send into it. The names are the contract with the other services."""

    queue: str
    exchange: str
    routing_keys: tuple[str, ...]


SOURCES: Final = (
    Source("customer_order_queue", "order_events", (EventType.ORDER_COMPLETED, EventType.ORDER_CANCELLED)),
    Source("customer_pos_queue", "pos_events", (EventType.POS_COMPLETED,)),
    Source("customer_payment_queue", "payment_events", (EventType.PAYMENT_RECEIVED,)),
)
QUEUES: Final = tuple(source.queue for source in SOURCES)

DEAD_LETTER_EXCHANGE: Final = "customer_dead_letter"
DEAD_LETTER_QUEUE: Final = "customer_dead_letter_queue"

UNROUTED_EXCHANGE: Final = "customer_unrouted"
UNROUTED_QUEUE: Final = "customer_unrouted_queue"
"""Where a policy sends what no queue is bound for (`unrouted_policy`)."""

UNROUTED_POLICY: Final = "customer-actors-unrouted"
PROBE_EXCHANGE: Final = "customer_probe"
"""Made by `doctor` for a moment, to see whether the policy works without a message that others could get."""
UNROUTED_PATTERN: Final = f"^({'|'.join(source.exchange for source in SOURCES)}|{PROBE_EXCHANGE})$"
UNROUTED_DEFINITION: Final = f'{{"alternate-exchange":"{UNROUTED_EXCHANGE}"}}'

DELIVERY_LIMIT: Final = 20
"""Returns a message survives; with 5, a few restarts of a consumer already dead-letter valid ones [M11]."""

QUEUE_ARGUMENTS: Final[Mapping[str, Any]] = {
    "x-queue-type": "quorum",
    "x-single-active-consumer": True,
    "x-delivery-limit": DELIVERY_LIMIT,
    "x-dead-letter-exchange": DEAD_LETTER_EXCHANGE,
}
KEPT_ARGUMENTS: Final[Mapping[str, Any]] = {"x-queue-type": "quorum"}
"""Of the queues that nobody consumes: dead letters and unrouted messages."""

_LOSS: Final = {
    "x-queue-type": "it is not replicated, and a message that kills its consumer is never taken out",
    "x-single-active-consumer": "two ingest processes would take its messages out of order, so run only one",
    "x-delivery-limit": "a message that kills its consumer is not given up after 20 returns (unless a policy does it)",
    "x-dead-letter-exchange": f"messages given up do not go to {DEAD_LETTER_QUEUE} (unless a policy sends them there)",
    "x-message-ttl": "messages that wait too long vanish silently",
    "x-expires": "the queue and its messages vanish when unused",
    "x-max-length": "messages beyond the limit vanish silently",
    "x-max-length-bytes": "messages beyond the limit vanish silently",
    "x-max-priority": "messages with a priority overtake others",
}
_ACCESS_REFUSED: Final = 403
_NOT_FOUND: Final = 404
_RESOURCE_LOCKED: Final = 405
_INEQUIVALENT: Final = re.compile(r"inequivalent arg '(?P<name>[^']+)' for .* but current is (?P<current>.+)$", re.S)
_VALUE: Final = re.compile(r"(?:the value )?'(?P<text>.*)'(?: of type '(?P<type>\w+)')?$", re.S)
_MOST_ARGUMENTS: Final = 24
"""More than RabbitMQ has queue arguments."""


def declare(connection: pika.BlockingConnection) -> list[str]:
    """Make the exchanges, queues and bindings that are missing; returns a warning for each queue that lacks something.

    What exists is never changed: publishers own their exchanges, so those are made plain (an argument would clash with
    the publisher's own declaration [M12]), and a durable queue with other arguments is used as it is.

    Raises `UsageError` for a queue that would lose events (not durable, exclusive, auto-delete, a stream), and pika's
    exceptions when the broker is away or refuses access.
    """
    warnings = [
        _declare_keeper(connection, DEAD_LETTER_EXCHANGE, DEAD_LETTER_QUEUE),
        _declare_keeper(connection, UNROUTED_EXCHANGE, UNROUTED_QUEUE),
    ]
    for source in SOURCES:
        _declare_exchange(connection, source.exchange)
        warnings.append(_declare_queue(connection, source.queue, QUEUE_ARGUMENTS))
        for routing_key in source.routing_keys:
            _must(connection, _binding(source.queue, source.exchange, routing_key))
    return [warning for warning in warnings if warning]


def _binding(queue: str, exchange: str, routing_key: str) -> Callable[[BlockingChannel], object]:
    return lambda channel: channel.queue_bind(queue, exchange, routing_key)


def _declare_exchange(connection: pika.BlockingConnection, name: str) -> None:
    refusal = _attempt(connection, lambda channel: channel.exchange_declare(name, passive=True))
    if refusal is not None:
        _must(connection, lambda channel: channel.exchange_declare(name, "topic", durable=True))


def unrouted_policy(vhost: str) -> str:
    """The command that makes the broker keep what is published under an unknown routing key.

    A policy and not an argument: the exchanges are the publishers', whose plain declarations it must not clash with.
    """
    return (
        f"rabbitmqctl set_policy --vhost {shlex.quote(vhost)} --apply-to exchanges {UNROUTED_POLICY} "
        f"'{UNROUTED_PATTERN}' '{UNROUTED_DEFINITION}'"
    )


def _declare_keeper(connection: pika.BlockingConnection, exchange: str, queue: str) -> str:
    _declare_keeping_exchange(connection, exchange)
    warning = _declare_queue(connection, queue, KEPT_ARGUMENTS)
    _must(connection, lambda channel: channel.queue_bind(queue, exchange))
    return warning


def _declare_keeping_exchange(connection: pika.BlockingConnection, name: str) -> None:
    """A fanout, so that one binding catches every routing key."""
    refusal = _attempt(connection, lambda channel: channel.exchange_declare(name, "fanout", durable=True))
    if refusal is None or refusal.reply_code == _ACCESS_REFUSED:
        return
    found = _INEQUIVALENT.search(refusal.reply_text)
    if found is None:
        raise refusal
    if found["name"] in ("type", "durable"):
        raise UsageError(
            f"exchange {name} exists with {found['name']} {found['current']}, so what it should keep would be lost; "
            "delete it, a durable fanout exchange is made in its place"
        )


def _declare_queue(connection: pika.BlockingConnection, queue: str, wanted: Mapping[str, Any]) -> str:
    """Make the queue if it is missing; the warning that names what an existing one lacks, or an empty string."""
    refusal = _attempt(connection, lambda channel: channel.queue_declare(queue, passive=True))
    if refusal is not None and refusal.reply_code == _NOT_FOUND:
        _must(connection, lambda channel: channel.queue_declare(queue, durable=True, arguments=dict(wanted)))
        return ""
    if refusal is not None and refusal.reply_code != _RESOURCE_LOCKED:
        raise refusal
    losses = losses_of(connection, queue, wanted)
    if not losses:
        return ""
    return (
        f"queue {queue} is used as it is; {'; '.join(losses)} (how to migrate: `customer-actors doctor`, and "
        "docs/operating.md, An existing queue)"
    )


def losses_of(connection: pika.BlockingConnection, queue: str, wanted: Mapping[str, Any]) -> list[str] | None:
    """What is lost because an existing queue has other arguments than we would give it; None when that cannot be known,
    because this user may not declare the queue. Raises `UsageError` for a queue that cannot be used at all.
    """
    actual = _actual_arguments(connection, queue, wanted)
    if actual is None:
        return None
    return [
        f"{name} is {'not set' if actual.get(name) is None else actual[name]}"
        + (f": {_LOSS[name]}" if name in _LOSS else "")
        for name in sorted(wanted.keys() | actual.keys())
        if wanted.get(name) != actual.get(name)
    ]


def migration_of(queue: str, vhost: str) -> list[str]:
    """The steps, most of them commands, that make an existing queue anew with our arguments and lose nothing."""
    where = f"--vhost {shlex.quote(vhost)}"
    return [
        "stop the publishers of its events, or let them wait",
        f"rabbitmqctl list_queues {where} name messages    # with ingest running, until {queue} has 0",
        "stop every `customer-actors ingest`",
        f"rabbitmqctl delete_queue {where} --if-empty --if-unused {queue}",
        "customer-actors ingest    # makes the queue anew as a quorum queue, and its bindings",
        "start the publishers again",
    ]


def _actual_arguments(
    connection: pika.BlockingConnection, queue: str, wanted: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The arguments an existing queue has, found by declaring it: RabbitMQ refuses naming one difference and the value
    it has, so take that value over and declare again until nothing differs. None: this user may not declare it. Raises
    `UsageError` as `declare` does.
    """
    arguments = dict(wanted)
    for _ in range(_MOST_ARGUMENTS):
        refusal = _attempt(
            connection, lambda channel: channel.queue_declare(queue, durable=True, arguments=dict(arguments))
        )
        if refusal is None:
            break
        if refusal.reply_code == _ACCESS_REFUSED:
            return None
        if refusal.reply_code == _RESOURCE_LOCKED:
            raise _unusable(queue, "exclusive to another connection")
        found = _INEQUIVALENT.search(refusal.reply_text)
        if found is None:
            raise refusal
        name, value = found["name"], _value(found["current"])
        if not name.startswith("x-"):
            raise _unusable(queue, "not durable" if name == "durable" else name.replace("_", "-"))
        if (name, value) == ("x-queue-type", "stream"):
            raise _unusable(queue, "a stream, which keeps no place of its readers")
        arguments[name] = value
        if value is None:
            del arguments[name]
    return arguments


def _value(text: str) -> str | int | bool | None:
    """An argument's value out of RabbitMQ's sentence: none | '5' | the value '5' of type 'signedint'."""
    found = _VALUE.match(text)
    if found is None:
        return None
    raw = found["text"]
    if raw in ("true", "false") and found["type"] in (None, "bool"):
        return raw == "true"
    return int(raw) if raw.lstrip("-").isdigit() and found["type"] != "longstr" else raw


def _unusable(queue: str, why: str) -> UsageError:
    return UsageError(
        f"queue {queue} is {why}, so events in it would be lost; stop its publishers' traffic or move its messages "
        f"away, delete it (`rabbitmqctl delete_queue {queue}`), and it is made anew as a durable quorum queue"
    )


def _must(connection: pika.BlockingConnection, action: Callable[[BlockingChannel], object]) -> None:
    refusal = _attempt(connection, action)
    if refusal is not None:
        raise refusal


def _attempt(
    connection: pika.BlockingConnection, action: Callable[[BlockingChannel], object]
) -> ChannelClosedByBroker | None:
    """Do it on a channel of its own, because a refusal closes the channel; returns the refusal."""
    channel = connection.channel()
    try:
        action(channel)
    except ChannelClosedByBroker as refusal:
        return refusal
    channel.close()
    return None
