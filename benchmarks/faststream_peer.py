"""Peer: the documented handlers with FastStream on RabbitMQ and asyncpg, the way an asyncio team would write it.

The handlers consume the three queues themselves, so there is no second message; statements are prepared by asyncpg and
every step is one transaction on a connection of a pool. A message is acknowledged when its handler returns, and put
back into its queue when it fails: by default it would be gone then. The command uses uvloop where that is installed.

Run as `faststream run benchmarks.faststream_peer:app --workers N`.
"""

import os
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import asyncpg
from faststream import AckPolicy, FastStream
from faststream.rabbit import Channel, RabbitBroker, RabbitQueue

from customer_actors.domain.events import EventType
from customer_actors.domain.rules import DEFAULT_TIERS
from customer_actors.domain.segmentation import Cuts, score
from customer_actors.ingest.topology import QUEUES

CONCURRENT: Final = 16
"""Messages in work per process and queue, and connections in the process's pool."""
TERMS_DAYS: Final = 30

broker = RabbitBroker(os.environ.get("RABBITMQ_URL", "amqp://localhost"), default_channel=Channel(CONCURRENT))
app = FastStream(broker)
Event = dict[str, Any]


class Pool:
    """The process's pool; there is none before the start."""

    connections: asyncpg.Pool


@app.on_startup
async def connect() -> None:
    """Open the pool."""
    Pool.connections = await asyncpg.create_pool(os.environ["DATABASE_URL"], min_size=CONCURRENT, max_size=CONCURRENT)


async def handle(event: Event) -> None:
    """All steps of one event, each in a transaction of its own, on one connection: giving it back to the pool costs a
    statement that resets it."""
    data = event["data"]
    if event["event"] == EventType.POS_COMPLETED and not data.get("customer_id"):
        return
    async with Pool.connections.acquire() as connection:
        if event["event"] == EventType.PAYMENT_RECEIVED:
            await pay(connection, event)
        elif event["event"] == EventType.ORDER_CANCELLED:
            customer_id = await uncount(connection, event)
            await take_back(connection, data["order_id"])
            if customer_id is not None:
                await segment(connection, customer_id)
            await release(connection, data["order_id"])
        else:
            customer_id = await count(connection, event)
            await award(connection, event)
            await segment(connection, customer_id)
            if data.get("payment_method") == "credit":
                await use(connection, event)


for _queue in QUEUES:
    broker.subscriber(RabbitQueue(_queue, declare=False), ack_policy=AckPolicy.NACK_ON_ERROR)(handle)


def _sale(event: Event) -> tuple[str, str, int, datetime]:
    """(customer, order or transaction, amount, time)"""
    data, at = event["data"], datetime.fromisoformat(event["timestamp"])
    if event["event"] == EventType.POS_COMPLETED:
        return data["customer_id"], data["transaction_id"], _minor(data["totals"]["total_amount"]), at
    return data["customer_id"], data["order_id"], _minor(data["total_amount"]), at


def _minor(amount: object) -> int:
    return round(Decimal(str(amount)) * 100)


async def count(connection: Any, event: Event) -> str:
    """Statistics of a sale."""
    customer_id, order_id, amount, sold_at = _sale(event)
    async with connection.transaction():
        await connection.execute(
            "INSERT INTO sale (order_id, channel, customer_id, amount, sold_at) VALUES ($1, $2, $3, $4, $5)",
            *(order_id, event["event"], customer_id, amount, sold_at),
        )
        await connection.execute(
            "INSERT INTO customer_stats AS s (customer_id, orders, total_spent, first_purchase, last_purchase) "
            "VALUES ($1, 1, $2, $3, $3) ON CONFLICT (customer_id) DO UPDATE SET orders = s.orders + 1, "
            "total_spent = s.total_spent + excluded.total_spent, "
            "first_purchase = least(s.first_purchase, excluded.first_purchase), "
            "last_purchase = greatest(s.last_purchase, excluded.last_purchase)",
            *(customer_id, amount, sold_at),
        )
    return customer_id


async def uncount(connection: Any, event: Event) -> str | None:
    """Statistics of a cancellation."""
    async with connection.transaction():
        found = await connection.fetchrow(
            "UPDATE sale SET cancelled = true WHERE order_id = $1 AND channel = $2 AND NOT cancelled "
            "RETURNING customer_id, amount",
            *(event["data"]["order_id"], EventType.ORDER_COMPLETED.value),
        )
        if found is None:
            return None
        customer_id, amount = found
        # first, so that the next statement sees every sale of whoever had the row before
        await connection.execute("SELECT FROM customer_stats WHERE customer_id = $1 FOR UPDATE", customer_id)
        await connection.execute(
            "UPDATE customer_stats SET orders = orders - 1, total_spent = total_spent - $1, cancelled = cancelled + 1, "
            "(first_purchase, last_purchase) = (SELECT min(sold_at), max(sold_at) FROM sale "
            "WHERE customer_id = $2 AND NOT cancelled) WHERE customer_id = $2",
            *(amount, customer_id),
        )
    return str(customer_id)


