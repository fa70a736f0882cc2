"""Faults of the broker."""

import json
import random
from collections.abc import Callable
from typing import Any, Final

from pika.exceptions import AMQPError, ChannelClosedByBroker
from pika.spec import BasicProperties

from customer_actors.ingest.topology import QUEUES, SOURCES
from tests.faults.faults import fault
from tests.faults.sabotage import OF_ACTORS, sabotage
from tests.faults.stage import INGEST, OUTAGE_S, WORKER, Stage, declare_topology
from tests.servers.amqp_frames import FramePublisher, nested, properties, table, timestamp

ACTOR_QUEUES: Final = ("dispatcher", "stats", "loyalty", "credit", "segmentation", "held")
INTERNAL_QUEUES: Final = tuple(name + suffix for name in ACTOR_QUEUES for suffix in ("", ".DQ", ".XQ"))
ORDER_QUEUE: Final = QUEUES[0]
_RETRY_LOST: Final = "Unexpected failure in after_process_message"
"""What Dramatiq logs when the broker refuses the copy."""


@fault("broker: kill -9", "kills", short=True)
def kill(stage: Stage, rng: random.Random) -> int:
    stage.more(rng.randrange(20, 200))
    stage.rabbitmq.settle()
    stage.rabbitmq.kill()
    stage.rabbitmq.start()
    return 1


@fault("broker: down for a while", f"outages of {OUTAGE_S:g} s")
def down(stage: Stage, rng: random.Random) -> int:
    stage.more(rng.randrange(20, 200))
    stage.rabbitmq.stop()
    stage.pause(OUTAGE_S)
    stage.rabbitmq.start()
    return 1


@fault("broker: memory alarm", "alarms")
def memory_alarm(stage: Stage, rng: random.Random) -> int:
    """Every connection that publishes is blocked: publishers wait, and no bell is rung [M4]."""
    alarms = 2
    try:
        for _ in range(alarms):
            stage.more(rng.randrange(20, 120))
            stage.rabbitmq.ctl("set_vm_memory_high_watermark", "absolute", "1")
            stage.assert_stands_still(3)
            stage.rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")
    finally:
        stage.rabbitmq.ctl("set_vm_memory_high_watermark", "0.4")
    return alarms


@fault("broker: delay queues refuse what is to be retried", "retries refused")
def refusing_delay_queue(stage: Stage, rng: random.Random) -> int:
    """Dramatiq acknowledges a message whose retry copy was refused: it is gone [M3], and only the sweep knows."""
    definition = json.dumps({"max-length": 0, "overflow": "reject-publish"})
    policy = ("-p", stage.vhost, "refuse", r"\.DQ$", definition, "--apply-to", "queues")
    stage.rabbitmq.ctl("set_policy", *policy)
    with sabotage(stage, "serialization_failure", rng, per_mille=300, tables=OF_ACTORS):
        stage.more(500)
        stage.until(lambda: stage.logged(WORKER).count(_RETRY_LOST) >= 5)
    stage.rabbitmq.ctl("clear_policy", "-p", stage.vhost, "refuse")
    return stage.logged(WORKER).count(_RETRY_LOST)


_BELLS: Final = 5
"""Fewest that are lost at once: what no worker has taken out of a queue yet."""


@fault("broker: Dramatiq's queues purged", "messages purged", short=True)
def purged(stage: Stage, rng: random.Random) -> int:
    """Each time while the workers stand still and bells wait for them: these are lost."""
    return _lost_bells(stage, rng, lambda channel, queue: channel.queue_purge(queue))


@fault("broker: Dramatiq's queues deleted", "messages deleted")
def deleted(stage: Stage, rng: random.Random) -> int:
    """The same, and the queues themselves."""
    return _lost_bells(stage, rng, lambda channel, queue: channel.queue_delete(queue))


def _lost_bells(stage: Stage, rng: random.Random, lose: Callable[[Any, str], Any]) -> int:
    lost = 0
    for _ in range(3):
        stage.more(rng.randrange(20, 150))
        stage.until(lambda: _waiting(stage) is not None)  # the workers declare the queues
        with stage.frozen(WORKER):
            stage.until(lambda: (_waiting(stage) or 0) >= _BELLS)
            with stage.channel() as channel:
                here = sum(lose(channel, queue).method.message_count for queue in INTERNAL_QUEUES)
        assert here >= _BELLS
        lost += here
    return lost


def _waiting(stage: Stage) -> int | None:
    """Messages ready in the queues between actors; None while one of these is not there."""
    try:
        return sum(stage.left(*INTERNAL_QUEUES).values())
    except ChannelClosedByBroker:
        return None


def _classic(stage: Stage) -> None:
    with stage.channel() as channel:
        channel.queue_declare(ORDER_QUEUE, durable=True)


@fault(
    "broker: queue pre-declared classic and durable, then ingest killed", "kills", prepare=_classic, ends_processes=True
)
def classic_queue(stage: Stage, rng: random.Random) -> int:
    assert f"queue {ORDER_QUEUE} is used as it is" in stage.logged(INGEST)
    stage.more(rng.randrange(20, 200))
    stage.processes[INGEST].kill()
    return 1


@fault("broker: queue made anew, not durable", "refusals", ends_processes=True)
def transient_queue(stage: Stage, rng: random.Random) -> int:
    """Ingest ends and says why; the operator deletes the queue, and it is made anew."""
    stage.more(rng.randrange(20, 200))
    stage.supervised = False
    stage.until(lambda: not stage.left(ORDER_QUEUE))
    stage.processes[INGEST].kill()
    return _refused(stage)


