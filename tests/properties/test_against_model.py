"""Admission, storage and folds equal the independent sequential model, and keep the invariants of docs/rules.md 7."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from customer_actors.domain.events import Message, Outcome
from customer_actors.domain.loyalty import tier_of
from customer_actors.domain.rules import DEFAULT_TIERS, Rules
from tests.model.reference import ReferenceModel, state_of_stream
from tests.model.strategies import messages, shuffled_with_duplicates
from tests.properties.service import TODAY, Service

RULES = Rules(timezone="Europe/Berlin")
FLAT = Rules(tiers=tuple(tier.model_copy(update={"multiplier": Decimal(1)}) for tier in DEFAULT_TIERS))

generous = settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])


@contextmanager
def service(rules: Rules = RULES, round_events: int = 500) -> Iterator[Service]:
    made = Service(rules, round_events=round_events)
    try:
        yield made
    finally:
        made.close()


@st.composite
def batches(draw: st.DrawFn, history: Sequence[Message]) -> list[list[Message]]:
    """The history cut into batches anywhere."""
    result: list[list[Message]] = [[]]
    for message in history:
        if draw(st.booleans()):
            result.append([])
        result[-1].append(message)
    return result


@generous
@given(messages(), st.data())
def test_every_outcome_and_every_state_equals_the_model(history: list[Message], data: st.DataObject) -> None:
    model = ReferenceModel(RULES)
    with service(round_events=data.draw(st.sampled_from((1, 3, 500)))) as real:
        for batch in data.draw(batches(history)):
            assert real.receive(batch) == [model.receive(message) for message in batch]
        assert real.customers() == model.customers()
        for key in model.customers():
            assert real.state(*key) == model.state(*key, TODAY)
            stored = state_of_stream(real.stream(*key), RULES, TODAY)
            assert real.state(*key) == {"organization_id": key[0], "customer_id": key[1], **stored}


@generous
@given(messages(external_only=True), st.data())
def test_repetition_and_redelivery_leave_the_state_of_the_first_seen_list(
    history: list[Message], data: st.DataObject
) -> None:
    delivered = data.draw(shuffled_with_duplicates(history))
    with service() as repeated, service() as first_seen:
        outcomes = repeated.receive(delivered)
        again = repeated.receive(delivered)
        once = [m for i, m in enumerate(delivered) if m._replace(received_at_us=0) not in _bare(delivered[:i])]
        first_seen.receive(once)
        assert repeated.states() == first_seen.states()
        # What had an effect is a duplicate now; what had none has none again, though a key may be known by now.
        without_effect = (Outcome.DUPLICATE, Outcome.QUARANTINED)
        assert all(
            second == Outcome.DUPLICATE or (first in without_effect and second in without_effect)
            for first, second in zip(outcomes, again, strict=True)
        )


def _bare(history: Sequence[Message]) -> list[Message]:
    return [message._replace(received_at_us=0) for message in history]


@generous
@given(messages(conflict_free=True), st.data())
def test_with_flat_multipliers_the_order_of_arrival_does_not_matter(
    history: list[Message], data: st.DataObject
) -> None:
    shuffled = data.draw(shuffled_with_duplicates(history))
    with service(FLAT) as ordered, service(FLAT) as other:
        ordered.receive(history)
        other.receive(shuffled)
        assert _without_position(ordered.states()) == _without_position(other.states())


def _without_position(states: dict[tuple[str, str], dict[str, object]]) -> dict[tuple[str, str], dict[str, object]]:
    return {key: {name: value for name, value in state.items() if name != "position"} for key, state in states.items()}


@generous
@given(messages())
def test_ledgers_positions_and_sums_agree_in_the_database(history: list[Message]) -> None:
    with service() as real:
        real.receive(history)
        query = real.database.query
        for head, first, last, count in query(_POSITIONS):
            assert (first, last, count) == ((1, head, head) if head else (None, None, 0))
        sums = "SELECT coalesce(sum(points), 0) FROM loyalty_entry l WHERE l.customer = s.customer"
        assert query(f"SELECT 1 FROM loyalty_state s WHERE points <> ({sums})") == []
        assert query(f"SELECT 1 FROM loyalty_state s WHERE lifetime_points <> ({sums} AND kind <> 'redeem')") == []
        for lifetime, tier in query("SELECT lifetime_points, tier FROM loyalty_state"):
            assert tier_of(lifetime, RULES).name == tier
        assert query(_CREDIT_CLOSED_FORM) == []
        assert query("SELECT 1 FROM sale WHERE amount_minor IS NULL AND NOT charged AND NOT cancelled") == []


_POSITIONS = """
    SELECT c.head, min(e.position), max(e.position), count(e.position)
    FROM customer c LEFT JOIN event e ON e.customer = c.id GROUP BY c.id, c.head
"""
_CREDIT_CLOSED_FORM = """
    SELECT * FROM (
        SELECT s.*,
            (SELECT coalesce(sum(amount_minor), 0) FROM credit_usage u
             WHERE u.customer = s.customer AND cancelled_position IS NULL)
            - (SELECT coalesce(sum(amount_minor), 0) FROM credit_payment p WHERE p.customer = s.customer) AS owed
        FROM credit_state s WHERE status IS NOT NULL)
    WHERE used_minor <> max(0, owed) OR unapplied_minor <> max(0, -owed)
"""


@generous
@given(messages(), st.data())
def test_an_event_of_one_organization_leaves_the_others_identical(history: list[Message], data: st.DataObject) -> None:
    with service() as real:
        real.receive([message for message in history if message.organization_id == "org-2"])
        before = real.states()
        real.receive([message for message in history if message.organization_id != "org-2"])
        assert {key: state for key, state in real.states().items() if key[0] == "org-2"} == before
