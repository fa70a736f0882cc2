"""The database refuses to change or delete what happened: events, ledgers, operator actions, rules, cuts.

Whoever asks, the owner included. Nothing here runs when a row is inserted, and the two ledger tables with columns that
do change name the others, so that those updates run nothing either.
"""

from typing import Any, Final

import peewee

from customer_actors.storage.dialect import dialect_of

WHOLE_ROWS: Final = (
    "event",
    "event_payload",
    "loyalty_entry",
    "credit_allocation",
    "operator_action",
    "rules",
    "rfm_cuts",
)
"""Tables whose rows never change."""

FIXED_COLUMNS: Final = {
    "credit_usage": (
        "customer, position, channel, reference, amount_minor, due_date, over_limit, no_account"  # [C4]
    ),
    "credit_payment": "customer, position, reference, amount_minor, order_id, sale_position",
}
"""Table -> its columns that never change; the others are caches of the allocations."""

REFUSE_CHANGE: Final = """
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING
        ERRCODE = 'restrict_violation',
        MESSAGE = TG_TABLE_NAME || ' keeps what happened: its rows are never changed or deleted',
        HINT = 'What was wrong is put right by a new event or command.';
END
$$
"""


def up(migrator: Any, db: peewee.Database) -> None:
    if dialect_of(db) == "postgresql":
        db.execute_sql(REFUSE_CHANGE)
    for table in WHOLE_ROWS:
        _refuse(db, table, "UPDATE")
    for table, names in FIXED_COLUMNS.items():
        _refuse(db, table, f"UPDATE OF {names}")
    for table in (*WHOLE_ROWS, *FIXED_COLUMNS):
        _refuse(db, table, "DELETE")
        if dialect_of(db) == "postgresql":
            _refuse(db, table, "TRUNCATE")


def _refuse(db: peewee.Database, table: str, change: str) -> None:
    verb = change.split()[0]
    trigger = f"CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {change} ON {table}"
    if dialect_of(db) == "postgresql":
        each = "STATEMENT" if verb == "TRUNCATE" else "ROW"
        db.execute_sql(f"{trigger} FOR EACH {each} EXECUTE FUNCTION refuse_change()")
    else:
        reason = f"{table} keeps what happened: its rows are never changed or deleted"
        db.execute_sql(f"{trigger} BEGIN SELECT RAISE(ABORT, '{reason}'); END")
