"""Many customers at once on PostgreSQL, with the spread of a real shop, scored as a night before would have left them.

Orders are heavy-tailed (three customers of five bought once), totals follow them, the last purchase lies back
exponentially. Nine customers of ten belong to one organization, the others to fifty small ones. Streams are as long as
the figures say but hold no events: who advances reads behind the position only.
"""

from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any, Final

from customer_actors.domain.rules import Rules
from customer_actors.domain.segmentation import Cuts, Scale, day_start_us
from customer_actors.storage.nightly_segments import cuts_as_of
from customer_actors.storage.opening import open_database
from customer_actors.storage.schema import migrate

DAY_US: Final = 86_400_000_000
LARGEST: Final = "default"
_SMALL_ORGANIZATIONS: Final = 50

_PEOPLE: Final = """
    CREATE UNLOGGED TABLE made AS
    SELECT n AS id,
        CASE WHEN random() < 0.9 THEN 'default' ELSE 'shop-' || lpad((random() * %(small)s)::int::text, 2, '0') END
            AS organization_id,
        'C' || lpad(n::text, 7, '0') AS customer_id,
        CASE WHEN random() < 0.04 THEN 0 ELSE least(400, floor(power(1 - random(), -1 / 1.3)))::bigint END AS orders,
        exp(3.6 + 0.8 * (random() + random() + random() + random() + random() + random() - 3) * sqrt(2.0)) AS each,
        (%(end)s - least(1500, -ln(1 - random()) * 200) * %(day)s)::bigint AS last_us
    FROM generate_series(1, %(customers)s) n
"""
_TABLES: Final = (
    "INSERT INTO organization SELECT DISTINCT organization_id, 'EUR' FROM made",
    "INSERT INTO customer (id, organization_id, customer_id, head, head_stats, head_loyalty, head_credit) "
    "OVERRIDING SYSTEM VALUE SELECT id, organization_id, customer_id, orders, orders, orders, 0 FROM made",
    "SELECT setval(pg_get_serial_sequence('customer', 'id'), (SELECT max(id) FROM made))",
    "INSERT INTO stats_state SELECT id, orders, NULL, orders, 0, (orders * each * 100)::bigint, 0, "
    "CASE WHEN orders > 0 THEN last_us - (orders - 1) * 86400000000 END, CASE WHEN orders > 0 THEN last_us END "
    "FROM made",
    "INSERT INTO loyalty_state SELECT id, orders, NULL, 0, 0, 'bronze' FROM made",
    "INSERT INTO credit_state (customer, position) SELECT id, 0 FROM made",
    "INSERT INTO customer_segment (customer, position) SELECT id, orders FROM made",
    "DROP TABLE made",
)

REWRITE_ALL: Final = """
    UPDATE customer_segment g SET position = n.position, last_purchase_date = n.last, orders = n.orders,
        total_spent_minor = n.total, recency = n.r, frequency = n.f, monetary = n.m, cuts = n.number,
        calculated_at_us = %s, code = CASE
            WHEN r >= 4 AND f >= 4 AND m >= 4 THEN 'champions'
            WHEN r >= 3 AND (f >= 4 OR (f = 3 AND m >= 3)) THEN 'loyal'
            WHEN r >= 4 AND f = 1 THEN 'new'
            WHEN r >= 3 THEN 'potential_loyalist'
            WHEN (r = 2 AND (f >= 3 OR m >= 3)) OR (r = 1 AND (f >= 4 OR m >= 4)) THEN 'at_risk'
            ELSE 'lost' END
    FROM (
        SELECT s.customer, s.position, k.number, s.sales_order + s.sales_pos AS orders, s.total_spent_minor AS total,
            ((to_timestamp(s.last_purchase_at_us / 1000000.0) AT TIME ZONE 'UTC')::date)::text AS last,
            5 - (s.last_purchase_at_us < k.r1)::int - (s.last_purchase_at_us < k.r2)::int
              - (s.last_purchase_at_us < k.r3)::int - (s.last_purchase_at_us < k.r4)::int AS r,
            1 + (s.sales_order + s.sales_pos > k.f1)::int + (s.sales_order + s.sales_pos > k.f2)::int
              + (s.sales_order + s.sales_pos > k.f3)::int + (s.sales_order + s.sales_pos > k.f4)::int AS f,
            1 + (s.total_spent_minor > k.m1)::int + (s.total_spent_minor > k.m2)::int
              + (s.total_spent_minor > k.m3)::int + (s.total_spent_minor > k.m4)::int AS m
        FROM stats_state s JOIN customer c ON c.id = s.customer
        JOIN given_cuts k ON k.organization_id = c.organization_id WHERE s.last_purchase_at_us IS NOT NULL
    ) n WHERE g.customer = n.customer
"""
"""The one plain statement: rewrites every segment by cuts that it is given."""


