"""The model's rules about one customer, pinned by examples computed by hand from the rules' own sentences."""

from datetime import date, timedelta
from decimal import Decimal

import pytest

from customer_actors.domain.events import Event, EventType, Message, Outcome
from customer_actors.domain.rules import DEFAULT_TIERS, Rules
from tests.model.examples import (
    DAY_US,
    JUNE_1_US,
    TODAY,
    cancellation,
    charge,
    figures,
    lifted,
    limit_changed,
    opened,
    order,
    outcomes,
    payment,
    pos,
    redemption,
    state_after,
    suspended,
)
from tests.model.stream import AFTER_ALL, BEFORE_ALL, state_of_stream

BY_HAND = '{"automatic": false}'
LATE, NOT_LATE = (f'{{"automatic": true, "as_of": "{as_of}"}}' for as_of in (AFTER_ALL, BEFORE_ALL))


def test_a_customer_who_only_paid_has_zeros_nulls_bronze_and_money_in_suspense() -> None:
    assert state_after(payment("p1", "12.5")) == {
        "organization_id": "org-1",
        "customer_id": "c1",
        "position": 1,
        "stats": {
            "orders": 0,
            "total_spent": "0.00",
            "average_order_value": "0.00",
            "first_purchase_at": None,
            "last_purchase_at": None,
            "cancelled_orders": 0,
            "by_channel": {"order": 0, "pos": 0},
        },
        "loyalty": {"points_balance": 0, "points_debt": 0, "lifetime_points": 0, "tier": "bronze"},
        "segment": None,
        "credit": {
            "status": None,
            "limit": None,
            "used": "0.00",
            "available": None,
            "unapplied": "0.00",
            "suspense": "12.50",
        },
    }


# ---- statistics ------------------------------------------------------------------------------------------------------


def test_the_average_is_rounded_half_up_and_a_sale_of_zero_counts() -> None:
    assert state_after(order("1", "1.00"), order("2", "1.01"))["stats"]["average_order_value"] == "1.01"
    thirds = state_after(order("1", "10"), order("2", "0"), order("3", "0"))["stats"]
    assert figures(thirds, "orders total_spent average_order_value") == [3, "10.00", "3.33"]


def test_late_events_never_move_the_last_purchase_back_and_a_cancellation_does() -> None:
    history = [order("1", "1", at_us=JUNE_1_US + DAY_US), order("2", "1", at_us=JUNE_1_US + 1), order("3", "1")]
    late = state_after(*history)["stats"]
    assert figures(late, "first_purchase_at last_purchase_at") == ["2024-06-01T00:00:00Z", "2024-06-02T00:00:00Z"]
    undone = state_after(*history, cancellation("1"))["stats"]
    assert undone["last_purchase_at"] == "2024-06-01T00:00:00.000001Z"


@pytest.mark.parametrize(("decimals", "expected"), [(0, "1234"), (2, "12.34"), (3, "1.234")])
def test_amounts_have_exactly_the_currencys_decimals(decimals: int, expected: str) -> None:
    after = state_after(order("1", "12.34"), rules=Rules(currency_decimals=decimals))
    assert after["stats"]["total_spent"] == expected


# ---- loyalty ---------------------------------------------------------------------------------------------------------


def test_the_multiplier_is_that_of_the_tier_held_before_the_sale() -> None:
    first = state_after(order("1", "499.99"))["loyalty"]
    assert figures(first, "lifetime_points tier") == [499, "bronze"]
    second = state_after(order("1", "500"), order("2", "100.99"))["loyalty"]  # 500 + floor(100.99 x 1.2 = 121.188)
    assert figures(second, "points_balance lifetime_points tier") == [621, 621, "silver"]
    leap = state_after(order("1", "6000"), order("2", "10"))["loyalty"]  # 6000 at bronze, then 10 x 2.0
    assert figures(leap, "lifetime_points tier") == [6020, "platinum"]


def test_points_are_floored_once_after_rate_and_multiplier() -> None:
    double = (DEFAULT_TIERS[0].model_copy(update={"multiplier": Decimal("1.5")}),)
    rules = Rules(points_per_unit=Decimal("0.1"), tiers=double)
    after = state_after(order("1", "19.99"), order("2", "20"), rules=rules)  # floor(2.9985) + floor(3.0)
    assert after["loyalty"]["lifetime_points"] == 5


