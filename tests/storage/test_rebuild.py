"""A rebuild makes state and ledgers what the stream says, where they stand, and never touches a ledger fact."""

import threading
from collections.abc import Iterator, Sequence
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from customer_actors.domain.events import Message
from customer_actors.domain.routing import ACTORS, CREDIT, LOYALTY, SEGMENTATION, STATS, STREAM_ACTORS
from customer_actors.domain.rules import Rules
from customer_actors.storage.audit import Scope
from customer_actors.storage.database import Database
from customer_actors.storage.operators import Action
from customer_actors.storage.postgresql import PostgresDatabase
from customer_actors.storage.rebuild import INSERTED, REPAIRED, REPORTED, Outcome, Rebuild
from customer_actors.storage.summary import held_customers
from tests.model.examples import cancellation, order, payment
from tests.model.strategies import messages
from tests.properties.service import NOW_US, Service
from tests.storage.corruptions import CACHED, FACTS, LIFE, MISSING, SEGMENT, STATE, Told, ids, of_c1
from tests.storage.support import Dump, Storage, at_once, dump
from tests.storage.test_audit import ALL, audited, named
from tests.storage.test_skips_refolded import fails_at, skip_all
from tests.tampering import tamper, tampering

BY = Action("anna", "rebuild", "a restored backup")
LEDGERS = ("loyalty_entry", "credit_usage", "credit_payment", "credit_allocation")


def rebuilt(
    storage: Storage, actor: str, scope: Scope = ALL, *, dry_run: bool = False, window: int = 20_000
) -> list[Outcome]:
    running = Rebuild(storage.database, storage.rules, actor, dry_run=dry_run, window=window)
    return list(running.run(scope, BY, lambda: NOW_US))


def stored(database: Database) -> Dump:
    """Everything but the record of what operators did and the time a segment was calculated."""
    tables = dump(database)
    tables.pop("operator_action")
    tables.pop("bell")
    tables["customer_segment"] = [row[:-1] for row in tables["customer_segment"]]
    return tables


def actor_of(expected: set[Told]) -> str:
    ((actor,),) = {tuple({told[0] for told in expected})}
    return actor


REPAIRABLE = [*STATE, *CACHED, *MISSING, *SEGMENT]


@pytest.mark.parametrize(("statement", "expected"), REPAIRABLE, ids=ids(REPAIRABLE))
@pytest.mark.parametrize("window", [2, 20_000])
def test_what_a_refold_can_put_right_is_as_it_was(
    storage: Storage, statement: str, expected: set[Told], window: int
) -> None:
    storage.settle(*LIFE)
    before = stored(storage.database)
    tamper(storage.database, of_c1(statement))
    broken = stored(storage.database)
    assert broken != before
    actor = actor_of(expected)
    would = rebuilt(storage, actor, dry_run=True, window=window)
    assert {(actor, *each[2:5]) for each in would} == expected
    assert REPORTED not in {each.what for each in would}
    assert stored(storage.database) == broken
    done = rebuilt(storage, actor, window=window)
    assert {each.what for each in done} <= {REPAIRED, INSERTED}
    assert stored(storage.database) == before
    assert audited(storage) == []
    assert rebuilt(storage, actor, window=window) == []
    assert storage.database.query("SELECT operator, action, reason, actor, customer FROM operator_action") == [
        ("anna", "rebuild", "a restored backup", actor, None)
    ]


@pytest.mark.parametrize(("statement", "expected"), FACTS, ids=ids(FACTS))
def test_a_ledger_fact_that_is_wrong_is_reported_and_left(
    storage: Storage, statement: str, expected: set[Told]
) -> None:
    storage.settle(*LIFE)
    tamper(storage.database, of_c1(statement))
    broken = stored(storage.database)
    actor = actor_of(expected)
    done = rebuilt(storage, actor)
    assert {each.what for each in done if each.field not in ("ledger_points", "ledger_lifetime_points")} == {REPORTED}
    assert {(actor, *each[2:5]) for each in done} == expected
    assert stored(storage.database) == broken
    assert named(storage) == expected


def test_state_is_put_right_beside_a_fact_that_is_reported(storage: Storage) -> None:
    storage.settle(*LIFE)
    tamper(storage.database, of_c1("UPDATE loyalty_state SET points = 1"))
    tamper(storage.database, of_c1("UPDATE loyalty_entry SET tier = 'gold' WHERE position = 2"))
    assert {(each.field, each.what) for each in rebuilt(storage, LOYALTY)} == {
        ("points", REPAIRED),
        ("entry 2 tier", REPORTED),
    }
    assert named(storage) == {(LOYALTY, "entry 2 tier", "gold", "bronze")}


