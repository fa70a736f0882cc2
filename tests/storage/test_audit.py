"""The audit names every stored figure that is not what the stream says, and nothing else; also while events flow."""

import threading
from collections.abc import Sequence
from typing import Any

import pytest

from customer_actors.domain.routing import ACTORS, CREDIT, LOYALTY, SEGMENTATION, STATS, STREAM_ACTORS
from customer_actors.domain.rules import Rules
from customer_actors.domain.story import STREAM
from customer_actors.groups.advance import advance
from customer_actors.storage import audit as audit_module
from customer_actors.storage.audit import PAGE, Audit, Difference, Scope
from customer_actors.storage.opening import open_database
from tests.model.examples import cancellation, order, payment, redemption
from tests.properties.service import NOW_US
from tests.storage.corruptions import CACHED, FACTS, LIFE, MISSING, POSITIONS, SEGMENT, STATE, Told, ids, of_c1
from tests.storage.holding import Break
from tests.storage.support import Storage
from tests.tampering import tamper

ALL = Scope()


def audited(
    storage: Storage, scope: Scope = ALL, actors: Sequence[str] = ACTORS, window: int = 20_000
) -> list[Difference]:
    return list(Audit(storage.database, storage.rules, actors, window).run(scope))


def named(storage: Storage, window: int = 20_000) -> set[tuple[str, str, object, object]]:
    """What differs of customer c1, and nothing of anybody else."""
    found = audited(storage, window=window)
    assert {difference[:2] for difference in found} <= {("org-1", "c1")}
    assert len(set(found)) == len(found)
    return {difference[2:] for difference in found}


EVERYTHING = [*STATE, *CACHED, *MISSING, *FACTS, *SEGMENT, *POSITIONS]


@pytest.mark.parametrize(("statement", "expected"), EVERYTHING, ids=ids(EVERYTHING))
def test_a_corrupted_figure_is_named_and_nothing_else_is(storage: Storage, statement: str, expected: set[Told]) -> None:
    storage.settle(*LIFE)
    assert audited(storage) == []
    tamper(storage.database, of_c1(statement))
    assert named(storage) == expected
    assert named(storage, window=3) == expected


def test_a_row_before_the_first_event_is_named(storage: Storage) -> None:
    storage.settle(*LIFE)
    insert = "INSERT INTO credit_payment (customer, position, reference, amount_minor, unapplied_minor) "
    storage.database.execute(f"{insert} VALUES (?, -1, 'P', 5, 0)", (storage.number(),))
    for window in (1, 5, 20_000):
        assert named(storage, window=window) == {
            (CREDIT, "payment -1", "reference P, amount 0.05, unapplied 0.00", None)
        }


def test_it_counts_what_it_compared(storage: Storage) -> None:
    storage.settle(*LIFE)
    for window in (1, 2, 20_000):
        audit = Audit(storage.database, storage.rules, window=window)
        assert list(audit.run(ALL)) == []
        rows = ("loyalty_entry", "credit_usage", "credit_payment", "credit_allocation")
        stored = sum(storage.value(f"SELECT count(*) FROM {table}") for table in rows)
        assert vars(audit.checked) == {"customers": 2, "events": len(LIFE), "ledger_rows": stored}


def test_a_head_that_is_not_the_last_event_that_concerns_the_actor_is_named(storage: Storage) -> None:
    storage.settle(*LIFE)
    tamper(storage.database, of_c1("UPDATE customer SET head_credit = 7"))
    assert named(storage) == {(STREAM, "head_credit", 7, 8)}


def test_a_gap_in_a_stream_is_named_with_what_it_changes(storage: Storage) -> None:
    storage.settle(*LIFE)
    tamper(storage.database, of_c1("DELETE FROM event WHERE position = 6"))
    found = named(storage)
    assert (STREAM, "events", "7 at 1 to 8", "8 at 1 to 8") in found
    assert (LOYALTY, "entry 6", "kind redeem, points -100", None) in found


def test_a_state_row_that_is_gone_is_named(storage: Storage) -> None:
    storage.settle(*LIFE)
    tamper(storage.database, of_c1("DELETE FROM credit_state WHERE position > 0"))
    assert named(storage) == {(CREDIT, "state row", None, "a row")}


