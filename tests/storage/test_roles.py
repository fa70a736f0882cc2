"""deploy/postgresql/roles.sql: every process can do its work as its role, and nothing else.

A migration that adds a table fails here until the file grants it.
"""

from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg2
import pytest
from psycopg2.errors import InsufficientPrivilege

from customer_actors.actors.nightly import nightly_jobs
from customer_actors.domain.events import Outcome, Rejected
from customer_actors.errors import UsageError
from customer_actors.storage import job_runs
from customer_actors.storage.beats import beat, end_beat
from customer_actors.storage.database import Database
from customer_actors.storage.job_runs import Run
from customer_actors.storage.opening import open_database
from customer_actors.storage.overdue import all_behind
from customer_actors.storage.schema import migrate, require_current
from tests.cli.shop import LIFE, Shop, failing_at
from tests.cli.test_quarantine import FIXED, arrive, body
from tests.model.examples import DAY_US, order
from tests.servers import PrivatePostgres
from tests.storage.support import NOW_US, Storage

ROLES_SQL: Final = Path(__file__).parents[2] / "deploy/postgresql/roles.sql"
ROLES: Final = ("owner", "ingest", "worker", "scheduler", "operator", "reader")
HISTORY: Final = (
    "event",
    "event_payload",
    "loyalty_entry",
    "credit_allocation",
    "operator_action",
    "rules",
    "rfm_cuts",
    "credit_drift",
    "credit_ageing",
)


class Roles:
    """One database, and logins that are members of one role each."""

    def __init__(self, server: PrivatePostgres) -> None:
        self._suffix = uuid4().hex[:8]
        self.admin_url = server.create_database(f"roles_{self._suffix}")
        self.administer(ROLES_SQL.read_text())
        for role in ROLES:
            self.administer(f"CREATE ROLE {role}_{self._suffix} LOGIN IN ROLE customer_actors_{role}")

    def administer(self, sql: str) -> None:
        connection = psycopg2.connect(self.admin_url)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(sql)
        finally:
            connection.close()

    def url(self, role: str) -> str:
        parts = urlsplit(self.admin_url)
        return parts._replace(netloc=f"{role}_{self._suffix}@{parts.hostname}:{parts.port}").geturl()

    def open(self, role: str) -> Database:
        return open_database(self.url(role))

    def refuses(self, role: str, sql: str) -> bool:
        """Whether the database says that this role lacks the right; whatever else it says is an error."""
        connection = psycopg2.connect(self.url(role))
        try:
            with connection.cursor() as cursor:
                cursor.execute(sql)
        except InsufficientPrivilege:
            return True
        finally:
            connection.rollback()
            connection.close()
        return False


@pytest.fixture(scope="module")
def roles(postgres: PrivatePostgres) -> Roles:
    """Made, migrated and granted as the file's first lines say; twice, for it may be repeated."""
    roles = Roles(postgres)
    database = roles.open("owner")
    assert migrate(database)
    database.release()
    for _ in range(2):
        roles.administer(ROLES_SQL.read_text())
    return roles


@pytest.fixture
def as_role(roles: Roles) -> Iterator[dict[str, Storage]]:
    storages = {role: Storage(roles.open(role)) for role in ROLES}
    yield storages
    for storage in storages.values():
        storage.database.release()


def test_each_process_does_its_work_as_its_role(roles: Roles, as_role: dict[str, Storage]) -> None:
    ingest, worker, scheduler = (as_role[role] for role in ("ingest", "worker", "scheduler"))
    for role in ("ingest", "worker", "scheduler", "operator", "reader"):
        require_current(as_role[role].database)

    assert set(ingest.receive(*LIFE)) == {Outcome.ACCEPTED}
    assert set(ingest.receive(LIFE[1], Rejected("bad_json", "no JSON"), Rejected("bad_json", "no JSON"))) == {
        Outcome.DUPLICATE,
        Outcome.QUARANTINED,
    }
    worker.settle()
    worker.settle(order("O-9", "90", on_credit=True))  # as the credit reconciliation appends
    assert not any(all_behind(worker.stores()).values())

    late_us = NOW_US + 90 * DAY_US
    for name, job in nightly_jobs(worker.stores()).items():
        night = Run(name, "2024-08-30T03:15", date(2024, 8, 30))  # so late that an account is suspended
        assert job_runs.claim(scheduler.database, night, late_us)
        assert job_runs.plan(worker.database, job, night, late_us)
        for number in job_runs.open_chunks(worker.database, night):
            assert job_runs.work(worker.database, job, night, number, late_us)
        job_runs.fail(worker.database, night, "ValueError", late_us)
        assert job_runs.finish(worker.database, job, night, late_us)
        assert job_runs.progress_of(scheduler.database, name, night.slot) is not None
    assert worker.value("SELECT count(*) FROM event WHERE type = 'credit.suspended'") == 1

    for role, kind in (("ingest", "ingest"), ("worker", "worker"), ("scheduler", "scheduler")):
        beat(as_role[role].database, kind, NOW_US)  # type: ignore[arg-type]
        end_beat(as_role[role].database, kind)  # type: ignore[arg-type]


