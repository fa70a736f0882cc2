"""No customer id, order id, amount or password reaches a log, a message between actors or a report [G23].

Everything that fails does so here, at the log level that tells most: a message that cannot be read, one that the
database refuses, a fold that raises, and a database that goes away. Every message between actors is seen by RabbitMQ's
own tracing.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pika
import pytest
from click.testing import CliRunner
from pika.adapters.blocking_connection import BlockingChannel

from customer_actors.actors import main as worker
from customer_actors.cli import main
from customer_actors.ingest.publish import publish
from customer_actors.storage import credit, loyalty
from customer_actors.storage.database import Database
from customer_actors.storage.opening import open_database
from customer_actors.storage.schema import migrate
from tests.e2e.processes import INGEST, SCHEDULER, WORKERS, Process, running, wait_until
from tests.e2e.test_nights import missed_crons, nights_done
from tests.servers import PrivatePostgres, RabbitMQ
from tests.tampering import tamper

CUSTOMER: Final = "canary-customer-5d1c"
ORGANIZATION: Final = "canary-organization-77aa"
ORDER: Final = "canary-order-91be"
AMOUNT: Final = "7654321.98"
HUGE: Final = "907199254740.91"
PASSWORD: Final = "canary-password-c0de"
LARGEST: Final = 2**63 - 1
"""That a column can hold, in minor units."""
CANARIES: Final = (
    *("canary", AMOUNT, AMOUNT.replace(".", ""), HUGE, HUGE.replace(".", "")),
    *(str(LARGEST), str(LARGEST + int(HUGE.replace(".", "")))),
)
TRACE: Final = "trace_of_everything"


def message(number: int, customer: str = CUSTOMER, amount: str = AMOUNT) -> tuple[str, bytes]:
    data = {"order_id": f"{ORDER}-{number}", "customer_id": customer, "total_amount": amount}
    return "order.completed", json.dumps({"organization_id": ORGANIZATION, "data": data}).encode()


def other(type_: str, **data: object) -> tuple[str, bytes]:
    """Any other message of the first customer."""
    body = {"organization_id": ORGANIZATION, "data": {"customer_id": CUSTOMER, **data}}
    return type_, json.dumps(body).encode()


POS: Final = other("pos.transaction.completed", transaction_id=f"{ORDER}-pos", totals={"total_amount": AMOUNT})
PAYMENT: Final = other("payment.received", payment_reference=f"{ORDER}-payment", amount=AMOUNT)
COMMANDS: Final = (
    ("credit", "open", CUSTOMER, "--org", ORGANIZATION, "--limit", AMOUNT),
    ("loyalty", "redeem", CUSTOMER, "765432198", f"{ORDER}-redeem", "--org", ORGANIZATION),
)

BAD: Final = (
    ("order.completed", f'{{"data": {{"customer_id": "{CUSTOMER}", "total_amount": {AMOUNT}, '.encode()),
    (
        "order.completed",
        json.dumps({"data": {"customer_id": CUSTOMER, "order_id": ORDER, "total_amount": "x"}}).encode(),
    ),
    ("payment.received", json.dumps({"data": {"customer_id": CUSTOMER, "amount": f"-{AMOUNT}"}}).encode()),
)


def setup_that_fails() -> None:
    """What the workers run: as ever, but that the folds of two events raise errors that tell everything."""

    def failing(fold: Callable[..., Any]) -> Callable[..., Any]:
        def tell_all(state: Any, event: Any, *facts: Any) -> Any:
            if event.reference in (f"{ORDER}-0", f"{ORDER}-payment"):
                told = f"{CUSTOMER} of {ORGANIZATION}\nspent {AMOUNT}: {event}"
                raise ValueError(told) from KeyError(told)
            return fold(state, event, *facts)

        return tell_all

    for module in (loyalty, credit):
        module.fold = failing(module.fold)  # type: ignore[attr-defined]
    worker.setup()


FAILING_WORKERS: Final = (WORKERS[0], f"{__name__}:{setup_that_fails.__name__}", *WORKERS[2:])


def leaks(text: str) -> list[str]:
    """The lines with a canary in them."""
    return [line for line in text.splitlines() if any(canary in line for canary in CANARIES)]


@pytest.fixture
def traced(rabbitmq: RabbitMQ, rabbitmq_url: str) -> Iterator[BlockingChannel]:
    """A channel of a virtual host whose every message is copied to a queue."""
    vhost = urlsplit(rabbitmq_url).path[1:]
    rabbitmq.ctl("trace_on", "--vhost", vhost)
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        channel = connection.channel()
        channel.queue_declare(TRACE)
        channel.queue_bind(TRACE, "amq.rabbitmq.trace", "publish.#")
        yield channel
    rabbitmq.ctl("trace_off", "--vhost", vhost)


@pytest.fixture
def broker_url(rabbitmq: RabbitMQ, rabbitmq_url: str) -> Iterator[str]:
    """As a user whose password is a canary."""
    parts = urlsplit(rabbitmq_url)
    rabbitmq.ctl("add_user", "bird", PASSWORD)
    rabbitmq.ctl("set_permissions", "--vhost", parts.path[1:], "bird", ".*", ".*", ".*")
    yield parts._replace(netloc=f"bird:{PASSWORD}@{parts.hostname}:{parts.port}").geturl()
    rabbitmq.ctl("delete_user", "bird")


@pytest.fixture
def database(stoppable_url: str) -> Iterator[Database]:
    opened = open_database(stoppable_url)
    migrate(opened)
    opened.execute("UPDATE schema_migration SET applied = '2020-01-01 00:00:00'")  # older than the nights it missed
    yield opened
    opened.release()


class Traced:
    """What was published in the traced virtual host so far."""

    def __init__(self, channel: BlockingChannel) -> None:
        self._channel = channel
        self.internal: list[str] = []
        """What went into the default exchange, with its headers."""
        self.others = 0

    def tells(self, word: str) -> bool:
        """Whether an internal message with this word was published by now."""
        while (got := self._channel.basic_get(TRACE, auto_ack=True))[0] is not None:
            assert got[1] is not None
            if (got[1].headers or {}).get("exchange_name"):
                self.others += 1
            else:
                self.internal.append(f"{got[1].headers!r} {(got[2] or b'')!r}")
        return any(word in each for each in self.internal)


def held(database: Database) -> set[str]:
    """The actors that hold somebody."""
    return {row[0] for row in database.query("SELECT actor FROM held_group")}


def count(database: Database, table: str) -> int:
    number: int = database.query(f"SELECT count(*) FROM {table}")[0][0]
    return number


def arrive(database: Database, env: Mapping[str, str]) -> int:
    """Commands, then messages that are accepted and some that are not; how many events there are in the end."""
    for command in COMMANDS:
        CliRunner().invoke(main, command, env=env)  # what it prints is for who asked
    assert count(database, "event") == len(COMMANDS)
    orders = [*(message(n) for n in range(3)), *(message(n, f"{CUSTOMER}-2", HUGE) for n in (7, 8))]
    publish(env["RABBITMQ_URL"], [*orders, *BAD, POS, PAYMENT])
    accepted = len(COMMANDS) + len(orders) + 2
    wait_until(lambda: count(database, "event") == accepted)
    wait_until(lambda: count(database, "quarantine") == len(BAD))
    return accepted


def falsify(database: Database) -> None:
    """Rules that are gone, for one customer, whose folds raise as well; for the other a sum the database refuses."""
    tamper(database, "UPDATE event SET rules = 99 WHERE reference = ?", f"{ORDER}-1")
    tamper(database, f"UPDATE event SET amount_minor = {LARGEST} WHERE reference = ?", f"{ORDER}-7")


def one_more_while_the_database_is_away(
    server: PrivatePostgres, database: Database, broker_url: str, processes: Mapping[str, Process]
) -> None:
    events = count(database, "event")
    database.release()
    server.stop()
    wait_until(lambda: "OperationalError" in processes["workers"].logged())
    publish(broker_url, [message(9)])
    wait_until(lambda: '"outage"' in processes["ingest"].logged())
    server.start()
    wait_until(lambda: count(database, "event") == events + 1)


def reports(env: Mapping[str, str]) -> str:
    """All that is told of the whole service."""
    return "\n".join(
        CliRunner().invoke(main, [*verb, *flag], env=env).output
        for verb in (["status"], ["doctor"], ["health", "ready"], ["health", "live"])
        for flag in ([], ["--json"])
    )


def wait_until_all_was_done(database: Database, seen: Traced, workers: Process) -> None:
    """What is looked at is what was meant to be looked at, and a retried message carries a traceback."""
    wait_until(lambda: seen.tells("dispatcher") and seen.tells("traceback"))
    wait_until(lambda: nights_done(database) == ["credit", "segments"])
    # One that still waits for the database when it is asked to end is ended by the signal itself.
    wait_until(lambda: workers.logged().count("ready for action") == 2)


def test_no_canary_is_seen_outside_the_database(
    stoppable_postgres: PrivatePostgres,
    database: Database,
    stoppable_url: str,
    traced: BlockingChannel,
    broker_url: str,
    tmp_path: Path,
) -> None:
    env = {
        "DATABASE_URL": stoppable_url.replace("postgres@", f"postgres:{PASSWORD}@"),
        "RABBITMQ_URL": broker_url,
        "CUSTOMER_ACTORS_LOG_LEVEL": "DEBUG",
        **missed_crons(),
    }
    seen = Traced(traced)
    with running(tmp_path, env, ingest=INGEST) as ingest:
        wait_until(lambda: ingest["ingest"].logged().count('"consuming"') >= 3)
        accepted = arrive(database, env)
        falsify(database)
        with running(tmp_path, env, workers=FAILING_WORKERS, scheduler=SCHEDULER) as others:
            processes = {**ingest, **others}
            wait_until(lambda: {"stats", "loyalty", "credit"} <= held(database))
            one_more_while_the_database_is_away(stoppable_postgres, database, broker_url, processes)
            assert count(database, "event") == accepted + 1
            told = reports(env)
            wait_until_all_was_done(database, seen, processes["workers"])
            logs = "".join(each.logged() for each in processes.values())
            assert '"credit"' in processes["scheduler"].logged()
            assert processes["workers"].terminate() in (0, 3)

    assert leaks(logs) == []
    assert leaks(told) == []
    assert not seen.tells(PASSWORD)
    assert leaks("\n".join(seen.internal)) == []
    assert seen.others >= 11
    assert len(logs.splitlines()) > 20
    assert database.query("SELECT customer_id FROM customer ORDER BY 1") == [(CUSTOMER,), (f"{CUSTOMER}-2",)]
    # The errors did tell everything; whoever asks for a traceback reads it in the database.
    errors = database.query("SELECT actor, customer, position, error, traceback FROM held_group")
    assert sum(AMOUNT in error and AMOUNT in traceback for *_, error, traceback in errors) == 2, errors


def test_a_canary_would_be_seen() -> None:
    assert leaks(f"a line\nwith {CUSTOMER}\n") == [f"with {CUSTOMER}"]
