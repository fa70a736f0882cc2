"""The model's admission, pinned by examples computed by hand from the rules' own sentences."""

import pytest

from customer_actors.domain.events import Message, Outcome, Rejected
from customer_actors.domain.rules import Rules
from tests.model.examples import (
    DAY_US,
    JUNE_1_US,
    TODAY,
    cancellation,
    charge,
    figures,
    opened,
    order,
    outcomes,
    payment,
    pos,
    redemption,
    state_after,
)
from tests.model.reference import ReferenceModel

ACCEPTED, DUPLICATE, ANONYMOUS = Outcome.ACCEPTED, Outcome.DUPLICATE, Outcome.ANONYMOUS
SUPPRESSED, QUARANTINED = Outcome.SUPPRESSED, Outcome.QUARANTINED


def test_a_rejected_message_is_quarantined_and_makes_no_customer() -> None:
    model = ReferenceModel(Rules())
    assert model.receive(Rejected("bad_json", "The body is not JSON.", "org-1")) == QUARANTINED
    assert model.customers() == []
    with pytest.raises(KeyError):
        model.state("org-1", "c1", TODAY)


def test_known_order_with_same_content_is_a_duplicate_and_with_other_content_a_conflict() -> None:
    first = order("1", "10")
    again, later = first._replace(occurred_at_us=JUNE_1_US + DAY_US), order("1", "10", twin="7", on_credit=True)
    dearer, of_another = order("1", "11"), order("1", "10", customer_id="c2")
    history = [first, again, later, dearer, of_another, cancellation("1"), first]
    assert outcomes(*history) == [ACCEPTED, DUPLICATE, DUPLICATE, QUARANTINED, QUARANTINED, ACCEPTED, DUPLICATE]


def test_an_absent_currency_equals_the_organizations_and_another_one_is_quarantined_even_on_a_duplicate() -> None:
    history = [
        order("1", "10"),
        order("1", "10", currency="USD"),  # a duplicate names no currency for the organization
        order("2", "10", currency="EUR"),
        order("1", "10", currency="EUR"),
        order("1", "10", currency="USD"),
        order("1", "10", currency="USD", organization_id="org-2"),
    ]
    assert outcomes(*history) == [ACCEPTED, DUPLICATE, ACCEPTED, DUPLICATE, QUARANTINED, ACCEPTED]
    assert outcomes(order("1", "10", currency="EUR"), currency="USD") == [QUARANTINED]


def test_an_anonymous_sale_names_the_currency_too() -> None:
    anonymous = pos("1", "10", customer_id=None)._replace(currency="EUR")
    assert outcomes(anonymous, order("1", "10", currency="USD")) == [ANONYMOUS, QUARANTINED]


def test_a_cancellation_that_comes_first_leaves_the_same_state_but_one_event_less() -> None:
    sale, undo = order("1", "10", on_credit=True), cancellation("1")
    assert outcomes(undo, undo, sale, undo, sale) == [SUPPRESSED, DUPLICATE, SUPPRESSED, DUPLICATE, DUPLICATE]
    late, early = state_after(sale, undo), state_after(undo, sale)
    assert (late.pop("position"), early.pop("position")) == (2, 1)
    assert late == early
    assert figures(late["stats"], "orders cancelled_orders total_spent") == [0, 1, "0.00"]
    assert late["credit"] is None


def test_a_cancellation_never_matches_a_pos_sale_by_equal_id() -> None:
    assert outcomes(pos("1", "10"), cancellation("1")) == [ACCEPTED, SUPPRESSED]
    assert state_after(pos("1", "10"), cancellation("1"))["stats"]["orders"] == 1


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([pos("7", "10"), order("1", "10", twin="7")], {"order": 0, "pos": 1}),
        ([order("1", "10", twin="7"), pos("7", "10")], {"order": 1, "pos": 0}),
        ([pos("7", "10", customer_id=None), order("1", "10", twin="7")], {"order": 1, "pos": 0}),
        ([pos("7", "10", customer_id=None), pos("7", "10"), order("1", "10", twin="7")], {"order": 0, "pos": 1}),
    ],
)
def test_an_order_and_its_pos_sale_are_one_on_the_channel_that_named_the_customer_first(
    history: list[Message], expected: dict[str, int]
) -> None:
    after = state_after(*history)
    assert (after["stats"]["orders"], after["stats"]["by_channel"], after["position"]) == (1, expected, 1)


def test_an_anonymous_sale_claims_no_effect() -> None:
    nameless, named, dearer = pos("7", "10", customer_id=None), pos("7", "10"), pos("7", "11", customer_id=None)
    history = [nameless, nameless, dearer, pos("7", "11"), named, nameless, dearer, pos("7", "10", customer_id="c2")]
    expected = [ANONYMOUS, DUPLICATE, QUARANTINED, QUARANTINED, ACCEPTED, DUPLICATE, QUARANTINED, QUARANTINED]
    assert outcomes(*history) == expected


