"""The baseline: the documented handlers (docs/rules.md 1) on plain Dramatiq, one message per actor per event.

Written as a team would that follows the manuals: a pika consumer with manual acknowledgement hands every event to a
dispatcher actor; each actor does its step in one transaction of its own on a connection per thread. Nothing is slowed
down, and nothing is promised either: a repeated event counts twice, two events of one customer may be applied in
either order, and a cancellation that overtakes its order is lost.

Run as `python -m benchmarks.plain_dramatiq` (the consumer) and `dramatiq benchmarks.plain_dramatiq` (the workers).
"""

import json
import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import dramatiq
import pika
import psycopg2
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from pika.adapters.blocking_connection import BlockingChannel
from pika.spec import Basic, BasicProperties

from customer_actors.domain.events import EventType
from customer_actors.domain.rules import DEFAULT_TIERS
from customer_actors.domain.segmentation import Cuts, score
from customer_actors.ingest.topology import QUEUES

PREFETCH: Final = 100
TERMS_DAYS: Final = 30
ACTORS: Final = ("dispatcher", "stats", "loyalty", "segmentation", "credit")

SCHEMA: Final = """
    CREATE TABLE sale (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, order_id text NOT NULL, channel text NOT NULL,
        customer_id text NOT NULL, amount bigint NOT NULL, sold_at timestamptz NOT NULL,
        cancelled boolean NOT NULL DEFAULT false);
    CREATE INDEX ON sale (order_id);
    CREATE INDEX ON sale (customer_id);
    CREATE TABLE customer_stats (
        customer_id text PRIMARY KEY, orders bigint NOT NULL, total_spent bigint NOT NULL,
        cancelled bigint NOT NULL DEFAULT 0, first_purchase timestamptz, last_purchase timestamptz);
    CREATE TABLE loyalty (
        customer_id text PRIMARY KEY, points bigint NOT NULL DEFAULT 0, lifetime_points bigint NOT NULL DEFAULT 0,
        tier text NOT NULL DEFAULT 'bronze');
    CREATE TABLE loyalty_ledger (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer_id text NOT NULL, order_id text NOT NULL,
        points bigint NOT NULL);
    CREATE INDEX ON loyalty_ledger (order_id);
    CREATE TABLE segment (
        customer_id text PRIMARY KEY, recency int, frequency int, monetary int, code text, calculated_at timestamptz);
    CREATE TABLE credit (customer_id text PRIMARY KEY, used bigint NOT NULL, unapplied bigint NOT NULL DEFAULT 0);
    CREATE TABLE credit_usage (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer_id text NOT NULL, order_id text NOT NULL,
        amount bigint NOT NULL, outstanding bigint NOT NULL, due date NOT NULL);
    CREATE INDEX ON credit_usage (order_id);
    CREATE INDEX ON credit_usage (customer_id) WHERE outstanding > 0;
    CREATE TABLE credit_payment (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer_id text NOT NULL, reference text,
        amount bigint NOT NULL);
"""

TOTALS: Final = """
    SELECT (SELECT count(*) FROM sale), (SELECT count(*) FROM credit_usage), (SELECT count(*) FROM credit_payment),
        (SELECT count(*) FROM loyalty_ledger), (SELECT sum(cancelled) FROM customer_stats),
        (SELECT sum(outstanding) FROM credit_usage), (SELECT max(calculated_at) FROM segment)
"""
"""Changes with every effect. The first three figures are known beforehand, see `expected`."""

Event = dict[str, Any]


def expected(lines: Iterable[str]) -> tuple[int, int, int]:
    """How many sales, usages and payments these lines make here, where nothing is recognized as a duplicate."""
    sales = usages = payments = 0
    for line in lines:
        event = json.loads(line)
        data = event["data"]
        if event["event"] == EventType.PAYMENT_RECEIVED:
            payments += 1
        elif event["event"] != EventType.ORDER_CANCELLED and data.get("customer_id"):
            sales += 1
            usages += data.get("payment_method") == "credit"
    return sales, usages, payments


broker = RabbitmqBroker(url=os.environ.get("RABBITMQ_URL"), confirm_delivery=os.environ.get("PLAIN_CONFIRMS") != "0")
dramatiq.set_broker(broker)
_own = threading.local()


@contextmanager
def transaction() -> Iterator[Any]:
    """A cursor on this thread's connection, committed at the end."""
    if not hasattr(_own, "connection"):
        _own.connection = psycopg2.connect(os.environ["DATABASE_URL"])
    with _own.connection, _own.connection.cursor() as cursor:
        yield cursor


def _minor(amount: object) -> int:
    return round(Decimal(str(amount)) * 100)


def _sold_at(event: Event) -> datetime:
    stamp = event["data"].get("completed_at") or event.get("timestamp")
    return datetime.fromisoformat(stamp) if stamp else datetime.now(UTC)


