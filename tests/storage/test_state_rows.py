"""A state row that is gone is named by the audit, refused by triage, and made again by a rebuild where it stood."""

import pytest

from customer_actors.domain.routing import ACTORS, CREDIT, LOYALTY, SEGMENTATION, STATS, STREAM_ACTORS
from customer_actors.errors import RefusedError
from customer_actors.storage import triage
from customer_actors.storage.draining import drain
from customer_actors.storage.operators import Action
from customer_actors.storage.rebuild import INSERTED, REPAIRED, REPORTED
from customer_actors.storage.triage import Wanted
from customer_actors.storage.views import STATES
from tests.model.examples import opened
from tests.storage.corruptions import LIFE, of_c1
from tests.storage.holding import held, position, sales
from tests.storage.support import NOW_US, Storage, at_once
from tests.storage.test_audit import audited, named
from tests.storage.test_rebuild import rebuilt, stored
from tests.storage.test_skips_refolded import fails_at
from tests.tampering import tamper

BY = Action("anna", "release", "the code is fixed")
ON_EVERY_ACTOR = pytest.mark.parametrize("actor", ACTORS)


def lose_row(storage: Storage, actor: str) -> None:
    tamper(storage.database, of_c1(f"DELETE FROM {STATES[actor].table} WHERE position >= 0"))


@ON_EVERY_ACTOR
def test_a_row_that_is_gone_is_made_again_as_it_was(storage: Storage, actor: str) -> None:
    storage.settle(*LIFE)
    before = stored(storage.database)
    lose_row(storage, actor)
    assert named(storage) == {(actor, "state row", None, "a row")}
    gone = stored(storage.database)
    assert [each[2:] for each in rebuilt(storage, actor, dry_run=True)] == [("state row", None, "a row", INSERTED)]
    assert stored(storage.database) == gone
    assert [each[2:] for each in rebuilt(storage, actor)] == [("state row", None, "a row", INSERTED)]
    assert stored(storage.database) == before
    assert (audited(storage), rebuilt(storage, actor)) == ([], [])
    assert storage.database.query("SELECT action, actor FROM operator_action") == [("rebuild", actor)]


@pytest.mark.parametrize("actor", STREAM_ACTORS)
def test_ledger_rows_that_are_gone_with_it_come_again(storage: Storage, actor: str) -> None:
    storage.settle(*LIFE)
    before = stored(storage.database)
    lose_row(storage, actor)
    for table in {LOYALTY: ["loyalty_entry"], CREDIT: ["credit_allocation", "credit_usage"], STATS: []}[actor]:
        tamper(storage.database, of_c1(f"DELETE FROM {table} WHERE position > 0"))
    assert {each.what for each in rebuilt(storage, actor)} == {INSERTED}
    assert stored(storage.database) == before


@ON_EVERY_ACTOR
def test_what_arrived_while_it_was_gone_is_counted_once(storage: Storage, actor: str) -> None:
    storage.settle(*LIFE)
    lose_row(storage, actor)
    storage.settle(*sales("O-8", "O-9"))
    rebuilt(storage, actor)
    storage.settle(*sales("O-10"))
    assert audited(storage) == []
    assert position(storage, actor) == (11, None)


@pytest.mark.parametrize("actor", STREAM_ACTORS)
def test_a_hold_stays_a_hold(storage: Storage, monkeypatch: pytest.MonkeyPatch, actor: str) -> None:
    with monkeypatch.context() as patch:
        fails_at(patch, lambda who, event: who == actor and event.reference == "bad")
        storage.settle(opened("500"), *sales("1", "bad", "2"))
    lose_row(storage, actor)
    rebuilt(storage, actor)
    assert position(storage, actor) == (2, 3)
    assert audited(storage) == []
    for who, customers in triage.release(storage.database, Wanted(actor), BY, NOW_US):
        drain(storage.stores(), who, customers, lambda: NOW_US)
    assert position(storage, actor) == (4, None)
    assert audited(storage) == []


