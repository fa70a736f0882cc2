"""The database itself refuses what no rule allows, whoever asks."""

import pytest

from customer_actors.domain.events import Outcome
from customer_actors.errors import DataFault
from customer_actors.storage.append import EVENT
from tests.model.examples import cancellation, opened, order, payment
from tests.storage.support import Storage, organization_dump
from tests.tampering import tamper

ILLEGAL: dict[str, str] = {
    "a second event at one position": "INSERT INTO event ({event}) SELECT {event} FROM event WHERE position = 1",
    "a position below one": "UPDATE event SET position = 0 WHERE position = 1",
    "an event that undoes a later one": "UPDATE event SET sale_position = position WHERE position = 2",
    "a second customer of one name": "INSERT INTO customer (organization_id, customer_id) VALUES ('org-1', 'c1')",
    "an actor's head past the head": "UPDATE customer SET head_stats = head + 1",
    "a negative count": "UPDATE stats_state SET sales_order = -1",
    "a last purchase before the first": "UPDATE stats_state SET last_purchase_at_us = first_purchase_at_us - 1",
    "a hold behind the position": "UPDATE loyalty_state SET held_position = position",
    "a negative lifetime": "UPDATE loyalty_state SET lifetime_points = -1",
    "an entry of no points": "UPDATE loyalty_entry SET points = 0",
    "a negative earning": "UPDATE loyalty_entry SET points = -5 WHERE kind = 'earn'",
    "a second reversal of one earning": (
        "INSERT INTO loyalty_entry (customer, position, kind, points, sale_position) "
        "SELECT customer, 99, kind, points, sale_position FROM loyalty_entry WHERE kind = 'reverse'"
    ),
    "a usage paid below zero": "UPDATE credit_usage SET outstanding_minor = -1",
    "a usage owing more than it was": "UPDATE credit_usage SET outstanding_minor = amount_minor + 1",
    "a cancelled usage that owes": "UPDATE credit_usage SET cancelled_position = 9 WHERE outstanding_minor > 0",
    "a second usage of one sale": "UPDATE credit_usage SET reference = 'same'",
    "a payment spent below zero": "UPDATE credit_payment SET unapplied_minor = -1",
    "suspense beside an account": "UPDATE credit_state SET suspense_minor = 1 WHERE status = 'active'",
    "an unknown status": "UPDATE credit_state SET status = 'closed' WHERE status = 'active'",
    "an unknown channel": "UPDATE sale SET channel = 'web'",
    "a score out of range": "UPDATE customer_segment SET recency = 6",
    "a segment without an active sale": "UPDATE customer_segment SET orders = 0",
    "a text for a number": "UPDATE stats_state SET total_spent_minor = 'many'",
}


@pytest.fixture
def full(storage: Storage) -> Storage:
    """A little of everything."""
    sales = [order("1", "10", on_credit=True), order("2", "20", on_credit=True), order("3", "30")]
    done = storage.settle(*sales, opened("100"), payment("p", "15"), cancellation("3"))
    assert set(done) == {Outcome.ACCEPTED}
    return storage


@pytest.mark.parametrize("statement", ILLEGAL.values(), ids=ILLEGAL.keys())
def test_the_database_itself_refuses(full: Storage, statement: str) -> None:
    before = organization_dump(full.database, "org-1")
    with pytest.raises(DataFault):
        tamper(full.database, statement.format(event=", ".join(EVENT.names)))
    assert organization_dump(full.database, "org-1") == before
