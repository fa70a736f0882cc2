"""A PostgreSQL that goes away is nobody's fault: nothing kept, nothing charged, and all works afterwards."""

from collections.abc import Iterator
from typing import Any

import psycopg2
import pytest
from structlog.testing import capture_logs

from customer_actors.domain.loyalty import fold as loyalty_fold
from customer_actors.errors import Outage, UsageError
from customer_actors.storage import loyalty
from customer_actors.storage.opening import open_database
from customer_actors.storage.schema import migrate
from tests.model.examples import order
from tests.servers import PrivatePostgres
from tests.servers.process import wait_until
from tests.storage.support import NOW_US, Storage, dump

RECONNECTS = 50


@pytest.fixture
def stoppable_storage(stoppable_url: str) -> Iterator[Storage]:
    """On the server that may be stopped."""
    database = open_database(stoppable_url)
    migrate(database)
    yield Storage(database)
    database.release()


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


def await_one_idle_connection(server: PrivatePostgres) -> None:
    """One that was closed lately ends when the server comes to it."""
    wait_until(lambda: open_connections(server) == ["idle"])


def test_every_connection_has_its_limits(postgres_storage: Storage) -> None:
    """Seconds for a statement, a lock, a forgotten transaction, a host that is gone: none is for ever."""
    database = postgres_storage.database
    for setting, limit in (
        ("statement_timeout", "1min"),
        ("lock_timeout", "20s"),
        ("idle_in_transaction_session_timeout", "1min"),
    ):
        assert database.query(f"SHOW {setting}") == [(limit,)]
    told = database.engine.connection().get_dsn_parameters()
    idle, interval, count = (int(told[f"keepalives_{name}"]) for name in ("idle", "interval", "count"))
    assert idle + interval * count <= 30
    assert int(told["tcp_user_timeout"]) <= 30_000
    assert int(told["connect_timeout"]) <= 5


def test_a_statement_or_a_lock_past_its_limit_is_an_outage(postgres_url: str) -> None:
    database, other = open_database(postgres_url), open_database(postgres_url)
    database.query("SELECT set_config('statement_timeout', '50', false)")
    with pytest.raises(Outage, match="statement timeout"):
        database.query("SELECT pg_sleep(20)")
    database.query("SELECT set_config('lock_timeout', '50', false)")
    with other.transaction():
        other.execute("SELECT pg_advisory_xact_lock(1)")
        with pytest.raises(Outage, match="lock timeout"):
            database.query("SELECT pg_advisory_xact_lock(1)")
    for each in (database, other):
        each.release()


@pytest.mark.parametrize("code", ["40P01", "40001", "53100"], ids=["deadlock", "serialization failure", "disk full"])
def test_a_transaction_given_up_for_others_or_for_want_of_room_is_an_outage(
    postgres_storage: Storage, code: str
) -> None:
    """Taken for the data's fault it would hold the customer and charge an attempt."""
    storage = postgres_storage
    storage.receive(order("1", "10"))
    storage.database.execute(
        "CREATE FUNCTION give_up() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION 'given up' USING ERRCODE = '{code}'; END $$"
    )
    storage.database.execute(
        "CREATE TRIGGER give_up BEFORE UPDATE ON loyalty_state FOR EACH ROW EXECUTE FUNCTION give_up()"
    )
    before = dump(storage.database)
    with pytest.raises(Outage, match="given up"):
        storage.advance("loyalty")
    assert dump(storage.database) == before
    storage.database.execute("DROP FUNCTION give_up CASCADE")
    assert storage.advance("loyalty").applied == 1


def test_between_two_calls_no_transaction_is_open(postgres_storage: Storage, postgres: PrivatePostgres) -> None:
    postgres_storage.settle(order("1", "10"))
    postgres_storage.database.query("SELECT 1")
    await_one_idle_connection(postgres)


@pytest.mark.parametrize("how", ["connections", "fast", "immediate", "kill"])
def test_a_database_that_goes_away_is_an_outage_and_then_the_same_object_works(
    stoppable_storage: Storage, stoppable_postgres: PrivatePostgres, how: str
) -> None:
    storage = stoppable_storage
    storage.settle(order("1", "10"))
    before = dump(storage.database)
    if how == "connections":
        end_connections(stoppable_postgres)
    elif how == "kill":
        stoppable_postgres.kill()
    else:
        stoppable_postgres.stop("fast" if how == "fast" else "immediate")
    with pytest.raises(Outage):
        storage.receive(order("2", "10"))
    if how != "connections":
        for work in (lambda: storage.advance("stats", [1]), lambda: storage.database.query("SELECT 1")):
            with pytest.raises(Outage):
                work()
        stoppable_postgres.start()
    assert dump(storage.database) == before
    assert storage.settle(order("2", "10")) == ["accepted"]
    await_one_idle_connection(stoppable_postgres)


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
    await_one_idle_connection(postgres)


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


