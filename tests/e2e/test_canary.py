"""No customer id, order id, amount or password reaches a log, a message between actors or a report [G23].

Everything that fails does so here, at the log level that tells most: a message that cannot be read, one that the
database refuses, a fold that raises, and a database that goes away. Every message between actors is seen by RabbitMQ's
own tracing.
"""

import json
from collections.abc import Callable, Iterator
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
from tests.e2e.processes import INGEST, SCHEDULER, WORKERS, running, wait_until
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
def database(postgres_url: str) -> Iterator[Database]:
    opened = open_database(postgres_url)
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


def test_no_canary_is_seen_outside_the_database(
    postgres: PrivatePostgres,
    database: Database,
    postgres_url: str,
    traced: BlockingChannel,
    broker_url: str,
    tmp_path: Path,
) -> None:
    env = {
        "DATABASE_URL": postgres_url.replace("postgres@", f"postgres:{PASSWORD}@"),
        "RABBITMQ_URL": broker_url,
        "CUSTOMER_ACTORS_LOG_LEVEL": "DEBUG",
        **missed_crons(),
    }
    seen = Traced(traced)
    with running(tmp_path, env, ingest=INGEST) as processes:
        wait_until(lambda: processes["ingest"].logged().count('"consuming"') >= 3, 60)
        for command in COMMANDS:
            CliRunner().invoke(main, command, env=env)  # what it prints is for who asked
        assert database.query("SELECT count(*) FROM event") == [(len(COMMANDS),)]
        orders = [*(message(n) for n in range(3)), *(message(n, f"{CUSTOMER}-2", HUGE) for n in (7, 8))]
        publish(broker_url, [*orders, *BAD, POS, PAYMENT])
        accepted = len(COMMANDS) + len(orders) + 2
        wait_until(lambda: database.query("SELECT count(*) FROM event") == [(accepted,)], 60)
        wait_until(lambda: database.query("SELECT count(*) FROM quarantine") == [(len(BAD),)], 60)
        # Rules that are gone, for one customer, and folds that raise; for the other a sum that the database refuses.
        tamper(database, "UPDATE event SET rules = 99 WHERE reference = ?", f"{ORDER}-1")
        tamper(database, f"UPDATE event SET amount_minor = {LARGEST} WHERE reference = ?", f"{ORDER}-7")
        with running(tmp_path, env, workers=FAILING_WORKERS, scheduler=SCHEDULER) as workers:
            wait_until(lambda: {"stats", "loyalty", "credit"} <= held(database), 60)
            database.release()
            postgres.stop()
            wait_until(lambda: "OperationalError" in workers["workers"].logged(), 60)
            publish(broker_url, [message(9)])
            wait_until(lambda: '"outage"' in processes["ingest"].logged(), 60)
            postgres.start()
            wait_until(lambda: database.query("SELECT count(*) FROM event") == [(accepted + 1,)], 60)
            reports = [
                CliRunner().invoke(main, [*verb, *flag], env=env).output
                for verb in (["status"], ["doctor"], ["health", "ready"], ["health", "live"])
                for flag in ([], ["--json"])
            ]
            # What was looked at is what was meant to be looked at, and a retried message carries a traceback.
            wait_until(lambda: seen.tells("dispatcher") and seen.tells("traceback"), 60)
            wait_until(lambda: nights_done(database) == ["credit", "segments"], 60)
            # One that still waits for the database when it is asked to end is ended by the signal itself.
            wait_until(lambda: workers["workers"].logged().count("ready for action") == 2, 60)
            logs = "".join(each.logged() for each in (*processes.values(), *workers.values()))
            assert '"credit"' in workers["scheduler"].logged()
            assert workers["workers"].terminate() in (0, 3)

    assert leaks(logs) == []
    assert leaks("\n".join(reports)) == []
    assert not seen.tells(PASSWORD)
    assert leaks("\n".join(seen.internal)) == []
    assert seen.others >= 11
    # The errors did tell everything; whoever asks for a traceback reads it in the database.
    told = database.query(
        "SELECT count(*) FROM held_group WHERE error LIKE ? AND traceback LIKE ?", [f"%{AMOUNT}%"] * 2
    )
    assert told == [(2,)], database.query("SELECT actor, customer, position, left(error, 200) FROM held_group")
    assert len(logs.splitlines()) > 20
    assert database.query("SELECT customer_id FROM customer ORDER BY 1") == [(CUSTOMER,), (f"{CUSTOMER}-2",)]
    assert leaks(f"a line\nwith {CUSTOMER}\n") == [f"with {CUSTOMER}"]
