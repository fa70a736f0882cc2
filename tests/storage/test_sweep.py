"""The sweep on both databases: a lost message costs one sweep, and bells go once everybody is through or held."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from customer_actors.domain.events import Event
from customer_actors.domain.routing import ACTORS, SEGMENTATION, STREAM_ACTORS
from customer_actors.groups.sweep import sweep
from customer_actors.storage import loyalty, stats
from customer_actors.storage.bells import remove_bells, unanswered
from customer_actors.storage.database import Database
from customer_actors.storage.holds import next_try_of
from customer_actors.storage.overdue import HELD_GRACE_US, all_behind, overdue
from tests.model.examples import order, payment
from tests.storage.support import NOW_US, Storage

GRACE_US = 5_000_000
LATER_US = NOW_US + GRACE_US + 1
FAR_US = NOW_US + 1_000 * GRACE_US


class Rung:
    """Who was rung; answers at once if told to."""

    def __init__(self, answer: Callable[[str, Sequence[int]], object] = lambda actor, customers: None) -> None:
        self.actors: dict[str, list[int]] = {}
        self.held: list[tuple[str, int, int]] = []
        self._answer = answer

    def ring_actor(self, actor: str, customers: Sequence[int]) -> None:
        self.actors[actor] = list(customers)
        self._answer(actor, customers)

    def ring_held(self, actor: str, customer: int, delay_ms: int) -> None:
        self.held.append((actor, customer, delay_ms))


def swept(storage: Storage, now_us: int = LATER_US, *, answer: bool = False, busy: Sequence[str] = ()) -> Rung:
    """One sweep."""
    rung = Rung(storage.advance) if answer else Rung()
    found = overdue(storage.stores(), now_us, GRACE_US)
    count = sweep(found, rung, lambda actor: actor in busy, lambda bells: remove_bells(storage.database, bells))
    assert count == sum(len(customers) for customers in rung.actors.values())
    return rung


def bells(storage: Storage) -> int:
    return len(unanswered(storage.database, FAR_US))


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """References of which the folds of statistics and loyalty raise; empty it to heal them."""
    references: set[str] = set()

    def breaking(whole: Callable[..., Any]) -> Callable[..., Any]:
        def fold(state: Any, event: Event, *facts: Any) -> Any:
            if event.reference in references:
                raise ValueError("broken")
            return whole(state, event, *facts)

        return fold

    for module in (stats, loyalty):
        monkeypatch.setattr(module, "fold", breaking(module.fold))
    return references


def test_a_bell_is_left_alone_until_it_is_old(storage: Storage) -> None:
    storage.receive(order("1", "10"))
    assert swept(storage, NOW_US + GRACE_US).actors == {}
    assert bells(storage) == 1


def test_who_was_never_rung_is_rung_until_everybody_is_through_and_then_the_bell_goes(storage: Storage) -> None:
    storage.receive(order("1", "10"), payment("p", "5", customer_id="c2"))
    c1, c2 = storage.number(), storage.number("c2")
    first = swept(storage).actors
    assert {actor: customers for actor, customers in first.items() if customers} == {
        "stats": [c1],
        "loyalty": [c1],
        "credit": [c2],
    }
    assert swept(storage).actors == first
    assert bells(storage) == 1
    # Each sweep answers one step: the actors of the stream, then segmentation after statistics, then nobody is left.
    swept(storage, answer=True)
    assert swept(storage, answer=True).actors == {SEGMENTATION: [c1]}
    assert bells(storage) == 1
    assert swept(storage).actors == {}
    assert bells(storage) == 0
    assert all_behind(storage.stores()) == {actor: [] for actor in ACTORS}


def test_an_answered_bell_goes_in_the_first_sweep_and_an_unanswered_one_stays(storage: Storage) -> None:
    storage.settle(order("1", "10"))
    storage.receive(order("2", "10", customer_id="c2"))
    assert swept(storage).actors["stats"] == [storage.number("c2")]
    ((_, bell),) = unanswered(storage.database, FAR_US)
    assert bell == {"order.completed": [storage.number("c2")]}


def test_the_bell_of_a_duplicate_goes_like_any_other(storage: Storage) -> None:
    storage.settle(order("1", "10"))
    storage.receive(order("1", "10"))
    assert bells(storage) == 2
    assert swept(storage).actors == {}
    assert bells(storage) == 0


def test_an_actor_whose_queue_is_busy_is_not_rung_and_the_bell_stays(storage: Storage) -> None:
    storage.receive(order("1", "10"))
    assert swept(storage, busy=ACTORS).actors == {}
    assert swept(storage, busy=["stats"]).actors == {"loyalty": [storage.number()]}
    assert bells(storage) == 1


def test_a_held_customer_keeps_no_bell_alive(storage: Storage, broken: set[str]) -> None:
    broken.add("bad")
    storage.settle(order("1", "10"), order("bad", "10"), order("3", "10"))
    assert swept(storage).actors == {}
    assert bells(storage) == 0


def test_a_hold_is_rung_once_its_own_message_is_late_and_never_when_parked(storage: Storage, broken: set[str]) -> None:
    broken.add("bad")
    storage.settle(order("bad", "10"))
    next_try = next_try_of(storage.database, "loyalty", storage.number())
    assert next_try is not None
    assert ("loyalty", storage.number(), 0) not in swept(storage, next_try + HELD_GRACE_US).held
    assert ("loyalty", storage.number(), 0) in swept(storage, next_try + HELD_GRACE_US + 1).held
    storage.database.execute("UPDATE held_group SET next_try_us = NULL")
    assert swept(storage, FAR_US).held == []


def test_late_holds_are_not_rung_again_while_their_queue_is_busy(storage: Storage, broken: set[str]) -> None:
    """Five thousand of them would get five hundred messages more with every sweep."""
    broken.add("bad")
    storage.settle(order("bad", "10"))
    assert swept(storage, FAR_US, busy=ACTORS).held != []
    assert swept(storage, FAR_US, busy=["held"]).held == []


@pytest.mark.parametrize("actor", ["stats", "loyalty"])
def test_what_waited_behind_a_healed_hold_is_found_though_its_message_was_lost(
    storage: Storage, broken: set[str], actor: str
) -> None:
    """The hold let the bell go; when it is healed, only the retry's own message knows of the rest [G9]."""
    broken.add("bad")
    storage.settle(order("bad", "10"), *(order(str(number), "10") for number in range(3)))
    swept(storage)
    assert bells(storage) == 0
    broken.clear()
    assert storage.stores(round_events=1).of(actor).retry(storage.number(), FAR_US).applied == 1
    assert storage.number() in swept(storage, FAR_US + GRACE_US + 1).actors.get(actor, [])


