"""The night of the credit accounts: what it reports, repairs, suspends and lifts, and what it leaves alone [C6-C8]."""

import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import date, timedelta
from typing import NamedTuple

import pytest

from customer_actors.domain.events import Message, from_us
from customer_actors.errors import DataFault
from customer_actors.storage import job_runs
from customer_actors.storage.database import Database
from customer_actors.storage.drift import aged_by, drift_of, reconciliation
from customer_actors.storage.job_runs import Run
from customer_actors.storage.nightly_credit import NightlyCredit
from tests.model.examples import (
    JUNE_1_US,
    cancellation,
    lifted,
    limit_changed,
    opened,
    order,
    payment,
    suspended,
)
from tests.storage.support import NOW_US, Dump, Storage, dump, in_organization

JUNE_1 = from_us(JUNE_1_US).date()
DUE = JUNE_1 + timedelta(days=30)
"""Of a sale on June 1."""
SUSPENDED_FROM = DUE + timedelta(days=31)
"""More than 30 days late."""
NIGHTS = ("job_run", "job_chunk", "credit_drift", "credit_ageing")

Story = tuple[str, str, int, int, bool]


class KilledError(Exception):
    """The process ends here."""


class Night(NamedTuple):
    """What one run did."""

    examined: int
    changed: int
    drift: list[Story]
    """(customer, field, stored, expected, repaired)."""
    aged: list[tuple[str, str]]
    """(customer, action)."""


def of(customer_id: str, *messages: Message) -> list[Message]:
    """The same messages about another customer."""
    return [m if m.customer_id is None else m._replace(customer_id=customer_id) for m in messages]


LIVES: Sequence[Message] = (
    # pays in part, cancels a paid order, and has its limit cut below what is used
    *of("owes", opened("100"), order("A1", "60", on_credit=True), order("A2", "30", on_credit=True)),
    *of("owes", payment("P1", "20"), cancellation("A1"), order("A3", "50", on_credit=True), limit_changed("10")),
    # paid more than it owes
    *of("rich", opened("100"), order("B1", "40", on_credit=True), payment("P1", "55"), payment("P2", "5")),
    # has no account
    *of("new", order("C1", "10", on_credit=True), payment("P1", "25")),
    *of("paid", opened("100"), order("D1", "40", on_credit=True), payment("P1", "40")),
    *of("cash", order("E1", "40")),
)


def night(
    storage: Storage, slot: str = "1", as_of: date = JUNE_1, dry_run: bool = False, chunk_customers: int = 2
) -> Night:
    """One run from its claim to its end, and what it reports."""
    job = NightlyCredit(storage.stores(), chunk_customers)
    run = Run("credit", slot, as_of, dry_run)
    job_runs.claim(storage.database, run, NOW_US)
    return resumed(storage, job, run)


def resumed(storage: Storage, job: NightlyCredit, run: Run) -> Night:
    database = storage.database
    assert job_runs.plan(database, job, run, NOW_US)
    for number in job_runs.open_chunks(database, run):
        assert job_runs.work(database, job, run, number, NOW_US)
    assert job_runs.finish(database, job, run, NOW_US)
    progress = job_runs.progress_of(database, "credit", run.slot)
    assert progress is not None
    return Night(
        progress.examined,
        progress.changed,
        [(d.customer_id, d.field, d.stored, d.expected, d.repaired) for d in drift_of(database, run.slot)],
        [(aged.customer_id, aged.action) for aged in aged_by(database, run.slot)],
    )


def data(database: Database) -> Dump:
    """Everything but the nights' own records."""
    return {table: rows for table, rows in dump(database).items() if table not in NIGHTS}


def execute(storage: Storage, sql: str, *parameters: object) -> None:
    """Behind the service's back."""
    with storage.database.transaction():
        storage.database.execute(sql, parameters)