def test_a_reversal_takes_the_stored_points_back_lowers_the_tier_and_rerates_nothing() -> None:
    history = [order("1", "500"), order("2", "100"), cancellation("1")]
    assert figures(state_after(*history)["loyalty"], "points_balance lifetime_points tier") == [120, 120, "bronze"]
    undone = state_after(*history, cancellation("2"))["loyalty"]
    assert figures(undone, "points_balance lifetime_points") == [0, 0]


def test_spent_points_of_a_cancelled_order_are_a_debt_that_new_points_pay_first() -> None:
    history = [order("1", "100"), redemption("r1", 80), cancellation("1")]
    names = "points_balance points_debt lifetime_points"
    assert figures(state_after(*history[:2])["loyalty"], names) == [20, 0, 100]
    assert figures(state_after(*history)["loyalty"], names) == [0, 80, 0]
    assert figures(state_after(*history, order("2", "100"))["loyalty"], names) == [20, 0, 100]


def test_a_redemption_beyond_the_balance_is_refused_and_its_reference_stays_used() -> None:
    history = [order("1", "100"), redemption("r1", 101), order("2", "100"), redemption("r1", 101)]
    assert outcomes(*history)[-1] == Outcome.DUPLICATE
    assert state_after(*history)["loyalty"]["points_balance"] == 200


def test_cancelling_a_charge_gives_no_redeemed_points_back() -> None:
    history = [order("1", "100"), redemption("r1", 80), opened("50"), charge("2", "10"), cancellation("2")]
    assert figures(state_after(*history)["loyalty"], "points_balance lifetime_points") == [20, 100]


# ---- segmentation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("days", "recency"), [(-1, 5), (0, 5), (30, 5), (31, 4), (60, 4), (61, 3), (90, 3), (91, 2), (180, 2), (181, 1)]
)
def test_recency_falls_back_to_its_fixed_cuts(days: int, recency: int) -> None:
    segment = state_after(order("1", "1"), today=TODAY + timedelta(days=days))["segment"]
    assert segment["recency"] == recency


@pytest.mark.parametrize(("orders", "frequency"), [(1, 1), (2, 2), (3, 3), (4, 3), (5, 4), (9, 4), (10, 5)])
def test_frequency_falls_back_to_its_fixed_cuts(orders: int, frequency: int) -> None:
    sales = [order(str(number), "1") for number in range(orders)]
    assert state_after(*sales)["segment"]["frequency"] == frequency


@pytest.mark.parametrize(
    ("total", "monetary"),
    [("0", 1), ("99.99", 1), ("100", 2), ("499.99", 2), ("500", 3), ("1000", 4), ("4999.99", 4), ("5000", 5)],
)
def test_monetary_falls_back_to_its_fixed_cuts(total: str, monetary: int) -> None:
    assert state_after(order("1", total))["segment"]["monetary"] == monetary


@pytest.mark.parametrize(
    ("days", "orders", "amount", "code"),
    [
        (0, 5, "200", "champions"),  # 5 4 4
        (61, 5, "200", "loyal"),  # 3 4 4
        (0, 5, "1", "loyal"),  # 5 4 1
        (61, 3, "200", "loyal"),  # 3 3 3
        (60, 1, "5000", "new"),  # 4 1 5
        (0, 3, "1", "potential_loyalist"),  # 5 3 1
        (61, 1, "5000", "potential_loyalist"),  # 3 1 5
        (91, 3, "1", "at_risk"),  # 2 3 1
        (91, 1, "500", "at_risk"),  # 2 1 3
        (91, 2, "1", "lost"),  # 2 2 1
        (181, 5, "1", "at_risk"),  # 1 4 1
        (181, 1, "1000", "at_risk"),  # 1 1 4
        (181, 3, "200", "lost"),  # 1 3 3
    ],
)
def test_the_code_is_the_first_that_matches(days: int, orders: int, amount: str, code: str) -> None:
    sales = [order(str(number), amount) for number in range(orders)]
    assert state_after(*sales, today=TODAY + timedelta(days=days))["segment"]["code"] == code


