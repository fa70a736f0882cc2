"""Signs of life of every process, for `health`."""

from typing import Any

import peewee

from customer_actors.storage.dialect import run

SCHEMA = """
-- [G24] one row per process, written every few seconds by itself; problem: its threads, which only a restart heals;
-- alarm: what it sees of the service, such as a mass failure
CREATE TABLE beat (
    process TEXT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('worker', 'ingest', 'scheduler', 'embedded')),
    host TEXT NOT NULL,
    pid {big} NOT NULL,
    at_us {big} NOT NULL,
    threads_expected {int} NOT NULL,
    threads_alive {int} NOT NULL,
    problem TEXT,
    alarm TEXT
) {keyed};

-- how many are new, however large the quarantine is; the moment first seen never changes, so a repetition touches no
-- index
CREATE INDEX quarantine_new ON quarantine (first_seen_us) WHERE resolved_us IS NULL;
"""


def up(migrator: Any, db: peewee.Database) -> None:
    run(db, SCHEMA)
