"""A little of everything that goes wrong, at once, and what is left of it; for `make faults`, sized by HEAVY."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, date, datetime
from functools import partial
from typing import Any, Final

import pytest

from customer_actors.domain.events import Event
from customer_actors.domain.routing import BIT, STREAM_ACTORS
from customer_actors.domain.rules import Rules
from customer_actors.settings import load_settings
from customer_actors.simulate import ShopPlan, simulate
from customer_actors.storage.append import EVENT
from customer_actors.storage.database import Database
from customer_actors.storage.views import customer_view
from tests.faults.check import check, wrong_states
from tests.faults.heavy import SHARE, patient, sized
from tests.faults.order_log import prove
from tests.faults.poison import SEED as POISON_SEED
from tests.faults.poison import failing_tries, is_poison
from tests.faults.publisher import Publisher
from tests.faults.stage import COMMANDS, WAIT_S, WORKER, Stage, declare_topology
from tests.faults.table import ROWS, SEED, Row
from tests.model.stream import state_of_stream

EVENTS: Final = sized(100_000)
KILLS: Final = max(3, round(10 * SHARE))
SETTLED_S: Final = 3_600
_LOOK_S: Final = 2.0

Holds = dict[tuple[str, int], int]
"""(actor, customer) -> the position it is held at."""


@pytest.mark.long_fault
@pytest.mark.timeout(3 * 3600)
def test_exactly_the_poisoned_are_parked_and_after_a_fix_a_release_brings_everybody_through(
    open_stage: Callable[[Mapping[str, str]], AbstractContextManager[Stage]],
) -> None:
    """1 % of the events fail once or twice, 0.1 % for ever, 5 % come twice in any order, workers are killed."""
    rng = random.Random(f"{SEED} poison")
    seed = str(rng.randrange(10**6))
    lines = _lines(rng)
    with open_stage({POISON_SEED: seed}) as stage:
        declare_topology(stage)
        stage.commands[WORKER] = (sys.executable, "-m", "tests.faults.poison", "dramatiq", *COMMANDS[WORKER][1:])
        publisher = stage.publisher = Publisher(stage.rabbitmq_url, lines, portion=500)
        stage.start(*stage.commands)
        publisher.hurry()
        publisher.start()
        kills = _kill_workers(stage, rng)
        stage.until(_seldom(lambda: _through_or_parked(stage)), SETTLED_S)
        assert "mass failure" not in stage.logged(WORKER)
        parked, transient = _judge_parked(stage, seed)
        # The fix.
        stage.commands[WORKER] = COMMANDS[WORKER]
        stage.terminate(WORKER)
        stage.supervise()
        began_s = time.monotonic()
        stage.command("held", "release", "--all", "--reason", "what failed was mended")
        stage.until(_seldom(lambda: not stage.behind()), SETTLED_S)
        recovery_s = time.monotonic() - began_s
        stage.assert_nothing_hangs()
        stage.terminate_all()
        injected = f"{kills} kills, {transient} transients, {len(parked)} holds parked, {publisher.repeated} sent twice"
        _judge_all(stage, publisher, injected, recovery_s)
        stage.command("audit", seconds=1800)
    assert parked


def _lines(rng: random.Random) -> list[str]:
    plan = ShopPlan(EVENTS // 10, EVENTS, seed=rng.randrange(10**6), duplicates=0, conflict=0, credit_share=0.3)
    lines = list(simulate(plan))
    lines += rng.sample(lines, len(lines) // 20)
    rng.shuffle(lines)
    return lines


def _kill_workers(stage: Stage, rng: random.Random) -> int:
    """kill -9 of one of the two processes, again and again, while events flow and once while only retries are left."""
    assert stage.publisher is not None
    for number in range(KILLS):
        if number < KILLS - 1:
            wanted = stage.events() + rng.randrange(EVENTS // KILLS)
            stage.until(partial(_reached, stage, wanted))
        else:
            stage.until(lambda: not (stage.publisher and stage.publisher.is_alive()), SETTLED_S)
        stage.until(lambda: stage.workers_ready() and bool(stage.worker_children()))
        if number < KILLS - 1:
            at_work = stage.reached(lambda: stage.waiting() > 0, WAIT_S)
            assert at_work, "the workers to be killed have nothing to do: set a larger HEAVY"
        main = stage.processes[WORKER].pid
        os.kill(rng.choice(stage.worker_children()), signal.SIGKILL)
        stage.until(partial(_ended, stage, main))
    return KILLS


def _reached(stage: Stage, wanted: int) -> bool:
    """Whether so many events are committed, or everything is published: what is left then is the workers' backlog."""
    assert stage.publisher is not None
    return stage.events() >= wanted or not stage.publisher.is_alive()


def _ended(stage: Stage, main: int) -> bool:
    """Whether the workers' main process is another one: it ends with the first child that is killed."""
    return stage.processes[WORKER].pid != main