def test_days_are_counted_in_the_business_time_zone() -> None:
    late_evening_utc = order("1", "1", at_us=JUNE_1_US + DAY_US - 1)
    utc, tokyo = Rules(timezone="UTC"), Rules(timezone="Asia/Tokyo")  # June 1 there, June 2 here
    july_2 = date(2024, 7, 2)
    assert state_after(late_evening_utc, rules=utc, today=july_2)["segment"]["recency"] == 4
    assert state_after(late_evening_utc, rules=tokyo, today=july_2)["segment"]["recency"] == 5


def test_days_are_counted_from_the_last_purchase() -> None:
    sales = [order("1", "1", at_us=JUNE_1_US + DAY_US), order("2", "1")]
    assert state_after(*sales, today=date(2024, 7, 2))["segment"]["recency"] == 5


def test_no_active_sale_no_segment() -> None:
    assert state_after(order("1", "10"), cancellation("1"))["segment"] is None


# ---- credit ----------------------------------------------------------------------------------------------------------

CREDIT = "status limit used available unapplied suspense"


def test_a_payment_without_account_waits_in_suspense_and_is_drained_at_opening() -> None:
    history = [payment("p1", "30"), order("1", "100", on_credit=True)]
    assert figures(state_after(*history)["credit"], CREDIT) == [None, None, "100.00", None, "0.00", "30.00"]
    after = state_after(*history, opened("500"))["credit"]
    assert figures(after, CREDIT) == ["active", "500.00", "70.00", "430.00", "0.00", "0.00"]


def test_unapplied_money_is_consumed_at_once_by_the_next_usage() -> None:
    history = [opened("100"), payment("p1", "80")]
    assert figures(state_after(*history)["credit"], "used available unapplied") == ["0.00", "100.00", "80.00"]
    after = state_after(*history, order("1", "50", on_credit=True), pos("2", "50", on_credit=True))["credit"]
    assert figures(after, "used available unapplied") == ["20.00", "80.00", "0.00"]


@pytest.mark.parametrize(("amount", "used"), [("120.00", "100.00"), ("120.01", "0.00")])
def test_a_charge_is_refused_beyond_limit_minus_used_plus_unapplied(amount: str, used: str) -> None:
    after = state_after(opened("100"), payment("p1", "20"), charge("1", amount))["credit"]
    assert after["used"] == used


def test_a_completed_sale_is_a_fact_even_over_the_limit_and_so_is_a_limit_cut() -> None:
    over = state_after(opened("0"), order("1", "10", on_credit=True))["credit"]
    assert figures(over, "used available") == ["10.00", "-10.00"]
    cut = state_after(opened("50"), charge("1", "40"), limit_changed("20"), charge("2", "1"))["credit"]
    assert figures(cut, "limit used available") == ["20.00", "40.00", "-20.00"]


@pytest.mark.parametrize(
    ("history", "used"),
    [
        ([charge("1", "40"), order("1", "60", on_credit=True)], "40.00"),
        ([order("1", "60", on_credit=True), charge("1", "40")], "60.00"),
        ([order("1", "60"), charge("1", "40")], "40.00"),
        ([pos("1", "60", on_credit=True), charge("1", "40")], "100.00"),
    ],
)
def test_a_charge_and_a_credit_sale_of_the_same_order_are_one_usage_the_first(
    history: list[Message], used: str
) -> None:
    assert state_after(opened("500"), *history)["credit"]["used"] == used


def test_a_cancelled_usage_gives_its_money_to_the_others() -> None:
    sales = [order(name, "50", on_credit=True) for name in ("1", "2")]
    after = state_after(opened("500"), *sales, payment("p1", "60"), cancellation("1"))["credit"]
    assert figures(after, "used unapplied") == ["0.00", "10.00"]


def test_a_cancellation_frees_the_usage_of_the_pos_sale_and_the_charge_of_its_order() -> None:
    history = [opened("500"), charge("1", "40"), pos("7", "60", on_credit=True), order("1", "60", twin="7")]
    assert state_after(*history)["credit"]["used"] == "100.00"
    assert state_after(*history, cancellation("1"))["credit"]["used"] == "0.00"


def test_a_charge_of_a_cancelled_order_is_refused_even_if_the_cancellation_never_entered_the_stream() -> None:
    tombstone = [opened("100"), cancellation("1"), charge("1", "40")]
    assert outcomes(*tombstone)[1:] == [Outcome.SUPPRESSED, Outcome.ACCEPTED]
    assert state_after(*tombstone)["credit"]["used"] == "0.00"
    assert (
        state_after(opened("100"), order("1", "40"), cancellation("1"), charge("1", "40"))["credit"]["used"] == "0.00"
    )


