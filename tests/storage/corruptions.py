"""One customer's life, and every way to corrupt what is stored of it, with what an audit must say of each."""

from collections.abc import Sequence

from customer_actors.domain.events import Message
from customer_actors.domain.routing import CREDIT, LOYALTY, SEGMENTATION, STATS
from customer_actors.domain.story import STREAM
from tests.model.examples import JUNE_1_US, cancellation, charge, opened, order, payment, pos, redemption

LIFE: Sequence[Message] = (
    opened("100"),
    order("O-1", "450.00", at_us=JUNE_1_US + 500_000),
    pos("T-1", "60.00", on_credit=True),
    order("O-2", "50.00", on_credit=True),
    payment("P-1", "100.00")._replace(order_id="O-2"),
    redemption("R-1", 100),
    cancellation("O-2"),
    order("O-3", "10.00", customer_id="c2"),
    charge("O-4", "20.00"),
)
"""Of customer c1, and one order of c2."""

ENTRY_2 = "kind earn, points 450, sale_position 2, tier bronze, multiplier 1.0, points_per_unit 1"
USAGE_3 = "channel pos, reference T-1, amount 60.00, outstanding 0.00, due_date 2024-07-01"
Told = tuple[str, str, object, object]
STATE: list[tuple[str, set[Told]]] = [
    ("UPDATE stats_state SET sales_order = 7", {(STATS, "sales_order", 7, 1)}),
    ("UPDATE stats_state SET sales_pos = 0", {(STATS, "sales_pos", 0, 1)}),
    ("UPDATE stats_state SET total_spent_minor = 51001", {(STATS, "total_spent", "510.01", "510.00")}),
    ("UPDATE stats_state SET cancelled_orders = 0", {(STATS, "cancelled_orders", 0, 1)}),
    (
        "UPDATE stats_state SET first_purchase_at_us = NULL",
        {(STATS, "first_purchase_at", None, "2024-06-01T00:00:00Z")},
    ),
    (
        f"UPDATE stats_state SET last_purchase_at_us = {JUNE_1_US + 500_001}",
        {(STATS, "last_purchase_at", "2024-06-01T00:00:00.500001Z", "2024-06-01T00:00:00.500000Z")},
    ),
    ("UPDATE loyalty_state SET points = 411", {(LOYALTY, "points", 411, 410)}),
    ("UPDATE loyalty_state SET lifetime_points = 0", {(LOYALTY, "lifetime_points", 0, 510)}),
    ("UPDATE loyalty_state SET tier = 'gold'", {(LOYALTY, "tier", "gold", "silver")}),
    ("UPDATE credit_state SET status = 'suspended'", {(CREDIT, "status", "suspended", "active")}),
    ("UPDATE credit_state SET automatic = NOT automatic", {(CREDIT, "automatic", True, False)}),
    ("UPDATE credit_state SET limit_minor = 1", {(CREDIT, "limit", "0.01", "100.00")}),
    ("UPDATE credit_state SET terms_days = 7", {(CREDIT, "terms_days", 7, 30)}),
    ("UPDATE credit_state SET used_minor = 1", {(CREDIT, "used", "0.01", "0.00")}),
    ("UPDATE credit_state SET unapplied_minor = 0", {(CREDIT, "unapplied", "0.00", "20.00")}),
    (  # the database keeps money in suspense only where there is no account
        "UPDATE credit_state SET suspense_minor = 1, status = NULL",
        {(CREDIT, "suspense", "0.01", "0.00"), (CREDIT, "status", None, "active")},
    ),
]
CACHED: list[tuple[str, set[Told]]] = [
    (
        "UPDATE credit_usage SET outstanding_minor = 5 WHERE position = 3",
        {
            (CREDIT, "usage 3 outstanding", "0.05", "0.00"),
            (CREDIT, "usages_outstanding", "0.05", "0.00"),
        },
    ),
    (
        "UPDATE credit_usage SET cancelled_position = NULL WHERE position = 4",
        {(CREDIT, "usage 4 cancelled_position", None, 7)},
    ),
    (
        "UPDATE credit_payment SET unapplied_minor = 1",
        {
            (CREDIT, "payment 5 unapplied", "0.01", "20.00"),
            (CREDIT, "payments_unapplied", "0.01", "20.00"),
        },
    ),
]
MISSING: list[tuple[str, set[Told]]] = [
    (
        "DELETE FROM loyalty_entry WHERE position = 2",
        {
            (LOYALTY, "entry 2", None, ENTRY_2),
            (LOYALTY, "ledger_points", -40, 410),
            (LOYALTY, "ledger_lifetime_points", 60, 510),
        },
    ),
    ("DELETE FROM credit_usage WHERE position = 3", {(CREDIT, "usage 3", None, USAGE_3)}),
    (
        "DELETE FROM credit_payment",
        {
            (CREDIT, "payment 5", None, "reference P-1, amount 100.00, unapplied 20.00, order_id O-2, sale_position 4"),
            (CREDIT, "payments_unapplied", "0.00", "20.00"),
        },
    ),
    (
        "DELETE FROM credit_allocation WHERE position = 7 AND usage_position = 4",
        {(CREDIT, "allocation 7 of payment 5 to usage 4", None, "amount -50.00")},
    ),
]
FACTS: list[tuple[str, set[Told]]] = [
    (
        "UPDATE loyalty_entry SET points = 451, multiplier = '2' WHERE position = 2",
        {
            (LOYALTY, "entry 2 points", 451, 450),
            (LOYALTY, "entry 2 multiplier", "2", "1.0"),
            (LOYALTY, "ledger_points", 411, 410),
            (LOYALTY, "ledger_lifetime_points", 511, 510),
        },
    ),
    (
        "INSERT INTO loyalty_entry (customer, position, kind, points) SELECT id, 5, 'redeem', -1 FROM customer "
        "WHERE customer_id = 'c1'",
        {(LOYALTY, "entry 5", "kind redeem, points -1", None), (LOYALTY, "ledger_points", 409, 410)},
    ),
    (
        "INSERT INTO loyalty_entry (customer, position, kind, points) SELECT id, 50, 'redeem', -1 FROM customer "
        "WHERE customer_id = 'c1'",
        {(LOYALTY, "entry 50", "kind redeem, points -1", None), (LOYALTY, "ledger_points", 409, 410)},
    ),
    (
        "UPDATE credit_usage SET due_date = '2024-07-02', over_limit = NOT over_limit WHERE position = 3",
        {
            (CREDIT, "usage 3 due_date", "2024-07-02", "2024-07-01"),
            (CREDIT, "usage 3 over_limit", True, False),
        },
    ),
    ("UPDATE credit_payment SET order_id = NULL", {(CREDIT, "payment 5 order_id", None, "O-2")}),
    (
        "INSERT INTO credit_allocation (customer, usage_position, payment_position, position, amount_minor) "
        "SELECT id, 3, 5, 50, 1 FROM customer WHERE customer_id = 'c1'",
        {(CREDIT, "allocation 50 of payment 5 to usage 3", "amount 0.01", None)},
    ),
    (
        "INSERT INTO credit_allocation (customer, usage_position, payment_position, position, amount_minor) "
        "SELECT id, 3, 5, 0, 1 FROM customer WHERE customer_id = 'c1'",
        {(CREDIT, "allocation 0 of payment 5 to usage 3", "amount 0.01", None)},
    ),
    (
        "UPDATE credit_allocation SET amount_minor = 1 WHERE position = 5 AND usage_position = 4",
        {(CREDIT, "allocation 5 of payment 5 to usage 4 amount", "0.01", "50.00")},
    ),
]
SEGMENT: list[tuple[str, set[Told]]] = [
    ("UPDATE customer_segment SET recency = 4", {(SEGMENTATION, "recency", 4, 5)}),
    ("UPDATE customer_segment SET frequency = 4", {(SEGMENTATION, "frequency", 4, 2)}),
    ("UPDATE customer_segment SET monetary = 4", {(SEGMENTATION, "monetary", 4, 3)}),
    (  # scores are judged by the figures beside them
        "UPDATE customer_segment SET orders = 3",
        {
            (SEGMENTATION, "orders", 3, 2),
            (SEGMENTATION, "frequency", 2, 3),
            (SEGMENTATION, "code", "potential_loyalist", "loyal"),
        },
    ),
    (
        "UPDATE customer_segment SET last_purchase_date = '2024-06-02'",
        {(SEGMENTATION, "last_purchase_date", "2024-06-02", "2024-06-01")},
    ),
    (
        "UPDATE customer_segment SET total_spent_minor = 51001",
        {(SEGMENTATION, "total_spent_minor", "510.01", "510.00")},
    ),
    ("UPDATE customer_segment SET code = 'lost'", {(SEGMENTATION, "code", "lost", "potential_loyalist")}),
    ("UPDATE customer_segment SET cuts = 5", {(SEGMENTATION, "cuts", 5, None)}),
]
POSITIONS: list[tuple[str, set[Told]]] = [
    ("UPDATE customer_segment SET position = 8", {(SEGMENTATION, "position", 8, 7)}),
    ("UPDATE stats_state SET position = 8", {(STATS, "position", 8, 7)}),
    ("UPDATE loyalty_state SET held_position = 90", {(LOYALTY, "held_position", 90, None)}),
    ("UPDATE customer SET head = 9", {(STREAM, "head", 9, 8)}),
]


def of_c1(statement: str) -> str:
    """The statement for customer c1 alone."""
    if statement.startswith("INSERT"):
        return statement
    name = "id" if statement.startswith("UPDATE customer SET") else "customer"
    joint = "AND" if "WHERE" in statement else "WHERE"
    return f"{statement} {joint} {name} = (SELECT id FROM customer WHERE customer_id = 'c1')"


def ids(cases: Sequence[tuple[str, set[Told]]]) -> list[str]:
    return [statement[:60] for statement, _ in cases]
