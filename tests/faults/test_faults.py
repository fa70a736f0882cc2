"""Every fault of the list, injected while events flow, and after each the one check: nothing lost, doubled, disordered.

`make test` runs the short ones, `make faults` all of them. Every schedule is random and replays from the printed seed.
"""

import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime

import pytest

from customer_actors.ingest.topology import QUEUES
from customer_actors.settings import load_settings
from customer_actors.simulate import ShopPlan, simulate
from customer_actors.storage.opening import open_database
from tests.faults import broker_faults, database_faults, input_faults, process_faults  # noqa: F401
from tests.faults.check import check
from tests.faults.faults import FAULTS, Fault
from tests.faults.publisher import Publisher
from tests.faults.stage import OUTAGE_S, Stage, declare_topology
from tests.faults.table import ROWS, SEED, Row

FIRST_EVENTS = 100
"""The service is at work before the fault begins."""
LASTING = 12
"""So many times the events that are sent at least are there to be sent while a fault lasts: two minutes of traffic."""


def lines_of(fault: Fault, rng: random.Random) -> list[str]:
    """The traffic: a shop that contradicts itself nowhere, so that every line's outcome can be told from its key."""
    events = fault.events if fault.shuffled else LASTING * fault.events
    plan = ShopPlan(customers=fault.events // 6, events=events, seed=rng.randrange(10**6), conflict=0)
    lines = list(simulate(plan))
    if fault.shuffled:
        lines += rng.sample(lines, len(lines) // 5)
        rng.shuffle(lines)
    return lines


def _publisher(url: str, fault: Fault, rng: random.Random) -> Publisher:
    lines = lines_of(fault, rng)
    return Publisher(url, lines, least=len(lines) if fault.shuffled else fault.events)


@pytest.mark.timeout(300 + OUTAGE_S)
@pytest.mark.parametrize(
    "fault",
    [pytest.param(each, id=each.name, marks=() if each.short else pytest.mark.long_fault) for each in FAULTS],
)
def test_nothing_is_lost_doubled_or_disordered_by(
    fault: Fault, open_stage: Callable[..., AbstractContextManager[Stage]]
) -> None:
    rng = random.Random(f"{SEED} {fault.name}")
    with open_stage(fault.env) as stage:
        fault.prepare(stage)
        declare_topology(stage)
        publisher = stage.publisher = _publisher(stage.rabbitmq_url, fault, rng)
        stage.start(*stage.commands)
        publisher.start()
        stage.until(lambda: stage.events() >= FIRST_EVENTS)
        times = fault.inject(stage, rng)
        over_s = time.monotonic()
        publisher.hurry()
        settled = stage.reached(stage.settled, fault.recovers_s)
        recovery_s = time.monotonic() - over_s
        if settled:
            stage.assert_nothing_hangs(fault.dead_letters)
        stage.terminate_all()
        stage.until(lambda: not stage.orphans() and not stage.connections(), 15)
        row = judged(fault, stage, publisher, times, recovery_s)
        assert settled, stage.open_matters
    assert (row.lost, row.twice, row.disorder) == (0, 0, 0)
    assert times > 0
    assert fault.ends_processes or not stage.restarts, "a process ended by itself"


def judged(fault: Fault, stage: Stage, publisher: Publisher, times: int, recovery_s: float) -> Row:
    """The final check; its row goes into the closing table whatever it says."""
    database = open_database(stage.postgres.url(stage.database))
    try:
        found = check(
            database, load_settings(stage.env).rules(), publisher.confirmed, stage.accounts, datetime.now(UTC).date()
        )
    finally:
        database.release()
    row = Row(
        fault.name,
        f"{times} {fault.unit}",
        len(publisher.confirmed),
        found.lost,
        found.twice,
        found.disorder,
        recovery_s,
    )
    ROWS.append(row)
    assert found.wrong == []
    assert found.applied > len(publisher.confirmed)
    assert (found.held > 0) is fault.holds, f"{found.held} attempts charged"
    # What is not acknowledged comes back once its consumer is gone.
    stage.until(lambda: not stage.left(*QUEUES), 20)
    return row
