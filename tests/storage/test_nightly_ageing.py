"""The night of the credit accounts: whom it suspends and lifts, and that a killed one is resumed [C7, C8]."""

import json
from contextlib import suppress
from datetime import date, timedelta

import pytest

from customer_actors.domain.events import Message
from customer_actors.errors import UsageError
from customer_actors.storage import job_runs
from customer_actors.storage.job_runs import Run
from customer_actors.storage.nightly_credit import NightlyCredit
from tests.model.examples import DAY_US, cancellation, lifted, payment, suspended
from tests.storage.credit_nights import (
    LIVES,
    SUSPENDED_FROM,
    Night,
    data,
    execute,
    late,
    night,
    now_of,
    of,
    resumed,
    row_of,
)
from tests.storage.support import Storage


class KilledError(Exception):
    """The process ends here."""


@pytest.mark.parametrize(
    ("as_of", "messages", "aged"),
    [
        (SUSPENDED_FROM - timedelta(days=1), [], []),  # 30 days late are not more than 30
        (SUSPENDED_FROM, [], [("c1", "suspend")]),
        (SUSPENDED_FROM, [payment("P", "59.99")], [("c1", "suspend")]),
        (SUSPENDED_FROM, [payment("P", "60")], []),
        (SUSPENDED_FROM, [cancellation("L-c1")], []),
        (SUSPENDED_FROM, [suspended()], []),
    ],
)
def test_an_account_is_suspended_when_its_oldest_overdue_sale_is_more_than_thirty_days_late(
    storage: Storage, as_of: date, messages: list[Message], aged: list[tuple[str, str]]
) -> None:
    storage.settle(*late(), *messages)
    found = night(storage, as_of=as_of)
    assert (found.aged, found.changed) == (aged, len(aged))
    assert night(storage, "again", as_of=as_of) == Night(1, 0, [], [])


def test_the_suspension_is_an_event_that_says_who_and_for_which_date(storage: Storage) -> None:
    storage.settle(*late())
    night(storage, as_of=SUSPENDED_FROM)
    event = storage.events()[-1]
    detail = {"automatic": True, "as_of": SUSPENDED_FROM.isoformat(), "by": "nightly"}
    assert (event.type, json.loads(event.detail or "")) == ("credit.suspended", detail)
    assert row_of(storage, "status, position", "c1") == [("suspended", 3)]


def test_it_is_lifted_once_nothing_is_too_late_any_more(storage: Storage) -> None:
    storage.settle(*late())
    night(storage, "1", as_of=SUSPENDED_FROM)
    storage.settle(payment("P", "60"))
    assert night(storage, "2", as_of=SUSPENDED_FROM).aged == [("c1", "lift")]
    assert row_of(storage, "status", "c1") == [("active",)]
    assert night(storage, "3", as_of=SUSPENDED_FROM) == Night(1, 0, [], [])


def test_a_suspension_by_hand_stays_and_a_lifting_by_hand_lasts_a_night(storage: Storage) -> None:
    storage.settle(*late("hand"), *of("hand", suspended(), payment("P", "60")), *late("lifted"))
    assert night(storage, "1", as_of=SUSPENDED_FROM).aged == [("lifted", "suspend")]
    storage.settle(*of("lifted", lifted()))
    assert night(storage, "2", as_of=SUSPENDED_FROM).aged == [("lifted", "suspend")]
    assert row_of(storage, "status", "hand") == [("suspended",)]


def test_a_dry_run_tells_whom_it_would_suspend_and_changes_nothing(storage: Storage) -> None:
    storage.settle(*late())
    before = data(storage.database)
    assert night(storage, as_of=SUSPENDED_FROM, dry_run=True) == Night(1, 0, [], [("c1", "suspend")])
    assert data(storage.database) == before


def test_money_that_waits_in_the_stream_is_folded_before_anybody_is_suspended(storage: Storage) -> None:
    storage.settle(*late())
    storage.receive(payment("P", "60"))
    assert night(storage, as_of=SUSPENDED_FROM).aged == []