def _seldom(condition: Callable[[], bool]) -> Callable[[], bool]:
    """The condition, looked at every other second: it reads everything."""
    looked_s = [0.0]

    def seldom() -> bool:
        if time.monotonic() - looked_s[0] < _LOOK_S:
            return False
        holds = condition()
        looked_s[0] = time.monotonic()
        return holds

    return seldom


def _through_or_parked(stage: Stage) -> bool:
    """Whether everything confirmed has its outcome, and every actor is at every head or has given up."""
    assert stage.publisher is not None
    parked = int(stage.sql("SELECT count(*) FROM held_group WHERE next_try_us IS NULL")[0][0])
    stage.open_matters = f"{stage.events()} events, {stage.behind()} customers behind or held, {parked} of them parked"
    return not stage.publisher.is_alive() and stage.behind() == parked and not stage.missing()


def _judge_parked(stage: Stage, seed: str) -> tuple[Holds, int]:
    """Parked is who has poison, for whom it is poison and where; everybody else, and everything before it, is right.
    Returns that, and how many events have failed transiently."""
    with patient(stage) as database:
        rules, today = load_settings({}).rules(), datetime.now(UTC).date()
        streams = _streams_with_poison(database, seed)
        expected = _poisoned(streams, seed)
        transient = _judge_transients(database, seed, expected)
        rows = database.query("SELECT actor, customer, position, next_try_us, error FROM held_group")
        assert {(actor, customer): position for actor, customer, position, *_ in rows} == expected
        assert {(next_try, error.split(":")[0]) for *_, next_try, error in rows} <= {(None, "PoisonedError")}
        customers = {customer for _, customer in expected}
        print(f"{transient} transient events; parked: {len(expected)} holds of {len(customers)} customers")
        assert wrong_states(database, rules, today, customers) == []
        assert [_until_poison(database, one, streams[one], expected, rules, today) for one in customers] == [
            [] for _ in customers
        ]
        proof = prove(lambda sql: database.query(sql)[0][0])
        assert (proof.twice, proof.disorder) == (0, 0)
        return expected, transient


def _judge_transients(database: Database, seed: str, parked: Holds) -> int:
    """Each failed in every actor it concerns, as often as it should and no more, unless the actor never came to it.
    Returns how many events did: one in a hundred, or nearly."""
    expected, events = set[tuple[Any, ...]](), 0
    for customer, position, type_, reference, concerns in database.query(
        "SELECT customer, position, type, reference, concerns FROM event"
    ):
        events += 1
        for actor in STREAM_ACTORS:
            if concerns & BIT[actor] and position < parked.get((actor, customer), position + 1):
                tries = failing_tries(seed, type_, reference)
                expected |= {(actor, customer, position, number) for number in range(1, tries + 1)}
    holds = database.query("SELECT actor, customer, position, attempts, error FROM hold_log")
    assert sorted(row[:4] for row in holds if row[4].startswith("TransientError")) == sorted(expected)
    transient = len({row[1:3] for row in expected})
    assert events / 200 < transient < events / 50
    return transient


def _streams_with_poison(database: Database, seed: str) -> dict[int, list[Event]]:
    """The streams of everybody who has poison for anybody."""
    poisoned = set[int]()
    for customer, type_, reference in database.query("SELECT customer, type, reference FROM event"):
        if any(is_poison(seed, type_, reference, actor) for actor in STREAM_ACTORS):
            poisoned.add(customer)
    stream = f"SELECT {', '.join(EVENT.names)} FROM event WHERE customer = ? ORDER BY position"
    return {one: [Event._make(row) for row in database.query(stream, (one,))] for one in poisoned}


def _poisoned(streams: Mapping[int, list[Event]], seed: str) -> Holds:
    """The first event of each actor that is poison for it, if it concerns it."""
    found: Holds = {}
    for customer, events in streams.items():
        for event in events:
            for actor in STREAM_ACTORS:
                if event.concerns & BIT[actor] and is_poison(seed, event.type, event.reference, actor):
                    found.setdefault((actor, customer), event.position)
    return found


def _until_poison(
    database: Database, customer: int, events: list[Event], poisoned: Holds, rules: Rules, today: date
) -> list[Any]:
    """What of a parked customer is not as if its stream ended before the poison, actor by actor."""
    keys = database.query("SELECT organization_id, customer_id FROM customer WHERE id = ?", (customer,))
    view = customer_view(database, rules, *keys[0]) or {}
    wrong = []
    for actor in STREAM_ACTORS:
        end = poisoned.get((actor, customer), len(events) + 1)
        expected = state_of_stream(events[: end - 1], rules, today)[actor]
        if view[actor] != expected:
            wrong.append((customer, actor, view[actor], expected))
    return wrong


def _judge_all(stage: Stage, publisher: Publisher, injected: str, recovery_s: float) -> None:
    with patient(stage) as database:
        today = datetime.now(UTC).date()
        found = check(database, load_settings({}).rules(), publisher.confirmed, stage.accounts, today)
    ROWS.append(Row("1 % transient, 0.1 % poison", injected, len(publisher.confirmed), *found[:3], recovery_s))
    assert found.wrong == []
    assert found[:3] == (0, 0, 0)
