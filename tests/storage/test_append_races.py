"""Two transactions that name the same new keys, stopped where it matters: the loser decides again [A2, A4, A5]."""

from collections.abc import Callable, Iterator
from threading import Event, Thread
from typing import Any

import pytest

from customer_actors.domain.events import Message, Outcome
from customer_actors.errors import Outage
from customer_actors.storage import append as appending
from customer_actors.storage.opening import open_database
from tests.model.examples import cancellation, order, pos
from tests.servers.process import wait_until
from tests.storage.support import Storage

ACC, DUP, SUP = Outcome.ACCEPTED, Outcome.DUPLICATE, Outcome.SUPPRESSED


@pytest.fixture
def other(postgres_storage: Storage, migrated_url: str) -> Iterator[Storage]:
    """The other process."""
    storage = Storage(open_database(migrated_url))
    yield storage
    storage.database.release()


def before_placing(monkeypatch: pytest.MonkeyPatch, storage: Storage, work: Callable[[], object]) -> None:
    """Have something happen once after this process has decided a batch, and before it inserts anything."""
    place, pending = appending._place, [work]

    def stopped(database: Any, *rest: Any) -> Any:
        if database is storage.database and pending:
            pending.pop()()
        return place(database, *rest)

    monkeypatch.setattr(appending, "_place", stopped)


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        ([order("1", "10")], order("1", "10"), DUP),
        ([cancellation("1")], order("1", "10"), SUP),
        ([order("1", "10")], cancellation("1"), ACC),
        ([order("1", "10", twin="t")], pos("t", "10"), DUP),
        ([pos("t", "10", customer_id=None)], order("1", "10", twin="t"), ACC),
        ([order("2", "10")], order("1", "10"), ACC),  # only the customer is the same, and new
    ],
    ids=["the same order", "a tombstone", "its cancellation", "the till twin", "an anonymous twin", "a new customer"],
)
def test_who_loses_the_race_for_a_key_decides_again_by_what_the_winner_wrote(
    postgres_storage: Storage,
    other: Storage,
    monkeypatch: pytest.MonkeyPatch,
    first: list[Message],
    second: Message,
    outcome: Outcome,
) -> None:
    before_placing(monkeypatch, postgres_storage, lambda: other.receive(*first))
    assert postgres_storage.receive(second) == [outcome]
    assert postgres_storage.value("SELECT count(*) FROM event") == postgres_storage.value(
        "SELECT sum(head) FROM customer"
    )
    postgres_storage.settle()
    sold = postgres_storage.value("SELECT sum(sales_order + sales_pos) FROM stats_state")
    cancelled = postgres_storage.value("SELECT sum(cancelled_orders) FROM stats_state")
    names = {message.reference for message in (*first, second) if message.customer_id}
    twins = {message.pos_transaction_id for message in (*first, second) if message.pos_transaction_id}
    assert sold + cancelled == len(names - twins)


def test_who_loses_again_and_again_gives_the_batch_back(
    postgres_storage: Storage, other: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, lost = appending._place, iter(range(1_000))

    def always_late(database: Any, *rest: Any) -> Any:
        if database is postgres_storage.database:
            other.receive(order(f"{next(lost)}", "10", customer_id="c2"))
        return place(database, *rest)

    monkeypatch.setattr(appending, "_place", always_late)
    with pytest.raises(Outage, match="other processes"):
        postgres_storage.receive(*(order(f"{number}", "10", customer_id="c2") for number in range(100)))
    assert next(lost) == 50


def test_who_inserts_a_sale_that_another_has_changed_never_waits_for_one_that_waits_for_him(
    postgres_storage: Storage, other: Storage, migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The till's process has looked for two sales and not found them. Then the orders' process makes one of them and
    cancels it, and in that batch makes the other. Changed first and inserted afterwards, each would wait for the other.
    """
    written, blocked, outcomes = Event(), Event(), dict[str, list[Outcome]]()

    def cancel_and_make() -> None:
        outcomes["orders"] = other.receive(cancellation("2"), order("1", "10", twin="p1"))
        other.database.release()

    orders = Thread(target=cancel_and_make)

    def meanwhile() -> None:
        other.receive(order("2", "10", twin="p2"))
        other.database.release()
        orders.start()
        assert written.wait(30)

    def stop_after_writing(method: str) -> None:
        write = getattr(other.database, method)

        def stopped(columns: Any, rows: Any) -> None:
            write(columns, rows)
            if orders.ident and columns.table == "sale" and rows and not written.is_set():
                written.set()
                assert blocked.wait(30)

        monkeypatch.setattr(other.database, method, stopped)

    stop_after_writing("insert")
    stop_after_writing("update")
    before_placing(monkeypatch, postgres_storage, meanwhile)

    def make_both() -> None:
        anonymous = [pos("p1", "10", customer_id=None), pos("p2", "10", customer_id=None)]
        outcomes["till"] = postgres_storage.receive(*anonymous)
        postgres_storage.database.release()

    till = Thread(target=make_both)
    till.start()
    watcher = Storage(open_database(migrated_url))
    waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    wait_until(lambda: bool(watcher.value(waits)), 30)
    watcher.database.release()
    blocked.set()
    for thread in (till, orders):
        thread.join(60)
    assert outcomes == {"orders": [ACC, ACC], "till": [DUP, DUP]}
