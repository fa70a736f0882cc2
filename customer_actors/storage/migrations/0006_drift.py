"""What the nightly reconciliation found, and indexes in the order in which money looks for usages."""

from typing import Any

import peewee

from customer_actors.storage.dialect import dialect_of, run

SCHEMA = """
-- [C8] one row per difference and run, written before it is repaired; append-only
CREATE TABLE credit_drift (
    id {identity},
    job TEXT NOT NULL,
    slot TEXT NOT NULL,
    organization_id TEXT NOT NULL,
    customer {big} NOT NULL,
    field TEXT NOT NULL,
    stored {big} NOT NULL,
    expected {big} NOT NULL,
    repaired {bool} NOT NULL,
    found_us {big} NOT NULL,
    UNIQUE (job, slot, customer, field),
    CHECK (stored <> expected)
) {table};

-- [C7] whom a run suspends or lifts, or would; append-only
CREATE TABLE credit_ageing (
    id {identity},
    job TEXT NOT NULL,
    slot TEXT NOT NULL,
    organization_id TEXT NOT NULL,
    customer {big} NOT NULL,
    action TEXT NOT NULL CHECK (action IN ('suspend', 'lift')),
    oldest_due_date TEXT,
    UNIQUE (job, slot, customer, action)
) {table};

-- [C2] oldest first: so many of the open usages as the money reaches, found without looking at the others
DROP INDEX credit_usage_open;

CREATE INDEX credit_usage_open ON credit_usage (customer, due_date, position) WHERE outstanding_minor > 0;

DROP INDEX credit_payment_open;

-- by an expression, because SQLite would rather walk the primary key, through every payment spent long ago
CREATE INDEX credit_payment_open ON credit_payment (customer, (position + 0)) WHERE unapplied_minor > 0;
"""


def up(migrator: Any, db: peewee.Database) -> None:
    run(db, SCHEMA)
    for table in ("credit_drift", "credit_ageing"):
        on_postgresql = dialect_of(db) == "postgresql"
        for change in ("UPDATE", "DELETE", *(["TRUNCATE"] if on_postgresql else [])):
            trigger = f"CREATE TRIGGER {table}_no_{change.lower()} BEFORE {change} ON {table}"
            if on_postgresql:
                each = "STATEMENT" if change == "TRUNCATE" else "ROW"
                db.execute_sql(f"{trigger} FOR EACH {each} EXECUTE FUNCTION refuse_change()")
            else:
                reason = f"{table} keeps what happened: its rows are never changed or deleted"
                db.execute_sql(f"{trigger} BEGIN SELECT RAISE(ABORT, '{reason}'); END")