def _refused(stage: Stage) -> int:
    publisher = stage.publisher
    assert publisher is not None
    with publisher.paused():
        # What is in the queue and not acknowledged must not be deleted with it.
        stage.start(INGEST)
        stage.until(lambda: not stage.missing())
        stage.processes[INGEST].kill()
        with stage.channel() as channel:
            channel.queue_delete(ORDER_QUEUE)
            channel.queue_declare(ORDER_QUEUE, durable=False)
        stage.start(INGEST)
        stage.until(lambda: not stage.processes[INGEST].running)
        assert f"queue {ORDER_QUEUE} is not durable" in stage.logged(INGEST)
        with stage.channel() as channel:
            channel.queue_delete(ORDER_QUEUE)
        declare_topology(stage)
    stage.supervised = True
    return 1


def _publishers_exchanges(stage: Stage) -> None:
    with stage.channel() as channel:
        for source in SOURCES:
            channel.exchange_declare(source.exchange, "topic", durable=True, arguments={"alternate-exchange": "lost"})


@fault(
    "broker: exchanges pre-declared by their publishers, declared again",
    "declarations",
    prepare=_publishers_exchanges,
    ends_processes=True,
)
def declared_exchanges(stage: Stage, rng: random.Random) -> int:
    """The publisher's own declaration is the one that counts, before and after ours [M12]."""
    times = 0
    for _ in range(3):
        stage.more(rng.randrange(20, 100))
        stage.processes[INGEST].kill()
        _publishers_exchanges(stage)
        times += len(SOURCES)
    return times


@fault("broker: permissions taken away and given back", "revocations")
def revoked(stage: Stage, rng: random.Random) -> int:
    times = 2
    for _ in range(times):
        stage.more(rng.randrange(20, 150))
        stage.rabbitmq.ctl("set_permissions", "-p", stage.vhost, "guest", "^$", "^$", "^$")
        stage.rabbitmq.ctl("close_all_connections", "--vhost", stage.vhost, "permissions changed")
        stage.assert_stands_still(3)
        stage.rabbitmq.ctl("set_permissions", "-p", stage.vhost, "guest", ".*", ".*", ".*")
    return times


@fault("broker: closes all connections in the middle of tasks", "connections", short=True)
def closed_connections(stage: Stage, rng: random.Random) -> int:
    closed = 0
    for number in range(4):
        stage.more(rng.randrange(20, 100))
        reason = f"fault {number} of {stage.vhost}"
        stage.rabbitmq.ctl("close_all_connections", "--vhost", stage.vhost, reason)
        stage.until(lambda reason=reason: _forced(stage, reason) > 0)  # type: ignore[misc]
        closed += _forced(stage, reason)
    return closed


def _forced(stage: Stage, reason: str) -> int:
    """How many connections the broker has closed for that reason."""
    return sum("connection_forced" in line and reason in line for line in stage.rabbitmq.logged().splitlines())


def _message(actor: str, args: object, **other: object) -> bytes:
    body = {
        "queue_name": actor,
        "actor_name": actor,
        "args": args,
        "kwargs": {},
        "options": {},
        "message_id": "poison",
        "message_timestamp": 1,
    }
    return json.dumps({**body, **other}).encode()


def poison_for(actor: str) -> list[bytes]:
    """Bodies that no version of ours ever sent to this actor."""
    return [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"{}",
        b'{"queue_name": 1',
        b"[" * 5_000,
        _message(actor, []),
        _message(actor, None),
        _message(actor, [["x", None, {}]]),
        _message(actor, [[10**30]]),
        _message(actor, [[987_654_321]]),
        _message(actor, [{"order.completed": "abc"}]),
        _message(actor, ["stats", "nobody"]),
        _message("nobody", [[1]]),
        _message(actor, [[1]], options=7),
        _message(actor, [[1]], options={"eta": "never"}),
        _message(actor, [[1]], kwargs={"unknown": 1}),
        _message(actor, [[1]], message_timestamp="x"),
    ]


@fault("broker: poison in Dramatiq's queues", "bodies", short=True)
def poison_bodies(stage: Stage, rng: random.Random) -> int:
    """Malformed internal messages must not take working threads away for good [G14]."""
    sent = 0
    stage.until(stage.workers_ready)  # they declare the queues
    for actor in ACTOR_QUEUES:
        bodies = poison_for(actor)
        rng.shuffle(bodies)
        try:
            with stage.channel() as channel:
                channel.confirm_delivery()
                for body in bodies:
                    channel.basic_publish("", actor, body, BasicProperties(delivery_mode=2), mandatory=True)
                    sent += 1
        except AMQPError as error:
            raise AssertionError(f"the poison did not get into {actor}") from error
    stage.more(300)
    return sent


_POISON: Final = (
    properties(table((b"when", timestamp(568_971_820_800)))),  # the year 20000
    properties(table((b"deep", nested(3_000)))),
)


@fault("broker: poison headers", "messages", dead_letters=len(_POISON), recovers_s=60)
def poison_headers(stage: Stage, rng: random.Random) -> int:
    """Each kills every consumer that decodes it [M6]; given up as dead letters, and no valid event with them [G13]."""
    with FramePublisher(stage.rabbitmq_url) as frames:
        for headers in _POISON:
            stage.more(rng.randrange(20, 100))
            frames.publish("order_events", b"order.completed", b"{}", headers)
    return len(_POISON)
