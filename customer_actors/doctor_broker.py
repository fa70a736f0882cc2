"""What `doctor` looks at in RabbitMQ: exchanges, queues, who consumes them, and what waits in them."""

import shlex
from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any, Final, NamedTuple

import pika
from pika.exceptions import (
    AMQPConnectionError,
    AMQPError,
    ChannelClosedByBroker,
    ProbableAccessDeniedError,
    ProbableAuthenticationError,
    UnroutableError,
)
from pika.spec import BasicProperties

from customer_actors.actors.nightly import QUEUES as NIGHT_QUEUES
from customer_actors.doctor import OK, PROBLEM, WARNING, Finding
from customer_actors.domain.routing import ACTORS
from customer_actors.errors import UsageError
from customer_actors.ingest.connection import parameters, reason
from customer_actors.ingest.topology import (
    DEAD_LETTER_EXCHANGE,
    DEAD_LETTER_QUEUE,
    KEPT_ARGUMENTS,
    PROBE_EXCHANGE,
    QUEUE_ARGUMENTS,
    QUEUES,
    SOURCES,
    UNROUTED_EXCHANGE,
    UNROUTED_QUEUE,
    losses_of,
    migration_of,
    unrouted_policy,
)

WORKER_QUEUES: Final = ("dispatcher", *ACTORS, "held", *NIGHT_QUEUES)
TIMEOUT_S: Final = 5
_INGEST: Final = "customer-actors ingest"
_WORKERS: Final = "dramatiq customer_actors.actors.main:setup    # with the options of the Procfile"
_AS_INGEST: Final = 'RABBITMQ_URL="$INGEST_RABBITMQ_URL" customer-actors doctor    # the URL of ingest, whose user may'
_PERMISSIONS: Final = "VHOST={vhost} sh deploy/rabbitmq/permissions.sh    # where rabbitmqctl runs"
_ACCESS_REFUSED: Final = 403
_NOT_FOUND: Final = 404
_RESOURCE_LOCKED: Final = 405


class _Count(NamedTuple):
    messages: int
    consumers: int


def look_at_broker(url: str) -> tuple[bool, list[Finding]]:
    """Whether the broker answers, and all that it tells."""
    findings: list[Finding] = []
    try:
        how = parameters(url, "customer-actors doctor")
        how.socket_timeout = how.stack_timeout = how.blocked_connection_timeout = TIMEOUT_S
        how.connection_attempts = 1
        with pika.BlockingConnection(how) as connection:
            findings.append(Finding("broker", OK, "RabbitMQ answers"))
            for finding in _broker(connection, how.virtual_host):
                findings.append(finding)
    except UsageError as error:
        return False, [Finding("broker", PROBLEM, str(error), ["edit .env    # RABBITMQ_URL"])]
    except (AMQPError, OSError) as error:
        if findings:
            found, fix = f"went away ({reason(error)})", ["customer-actors doctor    # once it answers again"]
            return True, [*findings, Finding("broker", PROBLEM, found, fix)]
        return False, [_unreachable(error, how)]
    return True, findings


def _unreachable(error: BaseException, how: pika.URLParameters) -> Finding:
    where = f"RabbitMQ at {how.host}:{how.port}"
    vhost = shlex.quote(how.virtual_host)
    if isinstance(error, ProbableAuthenticationError):
        found = f"{where} does not know this user and password"
        return Finding("broker", PROBLEM, found, ["rabbitmqctl add_user NAME    # or correct RABBITMQ_URL"])
    if isinstance(error, ProbableAccessDeniedError) or "vhost" in reason(error):
        found = f"{where} has no virtual host {how.virtual_host!r} for this user"
        return Finding("broker", PROBLEM, found, [f"rabbitmqctl add_vhost {vhost}", _PERMISSIONS.format(vhost=vhost)])
    fix = ["rabbitmq-diagnostics check_running    # start it, or correct RABBITMQ_URL"]
    kind = "" if isinstance(error, AMQPConnectionError) and not str(error) else f" ({reason(error)})"
    return Finding("broker", PROBLEM, f"{where} cannot be reached{kind}", fix)


def _broker(connection: pika.BlockingConnection, vhost: str) -> Iterator[Finding]:
    counts = {queue: _count(connection, queue) for queue in (*QUEUES, DEAD_LETTER_QUEUE, UNROUTED_QUEUE)}
    not_compared: list[str] = []
    for name, finding in chain(_exchanges(connection), _queues(connection, counts, vhost)):
        if finding is None:
            not_compared.append(name)
        else:
            yield finding
    if not_compared:
        found = (
            "the broker refuses this user to declare them, so types and arguments of what is there were not compared"
        )
        yield Finding("not compared", WARNING, f"{found}: {', '.join(not_compared)}", [_AS_INGEST])
    yield _dead_letters(counts[DEAD_LETTER_QUEUE])
    yield _unrouted(counts[UNROUTED_QUEUE], vhost)
    yield _policy(connection, vhost)
    yield from _consumers(connection, counts)


def _exchanges(connection: pika.BlockingConnection) -> Iterator[tuple[str, Finding | None]]:
    """Each exchange by name; None for one that is there, of a type that this user is not told."""
    wanted = {source.exchange: "topic" for source in SOURCES}
    wanted |= {DEAD_LETTER_EXCHANGE: "fanout", UNROUTED_EXCHANGE: "fanout"}
    for exchange, kind in wanted.items():
        name = f"exchange {exchange}"
        if _refusal(connection, lambda c, e=exchange: c.exchange_declare(e, passive=True)) is not None:
            yield name, Finding(name, PROBLEM, "is not there", [f"{_INGEST}    # makes it"])
            continue
        refusal = _refusal(
            connection,
            lambda c, e=exchange, k=kind: c.exchange_declare(e, k, durable=True),
        )
        if refusal is None or "inequivalent arg 'alternate" in refusal.reply_text:
            yield name, Finding(name, OK, "is there")
        elif refusal.reply_code == _ACCESS_REFUSED:
            yield name, None
        else:
            found = f"is no durable {kind} exchange: {refusal.reply_text}"
            fix = [f"delete it where its publisher made it; {_INGEST}    # makes it anew"]
            yield name, Finding(name, PROBLEM, found, fix)


