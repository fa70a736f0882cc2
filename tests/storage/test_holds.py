"""Holds on both databases: one customer waits for one actor, tried again at its time, and nobody else notices."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from customer_actors.domain import routing
from customer_actors.domain.rules import DEFAULT_TIERS, Rules
from customer_actors.errors import Outage
from customer_actors.groups.advance import Round
from customer_actors.groups.failure import FIRST_DELAY_S, MAX_ATTEMPTS, MAX_DELAY_S
from customer_actors.storage import loyalty
from customer_actors.storage.database import Database
from customer_actors.storage.holds import next_try_of
from tests.model.examples import cancellation, opened, order
from tests.servers import PrivatePostgres
from tests.storage.holding import FAR_US, ON_STREAM_ACTORS, SECOND_US, Break, due_us, held, position, retry, rows, sales
from tests.storage.support import NOW_US, Storage, in_organization, organization_dump, stored_state
from tests.storage.test_outage import end_connections
from tests.tampering import tamper


@ON_STREAM_ACTORS
def test_an_event_that_raises_holds_its_customer_for_that_actor_alone(
    storage: Storage, break_fold: Break, actor: str
) -> None:
    break_fold(actor, "bad")
    storage.receive(*sales("1", "2", "bad", "4"), *sales("5", "6", customer_id="c2"))
    report = storage.advance(actor)
    assert [(hold.group, hold.position, hold.error) for hold in report.held] == [
        (storage.number(), 3, "ValueError: cannot fold bad")
    ]
    assert (report.applied, report.moved) == (4, {storage.number(), storage.number("c2")})
    for other in routing.ACTORS:
        if other != actor:
            storage.advance(other)
    for each in routing.STREAM_ACTORS:
        assert position(storage, each) == ((2, 3) if each == actor else (4, None))
        assert position(storage, each, "c2") == (2, None)
    assert held(storage) == [(actor, 3, 1, NOW_US)]
    assert "in fold" in storage.value("SELECT traceback FROM held_group")
    # Before the bad event everything is kept, as it would be had the rest not arrived yet.
    storage.settle(*sales("1", "2", organization_id="org-2"))
    kept, whole = (stored_state(storage, organization_id, "c1") for organization_id in ("org-1", "org-2"))
    part = actor if actor in whole else "credit"
    assert kept[part] == whole[part]


@ON_STREAM_ACTORS
def test_successors_wait_behind_a_hold_and_other_customers_go_on(
    storage: Storage, break_fold: Break, actor: str
) -> None:
    break_fold(actor, "bad")
    storage.settle(*sales("bad"))
    before = position(storage, actor)
    storage.receive(*sales("2", "3"), cancellation("2"), *sales("4", customer_id="c2"))
    report = storage.advance(actor, [storage.number(), storage.number("c2")])
    assert report.moved == {storage.number("c2")}
    assert position(storage, actor) == before == (0, 1)
    assert held(storage) == [(actor, 1, 1, NOW_US)]


@ON_STREAM_ACTORS
def test_an_early_retry_charges_nothing(storage: Storage, break_fold: Break, actor: str) -> None:
    break_fold(actor, "bad")
    storage.settle(*sales("1", "bad"))
    before = rows(storage.database)
    assert retry(storage, actor, due_us(storage, actor) - 1) == Round(0)
    break_fold(actor)
    assert retry(storage, actor, due_us(storage, actor) - 1) == Round(0)
    assert rows(storage.database) == before


@ON_STREAM_ACTORS
def test_a_retry_at_its_time_charges_one_attempt_and_a_doubled_one_none(
    storage: Storage, break_fold: Break, actor: str
) -> None:
    break_fold(actor, "bad")
    storage.settle(*sales("1", "bad", "3"))
    first_due = due_us(storage, actor)
    done = retry(storage, actor, first_due)
    assert (done.locked, done.applied, [hold.position for hold in done.held]) == (1, 0, [2])
    assert held(storage) == [(actor, 2, 2, NOW_US)]
    before = rows(storage.database)
    assert retry(storage, actor, first_due) == Round(0)
    assert rows(storage.database) == before
    assert due_us(storage, actor) > first_due


@ON_STREAM_ACTORS
def test_after_a_fix_the_retry_goes_on_in_order_with_what_arrived_meanwhile(
    storage: Storage, break_fold: Break, actor: str
) -> None:
    history = [opened("100"), *sales("1", "bad", "3")], [*sales("4"), cancellation("bad"), cancellation("1")]
    break_fold(actor, "bad")
    storage.settle(*history[0])
    storage.settle(*history[1])
    break_fold(actor)
    done = retry(storage, actor, due_us(storage, actor))
    assert (done.locked, done.held, done.moved) == (1, (), (storage.number(),))
    assert held(storage) == []
    storage.settle()
    for batch in history:
        storage.settle(*in_organization(batch, "org-2"))
    whole, healed = (organization_dump(storage.database, name) for name in ("org-2", "org-1"))
    assert healed == whole


def test_a_retry_takes_one_round_and_leaves_the_rest_to_the_loop(storage: Storage, break_fold: Break) -> None:
    break_fold("loyalty", "bad")
    storage.settle(*sales("bad", "2", "3"))
    break_fold("loyalty")
    assert retry(storage, "loyalty", FAR_US, round_events=2).applied == 2
    assert position(storage, "loyalty") == (2, None)
    assert storage.advance("loyalty", [storage.number()]).applied == 1


def test_a_retry_that_fails_at_a_later_event_is_a_new_hold(storage: Storage, break_fold: Break) -> None:
    break_fold("loyalty", "bad")
    storage.settle(*sales("1", "bad", "3", "worse", "5"))
    for _ in range(4):
        retry(storage, "loyalty", due_us(storage, "loyalty"))
    assert held(storage) == [("loyalty", 2, 5, NOW_US)]
    break_fold("loyalty", "worse")
    done = retry(storage, "loyalty", FAR_US)
    assert (done.applied, done.moved) == (2, (storage.number(),))
    assert position(storage, "loyalty") == (3, 4)
    assert held(storage) == [("loyalty", 4, 1, FAR_US)]


def test_delays_double_up_to_five_minutes_and_ten_attempts_park(storage: Storage, break_fold: Break) -> None:
    break_fold("loyalty", "bad")
    storage.settle(*sales("1", "bad"))
    now_us = NOW_US
    for attempts in range(1, MAX_ATTEMPTS):
        delay_s = (due_us(storage, "loyalty") - now_us) / SECOND_US
        longest = min(MAX_DELAY_S, FIRST_DELAY_S * 2 ** (attempts - 1))
        assert 0.75 * longest - 0.001 <= delay_s <= longest
        assert held(storage) == [("loyalty", 2, attempts, NOW_US)]
        now_us = due_us(storage, "loyalty")
        assert len(retry(storage, "loyalty", now_us).held) == 1
    assert held(storage) == [("loyalty", 2, MAX_ATTEMPTS, NOW_US)]
    assert next_try_of(storage.database, "loyalty", storage.number()) is None

    break_fold("loyalty")
    storage.receive(*sales("3"))
    before = rows(storage.database)
    assert retry(storage, "loyalty", FAR_US) == Round(0)
    assert storage.advance("loyalty", [storage.number()]).applied == 0
    assert rows(storage.database) == before


def test_an_outage_during_a_retry_charges_nothing_and_leaves_it_due(
    postgres_storage: Storage, postgres: PrivatePostgres, break_fold: Break, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = postgres_storage
    break_fold("loyalty", "bad")
    storage.settle(*sales("1", "bad"))
    before, due = rows(storage.database), due_us(storage, "loyalty")

    def fold(*_: Any) -> Any:
        end_connections(postgres)
        raise ValueError("fails too, but nothing of it can be written")

    monkeypatch.setattr(loyalty, "fold", fold)
    with pytest.raises(Outage):
        retry(storage, "loyalty", due)
    assert rows(storage.database) == before
    break_fold("loyalty")
    assert retry(storage, "loyalty", due).applied == 1


def test_retrying_a_customer_that_is_not_held_does_nothing(storage: Storage) -> None:
    storage.receive(*sales("1"))
    before = rows(storage.database)
    for actor in routing.ACTORS:
        assert retry(storage, actor, FAR_US) == Round(0)
        assert storage.stores().of(actor).retry(999_999, FAR_US) == Round(0)
    assert rows(storage.database) == before


def test_an_event_of_unknown_rules_holds_its_customer_alone(storage: Storage) -> None:
    storage.receive(*sales("1", "2"), *sales("3", customer_id="c2"))
    tamper(storage.database, "UPDATE event SET rules = 999 WHERE reference = '2'")
    storage.settle()
    assert (position(storage, "loyalty"), position(storage, "loyalty", "c2")) == ((1, 2), (1, None))
    assert [row[0] for row in held(storage)] == ["credit", "loyalty"]


HOSTILE = {"NUL": "a \x00 in the text", "surrogate": "half a pair \ud800", "long": "\x1b[31m" + "x" * 9_000}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_whatever_an_error_says_it_holds_its_customer_alone(storage: Storage, break_fold: Break, text: str) -> None:
    break_fold("loyalty", "bad", error=ValueError(text))
    storage.settle(*sales("1", "bad"), *sales("2", customer_id="c2"))
    assert (position(storage, "loyalty"), position(storage, "loyalty", "c2")) == ((1, 2), (1, None))
    assert storage.value("SELECT error FROM held_group").startswith("ValueError: ")


class MuteError(Exception):
    """An error that cannot even say what is wrong."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_an_error_without_a_text_holds_its_customer_alone(storage: Storage, break_fold: Break) -> None:
    break_fold("loyalty", "bad", error=MuteError())
    storage.settle(*sales("1", "bad"), *sales("2", customer_id="c2"))
    assert (position(storage, "loyalty"), position(storage, "loyalty", "c2")) == ((1, 2), (1, None))