def row_of(storage: Storage, columns: str, customer_id: str) -> list[tuple[object, ...]]:
    sql = f"SELECT {columns} FROM credit_state WHERE customer = ?"
    return storage.database.query(sql, (storage.number(customer_id),))


def test_a_healthy_database_has_no_drift_and_no_row_changes(storage: Storage) -> None:
    storage.settle(*LIVES)
    before = data(storage.database)
    assert night(storage) == Night(4, 0, [], [])
    assert data(storage.database) == before


CORRUPTIONS: list[tuple[str, str, Story]] = [
    ("owes", "UPDATE credit_state SET used_minor = 1 WHERE customer = ?", ("owes", "used", 1, 60_00, True)),
    ("rich", "UPDATE credit_state SET used_minor = 7 WHERE customer = ?", ("rich", "used", 7, 0, True)),
    ("rich", "UPDATE credit_state SET unapplied_minor = 0 WHERE customer = ?", ("rich", "unapplied", 0, 20_00, True)),
    ("new", "UPDATE credit_state SET suspense_minor = 9 WHERE customer = ?", ("new", "suspense", 9, 25_00, True)),
    ("new", "UPDATE credit_state SET unapplied_minor = 9 WHERE customer = ?", ("new", "unapplied", 9, 0, True)),
    (
        "owes",
        "UPDATE credit_usage SET outstanding_minor = 0 WHERE customer = ? AND position = 6",
        ("owes", "usage[6].outstanding", 0, 50_00, True),
    ),
    (
        "paid",
        "UPDATE credit_usage SET outstanding_minor = 3 WHERE customer = ? AND position = 2",
        ("paid", "usage[2].outstanding", 3, 0, True),
    ),
    (
        "owes",
        "UPDATE credit_payment SET unapplied_minor = 5 WHERE customer = ? AND position = 4",
        ("owes", "payment[4].unapplied", 5, 0, True),
    ),
    (
        "rich",
        "UPDATE credit_payment SET unapplied_minor = 5 WHERE customer = ? AND position = 3",
        ("rich", "payment[3].unapplied", 5, 15_00, True),
    ),
    (
        "new",
        "UPDATE credit_payment SET unapplied_minor = 0 WHERE customer = ? AND position = 2",
        ("new", "payment[2].unapplied", 0, 25_00, True),
    ),
]


@pytest.mark.parametrize(("customer_id", "sql", "told"), CORRUPTIONS, ids=[f"{c[2][0]} {c[2][1]}" for c in CORRUPTIONS])
def test_any_one_wrong_figure_is_reported_exactly_and_repaired(
    storage: Storage, customer_id: str, sql: str, told: Story
) -> None:
    storage.settle(*LIVES)
    before = data(storage.database)
    execute(storage, sql, storage.number(customer_id))
    wrong = data(storage.database)
    assert wrong != before

    assert night(storage, "dry", dry_run=True) == Night(4, 0, [(*told[:4], False)], [])
    assert data(storage.database) == wrong
    assert night(storage, "real") == Night(4, 1, [told], [])
    assert data(storage.database) == before
    assert night(storage, "again") == Night(4, 0, [], [])


def test_all_figures_of_many_customers_at_once_are_repaired(storage: Storage) -> None:
    storage.settle(*LIVES)
    before = data(storage.database)
    execute(storage, "UPDATE credit_state SET used_minor = 3, unapplied_minor = 4")
    execute(storage, "UPDATE credit_usage SET outstanding_minor = 1 WHERE cancelled_position IS NULL")
    execute(storage, "UPDATE credit_payment SET unapplied_minor = 2")
    found = night(storage)
    assert {customer_id for customer_id, *_ in found.drift} == {"owes", "rich", "new", "paid", "cash"}
    assert found.changed == 5 + 5 + 5  # accounts (one without any), usages not cancelled, payments
    assert data(storage.database) == before


