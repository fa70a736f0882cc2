"""Appending on both databases: outcomes, identity of every other row, positions, heads and bells [A1-A6, A8, A9]."""

import pytest

from customer_actors.domain.envelope import Received
from customer_actors.domain.events import Message, Outcome, Rejected
from customer_actors.domain.routing import BIT
from customer_actors.errors import DataFault
from customer_actors.storage.append import AppendPolicy, Incoming, append
from customer_actors.storage.database import Database
from customer_actors.storage.rules import number_of
from tests.model.examples import DAY_US, JUNE_1_US, cancellation, charge, opened, order, payment, pos, redemption
from tests.model.reference import ReferenceModel
from tests.storage.support import (
    NOW_US,
    RULES,
    TODAY,
    Storage,
    dump,
    in_organization,
    organization_dump,
    stored_state,
)

ACC, DUP, ANO = Outcome.ACCEPTED, Outcome.DUPLICATE, Outcome.ANONYMOUS
SUP, QUA = Outcome.SUPPRESSED, Outcome.QUARANTINED

USD, EUR = "USD", "EUR"
TWIN = order("1", "10", twin="t")
ANYBODY = pos("t", "10", customer_id=None)

KNOWN = [
    order("1", "10", currency=EUR),
    pos("t", "10"),
    pos("u", "10", customer_id=None),
    payment("p", "5"),
    opened("100"),
    charge("2", "10"),
    redemption("r", 5),
    cancellation("9"),
]
REFUSED: dict[str, Message | Rejected] = {
    "order, other amount": order("1", "11"),
    "order, other customer, who is new": order("1", "10", customer_id="new"),
    "till, other amount": pos("t", "11"),
    "till, other customer, who is new": pos("t", "10", customer_id="new"),
    "anonymous till, other amount": pos("u", "11"),
    "new order that names a till sale of another amount": order("new", "11", twin="t"),
    "new order that names a till sale of another customer": order("new", "10", twin="t", customer_id="new"),
    "new order that names an anonymous sale of another amount": order("new", "11", twin="u"),
    "cancelled order that names a till sale of another amount": order("9", "11", twin="t"),
    "payment, other amount": payment("p", "6"),
    "charge of another customer's order": charge("1", "10", customer_id="new"),
    "redemption, other points": redemption("r", 6),
    "other currency, everything new": order("new", "10", twin="new", customer_id="new", currency=USD),
    "other currency, new payment": payment("new", "5", customer_id="new")._replace(currency=USD),
    "other currency, new redemption": redemption("new", 5, customer_id="new")._replace(currency=USD),
    "other currency, new cancellation": cancellation("new")._replace(currency=USD),
    "unreadable": Rejected("bad_json", "not JSON", "org-1"),
}


@pytest.mark.parametrize("message", REFUSED.values(), ids=REFUSED.keys())
def test_a_quarantined_message_leaves_every_other_row_byte_identical(
    storage: Storage, message: Message | Rejected
) -> None:
    storage.settle(*KNOWN)
    before = dump(storage.database)
    for batch in ([message], [message, message], [order("1", "10"), message]):
        appended = storage.append(batch)
        assert [decision.outcome for decision in appended.decisions] == [
            DUP if m is not message else QUA for m in batch
        ]
    after = dump(storage.database)
    (row,) = after.pop("quarantine")
    assert before.pop("quarantine") == []
    assert 4 in row  # seen four times, kept once
    # The duplicate rings its customer again, and nothing else was written.
    assert len(after.pop("bell")) == len(before.pop("bell")) + 1
    assert after == before


def test_a_quarantined_message_rings_nobody(storage: Storage) -> None:
    storage.receive(order("1", "10"))
    before = dump(storage.database)["bell"]
    assert (
        storage.append([order("1", "11"), order("2", "10", currency=USD, customer_id="c2"), cancellation("3")]).bell
        != {}
    )
    storage.database.execute("DELETE FROM bell")
    assert storage.append([order("1", "11")]).bell == {}
    assert len(before) == 1
    assert dump(storage.database)["bell"] == []


def test_quarantine_keeps_each_content_once_with_a_count_and_the_times_it_was_seen(storage: Storage) -> None:
    storage.receive(order("1", "10"))
    bad = order("1", "11")
    storage.append([bad, bad], NOW_US + 1)
    storage.append([bad, order("1", "12")], NOW_US + 2)
    sql = "SELECT seen, first_seen_us, last_seen_us, code, organization_id FROM quarantine ORDER BY seen DESC"
    assert storage.database.query(sql) == [
        (3, NOW_US + 1, NOW_US + 2, "conflict", "org-1"),
        (1, NOW_US + 2, NOW_US + 2, "conflict", "org-1"),
    ]


