"""Release and skip on both databases: in order, guarded by the position, recorded, and no row between the chairs."""

from collections.abc import Callable
from threading import Thread
from typing import Any

import pytest

from customer_actors.domain import routing
from customer_actors.domain.events import Event
from customer_actors.groups.failure import MAX_ATTEMPTS
from customer_actors.storage import credit, loyalty, stats, triage
from customer_actors.storage.draining import drain
from customer_actors.storage.operators import Action, Skip, skips_of
from customer_actors.storage.triage import Place, Wanted
from tests.model.examples import JUNE_1_US, cancellation, opened, payment
from tests.servers.process import wait_until
from tests.storage.holding import due_us, held, position, retry, sales
from tests.storage.support import NOW_US, Storage, at_once, dump, in_organization, organization_dump, stored_state

MODULES = {routing.STATS: stats, routing.LOYALTY: loyalty, routing.CREDIT: credit}
HOUR_US = 3_600_000_000
BY = Action("op", "release", "fixed")
SKIP = Action("op", "skip", "a test order")

Break = Callable[..., None]


@pytest.fixture
def break_fold(monkeypatch: pytest.MonkeyPatch) -> Break:
    """Makes one actor's fold raise for (type, reference) pairs or references, until called again with others."""
    whole = {actor: module.fold for actor, module in MODULES.items()}

    def break_(actor: str, *bad: Any) -> None:
        def fold(state: Any, event: Event, *facts: Any) -> Any:
            if event.reference in bad or (event.type, event.reference) in bad:
                raise ValueError(f"cannot fold {event.reference}")
            return whole[actor](state, event, *facts)

        monkeypatch.setattr(MODULES[actor], "fold", fold)

    return break_


def release(storage: Storage, wanted: Wanted, by: Action = BY) -> list[tuple[str, list[int]]]:
    return list(triage.release(storage.database, wanted, by, NOW_US))


def skip(storage: Storage, actor: str, at: int, customer_id: str = "c1") -> Place | None:
    """Skip, then advance that customer as the command does."""
    number = storage.number(customer_id)
    place = triage.skip(storage.database, actor, number, at, SKIP, NOW_US)
    drain(storage.stores(), actor, [number], lambda: NOW_US)
    return place


def lose_details(storage: Storage) -> None:
    """What no process of ours does."""
    storage.database.execute("DELETE FROM held_group WHERE customer = ?", (storage.number(),))


def actions(storage: Storage) -> list[tuple[Any, ...]]:
    return storage.database.query(
        "SELECT operator, action, reason, actor, customer, position, detail FROM operator_action ORDER BY id"
    )


# --- release --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("actor", routing.STREAM_ACTORS)
@pytest.mark.parametrize("parked", [False, True])
def test_release_after_a_fix_drains_in_order_with_live_arrivals_behind(
    storage: Storage, break_fold: Break, actor: str, parked: bool
) -> None:
    history = [opened("100"), *sales("1", "bad", "3")], [*sales("4"), cancellation("bad"), payment("p", "7")]
    break_fold(actor, "bad")
    storage.settle(*history[0])
    while parked and held(storage)[0][2] < MAX_ATTEMPTS:
        retry(storage, actor, due_us(storage, actor))
    storage.settle(*history[1])
    break_fold(actor)
    assert release(storage, Wanted(actor)) == [(actor, [storage.number()])]
    assert held(storage) == []
    storage.receive(*sales("5"))
    storage.settle()
    for batch in (*history, sales("5")):
        storage.settle(*in_organization(batch, "org-2"))
    healed, whole = (organization_dump(storage.database, name) for name in ("org-1", "org-2"))
    assert healed == whole


def test_attempts_start_anew_after_a_release(storage: Storage, break_fold: Break) -> None:
    break_fold("loyalty", "bad")
    storage.settle(*sales("bad"))
    retry(storage, "loyalty", due_us(storage, "loyalty"))
    assert held(storage)[0][2] == 2
    release(storage, Wanted("loyalty"))
    storage.settle()
    assert held(storage) == [("loyalty", 1, 1, NOW_US)]


@pytest.mark.parametrize(
    ("wanted", "freed"),
    [
        (Wanted(), {"c1", "c2", "c3", "stats c3"}),
        (Wanted("loyalty"), {"c1", "c2", "c3"}),
        (Wanted("stats"), {"stats c3"}),
        (Wanted("credit"), set()),
        (Wanted(error="fold bad-1"), {"c1"}),
        (Wanted(error="FOLD"), set()),
        (Wanted(error="%"), set()),
        (Wanted("loyalty", error="ValueError"), {"c1", "c2", "c3"}),
        (Wanted("loyalty", position=2), set()),
    ],
)
def test_only_those_wanted_are_released(storage: Storage, break_fold: Break, wanted: Wanted, freed: set[str]) -> None:
    break_fold("loyalty", "bad-1", "bad-2", "bad-3")
    break_fold("stats", "bad-3")
    storage.settle(*(sale for n in "123" for sale in sales(f"bad-{n}", customer_id=f"c{n}")))
    names = {storage.number(f"c{n}"): f"c{n}" for n in "123"}
    done = {
        ("" if actor == "loyalty" else f"{actor} ") + names[customer]
        for actor, customers in release(storage, wanted)
        for customer in customers
    }
    assert done == freed
    assert len(held(storage)) == 4 - len(freed)
    assert len(actions(storage)) == (1 if freed else 0)