def test_money_that_lies_idle_after_a_repair_pays_what_is_open_by_the_rule(storage: Storage) -> None:
    """A live event met the wrong figure: the money found nothing to pay."""
    storage.settle(*of("c", opened("100"), order("O1", "100", on_credit=True), order("O2", "10", on_credit=True)))
    execute(storage, "UPDATE credit_usage SET outstanding_minor = 3000 WHERE position = 2")
    storage.settle(*of("c", payment("P1", "60")))
    assert row_of(storage, "used_minor, unapplied_minor", "c") == [(70_00, 20_00)]
    assert night(storage).drift == [("c", "usage[2].outstanding", 0, 70_00, True)]
    assert row_of(storage, "used_minor, unapplied_minor", "c") == [(50_00, 0)]
    moves = "SELECT usage_position, payment_position, position, amount_minor FROM credit_allocation ORDER BY 1, 3"
    assert storage.database.query(moves) == [(2, 4, 0, 20_00), (2, 4, 4, 30_00), (3, 4, 4, 10_00)]
    assert night(storage, "again") == Night(1, 0, [], [])
    storage.settle(*cancelled_and_paid())
    assert night(storage, "later") == Night(1, 0, [], [])


def cancelled_and_paid() -> list[Message]:
    return [cancellation("O1"), *of("c", payment("P2", "10"))]


def test_money_in_suspense_of_an_open_account_is_drained(storage: Storage) -> None:
    """An account whose status appeared without its money: the figures disagree, and the money pays what is open."""
    storage.settle(*of("new", order("C1", "10", on_credit=True), payment("P1", "25")))
    execute(storage, "UPDATE credit_state SET status = 'active', limit_minor = 0, terms_days = 14, suspense_minor = 0")
    assert night(storage).drift == [("new", "unapplied", 0, 25_00, True)]
    assert row_of(storage, "used_minor, unapplied_minor, suspense_minor", "new") == [(0, 15_00, 0)]
    assert night(storage, "again") == Night(1, 0, [], [])


def test_facts_that_cannot_be_are_reported_and_never_changed(storage: Storage) -> None:
    storage.settle(*LIVES)
    customer = storage.number("paid")
    execute(storage, "INSERT INTO credit_allocation VALUES (?, 2, 3, 9, 500)", customer)
    before = data(storage.database)
    told = [
        ("paid", "payment[3].unapplied", 0, -500, False),
        ("paid", "usage[2].outstanding", 0, -500, False),
    ]
    for slot in ("1", "2"):
        found = night(storage, slot)
        assert (found.changed, sorted(found.drift)) == (0, told)
    assert data(storage.database) == before


def test_money_still_allocated_to_a_cancelled_usage_is_reported(storage: Storage) -> None:
    storage.settle(*LIVES)
    execute(storage, "INSERT INTO credit_allocation VALUES (?, 2, 4, 9, 500)", storage.number("owes"))
    found = night(storage)
    assert ("owes", "usage[2].allocated", 500, 0, False) in found.drift
    assert found.changed == 0


def test_each_organization_has_its_own_chunks(storage: Storage) -> None:
    storage.settle(*(m for pair in zip(LIVES, in_organization(LIVES, "org-2"), strict=True) for m in pair))
    execute(storage, "UPDATE credit_state SET used_minor = 1 WHERE customer = ?", storage.number("rich", "org-2"))
    job, run = NightlyCredit(storage.stores(), 3), Run("credit", "1", JUNE_1)
    chunks = job.plan(run, NOW_US)
    assert [(c.number, c.organization_id) for c in chunks] == [(1, "org-1"), (2, "org-1"), (3, "org-2"), (4, "org-2")]
    found = night(storage)
    assert (found.examined, found.changed, found.drift) == (8, 1, [("rich", "used", 1, 0, True)])
    assert storage.value("SELECT organization_id FROM credit_drift") == "org-2"


# --- ageing ------------------------------------------------------------------------------------------------------


