"""Customers that are held, and what holds them."""

from collections.abc import Callable
from typing import Any

import pytest

from customer_actors.domain import routing
from customer_actors.groups.advance import Round
from customer_actors.storage import credit, loyalty, segmentation, stats
from customer_actors.storage.database import Database
from customer_actors.storage.holds import next_try_of
from tests.model.examples import order
from tests.storage.support import NOW_US, Dump, Storage, organization_dump

MODULES = {routing.STATS: stats, routing.LOYALTY: loyalty, routing.CREDIT: credit}
SECOND_US = 1_000_000
FAR_US = NOW_US + 10_000 * SECOND_US

Break = Callable[..., None]


def sales(*references: str, customer_id: str = "c1", organization_id: str = "org-1") -> list[Any]:
    """On credit, so that they concern every actor."""
    return [
        order(reference, "10", customer_id=customer_id, on_credit=True, organization_id=organization_id)
        for reference in references
    ]


def retry(storage: Storage, actor: str, now_us: int, customer_id: str = "c1", round_events: int = 512) -> Round:
    return storage.stores(round_events).of(actor).retry(storage.number(customer_id), now_us)


def due_us(storage: Storage, actor: str, customer_id: str = "c1") -> int:
    next_try = next_try_of(storage.database, actor, storage.number(customer_id))
    assert next_try is not None
    return next_try


def position(storage: Storage, actor: str, customer_id: str = "c1") -> tuple[int, int | None]:
    """(position, held position)."""
    table = "customer_segment" if actor == routing.SEGMENTATION else f"{actor}_state"
    sql = f"SELECT position, held_position FROM {table} WHERE customer = ?"
    row: tuple[int, int | None] = storage.database.query(sql, (storage.number(customer_id),))[0]
    return row


def held(storage: Storage) -> list[tuple[Any, ...]]:
    """(actor, position, attempts, since) of every hold."""
    return storage.database.query("SELECT actor, position, attempts, since_us FROM held_group ORDER BY actor, customer")


def rows(database: Database) -> Dump:
    return organization_dump(database, "org-1") | {"held_group": database.query("SELECT * FROM held_group")}


ON_STREAM_ACTORS = pytest.mark.parametrize("actor", routing.STREAM_ACTORS)


CROWD = 30


def crowd(storage: Storage, extra: str = "") -> list[int]:
    """The numbers of a crowd of customers, each with one more sale that fails."""
    names = [f"m{number}" for number in range(CROWD)]
    storage.receive(*(sale for name in names for sale in sales(f"bad-{name}{extra}", customer_id=name)))
    return [storage.number(name) for name in names]


def fail_everything(monkeypatch: pytest.MonkeyPatch, actor: str) -> None:
    """A bad deploy."""

    def fold(*_: Any) -> Any:
        raise ValueError("nobody can be folded")

    if actor == routing.SEGMENTATION:
        monkeypatch.setattr(segmentation, "segment_of", fold)
    else:
        monkeypatch.setattr(MODULES[actor], "fold", fold)
