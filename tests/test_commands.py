"""Commands through the Python API: appended, advanced, and answered exactly [C9, L6, C4]."""

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from customer_actors import commands
from customer_actors.actors.pipeline import now_us
from customer_actors.commands import CommandResult, Service, charge_credit, make_service, open_credit, redeem_points
from customer_actors.domain import loyalty
from customer_actors.domain.envelope import Received
from customer_actors.domain.events import Event
from customer_actors.domain.rules import Rules
from customer_actors.errors import UsageError
from customer_actors.settings import load_settings
from customer_actors.storage.database import Database
from customer_actors.storage.opening import open_database
from customer_actors.storage.operators import Action
from customer_actors.storage.schema import migrate
from customer_actors.storage.triage import skip
from customer_actors.storage.views import customer_view
from tests.cli.running import order
from tests.tampering import tamper

ORG, CUSTOMER = "default", "C1"
APPLIED: Final = "applied"
DUPLICATE: Final = "duplicate"


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/shop.db"
    found: str = request.getfixturevalue("postgres_url")
    return found


@pytest.fixture
def asking(url: str) -> Iterator[Service]:
    database = open_database(url)
    migrate(database)
    yield make_service(load_settings({"DATABASE_URL": url}), database)
    database.release()


def receive(asking: Service, *lines: str) -> None:
    asking.intake.take([Received(line.encode(), None, now_us()) for line in lines])


def view(asking: Service, customer_id: str = CUSTOMER) -> dict[str, object]:
    found = customer_view(asking.stores.database, asking.stores.current_rules, ORG, customer_id)
    assert found is not None
    return found


def execute(database: Database, sql: str) -> None:
    with database.transaction():
        database.execute(sql)


def test_opening_creates_an_unknown_customer_with_an_account(asking: Service) -> None:
    assert open_credit(asking, ORG, CUSTOMER, 100_00, 14) == CommandResult(APPLIED, None, 1)
    assert view(asking)["credit"] == {
        "status": "active",
        "limit": "100.00",
        "used": "0.00",
        "available": "100.00",
        "unapplied": "0.00",
        "suspense": "0.00",
    }


def test_opening_the_same_account_again_is_a_duplicate_and_another_one_is_refused(asking: Service) -> None:
    open_credit(asking, ORG, CUSTOMER, 100_00, 14)
    assert open_credit(asking, ORG, CUSTOMER, 100_00, 14).outcome == DUPLICATE
    for limit_minor, terms_days in ((100_01, 14), (100_00, 15)):
        again = open_credit(asking, ORG, CUSTOMER, limit_minor, terms_days)
        assert again.outcome == "refused"
        assert "another limit or other terms" in str(again.reason)


def test_opening_applies_the_money_that_waited(asking: Service) -> None:
    payment = '{"event": "payment.received", "data": {"customer_id": "C1", "amount": 30, "payment_reference": "P1"}}'
    receive(asking, order("O1", amount="50.00", payment_method="credit"), payment)
    assert open_credit(asking, ORG, CUSTOMER, 100_00, 14).outcome == APPLIED
    assert (view(asking)["credit"] or {})["used"] == "20.00"  # type: ignore[index]


def test_a_charge_is_applied_up_to_the_credit_available_and_refused_beyond(asking: Service) -> None:
    open_credit(asking, ORG, CUSTOMER, 100_00, 14)
    assert charge_credit(asking, ORG, CUSTOMER, "O1", 60_00) == CommandResult(APPLIED, None, 2)
    refused = charge_credit(asking, ORG, CUSTOMER, "O2", 40_01)
    assert (refused.outcome, refused.position) == ("refused", 3)
    assert "more than the credit available" in str(refused.reason)
    assert charge_credit(asking, ORG, CUSTOMER, "O3", 40_00).outcome == APPLIED


def test_a_charge_without_an_account_is_refused(asking: Service) -> None:
    receive(asking, order("O1"))
    assert charge_credit(asking, ORG, CUSTOMER, "O2", 1).reason == "there is no credit account"