def test_a_position_far_behind_the_end_does_not_make_it_run_for_ever(storage: Storage) -> None:
    storage.settle(*LIFE)
    tamper(storage.database, of_c1("UPDATE loyalty_state SET position = 4611686018427387904"))
    assert named(storage) == {(LOYALTY, "position", 2**62, 7)}


def test_details_of_a_hold_without_the_hold_are_named(storage: Storage) -> None:
    storage.settle(*LIFE)
    tamper(
        storage.database,
        "INSERT INTO held_group (actor, customer, position, attempts, error, traceback, since_us) "
        "VALUES ('credit', ?, 3, 1, '', '', 0)",
        storage.number(),
    )
    assert named(storage) == {(CREDIT, "held_position", None, 3)}


@pytest.mark.parametrize(
    ("actor", "reference", "position"), [(STATS, "O-2", 4), (LOYALTY, "O-2", 4), (CREDIT, "P-1", 5)]
)
def test_a_hold_elsewhere_than_at_the_next_event_is_named_though_its_details_agree(
    storage: Storage, break_fold: Break, actor: str, reference: str, position: int
) -> None:
    break_fold(actor, reference)
    storage.settle(*LIFE)
    break_fold(actor)
    assert audited(storage) == []
    tamper(storage.database, of_c1(f"UPDATE {actor}_state SET held_position = held_position + 1"))
    tamper(storage.database, "UPDATE held_group SET position = position + 1")
    assert named(storage) == {(actor, "held_position", position + 1, position)}


