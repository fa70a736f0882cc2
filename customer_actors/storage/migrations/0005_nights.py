"""Nightly jobs: who claimed which slot, what it consists of, and what is done."""

from typing import Any

import peewee

from customer_actors.storage.dialect import run

SCHEMA = """
-- [G17] a slot is local wall time without offset, so the hour that comes twice in autumn is one slot; whoever inserts
-- the row first has it
CREATE TABLE job_run (
    job TEXT NOT NULL,
    slot TEXT NOT NULL,
    as_of TEXT NOT NULL,
    dry_run {bool} NOT NULL DEFAULT {false},
    claimed_us {big} NOT NULL,
    planned_us {big},
    done_us {big} CHECK (done_us IS NULL OR planned_us IS NOT NULL),
    -- how often a part of it failed, when and with what error last: the pauses between tries grow with it
    failures {int} NOT NULL DEFAULT 0,
    failed_us {big},
    error TEXT,
    -- what its chunks came to, once it is done
    chunks {int} NOT NULL DEFAULT 0,
    examined {big} NOT NULL DEFAULT 0,
    changed {big} NOT NULL DEFAULT 0,
    PRIMARY KEY (job, slot)
) {keyed};

CREATE INDEX job_run_open ON job_run (job) WHERE done_us IS NULL;

-- customers first..last of one organization; marked done in the transaction that does the work, so a killed run
-- resumes with the chunks that are left; of the runs that are done only the newest date's chunks are kept
CREATE TABLE job_chunk (
    job TEXT NOT NULL,
    slot TEXT NOT NULL,
    number {int} NOT NULL,
    organization_id TEXT NOT NULL,
    first {big} NOT NULL,
    last {big} NOT NULL CHECK (last >= first),
    done_us {big},
    examined {big} NOT NULL DEFAULT 0,
    changed {big} NOT NULL DEFAULT 0,
    PRIMARY KEY (job, slot, number)
) {keyed};

CREATE INDEX job_chunk_open ON job_chunk (job, slot) WHERE done_us IS NULL;
"""


def up(migrator: Any, db: peewee.Database) -> None:
    run(db, SCHEMA)