def test_it_is_not_made_of_a_stream_that_cannot_be_folded(storage: Storage) -> None:
    storage.settle(*LIFE)
    lose_row(storage, LOYALTY)
    tamper(storage.database, of_c1("UPDATE event SET rules = 99 WHERE position = 3"))
    assert {each.what for each in rebuilt(storage, LOYALTY)} == {REPORTED}
    assert (LOYALTY, "state row", None, "a row") in named(storage)


@pytest.mark.parametrize("actor", [LOYALTY, SEGMENTATION])
def test_what_cannot_be_compared_for_want_of_another_row_is_said(storage: Storage, actor: str) -> None:
    storage.settle(*LIFE)
    lose_row(storage, STATS)
    assert [each[2:] for each in audited(storage, actors=(actor,))] == [(STATS, "stats state row", None, "a row")]
    before = stored(storage.database)
    assert [each[2:] for each in rebuilt(storage, actor)] == [("stats state row", None, "a row", REPORTED)]
    assert stored(storage.database) == before


def test_a_segment_is_not_made_of_wrong_statistics(storage: Storage) -> None:
    storage.settle(*LIFE)
    before = stored(storage.database)
    tamper(storage.database, of_c1("UPDATE stats_state SET total_spent_minor = 1"))
    tamper(storage.database, of_c1("UPDATE customer_segment SET orders = 7"))
    done = rebuilt(storage, SEGMENTATION)
    assert ("stats total_spent", "0.01", "510.00", REPORTED) in [each[2:] for each in done]
    assert {each.what for each in done} == {REPORTED}
    rebuilt(storage, STATS)
    assert {each.what for each in rebuilt(storage, SEGMENTATION)} == {REPAIRED}
    assert stored(storage.database) == before


def test_rows_that_are_gone_together_come_again_one_by_one(storage: Storage) -> None:
    storage.settle(*LIFE)
    before = stored(storage.database)
    for actor in ACTORS:
        lose_row(storage, actor)
    assert REPORTED in {each.what for each in rebuilt(storage, SEGMENTATION)}
    for actor in ACTORS:
        rebuilt(storage, actor)
    assert stored(storage.database) == before
    assert audited(storage) == []


@ON_EVERY_ACTOR
def test_several_rebuilds_at_once_make_one_row(storage: Storage, actor: str) -> None:
    storage.settle(*LIFE)
    before = stored(storage.database)
    lose_row(storage, actor)

    def work() -> None:
        assert {each.what for each in rebuilt(storage, actor)} <= {INSERTED}

    assert at_once(storage.database, *[work] * 4) == []
    assert stored(storage.database) == before


@ON_EVERY_ACTOR
def test_triage_refuses_and_names_the_rebuild(storage: Storage, actor: str) -> None:
    storage.settle(*LIFE)
    lose_row(storage, actor)
    with pytest.raises(RefusedError, match=f"rebuild {actor} "):
        triage.place_of(storage.database, actor, storage.number())
    with pytest.raises(RefusedError, match=f"rebuild {actor} "):
        triage.skip(storage.database, actor, storage.number(), 1, BY, NOW_US)
    assert storage.value("SELECT count(*) FROM operator_action") == 0


def test_a_hold_whose_details_are_lost_can_be_released(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        fails_at(patch, lambda who, event: who == LOYALTY and event.reference == "bad")
        storage.settle(*sales("1", "bad", "2"))
    storage.database.execute("DELETE FROM held_group")
    assert named(storage) == {(LOYALTY, "held_position", 2, None)}
    one = Wanted(LOYALTY, customer=storage.number())
    assert triage.count_wanted(storage.database, one._replace(position=1)) == {}
    assert triage.count_wanted(storage.database, one) == {LOYALTY: 1}
    assert list(triage.release(storage.database, one, BY, NOW_US)) == [(LOYALTY, [storage.number()])]
    storage.settle()
    assert (position(storage, LOYALTY), held(storage), audited(storage)) == ((3, None), [], [])
