"""Holds in the database: a flag on the locked state row, the details beside it."""

import random
from collections.abc import Collection, Iterable, Sequence

from customer_actors.domain.routing import WAKES
from customer_actors.groups.advance import Hold
from customer_actors.groups.alarm import MassFailure
from customer_actors.groups.failure import next_try_us, uncharged_try_us
from customer_actors.storage.bells import add_bell
from customer_actors.storage.database import Columns, Database, Row, columns

_JITTER = random.Random()


def hold(
    database: Database,
    actor: str,
    state_table: str,
    holds: Sequence[Hold],
    now_us: int,
    alarm: MassFailure | None = None,
) -> set[int]:
    """Hold groups at the event that failed, or charge one more attempt to groups held already.

    Returns the groups that were not held at that event before.

    While `alarm` is raised nobody is charged and nobody parked. Call inside the transaction that holds the lock of
    their state rows.
    """
    if not holds:
        return set()
    charged = alarm is None or not alarm.raised(now_us / 1_000_000)
    flags = columns(state_table, "customer bigint", "held_position bigint")
    database.update(flags, [(one.group, one.position) for one in holds])
    known = {row[1:3]: row[3:] for row in database.select(_DETAILS, [(actor, one.group) for one in holds])}
    for one in holds:
        attempts, since_us = known.get((one.group, one.position), (0, now_us))
        if charged:
            attempts += 1
            next_try = next_try_us(attempts, now_us, _JITTER)
        else:
            next_try = uncharged_try_us(since_us, now_us, _JITTER)
        values = (actor, one.group, one.position, attempts, next_try, one.error, one.traceback, since_us)
        database.execute(_HOLD, values)
    return {one.group for one in holds if (one.group, one.position) not in known}


_DETAILS = columns("held_group", "actor text, customer bigint", "position bigint, attempts int, since_us bigint")
_HOLD = (
    "INSERT INTO held_group (actor, customer, position, attempts, next_try_us, error, traceback, since_us) "
    "VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (actor, customer) DO UPDATE SET position = excluded.position, "
    "attempts = excluded.attempts, next_try_us = excluded.next_try_us, error = excluded.error, "
    "traceback = excluded.traceback, since_us = excluded.since_us"
)


def charged(database: Database, actor: str, groups: Iterable[int]) -> set[int]:
    """Those of the groups that are held and were charged an attempt.

    They fail where others do not. That they fail once more says nothing about the code, so it must not raise the alarm:
    on a quiet system the retries of twenty of them are all the tries there are. A group held during a mass failure has
    no attempts, and goes on to count.
    """
    return {row[1] for row in database.select(_DETAILS, [(actor, group) for group in groups]) if row[3] > 0}


def lock_due(database: Database, actor: str, state: Columns, groups: Sequence[int], now_us: int) -> list[Row]:
    """Lock the held groups whose time has come and lift their flag for one attempt, charged or settled afterwards.

    Checked under the lock: an early or doubled message finds nothing due and costs no attempt.
    """
    rows = database.lock_groups(state, groups, "held_position IS NOT NULL")
    due = [row for row in rows if _is_due(database, actor, row[0], now_us)]
    database.update(columns(state.table, "customer bigint", "held_position bigint"), [(row[0], None) for row in due])
    return due


def _is_due(database: Database, actor: str, group: int, now_us: int) -> bool:
    sql = "SELECT next_try_us FROM held_group WHERE actor = ? AND customer = ?"
    rows = database.execute(sql, (actor, group)).fetchall()
    return bool(rows) and rows[0][0] is not None and rows[0][0] <= now_us


def positions(database: Database, actor: str, groups: Iterable[int]) -> dict[int, int]:
    """Group -> the position it is held at."""
    held = columns("held_group", "actor text, customer bigint", "position bigint")
    return {row[1]: row[2] for row in database.select(held, [(actor, group) for group in groups])}


def settle(
    database: Database,
    actor: str,
    retried: Sequence[int],
    failed: Sequence[Hold],
    now_us: int,
    went_on: Collection[int] = (),
) -> None:
    """Forget the holds of the groups that went on, in the transaction of their attempt.

    The bell that told of what waits behind was let go while they were held, so there is a new one. Also for those that
    `went_on` as far as another event that failed: whoever follows the actor has to follow it so far.
    """
    held = {one.group for one in failed}
    free = sorted(group for group in retried if group not in held)
    database.delete(columns("held_group", "actor text, customer bigint"), [(actor, group) for group in free])
    if moved := sorted({*free, *went_on}):
        add_bell(database, {WAKES[actor]: moved}, now_us)


def next_try_of(database: Database, actor: str, group: int) -> int | None:
    """When a held group is due, in microseconds; None when it is not held, or parked."""
    rows = database.query("SELECT next_try_us FROM held_group WHERE actor = ? AND customer = ?", (actor, group))
    next_try: int | None = rows[0][0] if rows else None
    return next_try