@pytest.mark.parametrize("how", ["connections", "fast", "kill"])
def test_a_restart_between_two_messages_costs_neither(
    stoppable_storage: Storage, stoppable_postgres: PrivatePostgres, how: str
) -> None:
    storage = stoppable_storage
    with storage.database.scope():
        storage.settle(order("1", "10"))
    if how == "connections":
        end_connections(stoppable_postgres)
    else:
        stoppable_postgres.kill() if how == "kill" else stoppable_postgres.stop("fast")
        stoppable_postgres.start()
    with storage.database.scope():
        assert storage.settle(order("2", "10")) == ["accepted"]
    await_one_idle_connection(stoppable_postgres)


def test_a_restart_between_two_tries_of_a_held_customer_charges_only_what_the_fold_raises(
    postgres_storage: Storage, postgres: PrivatePostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, tries = postgres_storage, []

    def broken(*facts: Any) -> Any:
        tries.append(facts)
        raise ValueError("broken")

    monkeypatch.setattr(loyalty, "fold", broken)
    storage.settle(order("1", "10"))
    for number in range(1, 4):
        end_connections(postgres)
        with storage.database.scope():
            assert storage.stores().of("loyalty").retry(storage.number(), NOW_US * (number + 1)).held
    assert storage.value("SELECT attempts FROM held_group") == len(tries) == 4


def test_what_a_message_leaves_open_is_closed_before_the_next_one(
    postgres_storage: Storage, postgres: PrivatePostgres
) -> None:
    database, writes = postgres_storage.database, "INSERT INTO organization (organization_id) VALUES ('left')"

    def leave_open() -> None:
        database.execute("BEGIN")
        database.execute(writes)
        raise KeyError("a bug")

    with pytest.raises(KeyError), database.scope():
        leave_open()
    with database.scope():
        assert not database.engine.in_transaction()
        assert database.query("SELECT count(*) FROM organization") == [(0,)]
    with database.scope():
        database.engine.atomic().__enter__()
        database.execute(writes)
    with database.scope(), database.transaction():
        database.execute("SELECT 1")
    assert database.query("SELECT count(*) FROM organization") == [(0,)]
    await_one_idle_connection(postgres)


@pytest.mark.parametrize(
    ("where", "fix"),
    [
        ("DATABASE {database}", 'ALTER DATABASE "{database}" SET synchronous_commit = on'),
        ("ROLE {role}", 'ALTER ROLE "{role}" SET synchronous_commit = on'),
        ("ROLE {role} IN DATABASE {database}", 'ALTER ROLE "{role}" IN DATABASE "{database}" SET synchronous_commit'),
    ],
)
def test_a_server_that_forgets_commits_is_refused_with_the_statement_that_mends_it(
    postgres: PrivatePostgres, postgres_url: str, where: str, fix: str
) -> None:
    names = {"database": postgres_url.rpartition("/")[2], "role": "careless"}
    setting = f"ALTER {where.format(**names)} SET synchronous_commit = off"
    administer(postgres_url, "DROP ROLE IF EXISTS careless", "CREATE ROLE careless LOGIN", setting)
    opened = open_database(postgres_url.replace("postgres@", "careless@"))
    with pytest.raises(UsageError, match="synchronous_commit is off") as refused:
        opened.require_durable()
    opened.release()
    assert fix.format(**names) in str(refused.value)
    mended = str(refused.value).rpartition(": ")[2]
    administer(postgres_url, mended)
    opened.require_durable()
    opened.release()


def test_a_server_without_fsync_is_warned_of() -> None:
    with PrivatePostgres() as server:
        administer(server.url(), "ALTER SYSTEM SET fsync = off")
        server.stop()
        server.start()
        opened = open_database(server.url())
        with capture_logs() as logs:
            opened.require_durable()
        opened.release()
    assert [entry["event"].split(":")[0] for entry in logs] == ["fsync is off"]


def administer(url: str, *statements: str) -> None:
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
    connection.close()