def test_data_the_database_refuses_holds_its_customer_alone(database: Database) -> None:
    """Points past 64 bits: the fold is content, the column is not [G6]."""
    tiers = (DEFAULT_TIERS[0].model_copy(update={"multiplier": Decimal(1000)}),)
    storage = Storage(database, Rules(points_per_unit=Decimal(1_000_000), tiers=tiers))
    huge = order("2", "9" * 11)
    storage.receive(order("1", "10"), huge, order("3", "10", customer_id="c2"))
    report = storage.advance("loyalty")
    assert [(hold.group, hold.position) for hold in report.held] == [(storage.number(), 2)]
    assert (position(storage, "loyalty"), position(storage, "loyalty", "c2")) == ((1, 2), (1, None))


# --- segmentation: no stream of its own, the same promises ----------------------------------------------------------


def test_segmentation_holds_tries_again_and_goes_on(
    storage: Storage, break_segment: Callable[[int | None], None]
) -> None:
    break_segment(1500)
    storage.settle(*sales("1", "2"), *sales("3", customer_id="c2"))
    assert position(storage, "segmentation") == (0, 2)
    assert position(storage, "segmentation", "c2") == (1, None)
    storage.settle(*sales("4"), *sales("5", customer_id="c3"))
    assert (position(storage, "segmentation"), position(storage, "segmentation", "c3")) == ((0, 2), (1, None))
    assert retry(storage, "segmentation", due_us(storage, "segmentation") - 1) == Round(0)
    break_segment(None)
    assert retry(storage, "segmentation", due_us(storage, "segmentation")).moved == (storage.number(),)
    assert (position(storage, "segmentation"), held(storage)) == ((3, None), [])


def test_segmentation_attempts_are_counted_though_statistics_move_on(
    storage: Storage, break_segment: Callable[[int | None], None]
) -> None:
    break_segment(0)
    storage.settle(*sales("first"))
    for attempt in range(1, MAX_ATTEMPTS):
        assert [row[2:] for row in held(storage)] == [(attempt, NOW_US)]
        storage.settle(*sales(str(attempt)))
        retry(storage, "segmentation", due_us(storage, "segmentation"))
    assert next_try_of(storage.database, "segmentation", storage.number()) is None
