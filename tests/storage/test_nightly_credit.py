"""The night of the credit accounts: which wrong figures it reports and repairs, and what it leaves alone [C8]."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from customer_actors.domain.events import Message
from customer_actors.errors import DataFault
from customer_actors.storage.drift import reconciliation
from customer_actors.storage.job_runs import Run
from customer_actors.storage.nightly_credit import NightlyCredit
from tests.model.examples import cancellation, opened, order, payment
from tests.storage.credit_nights import (
    JUNE_1,
    LIVES,
    SUSPENDED_FROM,
    Night,
    Story,
    data,
    execute,
    late,
    night,
    of,
    row_of,
)
from tests.storage.support import NOW_US, Storage, in_organization


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