def _queues(
    connection: pika.BlockingConnection, counts: dict[str, _Count | None], vhost: str
) -> Iterator[tuple[str, Finding | None]]:
    """Each queue by name; None for one that is there, with arguments that this user is not told."""
    for queue, count in counts.items():
        name, wanted = f"queue {queue}", QUEUE_ARGUMENTS if queue in QUEUES else KEPT_ARGUMENTS
        yield name, _queue(connection, queue, count, wanted, vhost)


def _queue(
    connection: pika.BlockingConnection, queue: str, count: _Count | None, wanted: Mapping[str, Any], vhost: str
) -> Finding | None:
    name = f"queue {queue}"
    if count is None:
        return Finding(name, PROBLEM, "is not there", [f"{_INGEST}    # makes it and its bindings"])
    try:
        losses = losses_of(connection, queue, wanted)
    except UsageError as error:
        return Finding(name, PROBLEM, str(error), migration_of(queue, vhost))
    if losses is None:
        return None
    if losses:
        return Finding(name, WARNING, f"is used as it is: {'; '.join(losses)}", migration_of(queue, vhost))
    return Finding(name, OK, f"{count.messages} waiting")


def _dead_letters(count: _Count | None) -> Finding:
    if count is None or not count.messages:
        return Finding("dead letters", OK, "none")
    return Finding(
        "dead letters",
        PROBLEM,
        f"{count.messages} messages were given up by the broker",
        ['customer-actors quarantine retry --dead-letters --reason "what was corrected"'],
    )


def _unrouted(count: _Count | None, vhost: str) -> Finding:
    if count is None or not count.messages:
        return Finding("unrouted", OK, "none")
    known = ", ".join(str(key) for source in SOURCES for key in source.routing_keys)
    return Finding(
        "unrouted",
        WARNING,
        f"{count.messages} messages had a routing key that is none of {known}; they are kept in {UNROUTED_QUEUE}",
        [
            "correct their publisher, which sends them again",
            f"rabbitmqctl purge_queue --vhost {shlex.quote(vhost)} {UNROUTED_QUEUE}    # once that is done",
        ],
    )


def _policy(connection: pika.BlockingConnection, vhost: str) -> Finding:
    """Whether the policy keeps what is unroutable, tried on an exchange of our own that it names too.

    The probe expires within a millisecond, and nobody else is bound to that exchange. What it cannot see: RabbitMQ
    applies one policy per exchange, so another one with a higher priority on one of the three takes ours from it. A
    probe there would reach whoever is bound to everything; `rabbitmqctl list_exchanges name policy` tells.
    """
    name, fix = "policy unrouted", [unrouted_policy(vhost)]

    def probe(channel: Any) -> None:
        channel.exchange_declare(PROBE_EXCHANGE, "topic", auto_delete=True)
        channel.confirm_delivery()
        try:
            channel.basic_publish(PROBE_EXCHANGE, "probe", b"", BasicProperties(expiration="1"), mandatory=True)
        finally:
            channel.exchange_delete(PROBE_EXCHANGE)

    try:
        refusal = _refusal(connection, probe)
    except UnroutableError:
        found = "not set: a message with an unknown routing key vanishes without a trace"
        return Finding(name, WARNING, found, fix)
    if refusal is not None:
        return Finding(name, WARNING, f"cannot be seen by this user: {refusal.reply_text}", fix)
    return Finding(name, OK, f"messages with an unknown routing key are kept in {UNROUTED_QUEUE}")


def _consumers(connection: pika.BlockingConnection, counts: dict[str, _Count | None]) -> Iterator[Finding]:
    idle = [queue for queue in QUEUES if (count := counts[queue]) is None or not count.consumers]
    if idle:
        yield Finding("consumers", PROBLEM, f"no ingest takes {', '.join(idle)}", [_INGEST])
    else:
        yield Finding("consumers", OK, "ingest takes all three queues")
    idle = [queue for queue in WORKER_QUEUES if (count := _count(connection, queue)) is None or not count.consumers]
    if idle:
        yield Finding("workers", PROBLEM, f"no worker takes {', '.join(idle)}", [_WORKERS])
    else:
        yield Finding("workers", OK, "workers take all queues between actors")


def _count(connection: pika.BlockingConnection, queue: str) -> _Count | None:
    """Messages and consumers; None when there is no such queue."""
    found: list[_Count] = []

    def look(channel: Any) -> None:
        method = channel.queue_declare(queue, passive=True).method
        found.append(_Count(method.message_count, method.consumer_count))

    refusal = _refusal(connection, look)
    if refusal is not None and refusal.reply_code == _RESOURCE_LOCKED:
        return _Count(0, 0)  # it is there, for the connection alone that made it
    if refusal is not None and refusal.reply_code != _NOT_FOUND:
        raise refusal
    return found[0] if found else None


def _refusal(connection: pika.BlockingConnection, action: Any) -> ChannelClosedByBroker | None:
    """What the broker says against it, asked on a channel of its own."""
    channel = connection.channel()
    try:
        action(channel)
    except ChannelClosedByBroker as refusal:
        return refusal
    channel.close()
    return None