def test_a_refused_charge_may_be_asked_again(asking: Service) -> None:
    open_credit(asking, ORG, CUSTOMER, 10_00, 14)
    assert charge_credit(asking, ORG, CUSTOMER, "O1", 60_00).outcome == "refused"
    paid = {"customer_id": CUSTOMER, "amount": 50, "payment_reference": "P1"}
    receive(asking, json.dumps({"event": "payment.received", "data": paid}))
    assert charge_credit(asking, ORG, CUSTOMER, "O1", 60_00) == CommandResult(APPLIED, None, 4)


def test_the_same_charge_again_is_a_duplicate_and_other_content_under_its_order_is_refused(asking: Service) -> None:
    open_credit(asking, ORG, CUSTOMER, 100_00, 14)
    charge_credit(asking, ORG, CUSTOMER, "O1", 60_00)
    assert charge_credit(asking, ORG, CUSTOMER, "O1", 60_00) == CommandResult(DUPLICATE, None, 3)
    conflict = charge_credit(asking, ORG, CUSTOMER, "O1", 61_00)
    assert conflict == CommandResult("refused", "the order used credit of another amount", 4)
    assert (view(asking)["credit"] or {})["used"] == "60.00"  # type: ignore[index]


def test_a_charge_and_a_credit_sale_of_one_order_are_one(asking: Service) -> None:
    open_credit(asking, ORG, CUSTOMER, 100_00, 14)
    receive(asking, order("O1", amount="60.00", payment_method="credit"))
    assert charge_credit(asking, ORG, CUSTOMER, "O1", 60_00).outcome == DUPLICATE
    assert (view(asking)["credit"] or {})["used"] == "60.00"  # type: ignore[index]


def test_points_are_redeemed_once_and_only_if_they_are_there(asking: Service) -> None:
    receive(asking, order("O1", amount="150.00"))
    assert redeem_points(asking, ORG, CUSTOMER, 100, "V1") == CommandResult(APPLIED, None, 2)
    assert redeem_points(asking, ORG, CUSTOMER, 100, "V1") == CommandResult(DUPLICATE, None, 2)
    refused = redeem_points(asking, ORG, CUSTOMER, 100, "V2")
    assert refused == CommandResult("refused", "100 points asked, 50 available", 3)
    assert view(asking)["loyalty"] == {"points_balance": 50, "points_debt": 0, "lifetime_points": 150, "tier": "bronze"}


def test_a_refused_reference_stays_used_and_asking_again_says_so(asking: Service) -> None:
    receive(asking, order("O1", amount="10.00"))
    redeem_points(asking, ORG, CUSTOMER, 100, "V1")
    receive(asking, order("O2", amount="500.00"))

    again = redeem_points(asking, ORG, CUSTOMER, 100, "V1")

    assert (again.outcome, again.position) == ("refused", 2)
    assert "stays so" in str(again.reason)
    assert view(asking)["loyalty"]["points_balance"] == 510  # type: ignore[index]


def test_a_reference_is_unique_in_its_organization_only(asking: Service) -> None:
    receive(asking, order("O1", amount="150.00"), order("O2", "C2", amount="150.00"))
    redeem_points(asking, ORG, CUSTOMER, 100, "V1")
    conflict = redeem_points(asking, ORG, "C2", 100, "V1")
    assert (conflict.outcome, conflict.position) == ("refused", None)
    open_credit(asking, "other", "C2", 0, 0)
    assert redeem_points(asking, "other", "C2", 100, "V1").reason == "100 points asked, 0 available"


def test_what_waits_in_front_is_done_first(asking: Service) -> None:
    receive(asking, *(order(f"O{number}", amount="1.00") for number in range(700)))
    assert redeem_points(asking, ORG, CUSTOMER, 700, "V1").outcome == APPLIED
    assert redeem_points(asking, ORG, CUSTOMER, 1, "V2").outcome == "refused"