@pytest.mark.parametrize(
    "received",
    [
        Received(b"\xff\x00", "order.completed", NOW_US, "gz\x00ip"),
        Received(b"", "order\x00.completed", NOW_US),
        Received(b"{}", None, NOW_US, "g\u00fcip"),
        Received("\ud800".encode("utf-8", "surrogatepass"), "\U0001f4a9" * 60, NOW_US),
    ],
    ids=["NUL in the encoding", "NUL in the routing key", "not ASCII", "half a surrogate pair in the body"],
)
def test_no_body_or_property_can_keep_a_refused_message_out_of_quarantine(storage: Storage, received: Received) -> None:
    policy = AppendPolicy(1, "bronze")
    batch = [Incoming(received, Rejected("bad_encoding", "not UTF-8"))]
    assert append(storage.database, batch, policy, NOW_US).decisions[0].outcome == QUA
    assert append(storage.database, batch, policy, NOW_US).decisions[0].outcome == QUA
    ((body, seen),) = storage.database.query("SELECT body, seen FROM quarantine")
    assert (bytes(body), seen) == (received.body, 2)


HOSTILE = [
    *(
        "'; DROP TABLE event --",
        "%s",
        "%(x)s",
        "?",
        "{customer}",
        "$1",
        ":name",
        "NULL",
        "\\N",
        "\\.",
        "\\",
        "{a,b}",
        '"',
        "()",
    ),
    *(
        "tab\there",
        "line\nfeed",
        "line\r\nend",
        "\x0b\x0c\x1b[31m\x7f\x85\u2028",
        "\U0001f600 e\u0301 \u202e",
        "\\x41\\101\\b",
    ),
]


@pytest.mark.parametrize("copies", [1, 20], ids=["few rows", "many rows"])
def test_text_is_stored_as_it_is_whatever_it_holds(storage: Storage, copies: int) -> None:
    """Large inserts take another way into PostgreSQL than small ones."""
    for text in HOSTILE:
        sales = [
            order(f"{text}{number}", "1", customer_id=text)._replace(payload=f'"{text}{number}"')
            for number in range(copies)
        ]
        policy = AppendPolicy(number_of(storage.database, RULES, NOW_US), "bronze")
        append(storage.database, [Incoming(None, message) for message in sales], policy, NOW_US)
        assert [event.reference for event in storage.events(text)] == [message.reference for message in sales]
        payloads = "SELECT payload FROM event_payload WHERE customer = ? ORDER BY position"
        assert storage.database.query(payloads, (storage.number(text),)) == [(message.payload,) for message in sales]
    for message in (order(f"{text}0", "1", customer_id=text) for text in HOSTILE):
        assert storage.receive(message) == [DUP]


def test_a_refused_command_is_answered_and_not_kept(storage: Storage) -> None:
    storage.receive(redemption("r", 5))
    policy = AppendPolicy(number_of(storage.database, RULES, NOW_US), "bronze")
    decision = append(storage.database, [Incoming(None, redemption("r", 6))], policy, NOW_US).decisions[0]
    assert decision.rejected is not None
    assert decision.rejected.code == "conflict"
    assert dump(storage.database)["quarantine"] == []


def test_data_the_database_refuses_keeps_nothing_of_the_batch(storage: Storage) -> None:
    storage.receive(order("1", "10"))
    before = dump(storage.database)
    with pytest.raises(DataFault):
        storage.receive(order("2", "10"), order("3", "10")._replace(amount_minor=2**63), payment("p", "5"))
    assert dump(storage.database) == before
    assert storage.receive(order("2", "10")) == [ACC]


def test_one_organizations_events_leave_every_row_of_another_identical(storage: Storage) -> None:
    storage.settle(*KNOWN)
    before = organization_dump(storage.database, "org-1")
    other = [*KNOWN, *(m for m in REFUSED.values() if isinstance(m, Message)), cancellation("1"), payment("z", "9")]
    storage.settle(*[m._replace(organization_id="org-2") for m in other])
    assert organization_dump(storage.database, "org-1") == before
    assert storage.events("c1", "org-2")[0].reference == "1"


def test_a_new_customer_has_a_state_row_of_every_actor_from_the_first_event_on(storage: Storage) -> None:
    storage.receive(payment("p", "5", customer_id="new"), order("1", "10", customer_id="other"))
    for table in ("stats_state", "loyalty_state", "credit_state", "customer_segment"):
        assert storage.database.query(f"SELECT customer, position FROM {table} ORDER BY 1") == [
            (number, 0) for number in sorted([storage.number("new"), storage.number("other")])
        ]


