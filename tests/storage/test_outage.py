"""A PostgreSQL that goes away is nobody's fault: nothing kept, nothing charged, and all works afterwards."""

from typing import Any

import psycopg2
import pytest

from customer_actors.domain.loyalty import fold as loyalty_fold
from customer_actors.errors import Outage
from customer_actors.storage import loyalty
from tests.model.examples import order
from tests.servers import PrivatePostgres
from tests.storage.support import NOW_US, Storage, dump

RECONNECTS = 50


def end_connections(server: PrivatePostgres) -> None:
    """What a failover does to everybody who is connected."""
    connection = psycopg2.connect(server.url())
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity "
                "WHERE application_name = 'customer_actors'"
            )
    finally:
        connection.close()


def open_connections(server: PrivatePostgres) -> list[str]:
    """What the service's connections are doing."""
    connection = psycopg2.connect(server.url())
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT state FROM pg_stat_activity WHERE application_name = 'customer_actors'")
            return [state for (state,) in cursor.fetchall()]
    finally:
        connection.close()


def test_between_two_calls_no_transaction_is_open(postgres_storage: Storage, postgres: PrivatePostgres) -> None:
    postgres_storage.settle(order("1", "10"))
    postgres_storage.database.query("SELECT 1")
    assert open_connections(postgres) == ["idle"]


@pytest.mark.parametrize("how", ["connections", "fast", "immediate", "kill"])
def test_a_database_that_goes_away_is_an_outage_and_then_the_same_object_works(
    postgres_storage: Storage, postgres: PrivatePostgres, how: str
) -> None:
    storage = postgres_storage
    storage.settle(order("1", "10"))
    before = dump(storage.database)
    if how == "connections":
        end_connections(postgres)
    elif how == "kill":
        postgres.kill()
    else:
        postgres.stop("fast" if how == "fast" else "immediate")
    with pytest.raises(Outage):
        storage.receive(order("2", "10"))
    if how != "connections":
        for work in (lambda: storage.advance("stats", [1]), lambda: storage.database.query("SELECT 1")):
            with pytest.raises(Outage):
                work()
        postgres.start()
    assert dump(storage.database) == before
    assert storage.settle(order("2", "10")) == ["accepted"]
    assert open_connections(postgres) == ["idle"]


def test_connections_lost_over_and_over_leave_no_others_behind(
    postgres_storage: Storage, postgres: PrivatePostgres
) -> None:
    database = postgres_storage.database

    def lose_the_connection() -> None:
        with database.transaction():
            database.execute("SELECT 1")
            end_connections(postgres)
            database.execute("SELECT 1")

    for _ in range(RECONNECTS):
        with pytest.raises(Outage):
            lose_the_connection()
        with pytest.raises(Outage), database.transaction():
            database.query("SELECT * FROM no_such_table")
    database.query("SELECT 1")
    assert open_connections(postgres) == ["idle"]


def test_an_outage_inside_a_fold_is_nobodys_fault(
    postgres_storage: Storage, postgres: PrivatePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, whole, away = postgres_storage, loyalty_fold, [True]
    storage.receive(order("1", "10"), order("2", "10"))
    before = dump(storage.database)

    def fold(*facts: Any) -> Any:
        if away:
            away.pop()
            end_connections(postgres)
        return whole(*facts)

    monkeypatch.setattr(loyalty, "fold", fold)
    with pytest.raises(Outage):
        storage.advance("loyalty")
    assert dump(storage.database) == before
    assert storage.advance("loyalty").applied == 2


def test_an_outage_during_a_retry_charges_no_attempt(
    postgres_storage: Storage, postgres: PrivatePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = postgres_storage

    def broken(*facts: Any) -> Any:
        raise ValueError("broken")

    def broken_and_away(*facts: Any) -> Any:
        end_connections(postgres)
        raise ValueError("broken")

    monkeypatch.setattr(loyalty, "fold", broken)
    storage.settle(order("1", "10"))
    before = dump(storage.database)
    monkeypatch.setattr(loyalty, "fold", broken_and_away)
    with pytest.raises(Outage):
        storage.stores().of("loyalty").retry(storage.number(), NOW_US * 2)
    assert dump(storage.database) == before
