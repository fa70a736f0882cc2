"""Peer: the documented handlers on plain Dramatiq, as its manual suggests.

A pika consumer with manual acknowledgement makes every event one Dramatiq message, confirmed by the broker. Then either
one actor takes the event's steps one after the other, or (PLAIN_SPLIT=1) a dispatcher sends one message per actor and
event, as this project's architecture has it.

Run as `python -m benchmarks.plain_dramatiq` (the consumer) and `dramatiq benchmarks.plain_dramatiq` (the workers).
"""

import json
import os
from typing import Final

import dramatiq
import pika
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from pika.adapters.blocking_connection import BlockingChannel
from pika.spec import Basic, BasicProperties

from benchmarks import effects
from benchmarks.effects import Event
from customer_actors.ingest.topology import QUEUES

PREFETCH: Final = 200
SPLIT: Final = os.environ.get("PLAIN_SPLIT") == "1"
ACTORS: Final = ("handle", "dispatcher", "stats", "loyalty", "segmentation", "credit")

broker = RabbitmqBroker(url=os.environ.get("RABBITMQ_URL"), confirm_delivery=True)
dramatiq.set_broker(broker)


@dramatiq.actor(queue_name="handle")
def handle(event: Event) -> None:
    """The whole event in one message."""
    effects.all_steps(event)


@dramatiq.actor(queue_name="dispatcher")
def dispatcher(event: Event) -> None:
    """Send the event to every actor it concerns."""
    for step in effects.routes(event):
        {"stats": stats, "loyalty": loyalty, "credit": credit}[step].send(event)


@dramatiq.actor(queue_name="stats")
def stats(event: Event) -> None:
    """Statistics; the segment follows."""
    customer_id = effects.stats(event)
    if customer_id is not None:
        segmentation.send(customer_id)


@dramatiq.actor(queue_name="segmentation")
def segmentation(customer_id: str) -> None:
    """The segment."""
    effects.segmentation(customer_id)


@dramatiq.actor(queue_name="loyalty")
def loyalty(event: Event) -> None:
    """The points."""
    effects.loyalty(event)


@dramatiq.actor(queue_name="credit")
def credit(event: Event) -> None:
    """The credit account."""
    effects.credit(event)


def consume(rabbitmq_url: str) -> None:
    """Make every event of the three queues a message, until the process is ended."""
    first = dispatcher if SPLIT else handle

    def take(channel: BlockingChannel, method: Basic.Deliver, _properties: BasicProperties, body: bytes) -> None:
        assert method.delivery_tag is not None
        first.send(json.loads(body))
        channel.basic_ack(method.delivery_tag)

    connection = pika.BlockingConnection(pika.URLParameters(rabbitmq_url))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=PREFETCH)
    for queue in QUEUES:
        channel.basic_consume(queue, take)
    channel.start_consuming()


if __name__ == "__main__":
    consume(os.environ["RABBITMQ_URL"])
