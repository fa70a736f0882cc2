"""Proof of order at run time: what each actor applied, written down by the database itself.

The suite, not the product, puts triggers on the state tables and on the ledgers. Every change of a position leaves a
row with the step it was (old and new position) and the transaction that made it; every ledger row leaves one with its
position and transaction. The log is written inside the same transactions, so what was rolled back is not in it.

A third log keeps every hold: one that was retried with success has left no other trace.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

STATES: Final = {
    "stats": "stats_state",
    "loyalty": "loyalty_state",
    "credit": "credit_state",
    "segmentation": "customer_segment",
}
"""Actor -> the table whose rows carry its positions."""
LEDGERS: Final = {"loyalty_entry": "loyalty", "credit_usage": "credit", "credit_payment": "credit"}
"""Append-only table -> the actor that writes it, one row at the position of the event it comes from."""

_TABLES: Final = """
CREATE TABLE order_log (
    id bigserial PRIMARY KEY, actor text NOT NULL, customer bigint NOT NULL,
    old_position bigint NOT NULL, new_position bigint NOT NULL, txid xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE TABLE ledger_log (
    id bigserial PRIMARY KEY, ledger text NOT NULL, actor text NOT NULL, customer bigint NOT NULL,
    position bigint NOT NULL, txid xid8 NOT NULL DEFAULT pg_current_xact_id()
);
CREATE TABLE hold_log (
    id bigserial PRIMARY KEY, actor text NOT NULL, customer bigint NOT NULL, position bigint NOT NULL,
    attempts bigint NOT NULL, error text NOT NULL
);
CREATE FUNCTION log_step() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO order_log (actor, customer, old_position, new_position) VALUES (
        TG_ARGV[0], CASE TG_OP WHEN 'DELETE' THEN OLD.customer ELSE NEW.customer END,
        CASE TG_OP WHEN 'INSERT' THEN 0 ELSE OLD.position END, CASE TG_OP WHEN 'DELETE' THEN 0 ELSE NEW.position END
    );
    RETURN NULL;
END $$;
CREATE FUNCTION log_ledger() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO ledger_log (ledger, actor, customer, position)
    VALUES (TG_TABLE_NAME, TG_ARGV[0], NEW.customer, NEW.position);
    RETURN NULL;
END $$;
CREATE FUNCTION log_hold() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO hold_log (actor, customer, position, attempts, error)
    VALUES (NEW.actor, NEW.customer, NEW.position, NEW.attempts, NEW.error);
    RETURN NULL;
END $$;
CREATE TRIGGER log_held AFTER INSERT OR UPDATE ON held_group FOR EACH ROW EXECUTE FUNCTION log_hold();
"""
# A row is made at position 0; one made elsewhere would be a step over everything before it.
_STATE_TRIGGERS: Final = """
CREATE TRIGGER log_made AFTER INSERT ON {table} FOR EACH ROW WHEN (NEW.position <> 0)
    EXECUTE FUNCTION log_step('{actor}');
CREATE TRIGGER log_moved AFTER UPDATE ON {table} FOR EACH ROW WHEN (NEW.position <> OLD.position)
    EXECUTE FUNCTION log_step('{actor}');
CREATE TRIGGER log_gone AFTER DELETE ON {table} FOR EACH ROW EXECUTE FUNCTION log_step('{actor}');
"""
_LEDGER_TRIGGER: Final = """
CREATE TRIGGER log_written AFTER INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION log_ledger('{actor}');
"""

INSTALL: Final = (
    _TABLES
    + "".join(_STATE_TRIGGERS.format(actor=actor, table=table) for actor, table in STATES.items())
    + "".join(_LEDGER_TRIGGER.format(actor=actor, table=table) for table, actor in LEDGERS.items())
)
"""Run it once in a PostgreSQL database with the product's schema."""

_SQLITE_STATE: Final = """
CREATE TRIGGER log_made_{table} AFTER INSERT ON {table} WHEN NEW.position <> 0 BEGIN
    INSERT INTO order_log (actor, customer, old_position, new_position)
    VALUES ('{actor}', NEW.customer, 0, NEW.position);
END;
CREATE TRIGGER log_moved_{table} AFTER UPDATE ON {table} WHEN NEW.position <> OLD.position BEGIN
    INSERT INTO order_log (actor, customer, old_position, new_position)
    VALUES ('{actor}', NEW.customer, OLD.position, NEW.position);
END;
CREATE TRIGGER log_gone_{table} AFTER DELETE ON {table} BEGIN
    INSERT INTO order_log (actor, customer, old_position, new_position)
    VALUES ('{actor}', OLD.customer, OLD.position, 0);
END;
"""
_SQLITE_LEDGER: Final = """
CREATE TRIGGER log_written_{table} AFTER INSERT ON {table} BEGIN
    INSERT INTO ledger_log (ledger, actor, customer, position)
    VALUES ('{table}', '{actor}', NEW.customer, NEW.position);
END;
"""
_SQLITE_HOLD: Final = """
CREATE TRIGGER log_held_{event} AFTER {event} ON held_group BEGIN
    INSERT INTO hold_log (actor, customer, position, attempts, error)
    VALUES (NEW.actor, NEW.customer, NEW.position, NEW.attempts, NEW.error);
END;
"""
INSTALL_SQLITE: Final = (
    """
CREATE TABLE order_log (
    id INTEGER PRIMARY KEY, actor TEXT, customer INTEGER, old_position INTEGER, new_position INTEGER,
    txid INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE ledger_log (
    id INTEGER PRIMARY KEY, ledger TEXT, actor TEXT, customer INTEGER, position INTEGER, txid INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE hold_log (
    id INTEGER PRIMARY KEY, actor TEXT, customer INTEGER, position INTEGER, attempts INTEGER, error TEXT
);
"""
    + "".join(_SQLITE_HOLD.format(event=event) for event in ("INSERT", "UPDATE"))
    + "".join(_SQLITE_STATE.format(actor=actor, table=table) for actor, table in STATES.items())
    + "".join(_SQLITE_LEDGER.format(actor=actor, table=table) for table, actor in LEDGERS.items())
)
"""The same for SQLite, which does not tell its transactions apart."""

_APPLIED: Final = """
WITH applied AS (
    SELECT l.actor, l.customer, e.position,
        row_number() OVER (PARTITION BY l.actor, l.customer ORDER BY l.id, e.position) AS place
    FROM order_log l
    JOIN event e ON e.customer = l.customer AND e.position > l.old_position AND e.position <= l.new_position
)
"""
"""Every position of a stream an actor moved over, with its place in the order in which that happened."""

REPEATED: Final = _APPLIED + (
    "SELECT COALESCE(sum(times - 1), 0) FROM "
    "(SELECT count(*) AS times FROM applied GROUP BY actor, customer, position) AS counted"
)
OUT_OF_ORDER: Final = _APPLIED + "SELECT count(*) FROM applied WHERE position <> place"
"""The proof itself: in the order of application the positions of each customer are 1, 2, …, n."""
BROKEN_STEPS: Final = """
SELECT count(*) FROM (
    SELECT old_position, new_position,
        COALESCE(lag(new_position) OVER (PARTITION BY actor, customer ORDER BY id), 0) AS reached
    FROM order_log
) AS steps WHERE old_position <> reached OR new_position <= old_position
"""
"""Steps that do not begin where the one before ended, or do not go forward."""
NOT_REACHED: Final = "SELECT " + " + ".join(
    f"(SELECT count(*) FROM {table} s LEFT JOIN (SELECT customer, max(new_position) AS reached FROM order_log "
    f"WHERE actor = '{actor}' GROUP BY customer) AS l ON l.customer = s.customer "
    "WHERE s.position <> COALESCE(l.reached, 0))"
    for actor, table in STATES.items()
)
"""States whose position is not where the log ends."""
FOREIGN_FACTS: Final = """
SELECT count(*) FROM ledger_log f WHERE NOT EXISTS (
    SELECT 1 FROM order_log l WHERE l.actor = f.actor AND l.customer = f.customer AND l.txid = f.txid
    AND f.position > l.old_position AND f.position <= l.new_position
)
"""
"""Ledger rows that were not written by the transaction whose step covers their position."""
REPEATED_FACTS: Final = (
    "SELECT COALESCE(sum(times - 1), 0) FROM "
    "(SELECT count(*) AS times FROM ledger_log GROUP BY ledger, customer, position) AS counted"
)


class OrderProof(NamedTuple):
    """What the log says; every figure but the first must be 0."""

    positions: int
    """Applied over all actors and customers: a proof over nothing proves nothing."""
    twice: int
    disorder: int


def prove(scalar: Callable[[str], Any]) -> OrderProof:
    """Read the log; `scalar` runs one statement and returns its one value."""
    return OrderProof(
        positions=scalar(_APPLIED + "SELECT count(*) FROM applied"),
        twice=int(scalar(REPEATED)) + int(scalar(REPEATED_FACTS)) + scalar(FOREIGN_FACTS),
        disorder=scalar(OUT_OF_ORDER) + scalar(BROKEN_STEPS) + scalar(NOT_REACHED),
    )