def test_operators_do_and_readers_read_as_their_role(
    roles: Roles, as_role: dict[str, Storage], monkeypatch: pytest.MonkeyPatch
) -> None:
    as_role["ingest"].receive(*LIFE, *(order(f"H-{number}", "5", customer_id="held") for number in range(3)))
    with monkeypatch.context() as broken:
        failing_at(broken, "H-1")
        as_role["worker"].settle()

    operator = Shop(roles.url("operator"))
    who = ("--operator", "someone", "--reason", "checked")
    for args in (
        ("credit", "open", "c7", "--limit", "10.00"),
        ("held", "list", "--json"),
        ("held", "skip", "held", "--org", "org-1", "--actor", "loyalty", "--position", "2", *who),
        ("quarantine", "list", "--json"),
        ("rebuild", "stats", "--customer", "c1", "--org", "org-1", *who),
    ):
        done = operator.run(*args)
        assert done.exit_code == 0, (args, done.output)
    assert operator.value("SELECT count(*) FROM operator_action WHERE action = 'skip'") == 1

    # Hold another one, which comes in order after a fix, and a message that is admitted after a fix.
    as_role["ingest"].receive(*(order(f"F-{number}", "5", customer_id="fixed") for number in range(3)))
    with monkeypatch.context() as broken:
        failing_at(broken, "F-1")
        as_role["worker"].settle()
    assert arrive(Shop(roles.url("ingest")), body("Q-1")) == ["quarantined"]
    for args in (  # type: ignore[assignment]
        ("held", "release", "fixed", "--org", "org-1", "--actor", "loyalty", *who),
        ("quarantine", "retry", "--code", "bad_time", *who),
    ):
        done = operator.run(*args, **FIXED)
        assert done.exit_code == 0, (args, done.output)
    assert operator.value("SELECT count(*) FROM held_group") == 0
    assert operator.value("SELECT count(*) FROM sale WHERE reference = 'Q-1'") == 1

    reader = Shop(roles.url("reader"))
    for args in (  # type: ignore[assignment]
        ("show", "c1", "--org", "org-1", "--json"),
        ("explain", "c1", "--org", "org-1"),
        ("status", "--json"),
        ("audit", "c1", "--org", "org-1", "--json"),
        ("doctor", "--json"),
        ("held", "list", "--json"),
        ("quarantine", "list", "--json"),
    ):
        done = reader.run(*args)
        assert done.exit_code == 0, (args, done.output)


FALSIFIED: Final = {
    "stats": ("DELETE FROM stats_state",),
    "loyalty": ("UPDATE loyalty_state SET points = 9", "DELETE FROM loyalty_entry"),
    "credit": (
        "UPDATE credit_state SET used_minor = 9",
        "DELETE FROM credit_payment",
        "DELETE FROM credit_allocation",
        "DELETE FROM credit_usage WHERE reference = 'T-1'",
        "UPDATE credit_usage SET cancelled_position = NULL",
    ),
    "segmentation": ("DELETE FROM customer_segment",),
}


@pytest.mark.parametrize("actor", FALSIFIED)
def test_operators_rebuild_as_their_role(roles: Roles, as_role: dict[str, Storage], actor: str) -> None:
    as_role["ingest"].receive(*LIFE)
    as_role["worker"].settle()
    number = as_role["reader"].number()
    falsify = [f"{sql} {'AND' if 'WHERE' in sql else 'WHERE'} customer = {number}" for sql in FALSIFIED[actor]]
    roles.administer("; ".join(["SET session_replication_role = replica", *falsify]))
    audit = ("audit", "c1", "--org", "org-1")
    assert Shop(roles.url("reader")).run(*audit).exit_code == 1
    rebuild = ("rebuild", actor, "--customer", "c1", "--org", "org-1", "--reason", "checked")
    done = Shop(roles.url("operator")).run(*rebuild)
    assert done.exit_code == 0, done.output
    assert Shop(roles.url("reader")).run(*audit).exit_code == 0