@pytest.mark.parametrize("position", [1, 2])
def test_a_skipped_request_is_refused_with_who_and_why_and_decided_no_more(asking: Service, position: int) -> None:
    receive(asking, order("O-1", CUSTOMER, "500.00"))
    database = asking.stores.database
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("customer_actors.storage.loyalty.fold", _failing_at(position))
        assert redeem_points(asking, ORG, CUSTOMER, 100, "V1").outcome == "waiting"
        by = Action("anna", "skip", "asked by mistake")
        number = database.query("SELECT id FROM customer")[0][0]
        assert skip(database, "loyalty", number, position, by, now_us()) is None
    reason = "skipped by anna: asked by mistake" if position == 2 else "100 points asked, 0 available"
    for _ in range(2):
        answer = redeem_points(asking, ORG, CUSTOMER, 100, "V1")
        assert (answer.outcome, answer.position) == ("refused", 2)
        assert str(answer.reason).endswith(reason)
    entries = database.query("SELECT kind, points FROM loyalty_entry")
    assert entries == ([("earn", 500)] if position == 2 else [])


def _failing_at(position: int) -> Callable[..., loyalty.Result]:
    def fold(state: loyalty.Loyalty, event: Event, rules: Rules, earned: dict[int, int]) -> loyalty.Result:
        if event.position == position:
            raise ValueError("boom")
        return loyalty.fold(state, event, rules, earned)

    return fold


def test_a_request_behind_a_held_event_waits_and_is_decided_after_its_release(asking: Service) -> None:
    database = asking.stores.database
    receive(asking, order("O1", amount="150.00"))
    tamper(database, "UPDATE event SET rules = 99")  # rules nobody has: the fold fails

    waiting = redeem_points(asking, ORG, CUSTOMER, 100, "V1")

    assert (waiting.outcome, waiting.position) == ("waiting", 2)
    assert "position 1 is held for loyalty: LookupError" in str(waiting.reason)
    assert redeem_points(asking, ORG, CUSTOMER, 100, "V1").outcome == "waiting", "asked again, it still waits"
    tamper(database, "UPDATE event SET rules = 1")
    execute(database, "UPDATE loyalty_state SET held_position = NULL")
    assert redeem_points(asking, ORG, CUSTOMER, 100, "V1") == CommandResult(DUPLICATE, None, 2)
    assert view(asking)["loyalty"]["points_balance"] == 50  # type: ignore[index]


@pytest.mark.parametrize(
    "ask",
    [
        lambda asking: charge_credit(asking, ORG, "nobody", "O1", 1),
        lambda asking: redeem_points(asking, ORG, "nobody", 1, "V1"),
        lambda asking: charge_credit(asking, "elsewhere", CUSTOMER, "O1", 1),
        lambda asking: charge_credit(asking, ORG, CUSTOMER, "O1", 0),
        lambda asking: charge_credit(asking, ORG, CUSTOMER, " ", 1),
        lambda asking: charge_credit(asking, ORG, CUSTOMER, "O" * 65, 1),
        lambda asking: redeem_points(asking, ORG, CUSTOMER, 0, "V1"),
        lambda asking: redeem_points(asking, ORG, CUSTOMER, -1, "V1"),
        lambda asking: redeem_points(asking, ORG, CUSTOMER, 10**12, "V1"),
        lambda asking: redeem_points(asking, ORG, CUSTOMER, 1, ""),
        lambda asking: redeem_points(asking, ORG, CUSTOMER, 1, "V\0"),
        lambda asking: redeem_points(asking, ORG, CUSTOMER, 1, "V\udc80"),
        lambda asking: open_credit(asking, ORG, CUSTOMER, -1, 30),
        lambda asking: open_credit(asking, ORG, CUSTOMER, 1, 3651),
        lambda asking: open_credit(asking, ORG, "", 1, 30),
        lambda asking: open_credit(asking, "\t", CUSTOMER, 1, 30),
    ],
)
def test_the_impossible_is_refused_before_anything_changes(asking: Service, ask: Callable[[Service], object]) -> None:
    receive(asking, order("O1"))
    with pytest.raises(UsageError):
        ask(asking)
    counts = "SELECT (SELECT count(*) FROM event), (SELECT count(*) FROM customer), (SELECT count(*) FROM command_key)"
    assert asking.stores.database.query(counts) == [(1, 1, 0)]


