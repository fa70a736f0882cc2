"""The heavy runs of docs/guarantees.md, for `make faults` only; HEAVY=0.05 runs them at a twentieth of their size."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Final

import pytest

from customer_actors.domain.events import EventType
from customer_actors.settings import load_settings
from tests.faults.check import Verdict, check_stored, wrong_states
from tests.faults.heavy import (
    HOT,
    HOT_AMOUNT_MINOR,
    LIMIT_MB,
    OTHERS,
    SHARE,
    Memory,
    flood,
    install_notice,
    measured,
    order_proof,
    patient,
    sized,
    stalled_database,
)
from tests.faults.stage import BIN, INGEST, Stage, declare_topology
from tests.faults.table import ROWS, Row

FLOOD: Final = sized(1_000_000)
SECONDS: Final = max(3.0, 20.0 * SHARE)
"""Of each window in which the others are measured."""
SPREAD_WINDOWS: Final = 3
SPREAD: Final = int(SPREAD_WINDOWS * (SECONDS + 4) * 7_000)
"""Of many customers, and more than can be through when they are measured: a window takes a little longer than that."""
STALL_S: Final = 20.0

POS_QUEUE: Final = "customer_pos_queue"

Open = Callable[[Mapping[str, str]], AbstractContextManager[Stage]]


@pytest.mark.long_fault
@pytest.mark.timeout(3 * 3600)
def test_a_million_events_of_one_customer_leave_memory_and_the_others_alone(open_stage: Open) -> None:
    """The others' 50 sales a second come through the order queue, the flood stands in the POS queue from the start: in
    one queue everything waits behind what came before, whatever is done with it afterwards. First the others are
    measured alone, then beside the flood, which rides along with them, then beside one that a thousand customers share,
    which does not, and alone once more. How far the first and the last differ is what the machine did meanwhile. Before
    the flood the database stands still for twenty seconds, with all of it waiting [G12]. The figures stand in the
    closing table; only what must hold is asserted.
    """
    with open_stage({"CUSTOMER_ACTORS_SWEEP_SECONDS": "5"}) as stage:
        declare_topology(stage)
        memory = Memory(stage)
        stage.cleanup.callback(memory.end)
        memory.start()
        stage.start(*stage.commands)
        flood(stage.rabbitmq_url, 1)
        stage.until(lambda: stage.events() == 1 and not stage.behind())
        install_notice(stage, _number_of_hot(stage))
        alone = measured(stage, "A", SECONDS)
        per_s = _flood_standing(stage, FLOOD, (HOT,))  # the first of them for the second time
        with stalled_database(stage):
            stage.pause(STALL_S)
        after_stall = dict(memory.peaks_mb)
        over_s, going_on = time.monotonic(), stage.events()
        stage.until(lambda: stage.events() > going_on)
        beside = measured(stage, "B", SECONDS)
        left = stage.left(POS_QUEUE).get(POS_QUEUE, 0)
        stage.until(lambda: _head_of_hot(stage) == FLOOD, 3600)
        stage.until(lambda: not stage.behind(), 600)
        recovery_s = time.monotonic() - over_s
        _flood_standing(stage, SPREAD, [f"W-{number}" for number in range(OTHERS)])
        shared = measured(stage, "C", SECONDS, windows=SPREAD_WINDOWS)
        left_of_many = stage.left(POS_QUEUE).get(POS_QUEUE, 0)
        stage.until(lambda: not sum(stage.left(POS_QUEUE).values()) and not stage.behind(), 3600)
        again = measured(stage, "D", SECONDS)
        found = _judge(stage)
        by_type: dict[str, int] = dict(stage.sql("SELECT type, count(*) FROM event GROUP BY type"))
    peak_mb = max(memory.peaks_mb.values())
    print(f"published at {per_s:.0f}/s; {left} of the flood left when the others were measured: {beside}")
    print(f"others alone before and after: {alone}, {again}; beside a flood of a thousand: {shared}")
    print(f"MB after the stall {after_stall}, then {memory.peaks_mb}")
    said = (
        f"others, by another queue: p99 {alone.p99_ms:.0f}, beside it {beside.p99_ms:.0f}, "
        f"beside a flood of a thousand {shared.p99_ms:.0f}, after {again.p99_ms:.0f} ms; {peak_mb:.0f} MB"
    )
    latencies = alone, beside, shared, again
    missing = sum(each.missing for each in latencies)
    events = FLOOD + SPREAD
    lost = missing + found.lost
    ROWS.append(Row("a million events of one customer", said, events, lost, found.twice, found.disorder, recovery_s))
    sold = {EventType.POS_COMPLETED: events, EventType.ORDER_COMPLETED: sum(each.sent for each in latencies)}
    assert by_type == sold
    assert found.applied > 3 * events
    assert (missing, found.lost, found.twice, found.disorder, found.held) == (0, 0, 0, 0, 0)
    assert found.wrong == []
    assert min(left, left_of_many) > 0, "a flood was over before the others were measured"
    assert peak_mb < LIMIT_MB, memory.peaks_mb


def _flood_standing(stage: Stage, events: int, customers: Sequence[str]) -> float:
    """Have a flood stand in the queue, and then taken in; returns how many were published per second."""
    stage.supervised = False
    stage.terminate(INGEST)
    per_s = flood(stage.rabbitmq_url, events, customers)
    stage.supervised = True
    stage.start(INGEST)
    began = stage.events()
    stage.until(lambda: stage.events() > began)
    return per_s


def _number_of_hot(stage: Stage) -> int:
    return int(stage.sql("SELECT id FROM customer WHERE customer_id = %s", (HOT,))[0][0])


def _head_of_hot(stage: Stage) -> int:
    return int(stage.sql("SELECT head FROM customer WHERE customer_id = %s", (HOT,))[0][0])


def _judge(stage: Stage) -> Verdict:
    """The flood is through, once each; the others are what the model makes of their streams; nothing differs.

    Of the final check all but the books of single bodies and the model of the flooded one: those are counted here."""
    stage.assert_nothing_hangs()
    hot = _number_of_hot(stage)
    rows = stage.sql(
        "SELECT c.head, s.position, s.sales_pos, s.total_spent_minor, l.position, l.points, l.lifetime_points "
        "FROM customer c JOIN stats_state s ON s.customer = c.id JOIN loyalty_state l ON l.customer = c.id "
        "WHERE c.id = %s",
        (hot,),
    )
    points = _points_of_hot()
    assert rows == [(FLOOD, FLOOD, FLOOD, FLOOD * HOT_AMOUNT_MINOR, FLOOD, points, points)]
    with patient(stage) as database:
        assert wrong_states(database, load_settings({}).rules(), datetime.now(UTC).date(), {hot}) == []
        assert database.query("SELECT count(*) FROM quarantine") == [(0,)]
        began_s = time.monotonic()
        found = check_stored(database, order_proof(database))
        print(f"judged what is stored in {time.monotonic() - began_s:.0f} s")
    _audit(stage)
    return found


def _audit(stage: Stage) -> None:
    """No difference; as a process of the stage, so that its memory is watched like that of the others."""
    stage.supervised = False
    stage.commands["audit"] = (str(BIN / "customer-actors"), "audit")
    stage.start("audit")
    stage.until(lambda: not stage.processes["audit"].running, 1800)
    assert stage.processes["audit"].exit_code == 0, stage.logged("audit")[-3000:]


def _points_of_hot() -> int:
    """The rules of L1 and L2 for one amount again and again."""
    rules, points = load_settings({}).rules(), 0
    for _ in range(FLOOD):
        tier = [each for each in rules.tiers if each.threshold <= points][-1]
        points += int(HOT_AMOUNT_MINOR * rules.points_per_unit * tier.multiplier / 100)
    return points
