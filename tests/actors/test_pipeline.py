"""The actors on Dramatiq's in-process broker with a real worker: bells answered, holds retried, outages survived."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import dramatiq
import pytest
from dramatiq.brokers.stub import StubBroker
from structlog.testing import capture_logs

from customer_actors.actors import pipeline as pipeline_module
from customer_actors.actors.pipeline import now_us
from customer_actors.domain.events import Event
from customer_actors.domain.loyalty import fold as loyalty_fold
from customer_actors.domain.routing import ACTORS
from customer_actors.domain.stats import fold as stats_fold
from customer_actors.errors import Outage
from customer_actors.groups import failure
from customer_actors.groups.advance import Report, advance
from customer_actors.storage import loyalty, stats, triage
from customer_actors.storage.beats import Kind, all_beats
from customer_actors.storage.holds import next_try_of
from customer_actors.storage.operators import Action
from tests.actors.working import Running, running
from tests.model.examples import cancellation, opened, order, payment
from tests.servers import PrivatePostgres
from tests.servers.process import wait_until
from tests.storage.support import NOW_US, Storage
from tests.storage.test_outage import end_connections

CROWD = 50

Broken = Callable[[Event], None]

WAITING = "SELECT head_loyalty - position FROM customer JOIN loyalty_state ON customer = id WHERE customer_id = ?"


@pytest.fixture
def break_loyalty(monkeypatch: pytest.MonkeyPatch) -> Callable[[Broken], None]:
    """Lets something happen before every fold of loyalty."""
    whole = loyalty_fold

    def break_(before: Broken) -> None:
        def fold(state: Any, event: Event, *facts: Any) -> Any:
            before(event)
            return whole(state, event, *facts)

        monkeypatch.setattr(loyalty, "fold", fold)

    return break_


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Held customers are tried again within hundredths of a second."""
    monkeypatch.setattr(failure, "FIRST_DELAY_S", 0.02)
    monkeypatch.setattr(failure, "MAX_DELAY_S", 0.04)


def held(storage: Storage) -> list[tuple[Any, ...]]:
    return storage.database.query("SELECT actor, customer, position, attempts FROM held_group ORDER BY 1, 2")


def test_a_bell_brings_every_actor_to_the_head_segmentation_after_statistics(storage: Storage) -> None:
    with running(storage) as service:
        service.take(
            opened("100"), order("1", "10", on_credit=True), payment("p", "5"), order("2", "10", customer_id="c2")
        )
        wait_until(service.idle)
        assert service.through()
        assert storage.value("SELECT count(*) FROM customer_segment WHERE code IS NOT NULL") == 2
        service.take(cancellation("1"))
        wait_until(service.idle)
    assert storage.value("SELECT count(*) FROM customer_segment WHERE code IS NOT NULL") == 1
    assert Counter(service.seen.processed) == {
        ("dispatcher", None): 2,
        ("stats", None): 2,
        ("loyalty", None): 2,
        ("credit", None): 2,
        ("segmentation", None): 2,
    }


def test_what_a_message_leaves_open_is_closed_before_the_next_one(storage: Storage, monkeypatch: Any) -> None:
    """A transaction left open by one message would be committed by whoever uses its thread next."""
    left = []

    def leave_one_open(actor: str, bundle: Any, **_: Any) -> Report:
        if storage.database.engine.in_transaction():
            left.append(actor)
        storage.database.engine.begin()
        storage.database.engine.push_transaction(storage.database.engine.transaction())
        return Report()

    monkeypatch.setattr(pipeline_module, "advance", leave_one_open)
    with running(storage) as service:
        service.take(order("1", "10"), order("2", "10", customer_id="c2"))
        wait_until(service.idle)
        service.take(order("3", "10"))
        wait_until(service.idle)
    assert left == []


def test_every_actor_has_a_queue_of_its_own_and_so_have_retries(storage: Storage) -> None:
    queues = Running(storage, 500, now_us).broker.get_declared_queues()
    assert {name for name in queues if not name.endswith(".DQ")} == {"dispatcher", "held", *ACTORS}


