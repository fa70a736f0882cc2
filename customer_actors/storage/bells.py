"""Bells: which customers have new events, as a row that outlives every message."""

import json
from collections.abc import Mapping, Sequence
from typing import Final

from customer_actors.storage.database import Database, columns

Bell = Mapping[str, list[int]]
"""Routing key -> customers (internal numbers, sorted)."""

_BELL = columns("bell", "id bigint")


def add_bell(database: Database, bell: Bell, now_us: int) -> None:
    """Note the bell inside the transaction that appends, so that a crash before ringing loses nothing."""
    if bell:
        groups = json.dumps(bell, separators=(",", ":"))
        database.execute("INSERT INTO bell (rung_at_us, groups) VALUES (?, ?)", (now_us, groups))


PAGE: Final = 200
"""Most bells one sweep looks at; the next one goes on behind them, so that no bell hides the others."""


def unanswered(database: Database, before_us: int, after: int = 0) -> list[tuple[int, Bell]]:
    """The oldest bells behind a bell's number, rung before a moment, as (number, bell); at most a page."""
    sql = "SELECT id, groups FROM bell WHERE id > ? AND rung_at_us < ? ORDER BY id LIMIT ?"
    rows = database.query(sql, (after, before_us, PAGE))
    return [(number, json.loads(groups)) for number, groups in rows]


def remove_bells(database: Database, numbers: Sequence[int]) -> None:
    """Forget bells whose customers are through or held; another sweep may have done so already."""
    with database.transaction():
        database.delete(_BELL, [(number,) for number in sorted(numbers)])


def newest_bell(database: Database) -> int:
    """The number of the bell noted last; 0 when there is none."""
    number: int = database.query("SELECT COALESCE(max(id), 0) FROM bell")[0][0]
    return number


def remove_bells_up_to(database: Database, number: int) -> None:
    """Forget all bells up to a number, for who has seen since that nobody waits."""
    with database.transaction():
        database.execute("DELETE FROM bell WHERE id <= ?", (number,))
