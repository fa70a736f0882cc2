"""The first schema: streams, registry, actor states, ledgers, bells, holds, quarantine.

Written as SQL because the database holds the invariants: every CHECK and UNIQUE below is a rule or a guarantee, named
in the line above it. The two dialects differ only in the words of `storage.dialect`.
"""

from typing import Any

import peewee

from customer_actors.storage.dialect import run

SCHEMA = """
-- [A6] the currency is the first one the organization sends
CREATE TABLE organization (
    organization_id TEXT NOT NULL PRIMARY KEY,
    currency TEXT
) {keyed};

-- [A8, A9] one row per customer; head is the last position, head_* the last position that concerns that actor
CREATE TABLE customer (
    id {identity},
    organization_id TEXT NOT NULL,
    customer_id TEXT NOT NULL,
    head {big} NOT NULL DEFAULT 0 CHECK (head >= 0),
    head_stats {big} NOT NULL DEFAULT 0 CHECK (head_stats <= head),
    head_loyalty {big} NOT NULL DEFAULT 0 CHECK (head_loyalty <= head),
    head_credit {big} NOT NULL DEFAULT 0 CHECK (head_credit <= head),
    UNIQUE (organization_id, customer_id)
) {customer};

-- the streams; no other index: uniqueness of business keys is the registry's work
CREATE TABLE event (
    customer {big} NOT NULL,
    position {big} NOT NULL CHECK (position >= 1),
    type TEXT NOT NULL,
    reference TEXT NOT NULL,
    channel TEXT,
    amount_minor {big} NOT NULL CHECK (amount_minor >= 0),
    occurred_at_us {big} NOT NULL,
    received_at_us {big} NOT NULL,
    rules {int} NOT NULL,
    concerns {int} NOT NULL,
    on_credit {bool} NOT NULL,
    already_cancelled {bool} NOT NULL,
    sale_position {big} CHECK (sale_position < position),
    sale_occurred_at_us {big},
    order_id TEXT,
    detail TEXT,
    sale_reference TEXT,
    PRIMARY KEY (customer, position)
) {keyed};

CREATE TABLE event_payload (
    customer {big} NOT NULL,
    position {big} NOT NULL,
    payload TEXT NOT NULL,
    PRIMARY KEY (customer, position)
) {keyed};

-- [A2] a sale's business key, once for ever; a tombstone is a row without amount that is cancelled [A4]
CREATE TABLE sale (
    organization_id TEXT NOT NULL,
    channel TEXT NOT NULL CHECK (channel IN ('order', 'pos')),
    reference TEXT NOT NULL,
    customer_id TEXT,
    amount_minor {big},
    sold_channel TEXT,
    sold_reference TEXT,
    position {big},
    occurred_at_us {big},
    on_credit {bool} NOT NULL DEFAULT {false},
    cancelled {bool} NOT NULL DEFAULT {false},
    alias TEXT,
    charged {bool} NOT NULL DEFAULT {false},
    PRIMARY KEY (organization_id, channel, reference)
) {hot};

-- [A2] one row per payment
CREATE TABLE payment_key (
    organization_id TEXT NOT NULL,
    customer_id TEXT NOT NULL,
    reference TEXT NOT NULL,
    amount_minor {big} NOT NULL,
    PRIMARY KEY (organization_id, customer_id, reference)
) {keyed};

-- [L6] one row per redemption reference, refused ones included
CREATE TABLE command_key (
    organization_id TEXT NOT NULL,
    reference TEXT NOT NULL,
    customer_id TEXT NOT NULL,
    points {big} NOT NULL,
    PRIMARY KEY (organization_id, reference)
) {keyed};

-- [A1] raw messages that never entered a stream, unique by content
CREATE TABLE quarantine (
    id {identity},
    digest TEXT NOT NULL UNIQUE,
    routing_key TEXT,
    content_encoding TEXT,
    body {bytes} NOT NULL,
    code TEXT NOT NULL,
    reason TEXT NOT NULL,
    organization_id TEXT,
    seen {big} NOT NULL DEFAULT 1 CHECK (seen >= 1),
    first_seen_us {big} NOT NULL,
    last_seen_us {big} NOT NULL
) {table};

-- customers with new events whose actors may not have been rung yet; groups is JSON: routing key -> customers
CREATE TABLE bell (
    id {identity},
    rung_at_us {big} NOT NULL,
    groups TEXT NOT NULL
) {table};

-- a held_position stops this customer for this actor until it is released
CREATE TABLE stats_state (
    customer {big} NOT NULL PRIMARY KEY,
    position {big} NOT NULL DEFAULT 0,
    held_position {big} CHECK (held_position > position),
    sales_order {big} NOT NULL DEFAULT 0 CHECK (sales_order >= 0),
    sales_pos {big} NOT NULL DEFAULT 0 CHECK (sales_pos >= 0),
    total_spent_minor {big} NOT NULL DEFAULT 0 CHECK (total_spent_minor >= 0),
    cancelled_orders {big} NOT NULL DEFAULT 0 CHECK (cancelled_orders >= 0),
    first_purchase_at_us {big},
    last_purchase_at_us {big} CHECK (last_purchase_at_us >= first_purchase_at_us)
) {hot};

CREATE TABLE loyalty_state (
    customer {big} NOT NULL PRIMARY KEY,
    position {big} NOT NULL DEFAULT 0,
    held_position {big} CHECK (held_position > position),
    points {big} NOT NULL DEFAULT 0,
    lifetime_points {big} NOT NULL DEFAULT 0 CHECK (lifetime_points >= 0),
    tier TEXT NOT NULL
) {hot};

-- [L3] append-only; an earning stands at its sale's position, so a sale earns at most once
CREATE TABLE loyalty_entry (
    customer {big} NOT NULL,
    position {big} NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('earn', 'reverse', 'redeem')),
    points {big} NOT NULL CHECK (points <> 0),
    sale_position {big},
    tier TEXT,
    multiplier TEXT,
    points_per_unit TEXT,
    PRIMARY KEY (customer, position),
    CHECK ((kind = 'earn') = (points > 0)),
    CHECK (kind <> 'earn' OR sale_position = position)
) {keyed};

-- [L3] at most one reversal per earning
CREATE UNIQUE INDEX loyalty_reversal ON loyalty_entry (customer, sale_position) WHERE kind = 'reverse';

CREATE TABLE credit_state (
    customer {big} NOT NULL PRIMARY KEY,
    position {big} NOT NULL DEFAULT 0,
    held_position {big} CHECK (held_position > position),
    status TEXT CHECK (status IN ('active', 'suspended')),
    automatic {bool} NOT NULL DEFAULT {false},
    limit_minor {big} CHECK (limit_minor >= 0),
    terms_days {int} CHECK (terms_days >= 0),
    used_minor {big} NOT NULL DEFAULT 0 CHECK (used_minor >= 0),
    unapplied_minor {big} NOT NULL DEFAULT 0 CHECK (unapplied_minor >= 0),
    suspense_minor {big} NOT NULL DEFAULT 0 CHECK (suspense_minor >= 0),
    -- [C3] money waits in suspense only while there is no account
    CHECK (status IS NULL OR suspense_minor = 0)
) {hot};

-- [C4] one usage per (channel, order); outstanding_minor and cancelled_position are the only columns that ever change
CREATE TABLE credit_usage (
    customer {big} NOT NULL,
    position {big} NOT NULL,
    channel TEXT NOT NULL,
    reference TEXT NOT NULL,
    amount_minor {big} NOT NULL CHECK (amount_minor >= 0),
    outstanding_minor {big} NOT NULL CHECK (outstanding_minor >= 0 AND outstanding_minor <= amount_minor),
    due_date TEXT NOT NULL,
    cancelled_position {big},
    over_limit {bool} NOT NULL,
    no_account {bool} NOT NULL,
    PRIMARY KEY (customer, position),
    UNIQUE (customer, channel, reference),
    CHECK (cancelled_position IS NULL OR outstanding_minor = 0)
) {keyed};

CREATE INDEX credit_usage_open ON credit_usage (customer) WHERE outstanding_minor > 0;

-- unapplied_minor is the only column that ever changes
CREATE TABLE credit_payment (
    customer {big} NOT NULL,
    position {big} NOT NULL,
    reference TEXT NOT NULL,
    amount_minor {big} NOT NULL CHECK (amount_minor > 0),
    unapplied_minor {big} NOT NULL CHECK (unapplied_minor >= 0 AND unapplied_minor <= amount_minor),
    order_id TEXT,
    sale_position {big},
    PRIMARY KEY (customer, position)
) {keyed};

CREATE INDEX credit_payment_open ON credit_payment (customer) WHERE unapplied_minor > 0;

-- append-only; a release is a negative row [C5]
CREATE TABLE credit_allocation (
    customer {big} NOT NULL,
    usage_position {big} NOT NULL,
    payment_position {big} NOT NULL,
    position {big} NOT NULL,
    amount_minor {big} NOT NULL CHECK (amount_minor <> 0),
    PRIMARY KEY (customer, usage_position, payment_position, position)
) {keyed};

-- [R5, R6] code is null without an active sale; the inputs stay with the result, so that it can be checked
CREATE TABLE customer_segment (
    customer {big} NOT NULL PRIMARY KEY,
    position {big} NOT NULL DEFAULT 0,
    held_position {big} CHECK (held_position > position),
    last_purchase_date TEXT,
    orders {big} NOT NULL DEFAULT 0,
    total_spent_minor {big} NOT NULL DEFAULT 0,
    recency {int} CHECK (recency BETWEEN 1 AND 5),
    frequency {int} CHECK (frequency BETWEEN 1 AND 5),
    monetary {int} CHECK (monetary BETWEEN 1 AND 5),
    code TEXT,
    cuts {int},
    calculated_at_us {big},
    CHECK ((orders = 0) = (code IS NULL))
) {hot};

-- [R2] one snapshot of cuts per organization and night; each dimension is JSON, null where the fixed cuts apply [R3]
CREATE TABLE rfm_cuts (
    number {identity},
    organization_id TEXT NOT NULL,
    as_of TEXT NOT NULL,
    recency TEXT,
    frequency TEXT,
    monetary TEXT,
    calculated_at_us {big} NOT NULL,
    UNIQUE (organization_id, as_of)
) {table};

-- the details of a hold; next_try_us is null once it is parked
CREATE TABLE held_group (
    actor TEXT NOT NULL,
    customer {big} NOT NULL,
    position {big} NOT NULL,
    attempts {int} NOT NULL CHECK (attempts >= 1),
    next_try_us {big},
    error TEXT NOT NULL,
    traceback TEXT NOT NULL,
    since_us {big} NOT NULL,
    PRIMARY KEY (actor, customer)
) {keyed};

-- [A10] business settings, numbered; a later change never changes history
CREATE TABLE rules (
    number {identity},
    content TEXT NOT NULL UNIQUE,
    created_at_us {big} NOT NULL
) {table};
"""


def up(migrator: Any, db: peewee.Database) -> None:
    run(db, SCHEMA)