def test_segmentation_is_found_after_a_healed_hold_of_statistics_though_its_message_was_lost(
    storage: Storage, broken: set[str]
) -> None:
    broken.add("bad")
    storage.settle(order("bad", "10"))
    swept(storage)
    broken.clear()
    storage.stores().of("stats").retry(storage.number(), FAR_US)
    assert all_behind(storage.stores())[SEGMENTATION] == [storage.number()]
    assert swept(storage, FAR_US + GRACE_US + 1).actors.get(SEGMENTATION) == [storage.number()]


def test_segmentation_follows_statistics_as_far_as_the_next_event_that_fails(
    storage: Storage, broken: set[str]
) -> None:
    """Healed, and held again further on: nobody else would ring for what lies between."""
    broken.update(("bad", "worse"))
    storage.settle(order("bad", "10"), order("between", "10"), order("worse", "10"))
    swept(storage)
    assert bells(storage) == 0
    broken.remove("bad")
    assert len(storage.stores().of("stats").retry(storage.number(), FAR_US).held) == 1
    assert all_behind(storage.stores())[SEGMENTATION] == [storage.number()]
    assert swept(storage, FAR_US + GRACE_US + 1).actors.get(SEGMENTATION) == [storage.number()]


def test_a_retry_that_fails_where_it_failed_before_leaves_no_bell(storage: Storage, broken: set[str]) -> None:
    broken.add("bad")
    storage.settle(order("bad", "10"))
    swept(storage)
    assert storage.stores().of("stats").retry(storage.number(), FAR_US).held
    assert bells(storage) == 0


def test_start_up_finds_who_waits_without_any_bell(storage: Storage) -> None:
    storage.receive(order("1", "10", on_credit=True), order("2", "10", customer_id="c2"))
    storage.database.execute("DELETE FROM bell")
    c1, c2 = storage.number(), storage.number("c2")
    assert swept(storage, FAR_US).actors == {}
    assert all_behind(storage.stores()) == {"stats": [c1, c2], "loyalty": [c1, c2], "credit": [c1], SEGMENTATION: []}
    storage.advance("stats")
    assert all_behind(storage.stores())[SEGMENTATION] == [c1, c2]


def test_start_up_leaves_held_customers_alone(storage: Storage, broken: set[str]) -> None:
    broken.add("bad")
    storage.settle(order("bad", "10"), order("2", "10", customer_id="c2"))
    assert all_behind(storage.stores()) == {actor: [] for actor in ACTORS}


def test_any_number_of_bells_is_worked_off(storage: Storage) -> None:
    for number in range(250):
        storage.receive(order(str(number), "10", customer_id=f"c{number}"))
    sweeps = 0
    while bells(storage):
        swept(storage, answer=True)
        sweeps += 1
        assert sweeps < 20
    assert all_behind(storage.stores()) == {actor: [] for actor in ACTORS}


def test_bells_another_sweep_removed_already_are_no_error(database: Database) -> None:
    remove_bells(database, [])
    remove_bells(database, [1, 999_999])
    assert unanswered(database, FAR_US) == []


def test_every_stream_actor_can_be_found_behind(storage: Storage) -> None:
    storage.receive(order("1", "10", on_credit=True))
    number = storage.number()
    for actor in STREAM_ACTORS:
        store = storage.stores().of(actor)
        assert store.behind([number, 999_999]) == [number]
        storage.advance(actor, [number])
        assert store.behind([number, 999_999]) == []
