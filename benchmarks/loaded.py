"""A database that already holds years of a shop: ten million events of a million customers, made by the server itself.

The rows are what the service itself would have written for ten sales of 20.00 each per customer, registry and ledger
included, so every index has its full size.
"""

from typing import Final

from benchmarks.stage import cursor_on
from customer_actors.domain.routing import BIT, LOYALTY, STATS
from customer_actors.settings import load_settings
from customer_actors.storage.opening import open_database
from customer_actors.storage.rules import number_of
from customer_actors.storage.schema import migrate

PER_CUSTOMER: Final = 10
_CONCERNS: Final = BIT[STATS] + BIT[LOYALTY]
_START_US: Final = 1_600_000_000_000_000

_STEPS: Final = (
    """INSERT INTO organization (organization_id, currency) VALUES ('default', NULL) ON CONFLICT DO NOTHING""",
    """INSERT INTO customer (id, organization_id, customer_id, head, head_stats, head_loyalty, head_credit)
        OVERRIDING SYSTEM VALUE
        SELECT c + 1, 'default', 'C' || lpad(c::text, 7, '0'), {per}, {per}, {per}, 0
        FROM generate_series(0, {customers} - 1) c""",
    """SELECT setval(pg_get_serial_sequence('customer', 'id'), {customers})""",
    """INSERT INTO stats_state (customer, position, sales_order, total_spent_minor, first_purchase_at_us,
        last_purchase_at_us) SELECT c, {per}, {per}, {per} * 2000, {start}, {start} + {per} * 1000000
        FROM generate_series(1, {customers}) c""",
    """INSERT INTO loyalty_state (customer, position, points, lifetime_points, tier)
        SELECT c, {per}, {per} * 20, {per} * 20, 'bronze' FROM generate_series(1, {customers}) c""",
    """INSERT INTO credit_state (customer) SELECT c FROM generate_series(1, {customers}) c""",
    """INSERT INTO customer_segment (customer, position, last_purchase_date, orders, total_spent_minor, recency,
        frequency, monetary, code, calculated_at_us)
        SELECT c, {per}, '2020-09-13', {per}, {per} * 2000, 1, 5, 2, 'at_risk', {start}
        FROM generate_series(1, {customers}) c""",
    """INSERT INTO event (customer, position, type, reference, channel, amount_minor, occurred_at_us, received_at_us,
        rules, concerns, on_credit, already_cancelled)
        SELECT c, p, 'order.completed', 'H-' || c || '-' || p, 'order', 2000, {start} + p * 1000000, {start}, {rules},
        {concerns}, false, false FROM generate_series(1, {per}) p, generate_series(1, {customers}) c""",
    """INSERT INTO event_payload (customer, position, payload) SELECT c, p,
        '{{"event": "order.completed", "data": {{"customer_id": "C' || lpad((c - 1)::text, 7, '0')
        || '", "order_id": "H-' || c || '-' || p || '", "total_amount": 20.0}}}}'
        FROM generate_series(1, {per}) p, generate_series(1, {customers}) c""",
    """INSERT INTO loyalty_entry (customer, position, kind, points, sale_position, tier, multiplier, points_per_unit)
        SELECT c, p, 'earn', 20, p, 'bronze', '1.0', '1' FROM generate_series(1, {per}) p,
        generate_series(1, {customers}) c""",
    """INSERT INTO sale (organization_id, channel, reference, customer_id, amount_minor, sold_channel, sold_reference,
        position, occurred_at_us) SELECT 'default', 'order', 'H-' || c || '-' || p, 'C' || lpad((c - 1)::text, 7, '0'),
        2000, 'order', 'H-' || c || '-' || p, p, {start} + p * 1000000
        FROM generate_series(1, {per}) p, generate_series(1, {customers}) c""",
    "VACUUM ANALYZE",
    "CHECKPOINT",
)


def fill(database_url: str, customers: int) -> None:
    """Migrate, and write the history of so many customers, ten events each."""
    database = open_database(database_url)
    migrate(database)
    rules = number_of(database, load_settings({}).rules(), _START_US)
    database.release()
    words = {"rules": rules, "customers": customers, "per": PER_CUSTOMER, "start": _START_US, "concerns": _CONCERNS}
    with cursor_on(database_url) as cursor:
        for step in _STEPS:
            cursor.execute(step.format(**words))