def test_a_held_customer_is_left_out(storage: Storage) -> None:
    storage.settle(*late())
    execute(storage, "UPDATE credit_state SET held_position = position + 1")
    assert night(storage, as_of=SUSPENDED_FROM) == Night(1, 0, [], [])


def test_a_repair_comes_before_ageing(storage: Storage) -> None:
    storage.settle(*late(), payment("P", "60"))
    execute(storage, "UPDATE credit_usage SET outstanding_minor = 1")
    found = night(storage, as_of=SUSPENDED_FROM)
    assert (found.drift, found.aged) == ([("c1", "usage[2].outstanding", 1, 0, True)], [])


def test_money_that_comes_between_the_look_and_the_suspension_prevents_it(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.settle(*late("pays"), *late("owes"))
    append = NightlyCredit._append

    def overtaken(job: NightlyCredit, *arguments: object) -> None:
        storage.receive(*of("pays", payment("P", "60")), *of("owes", payment("P", "59")))
        append(job, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(NightlyCredit, "_append", overtaken)
    night(storage, as_of=SUSPENDED_FROM, chunk_customers=9)
    assert row_of(storage, "status, automatic", "pays") == [("active", False)]
    assert row_of(storage, "status, automatic", "owes") == [("suspended", True)]


def test_a_run_that_comes_after_one_of_a_later_date_lifts_nobody(storage: Storage) -> None:
    storage.settle(*late())
    assert night(storage, "dry", as_of=SUSPENDED_FROM + timedelta(1), dry_run=True).aged == [("c1", "suspend")]
    assert night(storage, "2", as_of=SUSPENDED_FROM).aged == [("c1", "suspend")]
    assert night(storage, "1", as_of=SUSPENDED_FROM - timedelta(1)) == Night(1, 0, [], [])
    assert row_of(storage, "status", "c1") == [("suspended",)]


def test_a_date_that_lies_ahead_is_refused_but_in_a_dry_run(storage: Storage) -> None:
    job, run = NightlyCredit(storage.stores()), Run("credit", "1", SUSPENDED_FROM)
    two_days_before_us = now_of(run) - 2 * DAY_US
    job_runs.claim(storage.database, run, two_days_before_us)
    with pytest.raises(UsageError, match="lies ahead"):
        job_runs.plan(storage.database, job, run, two_days_before_us)
    assert job.plan(run._replace(dry_run=True), two_days_before_us) == []


# --- killed and resumed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["_repair", "_age", "_append", "drain"])
def test_a_run_killed_anywhere_is_resumed_with_everything_once(
    storage: Storage, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.settle(*LIVES, *late())
    right = data(storage.database)["credit_usage"]
    execute(storage, "UPDATE credit_usage SET outstanding_minor = 1 WHERE position = 2 AND cancelled_position IS NULL")
    drifted = storage.value("SELECT count(*) FROM credit_usage WHERE outstanding_minor = 1")
    job, run = NightlyCredit(storage.stores(), 2), Run("credit", "1", SUSPENDED_FROM)
    job_runs.claim(storage.database, run, now_of(run))
    assert job_runs.plan(storage.database, job, run, now_of(run))

    kills = []

    def killed(*_: object, **__: object) -> None:
        kills.append(place)
        raise KilledError

    with monkeypatch.context() as patch:
        if place == "drain":
            patch.setattr("customer_actors.storage.nightly_credit.drain", killed)
        else:
            patch.setattr(NightlyCredit, place, killed)
        for number in job_runs.open_chunks(storage.database, run):
            with suppress(KilledError):
                job_runs.work(storage.database, job, run, number, now_of(run))
    assert kills
    storage.advance("credit")  # the bell of what was appended
    found = resumed(storage, job, run)
    assert len(found.drift) == len(set(found.drift)) == drifted
    assert sorted(found.aged) == [("c1", "suspend"), ("owes", "suspend")]
    assert data(storage.database)["credit_usage"] == right
    types = "SELECT count(*) FROM event WHERE type = 'credit.suspended'"
    assert storage.value(types) == 2
    assert night(storage, "2", as_of=SUSPENDED_FROM) == Night(5, 0, [], [])
