"""The event-at-a-time limit: pgbench, a C client, writes all effects of one event in one transaction; no broker.

It has no stream to read, so it makes its own: sales, some of them on credit, and payments in the same shares over as
many customers, but no cancellations, and its payments release no usage. No key is checked for repetition and no order
is kept, so it does less than any service must.
"""

import os
import re
import subprocess
from pathlib import Path
from typing import Final

from benchmarks.stage import cursor_on
from benchmarks.streams import CREDIT_SHARE, PAYMENT_SHARE

CLIENTS: Final = 16
THREADS: Final = 2

SCRIPT: Final = f"""
\\set customer random(1, :customers)
\\set amount random(500, 15000)
\\set draw random(1, 1000)
BEGIN;
\\if :draw <= {int(PAYMENT_SHARE * 1000)}
INSERT INTO credit AS c (customer_id, used) VALUES (:customer::text, 0)
    ON CONFLICT (customer_id) DO UPDATE SET used = c.used;
INSERT INTO credit_payment (customer_id, reference, amount) VALUES (:customer::text, 'P-' || :draw, :amount);
UPDATE credit SET unapplied = unapplied + :amount WHERE customer_id = :customer::text;
\\else
INSERT INTO sale (order_id, channel, customer_id, amount, sold_at)
    VALUES ('O-' || :customer || '-' || :amount, 'order.completed', :customer::text, :amount, now());
INSERT INTO customer_stats AS s (customer_id, orders, total_spent, first_purchase, last_purchase)
    VALUES (:customer::text, 1, :amount, now(), now()) ON CONFLICT (customer_id) DO UPDATE SET orders = s.orders + 1,
    total_spent = s.total_spent + excluded.total_spent, last_purchase = excluded.last_purchase
    RETURNING orders, total_spent \\gset
INSERT INTO loyalty AS l (customer_id, points, lifetime_points)
    VALUES (:customer::text, :amount / 100, :amount / 100) ON CONFLICT (customer_id) DO UPDATE SET
    points = l.points + excluded.points * CASE WHEN l.lifetime_points < 500 THEN 1.0 WHEN l.lifetime_points < 1000
        THEN 1.2 WHEN l.lifetime_points < 5000 THEN 1.5 ELSE 2.0 END,
    lifetime_points = l.lifetime_points + excluded.lifetime_points,
    tier = CASE WHEN l.lifetime_points < 500 THEN 'bronze' WHEN l.lifetime_points < 1000 THEN 'silver' ELSE 'gold' END;
INSERT INTO loyalty_ledger (customer_id, order_id, points)
    VALUES (:customer::text, 'O-' || :customer || '-' || :amount, :amount / 100);
INSERT INTO segment (customer_id, recency, frequency, monetary, code, calculated_at)
    VALUES (:customer::text, 5, least(5, :orders), CASE WHEN :total_spent < 10000 THEN 1 ELSE 3 END, 'new', now())
    ON CONFLICT (customer_id) DO UPDATE SET recency = 5, frequency = excluded.frequency, monetary = excluded.monetary,
    code = excluded.code, calculated_at = excluded.calculated_at;
\\if :draw > {int((1 - CREDIT_SHARE) * 1000)}
INSERT INTO credit AS c (customer_id, used) VALUES (:customer::text, :amount)
    ON CONFLICT (customer_id) DO UPDATE SET used = c.used + excluded.used;
INSERT INTO credit_usage (customer_id, order_id, amount, outstanding, due)
    VALUES (:customer::text, 'O-' || :customer || '-' || :amount, :amount, :amount, current_date + 30);
\\endif
\\endif
END;
"""
_TPS: Final = re.compile(r"^tps = ([0-9.]+)", re.M)
_PROCESSED: Final = re.compile(r"^number of transactions actually processed: ([0-9]+)", re.M)
_UNEQUAL: Final = """
    SELECT sales + payments <> %s OR sales <> counted OR sales <> earned OR sold <> spent OR used <> owed
        OR paid <> unapplied
    FROM (SELECT count(*) AS sales, sum(amount) AS sold FROM sale) AS a,
        (SELECT count(*) AS payments, COALESCE(sum(amount), 0) AS paid FROM credit_payment) AS b,
        (SELECT sum(orders) AS counted, sum(total_spent) AS spent FROM customer_stats) AS c,
        (SELECT count(*) AS earned FROM loyalty_ledger) AS d,
        (SELECT COALESCE(sum(used), 0) AS used, COALESCE(sum(unapplied), 0) AS unapplied FROM credit) AS e,
        (SELECT COALESCE(sum(amount), 0) AS owed FROM credit_usage) AS f
"""
"""Its totals, each kept in two places by the same transactions."""


def events_per_s(database_url: str, program: Path, folder: Path, schema: str, customers: int, seconds: int) -> float:
    """Transactions per second over so many seconds, all clients together, statements prepared."""
    with cursor_on(database_url) as cursor:
        cursor.execute(schema)
    script = folder / "event_at_a_time.sql"
    script.write_text(SCRIPT)
    options = [
        "--no-vacuum",
        "--protocol=prepared",
        f"--file={script}",
        f"--time={seconds}",
    ]
    done = subprocess.run(
        [str(program), *options, f"-Dcustomers={customers}", f"--client={CLIENTS}", f"--jobs={THREADS}", database_url],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
        env={"PATH": os.environ["PATH"]},
        check=False,
    )
    found, processed = _TPS.search(done.stdout), _PROCESSED.search(done.stdout)
    if found is None or processed is None or done.returncode:  # 2: a client was aborted, so fewer made the figure
        raise RuntimeError(f"pgbench failed: {done.stderr[-2000:]}")
    with cursor_on(database_url) as cursor:
        cursor.execute(_UNEQUAL, (int(processed[1]),))
        if cursor.fetchone()[0]:
            raise RuntimeError("what pgbench left in the tables is not what its transactions add up to")
    return float(found[1])