def make(cursor: Any, database_url: str, customers: int, today: date, rules: Rules) -> None:
    """Fill an empty database: everybody is scored as of yesterday, by cuts as yesterday's would have been.

    Cuts of a shop that goes on selling stand nearly still from one day to the next, so yesterday's are today's with a
    little less money.
    """
    database = open_database(database_url)
    migrate(database)
    database.release()
    end = day_start_us(today, rules.zone) + DAY_US // 8
    cursor.execute("SELECT setseed(0.5)")
    cursor.execute(_PEOPLE, {"small": _SMALL_ORGANIZATIONS, "end": end, "day": DAY_US, "customers": customers})
    for statement in _TABLES:
        cursor.execute(statement)
    cursor.execute("VACUUM ANALYZE")
    yesterday = today - timedelta(1)
    give_cuts(cursor, database_url, today, rules, less_money=0.003, as_of=yesterday)
    cursor.execute(REWRITE_ALL, (day_start_us(yesterday, rules.zone) + DAY_US // 8,))
    cursor.execute("DROP TABLE given_cuts")
    cursor.execute("VACUUM FULL customer_segment")
    cursor.execute("VACUUM ANALYZE")


def give_cuts(
    cursor: Any, database_url: str, today: date, rules: Rules, less_money: float = 0.0, as_of: date | None = None
) -> None:
    """Write `given_cuts` for the plain statement; with `as_of` they are also a snapshot of that date."""
    columns = ", ".join(f"{letter}{k} bigint" for letter in "rfm" for k in (1, 2, 3, 4))
    cursor.execute(f"CREATE TABLE given_cuts (organization_id text PRIMARY KEY, number int, {columns})")
    database = open_database(database_url)
    cursor.execute("SELECT organization_id FROM organization ORDER BY organization_id")
    for (organization_id,) in cursor.fetchall():
        cuts = cuts_as_of(database, organization_id, today, rules)
        if cuts is None:
            continue
        if cuts.monetary:
            first, second, third, fourth = (int(cut * (1 - less_money)) for cut in cuts.monetary)
            cuts = cuts._replace(monetary=(first, second, third, fourth))
        number = None if as_of is None else _store(cursor, organization_id, as_of, cuts)
        row = (organization_id, number, *_bounds(cuts, as_of or today, rules))
        cursor.execute(f"INSERT INTO given_cuts VALUES ({', '.join(['%s'] * len(row))})", row)
    database.release()


def _store(cursor: Any, organization_id: str, as_of: date, cuts: Cuts) -> int:
    dimensions = [None if cut is None else str(list(cut)) for cut in (cuts.recency, cuts.frequency, cuts.monetary)]
    cursor.execute(
        "INSERT INTO rfm_cuts (organization_id, as_of, recency, frequency, monetary, calculated_at_us) "
        "VALUES (%s, %s, %s, %s, %s, 0) RETURNING number",
        (organization_id, as_of.isoformat(), *dimensions),
    )
    number: int = cursor.fetchone()[0]
    return number


def _bounds(cuts: Cuts, as_of: date, rules: Rules) -> Sequence[int]:
    scale = Scale(cuts, rules.currency_decimals)
    moments = [day_start_us(as_of - timedelta(days), rules.zone) for days in scale.recency]
    return [*moments, *scale.frequency, *scale.monetary]