def test_rows_whose_customer_is_gone_are_named(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing keeps the row of a customer; its events, ledgers and states stay."""
    monkeypatch.setattr(audit_module, "_WALK", audit_module._WALK.replace(str(PAGE), "2"))  # so that there are pages
    others = [order(f"X-{n}", "5", customer_id=f"x{n}") for n in range(5)]
    storage.settle(*LIFE, *others, order("O-1", "5", organization_id="org-2"))
    gone = {number: storage.number(number) for number in ("c1", "x1", "x4")}
    storage.database.execute(
        "DELETE FROM customer WHERE organization_id = 'org-1' AND customer_id IN ('c1', 'x1', 'x4')"
    )
    found = audited(storage)
    assert [each[:5] for each in found] == [
        ("", f"number {number}", STREAM, "customer row", None) for number in sorted(gone.values())
    ]
    expected = {each.customer_id: str(each.expected) for each in found}
    states = "event, event_payload, stats_state, loyalty_state, customer_segment, credit_state"
    assert {*expected[f"number {gone['x1']}"].removeprefix("a row, for those in ").split(", ")} == {
        *states.split(", "),
        "loyalty_entry",
    }
    for table in ("credit_usage", "credit_payment", "credit_allocation"):
        assert table in expected[f"number {gone['c1']}"]
    assert audited(storage, actors=(CREDIT,)) == found
    assert audited(storage, Scope("org-1")) == []


@pytest.mark.parametrize("table", ["event", "stats_state", "credit_payment"])
def test_one_row_without_a_customer_is_enough(storage: Storage, table: str) -> None:
    storage.settle(*LIFE)
    tamper(storage.database, of_c1(f"UPDATE {table} SET customer = -5 WHERE position IN (5, 7)"))
    lost = Difference("", "number -5", STREAM, "customer row", None, f"a row, for those in {table}")
    assert lost in audited(storage)


def test_scores_by_the_cuts_of_another_organization_are_named(storage: Storage) -> None:
    storage.settle(*LIFE, order("O-1", "5", organization_id="org-2"))
    insert = "INSERT INTO rfm_cuts (organization_id, as_of, calculated_at_us) VALUES ('org-2', '2024-06-11', 0)"
    storage.database.execute(insert)  # without quintiles: the scores are as by the fixed cuts
    number = storage.value("SELECT number FROM rfm_cuts")
    storage.database.execute(f"UPDATE customer_segment SET cuts = {number} WHERE code IS NOT NULL")
    ours = {("org-1", name, SEGMENTATION, "cuts", number, None) for name in ("c1", "c2")}
    assert set(audited(storage)) == ours


def test_scope_and_actor_bound_what_is_compared(storage: Storage) -> None:
    storage.settle(*LIFE, order("O-1", "5", organization_id="org-2"))
    tamper(storage.database, "UPDATE stats_state SET cancelled_orders = 9")
    tamper(storage.database, "UPDATE loyalty_state SET points = 9")
    assert len(audited(storage)) == 6
    assert {each[:2] for each in audited(storage, Scope("org-2"))} == {("org-2", "c1")}
    assert {each[:2] for each in audited(storage, Scope("org-1", "c2"))} == {("org-1", "c2")}
    assert {each.actor for each in audited(storage, actors=(LOYALTY,))} == {LOYALTY}


def test_an_event_that_can_be_folded_no_longer_is_named(storage: Storage) -> None:
    storage.settle(*LIFE)
    tamper(storage.database, of_c1("UPDATE event SET detail = '{' WHERE position = 1"))
    ((actor, field, stored, expected),) = named(storage)
    assert (actor, field, stored) == (CREDIT, "refold", "position 1 applied")
    assert str(expected).startswith("JSONDecodeError: ")


def test_rules_that_are_gone_are_named_and_end_nothing(storage: Storage) -> None:
    storage.settle(*LIFE)
    tamper(storage.database, of_c1("UPDATE event SET rules = 99 WHERE position = 7"))
    assert named(storage) == {
        (actor, "refold", "position 7 applied", "rules 99 are not in the database") for actor in STREAM_ACTORS
    }


def test_each_event_is_folded_with_the_rules_it_is_stamped_with(storage: Storage) -> None:
    storage.settle(*LIFE[:4])
    storage.rules = Rules(timezone="Europe/Berlin", points_per_unit="3", default_terms_days=1)  # type: ignore[arg-type]
    storage.settle(*LIFE[4:], order("O-9", "7", on_credit=True))
    assert storage.value("SELECT count(*) FROM rules") == 2
    assert audited(storage) == []


def test_no_more_than_a_window_of_a_long_stream_is_read_at_once(storage: Storage, monkeypatch: Any) -> None:
    storage.settle(*[order(f"O-{n}", "5", on_credit=True) for n in range(300)], payment("P", "100"))
    read, sizes = storage.database.for_each, []

    def counted(*arguments: Any) -> Any:
        rows = read(*arguments)
        sizes.append(len(rows))
        return rows

    monkeypatch.setattr(storage.database, "for_each", counted)
    assert audited(storage, window=50) == []
    assert max(sizes) == 50


def test_what_waits_is_no_difference(storage: Storage) -> None:
    storage.settle(*LIFE[:5])
    storage.receive(*LIFE[5:])
    storage.advance(STATS)
    assert audited(storage) == []


@pytest.mark.parametrize("window", [2, 20_000])
def test_it_finds_nothing_while_workers_append_and_advance(storage: Storage, database_of: Any, window: int) -> None:
    """Every state is compared with exactly the position it stands at, however it moves meanwhile."""
    storage.settle(*LIFE)
    over = threading.Event()
    failures: list[BaseException] = []

    def work(name: str) -> None:
        mine = Storage(database_of(), storage.rules)
        try:
            for n in range(40):
                reference = f"{name}-{n}"
                mine.receive(order(reference, "70", on_credit=True), payment(reference, "40"), redemption(reference, 7))
                mine.receive(cancellation(f"{name}-{n // 2}"), payment(f"{reference}-b", "40"))
                for actor in ACTORS:
                    store = mine.stores(7).of(actor)
                    advance(store, [mine.number()], now_us=lambda: NOW_US)
        except BaseException as error:
            failures.append(error)
        finally:
            mine.database.release()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("a", "b")]

    def watch() -> None:
        for thread in threads:
            thread.join()
        over.set()

    watcher = threading.Thread(target=watch)
    for thread in [*threads, watcher]:
        thread.start()
    looks, found = 0, []
    while not over.is_set() or not looks:
        found += audited(storage, window=window)
        looks += 1
    watcher.join()
    assert failures == []
    assert found == []
    storage.settle()
    assert audited(storage) == []


@pytest.fixture
def database_of(storage: Storage) -> Any:
    """Makes further databases on the same data, for other threads."""
    engine = storage.database.engine
    if "postgres" in type(engine).__name__.lower():
        return lambda: open_database(engine.database)
    return lambda: storage.database  # its lock is per process