def _sale(event: Event) -> tuple[str, str, int]:
    """(customer, order or transaction, amount)"""
    data = event["data"]
    if event["event"] == EventType.POS_COMPLETED:
        return data["customer_id"], data["transaction_id"], _minor(data["totals"]["total_amount"])
    return data["customer_id"], data["order_id"], _minor(data["total_amount"])


@dramatiq.actor(queue_name="dispatcher")
def dispatcher(event: Event) -> None:
    """Send the event to every actor it concerns."""
    data = event["data"]
    if event["event"] == EventType.PAYMENT_RECEIVED:
        credit.send(event)
        return
    if event["event"] == EventType.POS_COMPLETED and not data.get("customer_id"):
        return
    stats.send(event)
    loyalty.send(event)
    if event["event"] == EventType.ORDER_CANCELLED or data.get("payment_method") == "credit":
        credit.send(event)


@dramatiq.actor(queue_name="stats")
def stats(event: Event) -> None:
    """Orders, total spent, first and last purchase; the segment follows."""
    cancelled = event["event"] == EventType.ORDER_CANCELLED
    customer_id = _uncount(event["data"]["order_id"]) if cancelled else _count(event)
    if customer_id is not None:
        segmentation.send(customer_id)


def _count(event: Event) -> str:
    customer_id, order_id, amount = _sale(event)
    sold_at = _sold_at(event)
    with transaction() as cursor:
        cursor.execute(
            "INSERT INTO sale (order_id, channel, customer_id, amount, sold_at) VALUES (%s, %s, %s, %s, %s)",
            (order_id, event["event"], customer_id, amount, sold_at),
        )
        cursor.execute(
            "INSERT INTO customer_stats AS s (customer_id, orders, total_spent, first_purchase, last_purchase) "
            "VALUES (%s, 1, %s, %s, %s) ON CONFLICT (customer_id) DO UPDATE SET orders = s.orders + 1, "
            "total_spent = s.total_spent + excluded.total_spent, "
            "first_purchase = least(s.first_purchase, excluded.first_purchase), "
            "last_purchase = greatest(s.last_purchase, excluded.last_purchase)",
            (customer_id, amount, sold_at, sold_at),
        )
    return customer_id


def _uncount(order_id: str) -> str | None:
    with transaction() as cursor:
        cursor.execute(
            "UPDATE sale SET cancelled = true WHERE order_id = %s AND channel = %s AND NOT cancelled "
            "RETURNING customer_id, amount",
            (order_id, EventType.ORDER_COMPLETED),
        )
        found = cursor.fetchone()
        if found is None:
            return None
        customer_id, amount = found
        cursor.execute(
            "UPDATE customer_stats SET orders = orders - 1, total_spent = total_spent - %s, cancelled = cancelled + 1, "
            "(first_purchase, last_purchase) = (SELECT min(sold_at), max(sold_at) FROM sale "
            "WHERE customer_id = %s AND NOT cancelled) WHERE customer_id = %s",
            (amount, customer_id, customer_id),
        )
    return str(customer_id)


@dramatiq.actor(queue_name="segmentation")
def segmentation(customer_id: str) -> None:
    """Score the customer from its statistics, by the fixed cuts."""
    with transaction() as cursor:
        cursor.execute(
            "SELECT last_purchase, orders, total_spent FROM customer_stats WHERE customer_id = %s", (customer_id,)
        )
        last_purchase, orders, total_spent = cursor.fetchone()
        today = datetime.now(UTC).date()
        scores = score(today, last_purchase.date(), orders, total_spent, Cuts(), 2) if orders else (None,) * 4
        cursor.execute(
            "INSERT INTO segment (customer_id, recency, frequency, monetary, code, calculated_at) "
            "VALUES (%s, %s, %s, %s, %s, clock_timestamp()) ON CONFLICT (customer_id) DO UPDATE SET "
            "recency = excluded.recency, frequency = excluded.frequency, monetary = excluded.monetary, "
            "code = excluded.code, calculated_at = excluded.calculated_at",
            (customer_id, *scores),
        )


@dramatiq.actor(queue_name="loyalty")
def loyalty(event: Event) -> None:
    """Points by the tier held before this sale; a cancellation takes them back."""
    if event["event"] == EventType.ORDER_CANCELLED:
        _take_back(event["data"]["order_id"])
        return
    customer_id, order_id, amount = _sale(event)
    with transaction() as cursor:
        cursor.execute("SELECT lifetime_points FROM loyalty WHERE customer_id = %s FOR UPDATE", (customer_id,))
        found = cursor.fetchone()
        if found is None:
            cursor.execute("INSERT INTO loyalty (customer_id) VALUES (%s) ON CONFLICT DO NOTHING", (customer_id,))
            cursor.execute("SELECT lifetime_points FROM loyalty WHERE customer_id = %s FOR UPDATE", (customer_id,))
            found = cursor.fetchone()
        multiplier = next(tier.multiplier for tier in reversed(DEFAULT_TIERS) if tier.threshold <= found[0])
        _award(cursor, customer_id, order_id, int(amount * multiplier / 100), found[0])


