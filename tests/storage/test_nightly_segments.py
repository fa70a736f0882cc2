"""The night of the segments on both databases: cuts, rescoring, resuming, and events that arrive meanwhile [R2-R7]."""

from collections.abc import Sequence
from datetime import date, timedelta
from itertools import pairwise

import pytest

from customer_actors.domain.events import from_us, iso
from customer_actors.domain.routing import SEGMENTATION, STATS
from customer_actors.domain.segmentation import Cuts, quintile_cuts
from customer_actors.errors import DataFault, UsageError
from customer_actors.storage.database import Row
from customer_actors.storage.job_runs import Run
from customer_actors.storage.nightly_segments import NightlySegments
from customer_actors.storage.segmentation import newest_cuts
from customer_actors.storage.views import stored_customer
from tests.model.examples import DAY_US, JUNE_1_US, cancellation, order
from tests.storage.nights import (
    TOMORROW,
    TOMORROW_US,
    Night,
    assert_each_row_agrees_with_its_inputs,
    crowd,
    night,
    segments,
)
from tests.storage.support import NOW_US, TODAY, Storage, in_organization


def expected_cuts(storage: Storage, organization_id: str, as_of: date) -> Cuts:
    """Counted plainly from what `show` tells."""
    days, orders, totals = [], [], []
    for organization, customer in storage.customers():
        stored = stored_customer(storage.database, organization, customer)
        assert stored is not None
        if organization == organization_id and stored.stats.last_purchase_at_us is not None:
            last = from_us(stored.stats.last_purchase_at_us).astimezone(storage.rules.zone).date()
            days.append(max(0, (as_of - last).days))
            orders.append(stored.stats.orders)
            totals.append(stored.stats.total_spent_minor)
    number = newest_cuts(storage.database, organization_id).number
    recency, frequency, monetary = (quintile_cuts(sorted(values)) for values in (days, orders, totals))
    return Cuts(number, recency, frequency, monetary, as_of)


def test_every_organization_gets_its_own_numbered_cuts(storage: Storage) -> None:
    storage.settle(*crowd(), *crowd(105, "org-2")[:200], *in_organization(crowd(20), "org-3"))
    night(storage)
    found = {one: newest_cuts(storage.database, one) for one in ("org-1", "org-2", "org-3")}
    assert found == {one: expected_cuts(storage, one, TOMORROW) for one in found}
    assert len({cuts.number for cuts in found.values()}) == 3
    assert None not in found["org-1"]
    assert found["org-3"][1:4] == (None, None, None)  # twenty customers are too few: the fixed cuts


def test_after_the_night_everybody_has_the_scores_of_the_new_cuts(storage: Storage) -> None:
    storage.settle(*crowd(), *in_organization(crowd(30), "org-2"))
    done = night(storage)
    assert done.examined == 150
    assert 0 < done.changed < 150
    after = segments(storage.database)
    storage.database.execute("UPDATE customer_segment SET position = 0")
    storage.advance(SEGMENTATION, now_us=TOMORROW_US)  # each one by a bell, with the same cuts on the same day
    assert segments(storage.database) == after
    assert_each_row_agrees_with_its_inputs(storage)


def test_only_rows_that_changed_are_rewritten(storage: Storage) -> None:
    storage.settle(*crowd())
    before = segments(storage.database)
    done = night(storage)
    after = segments(storage.database)
    moved = {key for key in before if before[key] != after[key]}
    rewritten = storage.value("SELECT count(*) FROM customer_segment WHERE calculated_at_us = ?", TOMORROW_US)
    assert rewritten == len(moved) == done.changed


def test_recency_decays_of_itself(storage: Storage) -> None:
    storage.settle(order("o1", "10.00"))
    codes = []
    for days in (30, 31, 60, 61, 90, 91, 180, 181):
        as_of = from_us(JUNE_1_US).date() + timedelta(days)
        night(storage, as_of, JUNE_1_US + days * DAY_US)
        codes.append(segments(storage.database)["org-1", "c1"][0::3])
    old, new = (3, "potential_loyalist"), (4, "new")
    assert codes == [(5, "new"), new, new, old, old, (2, "lost"), (2, "lost"), (1, "lost")]