def test_a_missing_row_whose_place_is_taken_is_reported(storage: Storage) -> None:
    storage.settle(*LIFE)
    tamper(storage.database, of_c1("UPDATE credit_usage SET position = 33 WHERE position = 3"))
    done = rebuilt(storage, CREDIT)
    assert {(each.field, each.what) for each in done} == {("usage 3", REPORTED), ("usage 33", REPORTED)}
    assert len(named(storage)) == 2


def test_the_cached_figure_of_a_fact_that_is_wrong_is_left(storage: Storage) -> None:
    """An outstanding amount belongs to the amount of its usage."""
    storage.settle(*LIFE)
    tamper(storage.database, of_c1("UPDATE credit_payment SET amount_minor = 100, unapplied_minor = 0"))
    done = rebuilt(storage, CREDIT)
    assert {each.what for each in done} == {REPORTED}
    assert storage.value("SELECT amount_minor + unapplied_minor FROM credit_payment") == 100


def test_what_waits_still_waits_and_what_is_held_still_is(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    fails_at(monkeypatch, lambda _, event: event.reference == "O-2")
    storage.settle(order("O-1", "5", on_credit=True), order("O-2", "5", on_credit=True))
    storage.receive(order("O-3", "5", on_credit=True))
    before, held = stored(storage.database), held_customers(storage.database)
    assert len(held) == len(STREAM_ACTORS)
    _ruin(storage.database)
    for actor in ACTORS:
        rebuilt(storage, actor)
    assert stored(storage.database) == before
    assert held_customers(storage.database) == held


def test_skips_are_honoured(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    fails_at(monkeypatch, lambda _, event: event.position in (2, 7))
    storage.receive(*LIFE)
    skip_all(storage.database, storage.rules)
    monkeypatch.undo()
    before = stored(storage.database)
    _ruin(storage.database)
    for actor in ACTORS:
        rebuilt(storage, actor)
    assert stored(storage.database) == before


def test_scope_bounds_what_is_rebuilt_and_names_the_customer_in_the_record(storage: Storage) -> None:
    storage.settle(*LIFE)
    tamper(storage.database, "UPDATE stats_state SET cancelled_orders = 9")
    assert [each[:2] for each in rebuilt(storage, STATS, Scope("org-1", "c2"))] == [("org-1", "c2")]
    assert {each[:2] for each in audited(storage)} == {("org-1", "c1")}
    recorded = storage.database.query("SELECT actor, customer FROM operator_action")
    assert recorded == [(STATS, storage.number("c2"))]


def test_many_customers_are_one_record(storage: Storage) -> None:
    storage.settle(*[order(f"O-{n}", "5", customer_id=f"c{n}") for n in range(20)])
    tamper(storage.database, "UPDATE stats_state SET cancelled_orders = 9")
    assert len(rebuilt(storage, STATS)) == 20
    assert storage.value("SELECT count(*) FROM operator_action") == 1


def test_a_position_behind_the_end_is_reported_and_stays(storage: Storage) -> None:
    storage.settle(*LIFE)
    tamper(storage.database, of_c1("UPDATE stats_state SET position = 90, cancelled_orders = 9"))
    done = rebuilt(storage, STATS)
    assert {(each.field, each.what) for each in done} == {("position", REPORTED), ("cancelled_orders", REPAIRED)}
    assert named(storage) == {(STATS, "position", 90, 7)}


def test_a_held_segment_is_left(storage: Storage) -> None:
    storage.settle(*LIFE)
    tamper(storage.database, of_c1("UPDATE customer_segment SET recency = 4, held_position = 90"))
    done = rebuilt(storage, SEGMENTATION)
    assert {each.what for each in done} == {REPORTED}
    assert storage.value(of_c1("SELECT recency FROM customer_segment WHERE 1 = 1")) == 4


def test_an_event_that_can_be_folded_no_longer_is_reported_and_nothing_changed(storage: Storage) -> None:
    storage.settle(*LIFE)
    tamper(storage.database, of_c1("UPDATE event SET detail = '{' WHERE position = 1"))
    tamper(storage.database, of_c1("UPDATE credit_state SET used_minor = 5"))
    broken = stored(storage.database)
    assert {each.field for each in rebuilt(storage, CREDIT)} == {"refold"}
    assert stored(storage.database) == broken


def test_whoever_wanted_the_row_meanwhile_is_rung(storage: Storage) -> None:
    storage.settle(*LIFE)
    storage.receive(order("O-9", "5"))
    tamper(storage.database, "DELETE FROM bell")
    tamper(storage.database, of_c1("UPDATE stats_state SET cancelled_orders = 9"))
    rebuilt(storage, STATS)
    assert storage.database.query("SELECT groups FROM bell") == [(f'{{"order.completed":[{storage.number()}]}}',)]


# --- G18 ---------------------------------------------------------------------------------------------------------


def _ruin(database: Database) -> None:
    """Every figure of every actor to nothing and every ledger row gone, at the positions where they stand."""
    with tampering(database):
        for statement in _ruin_statements(database):
            database.execute(statement)


def _ruin_statements(database: Database) -> Iterator[str]:
    false = "false" if isinstance(database, PostgresDatabase) else "0"
    yield (
        "UPDATE stats_state SET sales_order = 0, sales_pos = 0, total_spent_minor = 0, cancelled_orders = 0, "
        "first_purchase_at_us = NULL, last_purchase_at_us = NULL"
    )
    yield "UPDATE loyalty_state SET points = 0, lifetime_points = 0, tier = 'none'"
    yield (
        f"UPDATE credit_state SET status = NULL, automatic = {false}, limit_minor = NULL, terms_days = NULL, "
        "used_minor = 0, unapplied_minor = 0, suspense_minor = 0"
    )
    yield (
        "UPDATE customer_segment SET last_purchase_date = NULL, orders = 0, total_spent_minor = 0, recency = NULL, "
        "frequency = NULL, monetary = NULL, code = NULL, cuts = NULL WHERE held_position IS NULL"
    )
    for table in LEDGERS:
        yield f"DELETE FROM {table}"


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(messages(), st.sets(st.tuples(st.sampled_from(STREAM_ACTORS), st.integers(1, 12))), st.sampled_from([1, 3, 500]))
def test_a_rebuild_of_everything_equals_the_live_fold_whatever_the_window(
    history: list[Message], failing: set[tuple[str, int]], window: int
) -> None:
    service = Service(Rules(timezone="Europe/Berlin"), round_events=3)
    try:
        with pytest.MonkeyPatch.context() as patch:
            fails_at(patch, lambda actor, event: (actor, event.position) in failing)
            service.receive(history)
            skip_all(service.database, service.rules)
        before = stored(service.database)
        _ruin(service.database)
        for actor in ACTORS:
            rebuilt(Storage(service.database, service.rules), actor, window=window)
        assert stored(service.database) == before
    finally:
        service.close()


def _history() -> Sequence[Message]:
    history: list[Message] = []
    for n in range(8):
        history += [message._replace(customer_id=message.customer_id and f"c{n}") for message in _of_customer(n)]
    return history


def _of_customer(n: int) -> Sequence[Message]:
    return [
        *(order(f"O-{n}-{i}", f"{i}.50", on_credit=i % 2 == 0) for i in range(12)),
        *(payment(f"P-{n}-{i}", "9") for i in range(5)),
        *(cancellation(f"O-{n}-{i}") for i in range(0, 12, 3)),
    ]


@pytest.mark.parametrize("threads", [2, 4])
def test_several_rebuilds_at_once_leave_what_one_leaves(storage: Storage, threads: int) -> None:
    storage.settle(*_history())
    before = stored(storage.database)
    _ruin(storage.database)

    def work(window: int) -> None:
        for actor in ACTORS:
            rebuilt(storage, actor, window=window)

    works = [partial(work, window) for window in (3, 7, 50, 20_000)[:threads]]
    assert at_once(storage.database, *works) == []
    assert stored(storage.database) == before


def test_a_rebuild_while_workers_go_on_loses_nothing(storage: Storage) -> None:
    storage.settle(*_history())
    over = threading.Event()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for n in range(30):
                storage.receive(order(f"L-{n}", "7", on_credit=True), payment(f"L-{n}", "5"), cancellation(f"L-{n}"))
                for actor in ACTORS:
                    storage.advance(actor, [storage.number()], round_events=2)
        except BaseException as error:
            failures.append(error)
        finally:
            over.set()
            storage.database.release()

    storage.settle(order("first", "1"))
    worker = threading.Thread(target=work)
    worker.start()
    rounds = 0
    while not over.is_set() or not rounds:
        tamper(storage.database, "UPDATE loyalty_state SET points = points + 1")
        tamper(storage.database, "UPDATE stats_state SET total_spent_minor = total_spent_minor + 1")
        for actor in (STATS, LOYALTY):
            rebuilt(storage, actor)
        rounds += 1
    worker.join()
    assert failures == []
    storage.settle()
    for actor in ACTORS:  # a segment may have seen statistics while they were wrong
        rebuilt(storage, actor)
    assert audited(storage) == []