def late(customer_id: str = "c1") -> list[Message]:
    """An account with a sale of June 1."""
    return of(customer_id, opened("100"), order(f"L-{customer_id}", "60", on_credit=True))


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
    job_runs.claim(storage.database, run, NOW_US)
    job_runs.plan(storage.database, job, run, NOW_US)

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
                job_runs.work(storage.database, job, run, number, NOW_US)
    assert kills
    storage.advance("credit")  # the bell of what was appended
    found = resumed(storage, job, run)
    assert len(found.drift) == len(set(found.drift)) == drifted
    assert sorted(found.aged) == [("c1", "suspend"), ("owes", "suspend")]
    assert data(storage.database)["credit_usage"] == right
    types = "SELECT count(*) FROM event WHERE type = 'credit.suspended'"
    assert storage.value(types) == 2
    assert night(storage, "2", as_of=SUSPENDED_FROM) == Night(5, 0, [], [])


def test_the_newest_run_and_a_numbered_one_are_found(storage: Storage) -> None:
    storage.settle(*LIVES)
    assert reconciliation(storage.database, None) is None
    night(storage, "dry", dry_run=True)
    execute(storage, "UPDATE credit_state SET used_minor = 1 WHERE customer = ?", storage.number("rich"))
    night(storage, "real", as_of=JUNE_1 + timedelta(days=1))
    newest = reconciliation(storage.database, None)
    assert newest is not None
    assert newest._asdict() == {
        "number": 2,
        "slot": "real",
        "as_of": "2024-06-02",
        "dry_run": False,
        "finished": True,
        "drift": 1,
        "unrepaired": 0,
        "suspended": 0,
        "lifted": 0,
    }
    first = reconciliation(storage.database, 1)
    assert first is not None
    assert (first.slot, first.dry_run, first.drift) == ("dry", True, 0)
    assert reconciliation(storage.database, 3) is None


@pytest.mark.parametrize("sql", ["DELETE FROM credit_{}", "UPDATE credit_{} SET slot = 'other'"])
@pytest.mark.parametrize("table", ["drift", "ageing"])
def test_reports_are_never_changed(storage: Storage, table: str, sql: str) -> None:
    storage.settle(*late())
    execute(storage, "UPDATE credit_state SET used_minor = 1")
    night(storage, as_of=SUSPENDED_FROM)
    with pytest.raises(DataFault):
        execute(storage, sql.format(table))


def test_events_that_arrive_meanwhile_are_never_taken_for_drift(
    postgres_storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every customer is suspected in every night, so that all are locked and looked at again."""
    storage = postgres_storage
    names = [f"c{number}" for number in range(6)]
    storage.settle(*(message for name in names for message in late(name)))
    numbers, stop = [storage.number(name) for name in names], threading.Event()
    monkeypatch.setattr("customer_actors.storage.nightly_credit.suspects", lambda *_: numbers)

    def trade() -> int:
        done = 0
        while not stop.is_set():
            done += 1
            for name in names:
                sale = order(f"{name}-{done}", "7", customer_id=name, on_credit=True)
                storage.receive(sale, payment(f"{done}", "5", customer_id=name))
            storage.advance("credit")
        storage.database.release()
        return done

    with ThreadPoolExecutor(1) as pool:
        trading = pool.submit(trade)
        for number in range(15):
            found = night(storage, str(number), chunk_customers=9)
            assert (found.changed, found.drift) == (0, [])
        stop.set()
        assert trading.result(60) > 0
    storage.advance("credit")
    sums = "SELECT sum(amount_minor) FROM credit_{} WHERE customer = ?"
    for number in numbers:
        owed = storage.value("SELECT used_minor - unapplied_minor FROM credit_state WHERE customer = ?", number)
        assert owed == storage.value(sums.format("usage"), number) - storage.value(sums.format("payment"), number)
    assert (
        storage.database.query(
            "SELECT 1 FROM customer c JOIN credit_state s ON s.customer = c.id WHERE s.position < c.head_credit"
        )
        == []
    )
