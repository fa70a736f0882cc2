"""A mass failure on both databases: nobody is charged, nobody is parked, and it ends by itself."""

from collections.abc import Callable
from decimal import Decimal

import pytest

from customer_actors.domain import routing
from customer_actors.domain.rules import DEFAULT_TIERS, Rules
from customer_actors.groups.failure import FIRST_DELAY_S, MAX_ATTEMPTS, MAX_DELAY_S, MAX_UNCHARGED_DELAY_S
from customer_actors.storage.database import Database
from tests.model.examples import order
from tests.storage.holding import (
    CROWD,
    ON_STREAM_ACTORS,
    SECOND_US,
    Break,
    crowd,
    due_us,
    fail_everything,
    held,
    retry,
    sales,
)
from tests.storage.support import NOW_US, Storage


@ON_STREAM_ACTORS
def test_a_mass_failure_holds_without_charging_and_is_tried_again_soon(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, actor: str
) -> None:
    numbers = crowd(storage)
    fail_everything(monkeypatch, actor)
    stores = storage.stores()
    stores.of(actor).round(numbers, NOW_US)
    assert stores.alarm.raised(NOW_US / SECOND_US)
    assert held(storage) == [(actor, 1, 0, NOW_US)] * CROWD
    for row in storage.database.query("SELECT next_try_us FROM held_group"):
        assert 0 < row[0] - NOW_US <= FIRST_DELAY_S * SECOND_US


def test_during_a_mass_failure_no_try_is_charged_and_nobody_parked_until_it_ends(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, break_fold: Break
) -> None:
    numbers = crowd(storage)
    fail_everything(monkeypatch, "loyalty")
    stores = storage.stores()
    stores.of("loyalty").round(numbers, NOW_US)
    now_us = NOW_US
    for _ in range(2 * MAX_ATTEMPTS):
        now_us += int(MAX_UNCHARGED_DELAY_S) * SECOND_US
        assert all(stores.of("loyalty").retry(number, now_us).held for number in numbers)
    assert held(storage) == [("loyalty", 1, 0, NOW_US)] * CROWD

    break_fold("loyalty", "bad-m29")
    now_us += int(MAX_UNCHARGED_DELAY_S) * SECOND_US
    for number in numbers:
        stores.of("loyalty").retry(number, now_us)
    assert not stores.alarm.raised(now_us / SECOND_US)
    assert held(storage) == [("loyalty", 1, 1, NOW_US)]


def test_a_hold_charged_before_keeps_its_attempts_through_a_mass_failure(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, break_fold: Break
) -> None:
    break_fold("loyalty", "bad")
    storage.settle(*sales("bad"))
    for _ in range(MAX_ATTEMPTS - 2):
        retry(storage, "loyalty", due_us(storage, "loyalty"))
    stores, numbers, last = storage.stores(), crowd(storage), due_us(storage, "loyalty")
    fail_everything(monkeypatch, "loyalty")
    stores.of("loyalty").round(numbers, last)
    assert len(stores.of("loyalty").retry(storage.number(), last).held) == 1
    assert ("loyalty", 1, MAX_ATTEMPTS - 1, NOW_US) in held(storage)
    assert 0 < due_us(storage, "loyalty") - last <= MAX_DELAY_S * SECOND_US


@pytest.mark.parametrize("actor", routing.ACTORS)
def test_customers_that_failed_among_others_are_parked_though_only_their_retries_are_left(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, actor: str
) -> None:
    """A quiet night: over half of what is tried fails, nothing of it new. The process may have been restarted."""
    numbers, stores = crowd(storage), storage.stores()
    if actor == routing.SEGMENTATION:
        stores.of(routing.STATS).round(numbers, NOW_US)
    fail_everything(monkeypatch, actor)
    for number in numbers:  # each alone, as if many others had been tried
        storage.stores().of(actor).round([number], NOW_US)
    assert held(storage) == [(actor, 1, 1, NOW_US)] * CROWD
    now_us = NOW_US
    while storage.value("SELECT count(*) FROM held_group WHERE next_try_us IS NOT NULL"):
        now_us += int(MAX_DELAY_S) * SECOND_US
        assert all(stores.of(actor).retry(number, now_us).held for number in numbers)
        assert not stores.alarm.raised(now_us / SECOND_US)
    assert held(storage) == [(actor, 1, MAX_ATTEMPTS, NOW_US)] * CROWD


def test_data_the_database_refuses_from_everybody_is_a_mass_failure(database: Database) -> None:
    tiers = (DEFAULT_TIERS[0].model_copy(update={"multiplier": Decimal(1000)}),)
    storage = Storage(database, Rules(points_per_unit=Decimal(1_000_000), tiers=tiers))
    names = [f"c{number}" for number in range(CROWD)]
    storage.receive(*(order(name, "9" * 11, customer_id=name) for name in names))
    stores = storage.stores()
    done = stores.of("loyalty").round([storage.number(name) for name in names], NOW_US)
    assert len(done.held) == CROWD
    assert stores.alarm.raised(NOW_US / SECOND_US)
    assert {row[2] for row in held(storage)} == {0, 1}


def test_segmentation_that_fails_everybody_charges_nobody(
    storage: Storage, break_segment: Callable[[int | None], None]
) -> None:
    numbers = crowd(storage)
    storage.advance("stats")
    break_segment(0)
    stores = storage.stores()
    stores.of("segmentation").round(numbers, NOW_US)
    assert held(storage) == [("segmentation", 1, 0, NOW_US)] * CROWD