def test_a_request_waits_for_a_worker_that_has_its_customer_just_now(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker, database = open_database(postgres_url), open_database(postgres_url)
    migrate(database)
    asking = make_service(load_settings({"DATABASE_URL": postgres_url}), database)
    receive(asking, order("O1", amount="150.00"))
    locked, go_on = threading.Event(), threading.Event()

    def work() -> None:
        with worker.transaction():
            worker.execute("SELECT * FROM loyalty_state FOR UPDATE")
            locked.set()
            go_on.wait(20)
        worker.release()

    with ThreadPoolExecutor() as pool:
        pool.submit(work)
        locked.wait(20)
        threading.Timer(0.5, go_on.set).start()
        assert redeem_points(asking, ORG, CUSTOMER, 100, "V1") == CommandResult(APPLIED, None, 2)
        locked.clear()
        go_on.clear()
        pool.submit(work)
        locked.wait(20)
        monkeypatch.setattr(commands, "WAIT_S", 0.2)
        waiting = redeem_points(asking, ORG, CUSTOMER, 10, "V2")
        go_on.set()
    assert (waiting.outcome, waiting.position) == ("waiting", 3)
    database.release()


def test_any_number_of_processes_redeem_no_more_than_there_is(url: str) -> None:
    database = open_database(url)
    migrate(database)
    settings = load_settings({"DATABASE_URL": url})
    receive(make_service(settings, database), order("O1", amount="55.00"))

    def ask(number: int) -> str:
        try:
            return redeem_points(make_service(settings, database), ORG, CUSTOMER, 10, f"V{number}").outcome
        finally:
            database.release()

    with ThreadPoolExecutor(8) as pool:
        outcomes = sorted(pool.map(ask, range(8)))
    assert outcomes == [APPLIED] * 5 + ["refused"] * 3
    database.release()


# --- limit, suspension, lifting ----------------------------------------------------------------------------------

BY: Final = commands.Signed("anna", "late again")


def test_a_new_limit_is_applied_and_the_present_one_a_duplicate(asking: Service) -> None:
    open_credit(asking, ORG, CUSTOMER, 100_00, 14)
    assert commands.change_limit(asking, ORG, CUSTOMER, 50_00, BY) == CommandResult(APPLIED, None, 2)
    assert commands.change_limit(asking, ORG, CUSTOMER, 50_00, BY) == CommandResult(DUPLICATE, None, 3)
    assert (view(asking)["credit"] or {})["limit"] == "50.00"  # type: ignore[index]


def test_suspending_and_lifting_are_applied_once(asking: Service) -> None:
    open_credit(asking, ORG, CUSTOMER, 100_00, 14)
    outcomes = [
        ask(asking, ORG, CUSTOMER, BY).outcome
        for ask in (commands.lift_credit, *[commands.suspend_credit] * 2, *[commands.lift_credit] * 2)
    ]
    assert outcomes == [DUPLICATE, APPLIED, DUPLICATE, APPLIED, DUPLICATE]


def test_without_an_account_limit_suspension_and_lifting_are_refused(asking: Service) -> None:
    receive(asking, order("O1"))
    none = "there is no credit account"
    assert commands.change_limit(asking, ORG, CUSTOMER, 5, BY) == CommandResult("refused", none, 2)
    assert commands.suspend_credit(asking, ORG, CUSTOMER, BY) == CommandResult("refused", none, 3)
    assert commands.lift_credit(asking, ORG, CUSTOMER, BY) == CommandResult("refused", none, 4)


def test_a_change_of_an_unknown_customer_or_by_nobody_is_a_usage_error(asking: Service) -> None:
    with pytest.raises(UsageError, match="unknown"):
        commands.suspend_credit(asking, ORG, "nobody", BY)
    open_credit(asking, ORG, CUSTOMER, 100_00, 14)
    for signed in (commands.Signed(" "), commands.Signed("a\0b"), commands.Signed("anna", "x" * 501)):
        with pytest.raises(UsageError):
            commands.lift_credit(asking, ORG, CUSTOMER, signed)
    with pytest.raises(UsageError, match="negative"):
        commands.change_limit(asking, ORG, CUSTOMER, -1, BY)