def test_a_second_run_for_the_same_date_changes_nothing_and_keeps_the_snapshot(storage: Storage) -> None:
    storage.settle(*crowd())
    night(storage)
    number, rows = newest_cuts(storage.database, "org-1").number, segments(storage.database)
    storage.settle(order("late", "9000", customer_id="c3"))
    assert night(storage, now_us=TOMORROW_US + 1).changed <= 1
    assert newest_cuts(storage.database, "org-1").number == number
    storage.settle()
    assert {key: row for key, row in segments(storage.database).items() if key[1] != "c3"} == {
        key: row for key, row in rows.items() if key[1] != "c3"
    }
    assert night(storage, now_us=TOMORROW_US + 2).changed == 0


def test_a_killed_run_resumes_with_what_is_left(storage: Storage) -> None:
    storage.settle(*crowd())
    job, run = NightlySegments(storage.database, storage.rules, 20), Run("segments", "s", TOMORROW)
    with storage.database.transaction():
        chunks = list(job.plan(run, TOMORROW_US))
    for chunk in chunks[:3]:
        job.work(run, chunk, TOMORROW_US, lambda examined, changed: None)
    before = segments(storage.database)

    def killed(examined: int, changed: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        job.work(run, chunks[3], TOMORROW_US, killed)
    assert segments(storage.database) == before  # what is not marked done has had no effect
    for chunk in chunks[2:]:  # one of them for the second time
        job.work(run, chunk, TOMORROW_US, lambda examined, changed: None)
    resumed = segments(storage.database)
    assert night(storage).changed == 0
    assert segments(storage.database) == resumed


def test_chunks_cover_every_customer_of_the_organization_once(storage: Storage) -> None:
    mixed = [message for pair in zip(crowd(40), in_organization(crowd(40), "org-2"), strict=True) for message in pair]
    storage.settle(*mixed)
    chunks = night(storage, chunk_customers=7).chunks
    assert [chunk.number for chunk in chunks] == list(range(1, len(chunks) + 1))
    for organization_id in ("org-1", "org-2"):
        own = [chunk for chunk in chunks if chunk.organization_id == organization_id]
        assert len(own) >= 4
        assert own[0].first == 1
        assert all(one.last + 1 == other.first for one, other in pairwise(own))
        assert own[-1].last > storage.value("SELECT max(id) FROM customer") + 1_000_000  # also who comes meanwhile


def test_an_organization_without_sales_keeps_its_old_snapshot(storage: Storage) -> None:
    storage.settle(order("o1", "10.00"))
    night(storage, TODAY, NOW_US)
    before = newest_cuts(storage.database, "org-1")
    storage.settle(cancellation("o1"))
    done = night(storage)
    assert done.chunks == []
    assert newest_cuts(storage.database, "org-1") == before
    assert segments(storage.database)["org-1", "c1"] == (None, None, None, None)


def test_a_run_for_an_older_date_never_moves_anybody_back(storage: Storage) -> None:
    storage.settle(*crowd())
    night(storage)
    before, number = segments(storage.database), newest_cuts(storage.database, "org-1").number
    assert night(storage, TODAY - timedelta(60)) == Night([], 0, 0)
    assert segments(storage.database) == before
    assert newest_cuts(storage.database, "org-1").number == number


def test_a_date_that_lies_ahead_is_refused(storage: Storage) -> None:
    """Its snapshot would be the newest until that date, and every night before it would stand back."""
    storage.settle(*crowd())
    with pytest.raises(UsageError, match="2024-06-13 lies ahead"):
        night(storage, TODAY + timedelta(2), NOW_US)
    assert newest_cuts(storage.database, "org-1") == Cuts()


def test_a_chunk_left_over_from_an_older_night_does_nothing(storage: Storage) -> None:
    storage.settle(*crowd())
    job, old = NightlySegments(storage.database, storage.rules), Run("segments", "old", TODAY)
    with storage.database.transaction():
        (chunk,) = job.plan(old, NOW_US)
    night(storage, TODAY + timedelta(40), NOW_US + 40 * DAY_US)
    before, counts = segments(storage.database), []
    job.work(old, chunk, NOW_US + 40 * DAY_US, lambda *count: counts.append(count))
    assert counts == [(0, 0)]
    assert segments(storage.database) == before


def test_a_row_calculated_after_the_date_of_the_run_stays(storage: Storage) -> None:
    """A night that is late by a day meets a customer who bought today."""
    storage.settle(*crowd())
    storage.settle(order("today", "1.00", customer_id="c5", at_us=NOW_US))
    storage.advance(SEGMENTATION, [storage.number("c5")], now_us=NOW_US)
    before = segments(storage.database)["org-1", "c5"]
    done = night(storage, TODAY - timedelta(1), NOW_US)
    assert done.examined == 0  # all were calculated today
    assert segments(storage.database)["org-1", "c5"] == before


def test_a_late_run_dates_its_rows_to_the_day_it_calculates_for(storage: Storage) -> None:
    storage.settle(*crowd())
    assert night(storage, TOMORROW, TOMORROW_US + 5 * DAY_US).changed > 0
    assert_each_row_agrees_with_its_inputs(storage)
    latest = storage.value("SELECT max(calculated_at_us) FROM customer_segment")
    assert iso(latest) == f"{TOMORROW}T21:59:59.999999Z"  # the last moment of that day in Berlin


def test_a_dry_run_counts_and_changes_nothing(storage: Storage) -> None:
    storage.settle(*crowd())
    before = segments(storage.database)
    done = night(storage, TODAY + timedelta(100), dry_run=True)
    assert done.examined == 120
    assert done.changed > 0
    assert segments(storage.database) == before
    assert newest_cuts(storage.database, "org-1") == Cuts()


def test_a_held_customer_waits_for_its_release(storage: Storage) -> None:
    storage.settle(*crowd())
    held = storage.number("c7")
    storage.database.execute("UPDATE customer_segment SET held_position = 99 WHERE customer = ?", (held,))
    before = storage.database.query("SELECT * FROM customer_segment WHERE customer = ?", (held,))
    assert night(storage, TODAY + timedelta(100), NOW_US + 100 * DAY_US).examined == 119
    assert storage.database.query("SELECT * FROM customer_segment WHERE customer = ?", (held,)) == before


def test_an_event_whose_bell_is_late_is_not_lost(storage: Storage) -> None:
    storage.settle(*crowd())
    storage.receive(order("big", "90000", customer_id="c0"))
    storage.advance(STATS)
    night(storage)  # before the bell
    assert segments(storage.database)["org-1", "c0"][2] == 5
    storage.advance(SEGMENTATION, now_us=TOMORROW_US)
    assert segments(storage.database)["org-1", "c0"][2] == 5
    assert storage.stores().of(SEGMENTATION).all_behind() == []
    assert_each_row_agrees_with_its_inputs(storage)


def test_an_event_between_the_look_and_the_lock_counts(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The chunk has found whom to rescore, and what it read is old before it gets the lock."""
    storage.settle(*crowd())
    write = NightlySegments._write

    def overtaken(job: NightlySegments, *arguments: object) -> int:
        with_event(storage)
        return write(job, *arguments)  # type: ignore[arg-type]

    def with_event(storage: Storage) -> None:
        rich = storage.number("c119")
        storage.database.execute("UPDATE stats_state SET total_spent_minor = 1 WHERE customer = ?", (rich,))

    monkeypatch.setattr(NightlySegments, "_write", overtaken)
    night(storage, TODAY + timedelta(100), NOW_US + 100 * DAY_US)
    assert segments(storage.database)["org-1", "c119"][2] == 1


def test_one_customer_whose_row_the_database_refuses_does_not_stop_the_night(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.settle(*crowd())
    later, later_us = TODAY + timedelta(100), NOW_US + 100 * DAY_US
    before = segments(storage.database)
    rich = "org-1", "c119"
    refused, update = storage.number(rich[1]), storage.database.update

    def refusing(of: object, rows: Sequence[Row]) -> None:
        if any(row[0] == refused for row in rows):
            raise DataFault("the database refused the data")
        update(of, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(storage.database, "update", refusing)
    assert night(storage, later, later_us, chunk_customers=1_000).examined == 120
    monkeypatch.undo()
    assert segments(storage.database)[rich] == before[rich]
    assert night(storage, later, later_us).changed == 1


def test_one_customer_whose_row_the_database_refuses_is_held_alone(storage: Storage) -> None:
    storage.receive(*crowd(9))
    storage.advance(STATS)
    bad = storage.number("c4")
    storage.database.execute("UPDATE stats_state SET sales_pos = ? WHERE customer = ?", (2**63 - 1, bad))
    storage.advance(SEGMENTATION)
    held = storage.database.query("SELECT customer FROM customer_segment WHERE held_position IS NOT NULL")
    assert held == [(bad,)]
    assert storage.value("SELECT count(*) FROM customer_segment WHERE code IS NULL") == 1