def test_every_table_is_granted_to_readers_and_owned_by_the_owner(roles: Roles, as_role: dict[str, Storage]) -> None:
    sql = (
        "SELECT c.relname, pg_get_userbyid(c.relowner) = 'customer_actors_owner', "
        "has_table_privilege('customer_actors_reader', c.oid, 'SELECT'), "
        "has_table_privilege('customer_actors_reader', c.oid, 'INSERT, UPDATE, DELETE, TRUNCATE') "
        "FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind = 'r'"
    )
    tables = as_role["owner"].database.query(sql)
    assert {(name, owned, readable, written) for name, owned, readable, written in tables} == {
        (name, True, True, False) for name, *_ in tables
    }


@pytest.mark.parametrize("table", [*HISTORY, "credit_usage", "credit_payment"])
def test_nobody_changes_what_happened(roles: Roles, table: str) -> None:
    column = "customer" if table not in ("rules", "rfm_cuts", "operator_action") else None
    changes = [f"DELETE FROM {table}", f"TRUNCATE {table}"]
    changes += [f"UPDATE {table} SET {column} = 1"] if column else []
    for role in set(ROLES) - {"owner"}:
        for sql in changes:
            assert roles.refuses(role, sql), (role, sql)


REFUSED: Final = {
    "ingest": (
        "SELECT * FROM event",
        "SELECT * FROM event_payload",
        "INSERT INTO loyalty_entry SELECT",
        "UPDATE stats_state SET total_spent_minor = 0",
        "DELETE FROM quarantine",
        "DELETE FROM sale",
        "INSERT INTO operator_action (at_us, operator, action, reason) VALUES (1, '', '', '')",
        "UPDATE customer SET customer_id = ''",
        "INSERT INTO job_run (job) VALUES ('')",
    ),
    "worker": (
        "UPDATE credit_usage SET amount_minor = 0",
        "UPDATE credit_payment SET amount_minor = 0",
        "INSERT INTO operator_action (at_us, operator, action, reason) VALUES (1, '', '', '')",
        "DELETE FROM quarantine",
        "DELETE FROM customer",
        "DELETE FROM sale",
        "DELETE FROM job_run",
    ),
    "scheduler": ("SELECT * FROM customer", "SELECT * FROM event", "UPDATE job_run SET error = ''", "DELETE FROM bell"),
    "operator": (
        "UPDATE operator_action SET reason = ''",
        "UPDATE quarantine SET body = ''",
        "DELETE FROM quarantine",
        "CREATE TABLE mine (id int)",
    ),
    "reader": (
        "INSERT INTO bell (rung_at_us, groups) VALUES (1, '')",
        "UPDATE loyalty_state SET points = 0",
        "SELECT * FROM stats_state FOR UPDATE",
        "CREATE TABLE mine (id int)",
    ),
}


@pytest.mark.parametrize(("role", "sql"), [(role, sql) for role, each in REFUSED.items() for sql in each])
def test_a_role_is_refused_what_it_must_not_do(roles: Roles, role: str, sql: str) -> None:
    assert roles.refuses(role, sql)


def test_the_owner_may_change_the_schema_and_still_not_what_happened(roles: Roles, as_role: dict[str, Storage]) -> None:
    as_role["ingest"].receive(order("O-owner", "5", customer_id="owner"))
    with pytest.raises(psycopg2.errors.RestrictViolation):
        roles.refuses("owner", "DELETE FROM event")
    assert not roles.refuses("owner", "ALTER TABLE event ADD COLUMN another int")


def test_a_setting_to_mend_is_named_with_who_logged_in_and_not_with_the_role_that_was_set(roles: Roles) -> None:
    """PostgreSQL takes a connection's settings from the login, whatever role it works as."""
    login = urlsplit(roles.url("careless")).username
    roles.administer(f"CREATE ROLE {login} LOGIN IN ROLE customer_actors_operator")
    roles.administer(f"ALTER ROLE {login} SET role = customer_actors_operator")
    roles.administer(f"ALTER ROLE {login} SET synchronous_commit = off")
    database = roles.open("careless")
    assert database.query("SELECT current_user, session_user") == [("customer_actors_operator", login)]
    with pytest.raises(UsageError, match=f'ALTER ROLE "{login}" SET synchronous_commit = on') as refused:
        database.require_durable()
    database.release()
    roles.administer(str(refused.value).rpartition(": ")[2])
    database.require_durable()
    database.release()


def test_no_password_is_in_the_file() -> None:
    lines = [line for line in ROLES_SQL.read_text().splitlines() if not line.startswith("--")]
    assert "PASSWORD" not in "\n".join(lines).upper()
