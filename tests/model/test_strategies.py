"""The histories hold what they promise, and the model keeps the rules' invariants on them."""

from collections.abc import Callable, Sequence
from datetime import date
from decimal import Decimal

import pytest
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st

from customer_actors.domain.events import EventType, Message, Outcome
from customer_actors.domain.rules import DEFAULT_TIERS, Rules
from tests.model.reference import ReferenceModel, State
from tests.model.strategies import EXTERNAL, messages, shuffled_with_duplicates

TODAY = date(2024, 7, 2)
FLAT = Rules(tiers=tuple(tier.model_copy(update={"multiplier": Decimal(1)}) for tier in DEFAULT_TIERS))

BOUNDED = settings(max_examples=100)
REACHING = settings(max_examples=3000, derandomize=True, database=None, phases=[Phase.generate])


def outcomes(history: Sequence[Message]) -> list[Outcome]:
    model = ReferenceModel(Rules())
    return [model.receive(message) for message in history]


def states(history: Sequence[Message], rules: Rules) -> dict[tuple[str, str], State]:
    model = ReferenceModel(rules)
    for message in history:
        model.receive(message)
    return {names: model.state(*names, TODAY) for names in model.customers()}


def without_position(history: Sequence[Message]) -> dict[tuple[str, str], State]:
    after = states(history, FLAT)
    for state in after.values():
        del state["position"]
    return after


def without_channels(history: Sequence[Message]) -> dict[tuple[str, str], State]:
    after = without_position(history)
    for state in after.values():
        state["stats"]["by_channel"] = sum(state["stats"]["by_channel"].values())
    return after


@BOUNDED
@given(st.data())
def test_order_of_arrival_does_not_matter_in_conflict_free_histories(data: st.DataObject) -> None:
    history = data.draw(messages(conflict_free=True))
    assert without_position(data.draw(shuffled_with_duplicates(history))) == without_position(history)


@BOUNDED
@given(st.data())
def test_named_twins_make_only_the_channel_depend_on_the_order_of_arrival(data: st.DataObject) -> None:
    history = data.draw(messages(conflict_free=True, named_twins=True))
    assert without_channels(data.draw(shuffled_with_duplicates(history))) == without_channels(history)


@BOUNDED
@given(st.data())
def test_repetitions_leave_the_state_of_the_first_seen_list(data: st.DataObject) -> None:
    delivered = data.draw(shuffled_with_duplicates(data.draw(messages())))
    assert states(delivered, Rules()) == states(list(dict.fromkeys(delivered)), Rules())


@BOUNDED
@given(messages())
def test_one_organization_never_changes_another(history: list[Message]) -> None:
    alone = states([message for message in history if message.organization_id == "org-1"], Rules())
    assert {names: state for names, state in states(history, Rules()).items() if names[0] == "org-1"} == alone


@BOUNDED
@given(messages())
def test_quarantined_messages_change_nothing(history: list[Message]) -> None:
    judged = zip(history, outcomes(history), strict=True)
    others = [message for message, outcome in judged if outcome != Outcome.QUARANTINED]
    assert states(others, Rules()) == states(history, Rules())


@BOUNDED
@given(messages(external_only=True))
def test_external_histories_hold_no_command(history: list[Message]) -> None:
    assert {message.type for message in history} <= EXTERNAL


@BOUNDED
@given(messages(conflict_free=True, named_twins=True))
def test_conflict_free_histories_quarantine_nothing(history: list[Message]) -> None:
    assert Outcome.QUARANTINED not in outcomes(history)


@BOUNDED
@given(messages())
def test_commands_but_opening_name_customers_that_exist(history: list[Message]) -> None:
    model = ReferenceModel(Rules())
    for message in history:
        if message.type not in EXTERNAL | {EventType.CREDIT_OPENED}:
            assert (message.organization_id, message.customer_id) in model.customers()
        model.receive(message)


def _becomes(type_: EventType, outcome: Outcome) -> Callable[[list[Message]], bool]:
    return lambda history: (type_, outcome) in zip([m.type for m in history], outcomes(history), strict=True)


@pytest.mark.parametrize(
    ("type_", "outcome"),
    [
        *((EventType.ORDER_COMPLETED, outcome) for outcome in Outcome if outcome != Outcome.ANONYMOUS),
        *((EventType.ORDER_CANCELLED, outcome) for outcome in Outcome if outcome != Outcome.ANONYMOUS),
        *((EventType.POS_COMPLETED, outcome) for outcome in Outcome if outcome != Outcome.SUPPRESSED),
        *((EventType.CREDIT_CHARGED, outcome) for outcome in (Outcome.ACCEPTED, Outcome.QUARANTINED)),
        (EventType.LOYALTY_REDEEMED, Outcome.QUARANTINED),
    ],
)
def test_histories_reach_every_outcome(type_: EventType, outcome: Outcome) -> None:
    assert find(messages(), _becomes(type_, outcome), settings=REACHING)


def _order_cancels_its_pos_sale_on_arrival(history: list[Message]) -> bool:
    standing = []
    for message, outcome in zip(history, outcomes(history), strict=True):
        if (message.type, outcome) == (EventType.POS_COMPLETED, Outcome.ACCEPTED):
            standing.append((message.organization_id, message.reference))
        named = (message.organization_id, message.pos_transaction_id)
        if (message.type, outcome) == (EventType.ORDER_COMPLETED, Outcome.SUPPRESSED) and named in standing:
            return True
    return False


def _some_state(holds: Callable[[State], bool]) -> Callable[[list[Message]], bool]:
    return lambda history: any(holds(state) for state in states(history, Rules()).values())


@pytest.mark.parametrize(
    "situation",
    [
        _order_cancels_its_pos_sale_on_arrival,
        _some_state(lambda state: state["loyalty"]["points_debt"] > 0),
        _some_state(lambda state: state["loyalty"]["tier"] == "gold"),
        _some_state(lambda state: state["credit"] is not None and (state["credit"]["available"] or "").startswith("-")),
        _some_state(lambda state: state["credit"] is not None and state["credit"]["status"] == "suspended"),
    ],
    ids=["cancelled on arrival", "debt", "gold", "over the limit", "suspended"],
)
def test_histories_reach_what_is_rare(situation: Callable[[list[Message]], bool]) -> None:
    assert find(messages(), situation, settings=REACHING)
