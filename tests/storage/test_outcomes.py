"""Every case of A1-A5 as a table: one outcome per message, the same rows however the messages were batched."""

from itertools import permutations

import pytest

from customer_actors.domain.events import SALE_TYPES, Message, Outcome, Rejected
from tests.model.examples import DAY_US, JUNE_1_US, cancellation, charge, opened, order, payment, pos, redemption
from tests.model.reference import ReferenceModel
from tests.storage.support import RULES, Storage, in_organization, organization_dump, splits, stored_state

ACC, DUP, ANO = Outcome.ACCEPTED, Outcome.DUPLICATE, Outcome.ANONYMOUS
SUP, QUA = Outcome.SUPPRESSED, Outcome.QUARANTINED

USD, EUR = "USD", "EUR"
TWIN = order("1", "10", twin="t")
ANYBODY = pos("t", "10", customer_id=None)

Step = tuple[Message | Rejected, Outcome]
CASES: dict[str, list[Step]] = {
    # [A2, A3] one key, one content
    "a sale counts once": [(order("1", "10"), ACC), (order("1", "10"), DUP), (order("1", "10"), DUP)],
    "another amount is a conflict": [(order("1", "10"), ACC), (order("1", "11"), QUA), (order("1", "10"), DUP)],
    "another customer is a conflict": [(order("1", "10"), ACC), (order("1", "10", customer_id="c2"), QUA)],
    "nothing else is compared": [
        (order("1", "10"), ACC),
        (order("1", "10", at_us=JUNE_1_US + DAY_US, on_credit=True), DUP),
    ],
    "an order and a till sale may have one id": [(order("1", "10"), ACC), (pos("1", "20"), ACC), (pos("1", "20"), DUP)],
    "the same content after a cancellation": [
        (order("1", "10"), ACC),
        (cancellation("1"), ACC),
        (order("1", "10"), DUP),
        (cancellation("1"), DUP),
        (order("1", "11"), QUA),
    ],
    "a till sale": [
        (pos("t", "10"), ACC),
        (pos("t", "10"), DUP),
        (pos("t", "11"), QUA),
        (pos("t", "10", customer_id="c2"), QUA),
    ],
    "a payment": [
        (payment("p", "5"), ACC),
        (payment("p", "5"), DUP),
        (payment("p", "6"), QUA),
        (payment("p", "6", customer_id="c2"), ACC),
    ],
    # [A4] tombstones
    "a cancellation before its order": [
        (cancellation("1"), SUP),
        (cancellation("1"), DUP),
        (order("1", "10"), SUP),
        (order("1", "10"), DUP),
        (cancellation("1"), DUP),
    ],
    "a conflict after a tombstone": [
        (cancellation("1"), SUP),
        (order("1", "10"), SUP),
        (order("1", "10", customer_id="c2"), QUA),
    ],
    "a cancellation never means a till sale": [
        (cancellation("1"), SUP),
        (pos("1", "10"), ACC),
        (cancellation("1"), DUP),
    ],
    # [A5] one sale with two names
    "till first, then order": [(pos("t", "10"), ACC), (TWIN, DUP), (cancellation("1"), ACC), (cancellation("1"), DUP)],
    "order first, then till": [(TWIN, ACC), (pos("t", "10"), DUP), (cancellation("1"), ACC), (pos("t", "10"), DUP)],
    "anonymous, then order, then till": [
        (ANYBODY, ANO),
        (ANYBODY, DUP),
        (TWIN, ACC),
        (ANYBODY, DUP),
        (pos("t", "10"), DUP),
    ],
    "anonymous, then till, then order": [(ANYBODY, ANO), (pos("t", "10"), ACC), (TWIN, DUP), (ANYBODY, DUP)],
    "an anonymous one after a named one": [(pos("t", "10"), ACC), (ANYBODY, DUP)],
    "another amount than the anonymous one": [
        (ANYBODY, ANO),
        (pos("t", "11", customer_id=None), QUA),
        (pos("t", "11"), QUA),
        (order("1", "11", twin="t"), QUA),
        (TWIN, ACC),
    ],
    "a twin that contradicts the till": [
        (pos("t", "10"), ACC),
        (order("1", "11", twin="t"), QUA),
        (order("1", "10", twin="t", customer_id="c2"), QUA),
        (TWIN, DUP),
    ],
    "a till that contradicts its twin": [(TWIN, ACC), (pos("t", "11"), QUA), (pos("t", "10", customer_id="c2"), QUA)],
    "cancelled before anything linked it": [
        (cancellation("1"), SUP),
        (pos("t", "10"), ACC),
        (TWIN, SUP),
        (cancellation("1"), DUP),
        (TWIN, DUP),
    ],
    "cancelled, then order, then till": [(cancellation("1"), SUP), (TWIN, SUP), (pos("t", "10"), DUP), (ANYBODY, DUP)],
    "cancelled, anonymous, then order": [(cancellation("1"), SUP), (ANYBODY, ANO), (TWIN, SUP), (pos("t", "10"), DUP)],
    "two orders that are one till sale": [
        (TWIN, ACC),
        (order("2", "10", twin="t"), DUP),
        (cancellation("2"), ACC),
        (cancellation("1"), DUP),
    ],
    # [C4, C9] charges and redemptions
    "a charge": [
        (opened("100"), ACC),
        (charge("1", "10"), ACC),
        (charge("1", "10"), ACC),
        (charge("1", "11"), ACC),
        (charge("1", "10", customer_id="c2"), QUA),
    ],
    "a charge, then its order": [
        (opened("100"), ACC),
        (charge("1", "10"), ACC),
        (order("1", "12"), ACC),
        (cancellation("1"), ACC),
    ],
    "a charge, then the order of another customer": [
        (charge("1", "10"), ACC),
        (order("1", "12", customer_id="c2"), ACC),
        (order("1", "12"), QUA),
        (charge("1", "10"), QUA),
        (cancellation("1"), ACC),
    ],
    "a payment of an order that is a till sale": [
        (pos("t", "10", on_credit=True), ACC),
        (TWIN, DUP),
        (payment("p", "5")._replace(order_id="1"), ACC),
    ],
    "a charge, then a cancellation": [
        (charge("1", "10"), ACC),
        (cancellation("1"), ACC),
        (cancellation("1"), DUP),
        (order("1", "12"), SUP),
    ],
    "a charge of a sale": [
        (order("1", "12"), ACC),
        (charge("1", "12"), ACC),
        (cancellation("1"), ACC),
        (charge("1", "12"), ACC),
    ],
    "a charge of a cancelled order": [(cancellation("1"), SUP), (charge("1", "10"), ACC), (order("1", "10"), SUP)],
    "a redemption": [
        (redemption("r", 5), ACC),
        (redemption("r", 5), DUP),
        (redemption("r", 6), QUA),
        (redemption("r", 5, customer_id="c2"), QUA),
    ],
    # [A6] the currency is the first one named
    "the first currency stands": [
        (order("1", "10", currency=EUR), ACC),
        (order("2", "10", currency=USD), QUA),
        (order("2", "10"), ACC),
        (order("2", "10", currency=EUR), DUP),
    ],
    "a refused message names no currency": [
        (payment("p", "5"), ACC),
        (payment("p", "6")._replace(currency=USD), QUA),
        (payment("q", "5")._replace(currency=EUR), ACC),
        (payment("q", "5")._replace(currency=USD), QUA),
    ],
    "a duplicate names no currency": [
        (order("1", "10"), ACC),
        (order("1", "10", currency=USD), DUP),
        (order("2", "10", currency=EUR), ACC),
    ],
    "the first payment of a key was refused": [
        (order("1", "10", currency=EUR), ACC),
        (payment("p", "5")._replace(currency=USD), QUA),
        (payment("p", "7")._replace(currency=EUR), ACC),
        (payment("p", "7"), DUP),
        (payment("p", "5"), QUA),
    ],
    "the first redemption of a key was refused": [
        (order("1", "10", currency=EUR), ACC),
        (redemption("r", 5)._replace(currency=USD), QUA),
        (redemption("r", 7), ACC),
        (redemption("r", 7), DUP),
    ],
    # [A1] what decoding refused
    "an unreadable message": [
        (order("1", "10"), ACC),
        (Rejected("bad_json", "not JSON", None), QUA),
        (order("1", "10"), DUP),
    ],
}