async def segment(connection: Any, customer_id: str) -> None:
    """The segment, by the fixed cuts."""
    async with connection.transaction():
        last_purchase, orders, total_spent = await connection.fetchrow(
            "SELECT last_purchase, orders, total_spent FROM customer_stats WHERE customer_id = $1", customer_id
        )
        today = datetime.now(UTC).date()
        scores = score(today, last_purchase.date(), orders, total_spent, Cuts(), 2) if last_purchase else (None,) * 4
        await connection.execute(
            "INSERT INTO segment (customer_id, recency, frequency, monetary, code, calculated_at) "
            "VALUES ($1, $2, $3, $4, $5, clock_timestamp()) ON CONFLICT (customer_id) DO UPDATE SET "
            "recency = excluded.recency, frequency = excluded.frequency, monetary = excluded.monetary, "
            "code = excluded.code, calculated_at = excluded.calculated_at",
            *(customer_id, *scores),
        )


async def award(connection: Any, event: Event) -> None:
    """Points by the tier held before this sale."""
    customer_id, order_id, amount, _ = _sale(event)
    async with connection.transaction():
        sql = "SELECT lifetime_points FROM loyalty WHERE customer_id = $1 FOR UPDATE"
        before = await connection.fetchval(sql, customer_id)
        if before is None:
            await connection.execute(
                "INSERT INTO loyalty (customer_id) VALUES ($1) ON CONFLICT DO NOTHING", customer_id
            )
            before = await connection.fetchval(sql, customer_id)
        # below zero when a cancellation was done again
        held = max(0, before)
        multiplier = next(tier.multiplier for tier in reversed(DEFAULT_TIERS) if tier.threshold <= held)
        await _book(connection, customer_id, order_id, int(amount * multiplier / 100), before)


async def take_back(connection: Any, order_id: str) -> None:
    """A cancellation takes the order's points back."""
    async with connection.transaction():
        earned = await connection.fetchrow(
            "SELECT customer_id, points FROM loyalty_ledger WHERE order_id = $1 LIMIT 1", order_id
        )
        if earned is not None:
            customer_id, points = earned
            sql = "SELECT lifetime_points FROM loyalty WHERE customer_id = $1 FOR UPDATE"
            before = await connection.fetchval(sql, customer_id)
            await _book(connection, customer_id, order_id, -points, before)


async def _book(connection: Any, customer_id: str, order_id: str, points: int, before: int) -> None:
    tier = next(tier.name for tier in reversed(DEFAULT_TIERS) if tier.threshold <= max(0, before + points))
    await connection.execute(
        "INSERT INTO loyalty_ledger (customer_id, order_id, points) VALUES ($1, $2, $3)",
        *(customer_id, order_id, points),
    )
    await connection.execute(
        "UPDATE loyalty SET points = points + $1, lifetime_points = lifetime_points + $1, tier = $2 "
        "WHERE customer_id = $3",
        *(points, tier, customer_id),
    )


_USE: Final = (
    "INSERT INTO credit AS c (customer_id, used) VALUES ($1, $2) ON CONFLICT (customer_id) DO UPDATE SET "
    "used = c.used + excluded.used"
)
"""Locks the account, too: everyone takes it before the usages."""


async def use(connection: Any, event: Event) -> None:
    """A sale on credit."""
    customer_id, order_id, amount, sold_at = _sale(event)
    async with connection.transaction():
        await connection.execute(_USE, customer_id, amount)
        await connection.execute(
            "INSERT INTO credit_usage (customer_id, order_id, amount, outstanding, due) VALUES ($1, $2, $3, $3, $4)",
            *(customer_id, order_id, amount, sold_at.date() + timedelta(days=TERMS_DAYS)),
        )


async def release(connection: Any, order_id: str) -> None:
    """A cancelled order uses no credit."""
    async with connection.transaction():
        customer_id = await connection.fetchval(
            "SELECT customer_id FROM credit_usage WHERE order_id = $1 LIMIT 1", order_id
        )
        if customer_id is not None:
            await connection.execute(_USE, customer_id, 0)
            await connection.execute(
                "WITH owed AS (SELECT sum(outstanding) AS amount FROM credit_usage WHERE order_id = $1), "
                "gone AS (UPDATE credit_usage SET outstanding = 0 WHERE order_id = $1) "
                "UPDATE credit SET used = used - owed.amount FROM owed WHERE customer_id = $2",
                *(order_id, customer_id),
            )


async def pay(connection: Any, event: Event) -> None:
    """A payment releases the oldest usages first."""
    data = event["data"]
    customer_id, amount = data["customer_id"], _minor(data["amount"])
    async with connection.transaction():
        await connection.execute(_USE, customer_id, 0)
        await connection.execute(
            "INSERT INTO credit_payment (customer_id, reference, amount) VALUES ($1, $2, $3)",
            *(customer_id, data["payment_reference"], amount),
        )
        rest = amount
        for number, outstanding in await connection.fetch(
            "SELECT id, outstanding FROM credit_usage WHERE customer_id = $1 AND outstanding > 0 ORDER BY due, id",
            customer_id,
        ):
            paid = min(rest, outstanding)
            if paid:
                await connection.execute(
                    "UPDATE credit_usage SET outstanding = outstanding - $1 WHERE id = $2", paid, number
                )
            rest -= paid
        await connection.execute(
            "UPDATE credit SET used = used - $1, unapplied = unapplied + $2 WHERE customer_id = $3",
            *(amount - rest, rest, customer_id),
        )
