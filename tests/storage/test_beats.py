"""Signs of life and the figures health is judged by."""

import os
import socket

import pytest

from customer_actors.domain.events import Rejected
from customer_actors.domain.routing import ACTORS, CREDIT, LOYALTY, SEGMENTATION, STATS
from customer_actors.storage.beats import KEPT_US, all_beats, beat, end_beat
from customer_actors.storage.bells import PAGE, add_bell
from customer_actors.storage.vitals import CHUNK, RECENT_US, Vitals, vitals
from tests.cli.shop import failing_at
from tests.model.examples import order, payment
from tests.storage.support import NOW_US, Storage

LAG_US = 300_000_000
CALM = Vitals(None, 0, 0, 0)


def test_a_process_has_one_beat_which_is_its_last(storage: Storage) -> None:
    beat(storage.database, "worker", NOW_US, expected=5, alive=5)
    beat(storage.database, "worker", NOW_US + 1, expected=5, alive=4, problem="stuck", alarm="mass failure")
    beat(storage.database, "ingest", NOW_US)
    ingest, worker = all_beats(storage.database)
    assert (worker.host, worker.pid) == (socket.gethostname(), os.getpid())
    assert worker[4:] == (NOW_US + 1, 5, 4, "stuck", "mass failure")
    assert (ingest.kind, ingest.trouble, ingest.alarm) == ("ingest", None, None)
    end_beat(storage.database, "worker")
    assert all_beats(storage.database) == [ingest]


def test_dead_threads_are_trouble_and_a_beat_is_fresh_for_so_long(storage: Storage) -> None:
    beat(storage.database, "worker", NOW_US, expected=5, alive=4)
    [worker] = all_beats(storage.database)
    assert worker.trouble == "1 of 5 threads are dead"
    assert worker.is_fresh(NOW_US + 10, 10)
    assert not worker.is_fresh(NOW_US + 11, 10)
    assert worker.is_fresh(NOW_US - 10, 10)
    assert not worker.is_fresh(NOW_US - 11, 10), "a clock set back by a day keeps nobody alive for a day"


def test_who_is_gone_for_a_day_is_forgotten_by_the_next_beat(storage: Storage) -> None:
    beat(storage.database, "scheduler", NOW_US)
    beat(storage.database, "worker", NOW_US + KEPT_US)
    assert len(all_beats(storage.database)) == 2
    beat(storage.database, "worker", NOW_US + KEPT_US + 1)
    assert [each.kind for each in all_beats(storage.database)] == ["worker"]


def test_only_an_event_that_waits_past_the_limit_is_late(storage: Storage) -> None:
    first = storage.append([order("1", "10")._replace(received_at_us=NOW_US)], NOW_US).bell
    assert first
    assert vitals(storage.database, NOW_US + LAG_US, LAG_US) == CALM
    late = vitals(storage.database, NOW_US + LAG_US + 1, LAG_US)
    assert late == CALM._replace(oldest_us=NOW_US)
    storage.settle()
    assert vitals(storage.database, NOW_US + LAG_US + 1, LAG_US) == CALM


@pytest.mark.parametrize("behind", [STATS, LOYALTY, SEGMENTATION, CREDIT])
def test_every_actor_can_be_late(storage: Storage, behind: str) -> None:
    storage.append([order("1", "10", on_credit=True)._replace(received_at_us=NOW_US)], NOW_US)
    for actor in (STATS, LOYALTY, SEGMENTATION, CREDIT):
        if actor != behind:
            storage.advance(actor)
    assert vitals(storage.database, NOW_US + 2 * LAG_US, LAG_US).oldest_us == NOW_US


def test_a_busy_customer_whose_old_events_are_through_is_not_late(storage: Storage) -> None:
    storage.append([order("1", "10")._replace(received_at_us=NOW_US)], NOW_US)
    storage.settle()
    now_us = NOW_US + 2 * LAG_US
    storage.append([order("2", "10")._replace(received_at_us=now_us)], now_us)
    assert vitals(storage.database, now_us, LAG_US) == CALM


def test_the_last_of_more_customers_than_are_looked_at_together_can_be_late(storage: Storage) -> None:
    for batch in range(2):
        numbers = range(batch * CHUNK, (batch + 1) * CHUNK)
        messages = [order(f"{n}", "10", customer_id=f"c{n}")._replace(received_at_us=NOW_US) for n in numbers]
        storage.append(messages, NOW_US)
    customers = [number for (number,) in storage.database.query("SELECT id FROM customer ORDER BY id")]
    assert len(customers) == 2 * CHUNK
    for actor in ACTORS:
        storage.advance(actor, customers[:-1])
    assert vitals(storage.database, NOW_US + 2 * LAG_US, LAG_US).oldest_us == NOW_US
    storage.settle()
    assert vitals(storage.database, NOW_US + 2 * LAG_US, LAG_US) == CALM


def test_bells_of_a_busy_customer_do_not_hide_who_is_late(storage: Storage) -> None:
    storage.append([order("1", "10", customer_id="busy")._replace(received_at_us=NOW_US)], NOW_US)
    storage.settle()
    with storage.database.transaction():
        for _ in range(PAGE):
            add_bell(storage.database, {STATS: [storage.number("busy")]}, NOW_US)
    storage.append([order("2", "10", customer_id="late")._replace(received_at_us=NOW_US)], NOW_US)
    assert vitals(storage.database, NOW_US + 2 * LAG_US, LAG_US).oldest_us == NOW_US


def test_held_and_parked_are_counted_and_are_not_late(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_at(monkeypatch, "bad")
    for number in range(3):
        storage.append([order("bad", "10", customer_id=f"c{number}")._replace(organization_id=f"org-{number}")])
    storage.append([payment("p", "5")])
    storage.settle()
    with storage.database.transaction():
        sql = "UPDATE held_group SET next_try_us = NULL WHERE customer = ?"
        storage.database.execute(sql, (storage.number("c0", "org-0"),))
    assert vitals(storage.database, NOW_US + 10 * LAG_US, LAG_US) == CALM._replace(held=2, parked=1)
    storage.database.execute("DELETE FROM held_group WHERE customer = ?", (storage.number("c1", "org-1"),))
    assert vitals(storage.database, NOW_US, LAG_US)[1:3] == (1, 2), "without its details nobody tries it again"
    with storage.database.transaction():
        storage.database.execute("UPDATE loyalty_state SET held_position = NULL")
    assert vitals(storage.database, NOW_US, LAG_US)[1:3] == (0, 0)


def test_quarantined_counts_what_is_new_and_not_resolved(storage: Storage) -> None:
    for reason in ("a", "b"):
        storage.append([Rejected("bad_json", reason)], NOW_US)
    assert vitals(storage.database, NOW_US + 1, LAG_US).quarantined == 2
    with storage.database.transaction():
        sql = "UPDATE quarantine SET resolved_us = 1, outcome = 'accepted' WHERE reason = 'a'"
        storage.database.execute(sql)
    assert vitals(storage.database, NOW_US + 1, LAG_US).quarantined == 1
    assert vitals(storage.database, NOW_US + RECENT_US, LAG_US).quarantined == 0