def test_heads_are_the_last_positions_that_concern_each_actor(storage: Storage) -> None:
    storage.receive(*KNOWN, cancellation("1"), cancellation("2"), order("9", "10"), payment("q", "5"))
    rows = storage.database.query("SELECT id, head, head_stats, head_loyalty, head_credit FROM customer")
    for number, head, *heads in rows:
        events = storage.database.query("SELECT position, concerns FROM event WHERE customer = ? ORDER BY 1", (number,))
        assert [position for position, _ in events] == list(range(1, head + 1))
        last = [
            max((p for p, concerns in events if concerns & BIT[a]), default=0) for a in ("stats", "loyalty", "credit")
        ]
        assert heads == last
    # A completion after its cancellation concerns statistics alone [A4].
    late = next(event for event in storage.events() if event.already_cancelled)
    assert (late.reference, late.concerns) == ("9", BIT["stats"])


def test_a_cancellation_carries_position_channel_amount_and_time_of_its_sale(storage: Storage) -> None:
    sold = JUNE_1_US + 3 * DAY_US
    storage.receive(payment("p", "5"), pos("t", "12.34")._replace(occurred_at_us=sold))
    storage.receive(order("1", "12.34", twin="t"), cancellation("1"), charge("2", "10"), cancellation("2"))
    first, second = [event for event in storage.events() if event.type == "order.cancelled"]
    assert (first.sale_position, first.channel, first.amount_minor, first.sale_occurred_at_us) == (2, "pos", 1234, sold)
    assert first.occurred_at_us == JUNE_1_US
    # Charged but never completed: there is no sale to undo, only a usage.
    assert (second.sale_position, second.sale_occurred_at_us, second.on_credit) == (None, None, True)


def test_a_cancellation_in_the_batch_of_its_sale_equals_one_in_a_later_batch(storage: Storage) -> None:
    one = in_organization([order("1", "10"), order("2", "20"), cancellation("1"), cancellation("2")], "org-one")
    storage.receive(*one)
    for message in in_organization(one, "org-many"):
        storage.receive(message)
    assert organization_dump(storage.database, "org-one") == organization_dump(storage.database, "org-many")
    assert [event.sale_position for event in storage.events("c1", "org-one")] == [None, None, 1, 2]


BELLS: dict[str, tuple[list[Message], Message, list[str]]] = {
    "sale": ([], order("1", "10"), ["order.completed"]),
    "sale on credit": ([], order("1", "10", on_credit=True), ["order.completed on credit"]),
    "till sale": ([], pos("t", "10"), ["pos.transaction.completed"]),
    "cancellation": ([order("1", "10")], cancellation("1"), ["order.cancelled"]),
    "cancellation of a charge": ([charge("1", "10")], cancellation("1"), ["order.cancelled on credit"]),
    "payment": ([], payment("p", "5"), ["payment.received"]),
    "redemption": ([], redemption("r", 5), ["loyalty.redeemed"]),
    "late completion": ([cancellation("1")], order("1", "10"), ["order.completed"]),
    "second name of a sale": ([pos("t", "10", on_credit=True)], TWIN, ["order.completed on credit"]),
    "cancellation brought along": ([pos("t", "10"), cancellation("1")], TWIN, ["order.cancelled"]),
}


@pytest.mark.parametrize(("before", "message", "routes"), BELLS.values(), ids=BELLS.keys())
def test_a_message_and_every_duplicate_of_it_ring_its_customer_and_leave_a_bell_row(
    storage: Storage, before: list[Message], message: Message, routes: list[str]
) -> None:
    storage.receive(*before)
    storage.database.execute("DELETE FROM bell")
    assert storage.append([message]).bell == {route: [storage.number()] for route in routes}
    again = storage.append([message])
    assert again.decisions[0].outcome == DUP
    # A crash may have lost the first bell: the duplicate's rings at least the same actors for the same customer.
    assert list(again.bell.values()) == [[storage.number()]]
    assert len(storage.database.query("SELECT groups FROM bell")) == 2


def test_a_configured_currency_is_everybodys_and_is_stored_with_the_first_message(database: Database) -> None:
    storage = Storage(database, currency=EUR)
    assert storage.receive(order("1", "10", currency=USD), order("1", "10"), order("2", "10", currency=EUR)) == [
        QUA,
        ACC,
        ACC,
    ]
    assert database.query("SELECT organization_id, currency FROM organization") == [("org-1", EUR)]


def test_a_history_is_the_models_after_any_batching(storage: Storage) -> None:
    history = [
        *KNOWN,
        cancellation("1"),
        TWIN,
        cancellation("2"),
        order("2", "10"),
        payment("q", "100"),
        order("9", "5"),
    ]
    model = ReferenceModel(RULES)
    expected = [model.receive(message) for message in history]
    assert storage.settle(*history) == expected
    for key in model.customers():
        assert {"organization_id": key[0], "customer_id": key[1], **stored_state(storage, *key)} == model.state(
            *key, TODAY
        )
