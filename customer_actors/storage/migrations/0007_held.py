"""Indexes of whom each actor holds, so that nobody has to read every state to find them."""

from typing import Any

import peewee

from customer_actors.storage.dialect import run

SCHEMA = """
-- the flag decides who is held, whatever became of the details; rows that are not held cost the index nothing
CREATE INDEX stats_state_held ON stats_state (customer) WHERE held_position IS NOT NULL;

CREATE INDEX loyalty_state_held ON loyalty_state (customer) WHERE held_position IS NOT NULL;

CREATE INDEX credit_state_held ON credit_state (customer) WHERE held_position IS NOT NULL;

CREATE INDEX customer_segment_held ON customer_segment (customer) WHERE held_position IS NOT NULL;
"""


def up(migrator: Any, db: peewee.Database) -> None:
    run(db, SCHEMA)