def _take_back(order_id: str) -> None:
    with transaction() as cursor:
        cursor.execute("SELECT customer_id, points FROM loyalty_ledger WHERE order_id = %s LIMIT 1", (order_id,))
        earned = cursor.fetchone()
        if earned is None:
            return
        customer_id, points = earned
        cursor.execute("SELECT lifetime_points FROM loyalty WHERE customer_id = %s FOR UPDATE", (customer_id,))
        _award(cursor, customer_id, order_id, -points, cursor.fetchone()[0])


def _award(cursor: Any, customer_id: str, order_id: str, points: int, lifetime_points: int) -> None:
    tier = next(tier.name for tier in reversed(DEFAULT_TIERS) if tier.threshold <= max(0, lifetime_points + points))
    cursor.execute(
        "INSERT INTO loyalty_ledger (customer_id, order_id, points) VALUES (%s, %s, %s)",
        (customer_id, order_id, points),
    )
    cursor.execute(
        "UPDATE loyalty SET points = points + %s, lifetime_points = lifetime_points + %s, tier = %s "
        "WHERE customer_id = %s",
        (points, points, tier, customer_id),
    )


@dramatiq.actor(queue_name="credit")
def credit(event: Event) -> None:
    """Used credit: a sale on credit adds, a payment releases the oldest first, a cancellation takes back."""
    data = event["data"]
    with transaction() as cursor:
        if event["event"] == EventType.PAYMENT_RECEIVED:
            _pay(cursor, data["customer_id"], data.get("payment_reference"), _minor(data["amount"]))
        elif event["event"] == EventType.ORDER_CANCELLED:
            _release(cursor, data["order_id"])
        else:
            customer_id, order_id, amount = _sale(event)
            _use(cursor, customer_id, amount)
            cursor.execute(
                "INSERT INTO credit_usage (customer_id, order_id, amount, outstanding, due) "
                "VALUES (%s, %s, %s, %s, %s)",
                (customer_id, order_id, amount, amount, _sold_at(event).date() + timedelta(days=TERMS_DAYS)),
            )


def _use(cursor: Any, customer_id: str, amount: int) -> None:
    """Locks the account, too: everyone takes it before the usages."""
    cursor.execute(
        "INSERT INTO credit AS c (customer_id, used) VALUES (%s, %s) ON CONFLICT (customer_id) DO UPDATE SET "
        "used = c.used + excluded.used",
        (customer_id, amount),
    )


def _release(cursor: Any, order_id: str) -> None:
    cursor.execute("SELECT customer_id FROM credit_usage WHERE order_id = %s LIMIT 1", (order_id,))
    found = cursor.fetchone()
    if found is None:
        return
    _use(cursor, found[0], 0)
    cursor.execute(
        "WITH owed AS (SELECT sum(outstanding) AS amount FROM credit_usage WHERE order_id = %s), "
        "gone AS (UPDATE credit_usage SET outstanding = 0 WHERE order_id = %s) "
        "UPDATE credit SET used = used - owed.amount FROM owed WHERE customer_id = %s",
        (order_id, order_id, found[0]),
    )


def _pay(cursor: Any, customer_id: str, reference: str | None, amount: int) -> None:
    _use(cursor, customer_id, 0)
    cursor.execute(
        "INSERT INTO credit_payment (customer_id, reference, amount) VALUES (%s, %s, %s)",
        (customer_id, reference, amount),
    )
    cursor.execute(
        "SELECT id, outstanding FROM credit_usage WHERE customer_id = %s AND outstanding > 0 ORDER BY due, id",
        (customer_id,),
    )
    rest = amount
    for number, outstanding in cursor.fetchall():
        paid = min(rest, outstanding)
        if paid:
            cursor.execute("UPDATE credit_usage SET outstanding = outstanding - %s WHERE id = %s", (paid, number))
        rest -= paid
    cursor.execute(
        "UPDATE credit SET used = used - %s, unapplied = unapplied + %s WHERE customer_id = %s",
        (amount - rest, rest, customer_id),
    )


def consume(rabbitmq_url: str) -> None:
    """Hand every event of the three queues to the dispatcher, until the process is ended."""

    def take(channel: BlockingChannel, method: Basic.Deliver, _properties: BasicProperties, body: bytes) -> None:
        assert method.delivery_tag is not None
        try:
            event = json.loads(body)
        except ValueError:
            channel.basic_reject(method.delivery_tag, requeue=False)
            return
        dispatcher.send(event)
        channel.basic_ack(method.delivery_tag)

    connection = pika.BlockingConnection(pika.URLParameters(rabbitmq_url))
    channel = connection.channel()
    channel.basic_qos(prefetch_count=PREFETCH)
    for queue in QUEUES:
        channel.basic_consume(queue, take)
    channel.start_consuming()


if __name__ == "__main__":
    consume(os.environ["RABBITMQ_URL"])
