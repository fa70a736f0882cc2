"""Errors raised by the database itself, through triggers of the suite: a full disk, deadlocks, failed serializations.

Each statement that writes one of the tables draws once from a seeded sequence; the draws outlive the rollback, so a
seed gives the same decisions and the number of errors raised can be counted.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from tests.faults.stage import SERVICE, Stage

OF_ACTORS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("stats_state", "loyalty_state", "credit_state", "customer_segment"), "UPDATE OF position"),
    **dict.fromkeys(("loyalty_entry", "credit_usage", "credit_payment"), "INSERT OR UPDATE"),
}
"""What actors alone write: table -> change. Ingest makes the rows of states, and a hold marks them elsewhere."""
EVERYTHING: Final[Mapping[str, str]] = dict.fromkeys(
    ("event", "sale", "customer", "bell", *OF_ACTORS), "INSERT OR UPDATE"
)
"""Tables of ingest and of every actor, but not of holds: who is wrongly held shall not be saved by the same error."""

_RAISE: Final = """
CREATE SEQUENCE sabotage_draws MINVALUE 0;
CREATE SEQUENCE sabotage_hits MINVALUE 0;
GRANT ALL ON SEQUENCE sabotage_draws, sabotage_hits TO {service};
CREATE FUNCTION sabotage() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF mod(abs(hashint8extended(nextval('sabotage_draws'), {seed})), 1000) < {per_mille} THEN
        PERFORM nextval('sabotage_hits');
        RAISE EXCEPTION '{error} (made by the fault suite)' USING ERRCODE = '{error}';
    END IF;
    RETURN NULL;
END $$;
"""


@contextmanager
def sabotage(
    stage: Stage, error: str, rng: random.Random, per_mille: int = 1_000, tables: Mapping[str, str] = EVERYTHING
) -> Iterator[Callable[[], int]]:
    """While inside, so many of a thousand writing statements raise `error` (a name PostgreSQL knows); yields the count.

    All of its words are the suite's own constants, hence the formatting.
    """
    words = {"service": SERVICE, "seed": rng.randrange(2**31), "per_mille": per_mille, "error": error}
    stage.sql(_RAISE.format(**words))
    for table, change in tables.items():
        stage.sql(f"CREATE TRIGGER sabotage BEFORE {change} ON {table} FOR EACH STATEMENT EXECUTE FUNCTION sabotage()")
    try:
        yield lambda: int(
            stage.sql("SELECT CASE WHEN is_called THEN last_value + 1 ELSE 0 END FROM sabotage_hits")[0][0]
        )
    finally:
        # One table's lock at a time: all at once would now and then make a deadlock with the service.
        for table in tables:
            stage.sql(f"DROP TRIGGER sabotage ON {table}")
        stage.sql("DROP FUNCTION sabotage")
        stage.sql("DROP SEQUENCE sabotage_draws, sabotage_hits")