def test_a_charge_is_refused_when_its_order_is_cancelled_under_another_name() -> None:
    one_sale = [order("1", "40", twin="7"), order("2", "40", twin="7")]
    after = state_after(opened("100"), *one_sale, cancellation("1"), charge("2", "40"))
    assert after["credit"]["used"] == "0.00"


def test_a_charge_is_refused_when_the_stream_shows_its_order_cancelled() -> None:
    charged = Event(
        customer=1,
        position=3,
        type=EventType.CREDIT_CHARGED,
        reference="1",
        channel="order",
        amount_minor=4_000,
        occurred_at_us=JUNE_1_US,
        received_at_us=JUNE_1_US,
        rules=1,
        concerns=0,
        on_credit=False,
        already_cancelled=False,
        sale_position=None,
        sale_occurred_at_us=None,
        order_id=None,
        detail=None,
    )
    account = charged._replace(position=1, type=EventType.CREDIT_OPENED, reference="", amount_minor=10_000)
    for cancelled in (
        charged._replace(position=2, type=EventType.ORDER_CANCELLED),
        charged._replace(position=2, type=EventType.ORDER_COMPLETED, already_cancelled=True),
    ):
        after = state_of_stream([account, cancelled, charged], Rules(), TODAY)
        assert (after["credit"]["used"], after["position"]) == ("0.00", 3)
        assert "organization_id" not in after


def test_a_cancellation_frees_a_charge_of_the_sale_under_another_name() -> None:
    history = [opened("500"), charge("1", "40"), order("1", "60", twin="7"), order("2", "60", twin="7")]
    assert state_after(*history)["credit"]["used"] == "40.00"
    assert state_after(*history, cancellation("2"))["credit"]["used"] == "0.00"


def test_a_suspended_account_refuses_charges_and_accepts_money_and_sales() -> None:
    history = [opened("100"), suspended(), charge("1", "10"), order("2", "30", on_credit=True), payment("p1", "5")]
    assert figures(state_after(*history)["credit"], "status used") == ["suspended", "25.00"]
    assert figures(state_after(*history, lifted(), charge("3", "10"))["credit"], "status used") == ["active", "35.00"]


@pytest.mark.parametrize(
    ("commands", "status"),
    [
        ([suspended(LATE), lifted(NOT_LATE)], "active"),
        ([suspended(LATE), lifted(BY_HAND)], "active"),
        ([suspended(BY_HAND), lifted(NOT_LATE)], "suspended"),
        ([suspended(LATE), suspended(BY_HAND), lifted(NOT_LATE)], "suspended"),
        ([suspended(BY_HAND), suspended(LATE), lifted(NOT_LATE)], "suspended"),
        ([suspended(LATE), lifted(BY_HAND), suspended(BY_HAND), lifted(NOT_LATE)], "suspended"),
        ([lifted(BY_HAND)], "active"),
        ([suspended(NOT_LATE)], "active"),
        ([payment("p1", "9"), suspended(LATE)], "active"),
        ([suspended(LATE), lifted(LATE)], "suspended"),
        ([suspended(LATE), payment("p1", "9"), lifted(LATE)], "active"),
    ],
)
def test_the_night_lifts_only_what_the_night_suspended(commands: list[Message], status: str) -> None:
    assert state_after(opened("100"), order("1", "9", on_credit=True), *commands)["credit"]["status"] == status


def test_commands_on_a_customer_without_account_and_a_second_opening_change_nothing() -> None:
    without = state_after(charge("1", "0"), limit_changed("50"), suspended(), lifted(), redemption("r1", 1))
    assert (without["credit"], without["position"]) == (None, 5)
    again = state_after(opened("100"), suspended(), opened("100"), opened("300"))["credit"]
    assert figures(again, "status limit") == ["suspended", "100.00"]


def test_credit_is_null_when_all_that_was_ever_used_is_cancelled_and_no_money_came() -> None:
    used, undo = order("1", "10", on_credit=True), cancellation("1")
    assert state_after(used, undo)["credit"] is None
    assert state_after(order("1", "0", on_credit=True))["credit"]["used"] == "0.00"
    assert state_after(used, undo, payment("p1", "5"))["credit"]["suspense"] == "5.00"