@pytest.mark.parametrize("steps", CASES.values(), ids=CASES.keys())
def test_outcomes_and_rows_are_the_same_however_the_messages_are_batched(storage: Storage, steps: list[Step]) -> None:
    expected = [outcome for _, outcome in steps]
    results = []
    for index, batches in enumerate(splits([message for message, _ in steps])):
        name = f"org-{index}"
        outcomes = [outcome for batch in batches for outcome in storage.receive(*in_organization(batch, name))]
        assert outcomes == expected
        results.append(organization_dump(storage.database, name))
    assert results == [results[0]] * len(results)
    assert (
        storage.value("SELECT count(*) FROM customer WHERE head <> (SELECT count(*) FROM event WHERE customer = id)")
        == 0
    )


@pytest.mark.parametrize("steps", CASES.values(), ids=CASES.keys())
def test_the_model_agrees_with_the_table(steps: list[Step]) -> None:
    model = ReferenceModel(RULES)
    assert [model.receive(message) for message, _ in steps] == [outcome for _, outcome in steps]


TWINS = {
    "named till": [pos("t", "10"), TWIN, cancellation("1"), cancellation("1")],
    "anonymous till": [ANYBODY, TWIN, cancellation("1"), pos("t", "10")],
    "two orders": [pos("t", "10"), TWIN, order("2", "10", twin="t"), cancellation("2")],
    "on credit": [pos("t", "10", on_credit=True), TWIN, charge("1", "10"), cancellation("1")],
}


@pytest.mark.parametrize("messages", TWINS.values(), ids=TWINS.keys())
def test_twins_are_one_sale_that_ends_cancelled_in_every_order_of_arrival(
    storage: Storage, messages: list[Message]
) -> None:
    for index, arrival in enumerate(permutations([opened("100"), *messages])):
        name, model = f"org-{index}", ReferenceModel(RULES)
        arrived = in_organization(arrival, name)
        assert storage.receive(*arrived) == [model.receive(message) for message in arrived]
        sales = [e for e in storage.events("c1", name) if e.type in SALE_TYPES]
        assert len(sales) == 1
    storage.settle()
    for organization_id, customer_id in storage.customers():
        state = stored_state(storage, organization_id, customer_id)
        assert (state["stats"]["orders"], state["stats"]["cancelled_orders"]) == (0, 1)
        assert state["credit"]["used"] == "0.00"
