"""The documented handlers (docs/rules.md 1) as a team would write them event by event, for the peers in Python.

Each step is one transaction of its own on a connection per thread; psycopg prepares the statements. Nothing is slowed
down, and nothing is promised either: a repeated event counts twice, two events of one customer may be applied in
either order, and a cancellation that overtakes its order is lost.
"""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final

import psycopg

from customer_actors.domain.events import EventType
from customer_actors.domain.rules import DEFAULT_TIERS
from customer_actors.domain.segmentation import Cuts, score

TERMS_DAYS: Final = 30

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
"""Changes with every effect. The first three figures do not depend on the order of the events."""

Event = dict[str, Any]
_own = threading.local()


@contextmanager
def transaction() -> Iterator[Any]:
    """A cursor on this thread's connection, committed at the end."""
    if not hasattr(_own, "connection") or _own.connection.closed:
        _own.connection = psycopg.connect(os.environ["DATABASE_URL"], autocommit=True, prepare_threshold=1)
    with _own.connection.transaction(), _own.connection.cursor() as cursor:
        yield cursor


def routes(event: Event) -> list[str]:
    """The steps an event needs, besides the segment that follows the statistics."""
    data = event["data"]
    if event["event"] == EventType.PAYMENT_RECEIVED:
        return ["credit"]
    if event["event"] == EventType.POS_COMPLETED and not data.get("customer_id"):
        return []
    on_credit = event["event"] == EventType.ORDER_CANCELLED or data.get("payment_method") == "credit"
    return ["stats", "loyalty", "credit"] if on_credit else ["stats", "loyalty"]


def all_steps(event: Event) -> None:
    """Every step of an event, one transaction after the other."""
    for step in routes(event):
        if step == "stats":
            customer_id = stats(event)
            if customer_id is not None:
                segmentation(customer_id)
        else:
            {"loyalty": loyalty, "credit": credit}[step](event)


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


def stats(event: Event) -> str | None:
    """Orders, total spent, first and last purchase; returns the customer whose segment follows."""
    if event["event"] == EventType.ORDER_CANCELLED:
        return _uncount(event["data"]["order_id"])
    return _count(event)


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
        # first, so that the next statement sees every sale of whoever had the row before
        cursor.execute("SELECT FROM customer_stats WHERE customer_id = %s FOR UPDATE", (customer_id,))
        cursor.execute(
            "UPDATE customer_stats SET orders = orders - 1, total_spent = total_spent - %s, cancelled = cancelled + 1, "
            "(first_purchase, last_purchase) = (SELECT min(sold_at), max(sold_at) FROM sale "
            "WHERE customer_id = %s AND NOT cancelled) WHERE customer_id = %s",
            (amount, customer_id, customer_id),
        )
    return str(customer_id)


def segmentation(customer_id: str) -> None:
    """Score the customer from its statistics, by the fixed cuts."""
    with transaction() as cursor:
        cursor.execute(
            "SELECT last_purchase, orders, total_spent FROM customer_stats WHERE customer_id = %s", (customer_id,)
        )
        last_purchase, orders, total_spent = cursor.fetchone()
        today = datetime.now(UTC).date()
        scores = score(today, last_purchase.date(), orders, total_spent, Cuts(), 2) if last_purchase else (None,) * 4
        cursor.execute(
            "INSERT INTO segment (customer_id, recency, frequency, monetary, code, calculated_at) "
            "VALUES (%s, %s, %s, %s, %s, clock_timestamp()) ON CONFLICT (customer_id) DO UPDATE SET "
            "recency = excluded.recency, frequency = excluded.frequency, monetary = excluded.monetary, "
            "code = excluded.code, calculated_at = excluded.calculated_at",
            (customer_id, *scores),
        )


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
        # below zero when a cancellation was done again
        before = max(0, found[0])
        multiplier = next(tier.multiplier for tier in reversed(DEFAULT_TIERS) if tier.threshold <= before)
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