def test_many_are_released_in_chunks_recorded_once_and_rung(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, break_fold: Break
) -> None:
    monkeypatch.setattr(triage, "CHUNK", 3)
    break_fold("loyalty", *(f"bad{n}" for n in range(8)))
    storage.settle(*(sale for n in range(8) for sale in sales(f"bad{n}", customer_id=f"c{n}")))
    storage.database.execute("DELETE FROM bell")
    done = release(storage, Wanted("loyalty"), BY._replace(detail="8 of loyalty"))
    assert [len(customers) for _, customers in done] == [3, 3, 2]
    assert actions(storage) == [("op", "release", "fixed", None, None, None, "8 of loyalty")]
    assert storage.value("SELECT count(*) FROM bell") == 3


@pytest.mark.parametrize("let_go", [triage.release, triage.skip_wanted])
def test_whoever_moved_on_meanwhile_is_let_be(
    storage: Storage, break_fold: Break, monkeypatch: pytest.MonkeyPatch, let_go: Callable[..., Any]
) -> None:
    break_fold("loyalty", "bad", "worse")
    storage.settle(*sales("bad", "2", "worse"))
    break_fold("loyalty", "worse")
    seen = [("loyalty", [(storage.number(), 1)])]
    retry(storage, "loyalty", due_us(storage, "loyalty"))
    assert position(storage, "loyalty") == (2, 3)
    monkeypatch.setattr(triage, "_chunks", lambda *_: seen)
    assert list(let_go(storage.database, Wanted("loyalty"), BY, NOW_US)) == []
    assert position(storage, "loyalty") == (2, 3)
    assert (len(held(storage)), actions(storage)) == (1, [])


