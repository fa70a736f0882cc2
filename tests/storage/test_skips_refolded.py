"""What an operator skipped is skipped again: by the live folds, the audit and `explain` alike."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from customer_actors.domain import credit, loyalty, stats
from customer_actors.domain.events import Event, Message
from customer_actors.domain.routing import ACTORS, CREDIT, LOYALTY, STATS, STREAM_ACTORS
from customer_actors.domain.rules import Rules
from customer_actors.domain.story import Story
from customer_actors.storage import views
from customer_actors.storage.audit import Audit
from customer_actors.storage.database import Database
from customer_actors.storage.operators import Action
from customer_actors.storage.rules import RulesBook
from customer_actors.storage.triage import skip
from tests.model.examples import JUNE_1_US, cancellation, order
from tests.model.strategies import messages
from tests.properties.service import NOW_US, Service
from tests.storage.corruptions import LIFE, of_c1
from tests.storage.support import Storage
from tests.storage.test_audit import ALL, audited
from tests.tampering import tamper

BY = Action("anna", "skip", "cannot be read")


def fails_at(monkeypatch: pytest.MonkeyPatch, places: Callable[[str, Event], bool]) -> None:
    """Let the live folds fail where told; refolds are not touched."""

    def failing(actor: str, fold: Callable[..., Any], at: int) -> Callable[..., Any]:
        def fold_or_fail(*arguments: Any) -> Any:
            if places(actor, arguments[at]):
                raise ValueError("boom")
            return fold(*arguments)

        return fold_or_fail

    for actor, module in ((STATS, stats), (LOYALTY, loyalty), (CREDIT, credit)):
        monkeypatch.setattr(f"customer_actors.storage.{actor}.fold", failing(actor, module.fold, 1))


def skip_all(database: Database, rules: Rules) -> int:
    """Skip every event at which somebody is held, until nobody is; returns how many there were."""
    service, skipped = Storage(database, rules), 0
    while True:
        for actor in ACTORS:
            service.advance(actor)
        held = database.query("SELECT actor, customer, position FROM held_group ORDER BY 1, 2")
        if not held:
            return skipped
        for actor, customer, position in held:
            assert skip(database, actor, customer, position, BY, NOW_US) is None
            skipped += 1


@pytest.mark.parametrize("position", range(1, 9))
def test_recorded_skips_are_honoured(storage: Storage, monkeypatch: pytest.MonkeyPatch, position: int) -> None:
    fails_at(monkeypatch, lambda _, event: (event.customer, event.position) == (storage.number(), position))
    storage.receive(*LIFE)
    assert skip_all(storage.database, storage.rules) >= 1
    assert audited(storage) == []
    assert audited(storage, window=2) == []
    tamper(storage.database, "DELETE FROM operator_action WHERE action = 'skip'")
    assert audited(storage) != [] or position == 8  # what was skipped there had no effect


def test_a_cancellation_whose_sale_was_skipped_does_nothing(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    fails_at(monkeypatch, lambda _, event: event.reference == "O-1" and event.type == "order.completed")
    storage.receive(order("O-1", "5", on_credit=True), order("O-2", "7"), cancellation("O-1"))
    assert skip_all(storage.database, storage.rules) == 3
    assert storage.value("SELECT cancelled_orders FROM stats_state") == 0
    assert storage.value("SELECT points FROM loyalty_state") == 7
    assert storage.value("SELECT count(*) FROM credit_usage") == 0
    assert audited(storage) == []


def test_a_sale_whose_cancellation_was_skipped_stays_counted(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    fails_at(monkeypatch, lambda _, event: event.type == "order.cancelled" and event.reference == "O-1")
    late = order("O-2", "7", at_us=JUNE_1_US + 5)
    storage.receive(order("O-1", "5"), late, order("O-3", "1", at_us=JUNE_1_US + 9), cancellation("O-1"))
    storage.receive(cancellation("O-3"))  # so that the bounds are read again
    skip_all(storage.database, storage.rules)
    assert storage.database.query("SELECT sales_order, first_purchase_at_us, last_purchase_at_us FROM stats_state") == [
        (2, JUNE_1_US, JUNE_1_US + 5)
    ]
    assert audited(storage) == []


def test_a_segment_that_was_stepped_over_is_not_compared_with_the_statistics(storage: Storage) -> None:
    storage.settle(*LIFE)
    storage.receive(order("O-9", "7"))
    storage.advance(STATS)
    with storage.database.transaction():
        storage.database.execute(of_c1("UPDATE customer_segment SET position = 9"))
        action = "INSERT INTO operator_action (at_us, operator, action, reason, actor, customer, position) "
        storage.database.execute(action + "VALUES (0, 'a', 'skip', 'b', 'segmentation', ?, 9)", (storage.number(),))
    storage.advance(LOYALTY)
    assert audited(storage) == []


@settings(max_examples=80, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(messages(), st.sets(st.tuples(st.sampled_from(STREAM_ACTORS), st.integers(1, 12))), st.sampled_from([1, 3, 500]))
def test_no_history_and_no_skips_make_live_state_and_refold_differ(
    history: list[Message], failing: set[tuple[str, int]], window: int
) -> None:
    service = Service(Rules(timezone="Europe/Berlin"), round_events=3)
    try:
        with pytest.MonkeyPatch.context() as patch:
            fails_at(patch, lambda actor, event: (actor, event.position) in failing)
            for message in history:
                service.receive([message])
            skip_all(service.database, service.rules)
        assert list(Audit(service.database, service.rules, window=window).run(ALL)) == []
        for organization_id, customer_id in service.customers():
            assert explained(service.database, service.rules, organization_id, customer_id) == []
    finally:
        service.close()


def explained(database: Database, rules: Rules, organization_id: str, customer_id: str) -> list[object]:
    """The differences that `explain` finds."""
    basis = views.explain_basis(database, rules, organization_id, customer_id)
    assert basis is not None
    stored, undone = basis.stored, views.undone_sales(database, basis.stored.number, basis.stored.head)
    story = Story(RulesBook(database), stored.standings, undone, 2, basis.skips)
    for event in views.events(database, stored.number, stored.head):
        story.take(event)
    return [*story.differences(basis.figures)]