@pytest.mark.parametrize(
    "history",
    [
        [pos("7", "10"), order("1", "10", twin="7"), cancellation("1")],
        [pos("7", "10"), cancellation("1"), order("1", "10", twin="7")],
        [cancellation("1"), pos("7", "10"), order("1", "10", twin="7")],
        [cancellation("1"), order("1", "10", twin="7"), pos("7", "10")],
        [order("1", "10", twin="7"), cancellation("1"), pos("7", "10")],
    ],
)
def test_the_one_sale_is_cancelled_once_its_order_is_whatever_the_order_of_arrival(history: list[Message]) -> None:
    after = state_after(*history)
    assert figures(after["stats"], "orders cancelled_orders") == [0, 1]
    assert after["loyalty"]["lifetime_points"] == 0


def test_a_tombstone_cancels_the_pos_sale_when_the_order_turns_out_to_be_it() -> None:
    history = [pos("7", "10"), cancellation("1"), order("1", "10", twin="7"), cancellation("1")]
    assert outcomes(*history) == [ACCEPTED, SUPPRESSED, SUPPRESSED, DUPLICATE]


def test_two_orders_that_name_one_pos_sale_cancel_it_once() -> None:
    history = [order("1", "10", twin="7"), order("2", "10", twin="7"), cancellation("2"), cancellation("1")]
    assert outcomes(*history) == [ACCEPTED, DUPLICATE, ACCEPTED, DUPLICATE]
    assert state_after(*history)["stats"]["cancelled_orders"] == 1


def test_a_tombstone_cancels_nothing_a_second_time() -> None:
    history = [order("1", "10", twin="7"), cancellation("1"), cancellation("2"), order("2", "10", twin="7")]
    assert outcomes(*history) == [ACCEPTED, ACCEPTED, SUPPRESSED, DUPLICATE]
    assert state_after(*history)["stats"]["cancelled_orders"] == 1


def test_an_order_in_conflict_with_the_pos_sale_it_names_is_not_linked_to_it() -> None:
    history = [pos("7", "10"), order("1", "11", twin="7"), order("2", "10", customer_id="c2", twin="7")]
    assert outcomes(*history, cancellation("1")) == [ACCEPTED, QUARANTINED, QUARANTINED, SUPPRESSED]
    assert state_after(*history, cancellation("1"))["stats"]["orders"] == 1


def test_a_repeated_completion_never_links_anew() -> None:
    assert outcomes(order("1", "10"), order("1", "10", twin="7"), pos("7", "10")) == [ACCEPTED, DUPLICATE, ACCEPTED]


def test_a_payment_reference_is_the_customers_and_a_redemption_reference_the_organizations() -> None:
    paid = [payment("1", "10"), payment("1", "10", customer_id="c2"), payment("1", "10"), payment("1", "11")]
    assert outcomes(*paid) == [ACCEPTED, ACCEPTED, DUPLICATE, QUARANTINED]
    redeemed = [redemption("1", 5), redemption("1", 5, customer_id="c2"), redemption("1", 5), redemption("1", 6)]
    assert outcomes(*redeemed) == [ACCEPTED, QUARANTINED, DUPLICATE, QUARANTINED]


def test_a_charge_may_be_asked_again_but_not_for_an_order_of_another_customer() -> None:
    charges = [charge("1", "10"), charge("1", "10"), charge("1", "11"), charge("1", "10", customer_id="c2")]
    assert outcomes(*charges, order("1", "12"), charge("1", "10")) == [
        *(ACCEPTED, ACCEPTED, ACCEPTED, QUARANTINED),
        *(ACCEPTED, ACCEPTED),
    ]
    used = state_after(opened("100"), charge("1", "200"), charge("1", "60"), charge("1", "60"), charge("1", "30"))
    assert used["credit"]["used"] == "60.00"


def test_a_charge_does_not_keep_the_order_from_its_customer() -> None:
    theirs = [charge("1", "10"), order("1", "12", customer_id="c2"), charge("1", "10")]
    assert outcomes(*theirs, charge("1", "9", customer_id="c2")) == [ACCEPTED, ACCEPTED, QUARANTINED, ACCEPTED]
    assert outcomes(order("1", "12"), charge("1", "1", customer_id="c2"), charge("1", "10")) == [
        ACCEPTED,
        QUARANTINED,
        ACCEPTED,
    ]


def test_cancelling_an_order_that_was_only_charged_frees_the_credit_and_its_completion_counts_as_cancelled() -> None:
    history = [opened("100"), charge("1", "40"), cancellation("1"), cancellation("1")]
    assert outcomes(*history, order("1", "40")) == [ACCEPTED, ACCEPTED, ACCEPTED, DUPLICATE, SUPPRESSED]
    before, after = state_after(*history), state_after(*history, order("1", "40", on_credit=True))
    assert (before["credit"]["used"], before["stats"]["cancelled_orders"]) == ("0.00", 0)
    assert (after["credit"]["used"], after["stats"]["cancelled_orders"], after["position"]) == ("0.00", 1, 4)


def test_organizations_share_nothing() -> None:
    model = ReferenceModel(Rules())
    for organization_id in ("org-1", "org-2"):
        assert model.receive(order("1", "10", organization_id=organization_id)) == ACCEPTED
    assert model.receive(cancellation("1")) == ACCEPTED
    assert model.customers() == [("org-1", "c1"), ("org-2", "c1")]
    assert [model.state(*each, TODAY)["stats"]["orders"] for each in model.customers()] == [0, 1]
