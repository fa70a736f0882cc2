"""What operators do, recorded: skips, releases, retries; and holds that cost no attempt."""

from typing import Any

import peewee

from customer_actors.storage.dialect import run

SCHEMA = """
-- [G21] who did what and why. A skip is part of the history: whoever folds the stream again steps over it too
CREATE TABLE operator_action (
    id {identity},
    at_us {big} NOT NULL,
    operator TEXT NOT NULL,
    action TEXT NOT NULL,
    reason TEXT NOT NULL,
    actor TEXT,
    customer {big},
    position {big},
    detail TEXT,
    CHECK (action <> 'skip' OR (actor IS NOT NULL AND customer IS NOT NULL AND position IS NOT NULL))
) {table};

-- an event is skipped once; also how a fold finds the skips of a customer
CREATE UNIQUE INDEX operator_action_skip ON operator_action (customer, position, actor) WHERE action = 'skip';

-- a hold made while a mass failure stops charging has no attempt yet
CREATE TABLE held_group_0002 (
    actor TEXT NOT NULL,
    customer {big} NOT NULL,
    position {big} NOT NULL,
    attempts {int} NOT NULL CHECK (attempts >= 0),
    next_try_us {big},
    error TEXT NOT NULL,
    traceback TEXT NOT NULL,
    since_us {big} NOT NULL,
    PRIMARY KEY (actor, customer)
) {keyed};

INSERT INTO held_group_0002 (actor, customer, position, attempts, next_try_us, error, traceback, since_us)
SELECT actor, customer, position, attempts, next_try_us, error, traceback, since_us FROM held_group;

DROP TABLE held_group;

ALTER TABLE held_group_0002 RENAME TO held_group;

-- a quarantined message that was admitted after a fix stays, with what became of it
ALTER TABLE quarantine ADD COLUMN resolved_us {big};

ALTER TABLE quarantine ADD COLUMN outcome TEXT CHECK ((outcome IS NULL) = (resolved_us IS NULL));
"""


def up(migrator: Any, db: peewee.Database) -> None:
    run(db, SCHEMA)