@pytest.mark.parametrize("let_go", [triage.release, triage.skip_wanted])
def test_let_go_while_workers_work_nobody_is_left_behind_and_nothing_counted_twice(
    postgres_storage: Storage, break_fold: Break, let_go: Callable[..., Any]
) -> None:
    """Arrivals, rounds, retries, and releases or skips of the same customers at once, on connections of their own."""
    storage, names = postgres_storage, [f"c{n}" for n in range(40)]
    break_fold("loyalty", *(f"bad-{name}" for name in names))
    storage.receive(*(sale for name in names for sale in sales(f"bad-{name}", f"2-{name}", customer_id=name)))
    numbers = [storage.number(name) for name in names]
    storage.advance("loyalty")
    break_fold("loyalty")
    retried = iter(range(10**6))
    action = "skip" if let_go is triage.skip_wanted else "release"

    def try_again() -> None:
        for number in numbers:
            storage.stores().of("loyalty").retry(number, NOW_US + HOUR_US + next(retried))

    def five_times(work: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(5):
                work()

        return run

    works: list[Callable[[], object]] = [
        lambda: list(let_go(storage.database, Wanted("loyalty"), BY._replace(action=action), NOW_US)),
        lambda: list(let_go(storage.database, Wanted("loyalty"), BY._replace(action=action), NOW_US)),
        lambda: storage.advance("loyalty", numbers),
        lambda: storage.advance("loyalty", numbers),
        try_again,
    ]
    assert at_once(storage.database, *map(five_times, works)) == []
    storage.advance("loyalty", numbers)
    assert (held(storage), storage.stores().of("loyalty").all_behind()) == ([], [])
    skipped = storage.value("SELECT count(*) FROM operator_action WHERE action = 'skip'")
    assert storage.value("SELECT count(*) FROM loyalty_entry") == 2 * len(names) - skipped
    assert {position(storage, "loyalty", name) for name in names} == {(2, None)}


# --- skip -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("actor", routing.STREAM_ACTORS)
def test_a_skip_steps_over_one_event_and_what_waited_goes_on(storage: Storage, break_fold: Break, actor: str) -> None:
    break_fold(actor, "bad")
    storage.settle(*sales("1", "bad", "3"))
    assert skip(storage, actor, 2) is None
    assert position(storage, actor) == (3, None)
    number = storage.number()
    assert actions(storage) == [("op", "skip", "a test order", actor, number, 2, None)]
    assert skips_of(storage.database, [number]) == {(number, 2, actor): Skip("op", "a test order", NOW_US)}
    assert held(storage) == []
    for other in routing.STREAM_ACTORS:
        assert position(storage, other) == (3, None)
    storage.settle(*sales("1", "3", organization_id="org-2"))
    skipped, without = (stored_state(storage, name, "c1")[actor] for name in ("org-1", "org-2"))
    assert skipped == without


@pytest.mark.parametrize("at", [1, 3, 99])
def test_a_skip_at_another_position_changes_nothing(storage: Storage, break_fold: Break, at: int) -> None:
    break_fold("loyalty", "bad")
    storage.settle(*sales("1", "bad", "3"))
    before = dump(storage.database)
    assert triage.skip(storage.database, "loyalty", storage.number(), at, SKIP, NOW_US) == Place(1, 2)
    assert triage.skip(storage.database, "stats", storage.number(), 2, SKIP, NOW_US) == Place(3, None)
    assert dump(storage.database) == before


def test_the_same_skip_twice_is_recorded_once(storage: Storage, break_fold: Break) -> None:
    break_fold("loyalty", "bad")
    storage.settle(*sales("1", "bad", "3"))
    assert skip(storage, "loyalty", 2) is None
    assert skip(storage, "loyalty", 2) == Place(3, None)
    assert len(actions(storage)) == 1


def test_many_are_skipped_in_chunks_each_recorded_and_rung(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, break_fold: Break
) -> None:
    monkeypatch.setattr(triage, "CHUNK", 3)
    break_fold("loyalty", *(f"bad{n}" for n in range(8)))
    storage.settle(*(sale for n in range(8) for sale in sales(f"bad{n}", f"2-{n}", customer_id=f"c{n}")))
    storage.database.execute("DELETE FROM bell")
    done = list(triage.skip_wanted(storage.database, Wanted(error="bad"), SKIP, NOW_US))
    assert [len(customers) for _, customers in done] == [3, 3, 2]
    numbers = [storage.number(f"c{n}") for n in range(8)]
    assert sorted(actions(storage)) == sorted(
        ("op", "skip", "a test order", "loyalty", number, 1, None) for number in numbers
    )
    assert storage.value("SELECT count(*) FROM bell") == 3
    storage.advance("loyalty", numbers)
    assert {position(storage, "loyalty", f"c{n}") for n in range(8)} == {(2, None)}


def test_a_skip_of_many_leaves_who_is_held_only_later_alone(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, break_fold: Break
) -> None:
    """What is skipped for the statistics lets the segment go on, and that may fail: nobody has looked at it."""

    def fail(*_: Any) -> Any:
        raise ValueError("cannot score")

    monkeypatch.setattr("customer_actors.storage.segmentation.segment_of", fail)
    break_fold("stats", "bad")
    storage.settle(*sales("bad", "2"))
    for actor, customers in triage.skip_wanted(storage.database, Wanted(), SKIP, NOW_US):
        list(drain(storage.stores(), actor, customers, lambda: NOW_US))
        storage.settle()
    assert [(actor, at) for _, _, _, actor, _, at, _ in actions(storage)] == [("stats", 1)]
    assert position(storage, "segmentation")[1] is not None


@pytest.mark.parametrize("let_go", [triage.release, triage.skip_wanted])
def test_who_has_failed_for_something_else_meanwhile_is_let_be(
    storage: Storage, break_fold: Break, monkeypatch: pytest.MonkeyPatch, let_go: Callable[..., Any]
) -> None:
    break_fold("loyalty", "bad1", "bad2")
    storage.settle(*sales("bad1"), *sales("bad2", customer_id="c2"))
    seen = [("loyalty", [(storage.number(), 1), (storage.number("c2"), 1)])]
    assert triage._chunks(storage.database, Wanted(error="fold bad")) == seen
    storage.database.execute("UPDATE held_group SET error = 'KeyError' WHERE customer = ?", (storage.number("c2"),))
    monkeypatch.setattr(triage, "_chunks", lambda *_: seen)
    assert list(let_go(storage.database, Wanted(error="fold bad"), BY, NOW_US)) == [("loyalty", [storage.number()])]
    assert position(storage, "loyalty", "c2") == (0, 1)


@pytest.mark.parametrize("let_go", [triage.release, triage.skip_wanted])
@pytest.mark.parametrize("wanted", [Wanted(), Wanted("loyalty"), Wanted(error="details of this hold")])
def test_a_hold_that_has_lost_its_details_is_let_go_with_the_others(
    storage: Storage, break_fold: Break, let_go: Callable[..., Any], wanted: Wanted
) -> None:
    break_fold("loyalty", "bad1", "bad2")
    storage.settle(*sales("bad1", "2"), *sales("bad2", customer_id="c2"))
    lose_details(storage)
    meant = [storage.number()] if wanted.error else [storage.number(), storage.number("c2")]
    assert triage.count_wanted(storage.database, wanted) == {"loyalty": len(meant)}
    assert list(let_go(storage.database, wanted, BY._replace(action=let_go.__name__[:4]), NOW_US)) == [
        ("loyalty", meant)
    ]
    break_fold("loyalty")
    storage.settle()
    assert position(storage, "loyalty") == (2, None)
    assert position(storage, "loyalty", "c2") == ((0, 1) if wanted.error else (1, None))


def test_a_skip_waits_for_whoever_has_the_row(postgres_storage: Storage, break_fold: Break) -> None:
    """A worker that tries the customer again at the same moment wins, and nothing is skipped."""
    storage = postgres_storage
    break_fold("loyalty", "bad")
    storage.settle(*sales("bad", "2"))
    break_fold("loyalty")
    number, due, answers = storage.number(), due_us(storage, "loyalty"), list[Place | None]()

    def skipping() -> None:
        answers.append(triage.skip(storage.database, "loyalty", number, 1, SKIP, NOW_US))
        storage.database.release()

    thread = Thread(target=skipping)
    with storage.database.transaction():
        storage.stores().of("loyalty").retry(number, due)
        thread.start()
        wait_until(lambda: storage.value("SELECT count(*) FROM pg_locks WHERE NOT granted") > 0)
        assert answers == []
    thread.join(30)
    assert answers == [Place(2, None)]
    assert actions(storage) == []


def test_segmentation_is_skipped_at_the_position_of_the_statistics(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise ValueError("cannot score")

    with monkeypatch.context() as broken:
        broken.setattr("customer_actors.storage.segmentation.segment_of", fail)
        storage.settle(*sales("1", "2"))
        assert position(storage, "segmentation") == (0, 2)
        assert skip(storage, "segmentation", 2) is None
    assert position(storage, "segmentation") == (2, None)
    storage.settle(*sales("3"))
    assert position(storage, "segmentation") == (3, None)
    assert storage.value("SELECT orders FROM customer_segment") == 3


# --- looking --------------------------------------------------------------------------------------------------------


def test_what_is_held_is_told_by_error_and_by_customer(storage: Storage, break_fold: Break) -> None:
    break_fold("loyalty", "bad")
    storage.settle(*sales("bad", "2", "3"), payment("p", "1"))
    storage.receive(*sales("4"))
    database, number = storage.database, storage.number()
    (error,) = triage.held_errors(database, Wanted(), 10)
    assert error == ("loyalty", "ValueError: cannot fold bad", 1, 0, NOW_US, 3)
    assert triage.held_totals(database, Wanted()) == (1, 1)
    assert triage.held_totals(database, Wanted("stats")) == (0, 0)
    (customer,) = triage.held_customers(database, Wanted(), 10)
    assert customer[:5] == ("org-1", "c1", "loyalty", 1, 1)
    (event,) = triage.held_events(database, number)
    assert (event.type, event.reference, event.occurred_at_us) == ("order.completed", "bad", JUNE_1_US)
    assert "in fold" in event.traceback
    assert triage.held_events(database, number, "stats") == []


def test_a_hold_that_has_lost_its_details_is_told_before_the_others(storage: Storage, break_fold: Break) -> None:
    break_fold("loyalty", "bad1", "bad2")
    storage.settle(*sales("bad2", customer_id="c2"), *sales("bad1", "2"))
    lose_details(storage)
    database = storage.database
    assert triage.held_totals(database, Wanted()) == (2, 2)
    assert ("loyalty", triage.LOST, 1, 1, None, 1) in triage.held_errors(database, Wanted(), 10)
    first, second = triage.held_customers(database, Wanted(), 10)
    assert first == ("org-1", "c1", "loyalty", 1, 0, None, None, 1, triage.LOST)
    assert (second.customer_id, second.since_us) == ("c2", NOW_US)
    assert triage.held_without_details(database, 10) == [("org-1", "c1", "loyalty")]
    (event,) = triage.held_events(database, storage.number())
    assert (event.held, event.reference, event.traceback) == (first, "bad1", "")


def test_the_traceback_is_the_last_one(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    def first(*_: Any) -> Any:
        raise ValueError("first")

    def second(*_: Any) -> Any:
        raise KeyError("second")

    monkeypatch.setattr(loyalty, "fold", first)
    storage.settle(*sales("1"))
    monkeypatch.setattr(loyalty, "fold", second)
    retry(storage, "loyalty", due_us(storage, "loyalty"))
    (event,) = triage.held_events(storage.database, storage.number())
    assert event.held.error == "KeyError: 'second'"
    assert "first" not in event.traceback
