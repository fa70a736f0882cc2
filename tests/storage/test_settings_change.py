"""Settings that change must not change what is stored [A6, A10], and bells of one customer do not hide the others'."""

import pytest

from customer_actors.domain.events import Outcome
from customer_actors.domain.rules import Rules
from customer_actors.errors import UsageError
from customer_actors.storage.bells import PAGE, unanswered
from customer_actors.storage.opening import open_database
from customer_actors.storage.overdue import overdue
from customer_actors.storage.rules import number_of
from tests.model.examples import order
from tests.storage.support import NOW_US, Storage


def test_a_stored_currency_outlives_another_setting(storage: Storage) -> None:
    storage.currency = "EUR"
    assert storage.receive(order("1", "5")) == [Outcome.ACCEPTED]
    storage.currency = "USD"
    assert storage.receive(order("2", "5")._replace(currency="USD")) == [Outcome.QUARANTINED]
    storage.currency = None
    assert storage.receive(order("3", "5")._replace(currency="USD")) == [Outcome.QUARANTINED]
    assert storage.receive(order("4", "5")._replace(currency="EUR")) == [Outcome.ACCEPTED]


def test_other_decimals_than_those_stored_are_refused_with_the_variable_named(storage: Storage) -> None:
    storage.receive(order("1", "5"))
    with pytest.raises(UsageError, match="CUSTOMER_ACTORS_CURRENCY_DECIMALS"):
        number_of(storage.database, Rules(currency_decimals=3), NOW_US)


def test_bells_of_one_waiting_customer_do_not_hide_the_others(storage: Storage) -> None:
    for number in range(PAGE):
        storage.receive(order(str(number), "1"))
    storage.receive(order("other", "1", customer_id="c2"))
    storage.advance("stats", [storage.number("c2")])
    first = overdue(storage.stores(), NOW_US + 1, 0)
    assert storage.number("c2") not in first.behind["loyalty"]
    second = overdue(storage.stores(), NOW_US + 1, 0, first.last_bell)
    assert storage.number("c2") in second.behind["loyalty"]
    assert second.last_bell == 0
    assert len(unanswered(storage.database, NOW_US + 1)) == PAGE


def test_both_names_of_a_postgresql_address_are_the_same_database(postgres_url: str) -> None:
    database = open_database(postgres_url.replace("postgresql://", "postgres://"))
    assert database.query("SELECT current_database()") == [(postgres_url.rsplit("/", 1)[1],)]
    database.release()