def test_a_held_customer_is_tried_again_by_retries_and_nobody_waits_for_it(
    storage: Storage, break_loyalty: Callable[[Broken], None], soon: None
) -> None:
    broken = True

    def fail_while_broken(event: Event) -> None:
        if broken and event.reference == "bad":
            raise ValueError("secret-id cannot be folded")

    break_loyalty(fail_while_broken)
    with running(storage) as service, capture_logs() as logs:
        service.take(order("bad", "10"), order("2", "10"), order("3", "10", customer_id="c2"))
        number = storage.number()
        wait_until(lambda: [row[3] >= 3 for row in held(storage)] == [True])
        for after in ("4", "5"):
            service.take(order(after, "10", customer_id="c2"), order(f"{after}-held", "10"))
            wait_until(lambda: storage.value(WAITING, "c2") == 0)
            assert [row[:3] for row in held(storage)] == [("loyalty", number, 1)]
        broken = False
        wait_until(service.idle)
        assert (service.through(), held(storage)) == (True, [])
    assert ("held", dramatiq.Retry) in service.seen.processed
    assert {actor for actor, raised in service.seen.processed if raised} == {"held"}
    points = storage.database.query(
        "SELECT position, points FROM loyalty_entry WHERE customer = ? ORDER BY 1", (number,)
    )
    assert points == [(1, 10), (2, 10), (3, 10), (4, 10)]
    (line,) = [entry for entry in logs if entry["event"] == "held"]
    assert line["error"] == "ValueError"


def test_attempts_used_up_park_and_end_the_chain_of_messages(
    storage: Storage, break_loyalty: Callable[[Broken], None], soon: None
) -> None:
    def fail(event: Event) -> None:
        raise ValueError("never")

    break_loyalty(fail)
    with running(storage) as service:
        service.take(order("bad", "10"))
        wait_until(service.idle)
    assert held(storage) == [("loyalty", storage.number(), 1, failure.MAX_ATTEMPTS)]
    assert next_try_of(storage.database, "loyalty", storage.number()) is None
    assert Counter(service.seen.processed)["held", dramatiq.Retry] == failure.MAX_ATTEMPTS - 2


def test_no_retry_is_delivered_before_its_time(storage: Storage, break_loyalty: Callable[[Broken], None]) -> None:
    """One that came a fraction of a millisecond early would find nothing due and end its chain."""

    def fail(event: Event) -> None:
        raise ValueError("never")

    break_loyalty(fail)
    storage.append([order(str(number), "10", customer_id=f"c{number}") for number in range(CROWD)])
    service = Running(storage, 500, now_us)
    assert len(service.pipeline.advance("loyalty", storage.stores().of("loyalty").all_behind()).held) == CROWD
    assert isinstance(service.broker, StubBroker)
    delayed = service.broker.queues["held.DQ"]
    messages = [dramatiq.Message.decode(delayed.get_nowait()) for _ in range(CROWD)]
    for message in messages:
        next_try = next_try_of(storage.database, *message.args)
        assert next_try is not None
        assert message.options["eta"] * 1_000 >= next_try


def test_early_and_doubled_messages_charge_nothing_and_end(
    storage: Storage, break_loyalty: Callable[[Broken], None]
) -> None:
    """The clock stands still, so the time of the retry never comes."""

    def fail(event: Event) -> None:
        raise ValueError("never")

    break_loyalty(fail)
    with running(storage, clock=lambda: NOW_US) as service:
        service.take(order("bad", "10"))
        wait_until(lambda: len(held(storage)) == 1)
        for _ in range(5):
            service.pipeline.ring_held("loyalty", storage.number(), 0)
            service.pipeline.ring_held("stats", storage.number(), 0)
            service.pipeline.ring_actor("loyalty", [storage.number()])
        wait_until(lambda: Counter(service.seen.processed)["held", None] == 10)
    assert held(storage) == [("loyalty", storage.number(), 1, 1)]
    assert not [raised for _, raised in service.seen.processed if raised]


def test_a_bad_deploy_is_told_once_charges_nobody_and_after_the_fix_everybody_goes_on(
    storage: Storage, break_loyalty: Callable[[Broken], None], soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failure, "MAX_UNCHARGED_DELAY_S", 0.04)
    broken, tries = True, Counter[int]()

    def fail(event: Event) -> None:
        tries[event.customer] += 1
        if broken:
            raise ValueError("the code is bad")

    break_loyalty(fail)
    with running(storage) as service, capture_logs() as logs:
        service.take(*(order(str(n), "10", customer_id=f"c{n}") for n in range(CROWD)))
        wait_until(lambda: len(tries) == CROWD and min(tries.values()) > failure.MAX_ATTEMPTS + 1)
        assert service.pipeline.alarm.raised(now_us() / 1_000_000)
        assert [row[3] for row in held(storage)] == [0] * CROWD
        broken = False
        wait_until(service.idle)
        assert (service.through(), held(storage)) == (True, [])
        assert not service.pipeline.alarm.raised(now_us() / 1_000_000)
    told = [(line["event"], line["log_level"]) for line in logs if line["event"].startswith("mass failure")]
    assert told == [("mass failure", "error"), ("mass failure is over", "warning")]
    assert storage.value("SELECT count(*) FROM loyalty_entry") == CROWD


def test_a_retry_that_ends_at_another_event_that_fails_rings_segmentation_for_what_lies_between(
    storage: Storage, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing, whole = {"bad", "worse"}, stats_fold

    def fold(state: Any, event: Event, *facts: Any) -> Any:
        if event.reference in failing:
            raise ValueError("not this one")
        return whole(state, event, *facts)

    monkeypatch.setattr(stats, "fold", fold)
    with running(storage) as service:
        service.take(*(order(reference, "10") for reference in ("bad", "between", "worse")))
        wait_until(lambda: bool(held(storage)))
        failing.discard("bad")
        wait_until(lambda: storage.value("SELECT position FROM customer_segment") == 2)
    assert storage.value("SELECT position FROM stats_state") == 2


def test_all_actors_of_a_process_share_one_alarm(storage: Storage) -> None:
    pipeline = Running(storage, 500, now_us).pipeline
    assert {id(pipeline.stores.of(actor).alarm) for actor in ACTORS} == {id(pipeline.alarm)}


@pytest.mark.parametrize("kind", ["worker", "embedded"])
def test_a_beat_tells_of_a_mass_failure_while_it_lasts_and_goes_with_its_process(storage: Storage, kind: Kind) -> None:
    def alarms() -> list[tuple[str, str | None]]:
        return [(beat.kind, beat.alarm) for beat in all_beats(storage.database)]

    with running(storage, clock=lambda: NOW_US, sweep_s=0.02, kind=kind) as service:
        wait_until(lambda: alarms() == [(kind, None)])
        service.pipeline.alarm.note("loyalty", range(CROWD), range(CROWD), NOW_US / 1_000_000)
        wait_until(lambda: alarms() == [(kind, "mass failure")])
        service.pipeline.alarm.note("loyalty", range(CROWD), [], NOW_US / 1_000_000)
        wait_until(lambda: alarms() == [(kind, None)])
    assert alarms() == []


def test_no_retry_waits_longer_than_five_minutes_whatever_the_clocks_of_other_hosts_say(
    storage: Storage, break_loyalty: Callable[[Broken], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    delays: list[int | None] = []

    class Noting(dramatiq.Middleware):
        def before_enqueue(self, broker: dramatiq.Broker, message: Any, delay: int | None) -> None:
            delays.append(delay)

    def fail(event: Event) -> None:
        raise ValueError("not this one")

    break_loyalty(fail)
    pipeline = Running(storage, 500, lambda: NOW_US).pipeline
    pipeline.broker.add_middleware(Noting())
    storage.append([order("1", "10")])
    monkeypatch.setattr(pipeline_module, "next_try_of", lambda *_: NOW_US + 3_600_000_000)
    pipeline.advance("loyalty", [storage.number()])
    assert delays == [300_002]


def test_what_is_released_is_found_by_the_sweep_and_drains_in_order(
    storage: Storage, break_loyalty: Callable[[Broken], None], soon: None
) -> None:
    """As with workers on other hosts: the command writes the database, and a bell row that the sweep finds."""
    broken, folded = True, list[int]()

    def fail_while_broken(event: Event) -> None:
        if broken:
            raise ValueError("never")
        folded.append(event.position)

    break_loyalty(fail_while_broken)
    with running(storage, sweep_s=0.05) as service:
        service.take(order("bad", "10"), order("2", "10"))
        wait_until(lambda: [row[3] for row in held(storage)] == [failure.MAX_ATTEMPTS])
        wait_until(lambda: storage.value("SELECT count(*) FROM bell") == 0)
        broken = False
        by = Action("op", "release", "fixed")
        released = list(triage.release(storage.database, triage.Wanted("loyalty"), by, now_us()))
        service.take(order("3", "10"))
        assert released == [("loyalty", [storage.number()])]
        wait_until(lambda: storage.value(WAITING, "c1") == 0)
    assert folded == [1, 2, 3]
    assert held(storage) == []


def test_an_outage_tries_the_bundle_again_and_charges_nobody(
    postgres_storage: Storage, postgres: PrivatePostgres, break_loyalty: Callable[[Broken], None]
) -> None:
    storage, left = postgres_storage, [2, 1]

    def end(event: Event) -> None:
        if left and event.reference == "1":
            left.pop()
            end_connections(postgres)

    break_loyalty(end)
    with running(storage) as service:
        service.take(order("1", "10"), order("2", "10", customer_id="c2"))
        wait_until(lambda: not left and service.idle())
        storage.database.release()  # this thread's connection was ended as well
        assert service.through()
    assert Counter(service.seen.processed)["loyalty", Outage] >= 2
    assert {raised for _, raised in service.seen.processed} == {None, Outage}
    assert held(storage) == []


def test_time_used_up_rings_the_actor_itself_for_the_rest(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline_module, "advance", partial(advance, budget_s=-1))
    with running(storage, round_events=1) as service:
        service.take(*(order(str(number), "10") for number in range(7)))
        wait_until(service.idle)
        assert service.through()
    assert Counter(service.seen.processed)["loyalty", None] == 7
