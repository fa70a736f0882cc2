"""Tens of thousands of events through the real thing; every customer's final state is the model's.

Two judges. The stored streams in position order must give exactly the stored states, with all rules on. And with flat
multipliers, where the order of arrival between the queues does not matter, the input file itself must give them.
"""

import json
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from customer_actors.domain.envelope import DecodePolicy, Received, decode
from customer_actors.domain.events import Event, EventType, Outcome, to_us
from customer_actors.domain.rules import DEFAULT_TIERS, Rules
from customer_actors.ingest import topology
from customer_actors.ingest.publish import publish
from customer_actors.settings import load_settings
from customer_actors.simulate import ShopPlan, simulate
from customer_actors.storage.actors import Stores
from customer_actors.storage.append import EVENT
from customer_actors.storage.database import Database
from customer_actors.storage.opening import open_database
from customer_actors.storage.overdue import all_behind
from customer_actors.storage.schema import migrate
from customer_actors.storage.views import customer_view
from tests.e2e.processes import INGEST, WORKERS, Process, running, wait_until
from tests.model.reference import ReferenceModel, state_of_stream
from tests.servers import PrivatePostgres, RabbitMQ

EVENTS = 20_000
PLAN = ShopPlan(customers=3_000, events=EVENTS, seed=20, conflict=0, organizations=8)
FLAT_TIERS = tuple(tier.model_copy(update={"multiplier": Decimal(1)}) for tier in DEFAULT_TIERS)
WAIT_S = 150


def routed(lines: Iterable[str]) -> Iterator[tuple[str, bytes]]:
    """Lines as their publishers send them; what names no known type goes out as an order would."""
    known = {str(type_) for source in topology.SOURCES for type_ in source.routing_keys}
    for line in lines:
        try:
            type_ = json.loads(line).get("event")
        except ValueError:
            type_ = None
        yield (type_ if type_ in known else EventType.ORDER_COMPLETED.value), line.encode()


class Shop:
    """The database under test, seen by the judges."""

    def __init__(self, database: Database, rules: Rules) -> None:
        self.database = database
        self.rules = rules
        self.stores = Stores(database, rules)

    def outcomes(self) -> int:
        """Lower bound of the messages with an outcome: those that left a row."""
        ((events, quarantined),) = self.database.query(
            "SELECT (SELECT count(*) FROM event), (SELECT coalesce(sum(seen), 0) FROM quarantine)"
        )
        return int(events + quarantined)

    def behind(self) -> int:
        return sum(len(customers) for customers in all_behind(self.stores).values())

    def customers(self) -> dict[tuple[str, str], int]:
        rows = self.database.query("SELECT organization_id, customer_id, id FROM customer")
        return {(row[0], row[1]): row[2] for row in rows}

    def streams(self) -> dict[int, list[Event]]:
        streams: dict[int, list[Event]] = {}
        for row in self.database.query(f"SELECT {', '.join(EVENT.names)} FROM event ORDER BY customer, position"):
            streams.setdefault(row[0], []).append(Event._make(row))
        return streams

    def state(self, key: tuple[str, str]) -> dict[str, Any]:
        view: dict[str, Any] | None = customer_view(self.database, self.rules, *key)
        assert view is not None
        assert view.pop("held") == []
        if view["segment"] is not None:
            assert view["segment"].pop("calculated_at")
        return view


def judged_by_streams(shop: Shop, today: date) -> None:
    """Positions 1..head, and every stored state is what its stored stream comes to."""
    streams = shop.streams()
    for key, number in shop.customers().items():
        assert [event.position for event in streams[number]] == list(range(1, len(streams[number]) + 1)), key
        expected = state_of_stream(streams[number], shop.rules, today)
        assert shop.state(key) == {"organization_id": key[0], "customer_id": key[1], **expected}


def judged_by_input(shop: Shop, lines: Sequence[str], today: date) -> None:
    """Every customer of the input file and no other, each in the state the file gives."""
    model, outcomes = ReferenceModel(shop.rules), Counter[Outcome]()
    for routing_key, body in routed(lines):
        message = decode(Received(body, routing_key, to_us(datetime.now(UTC))), DecodePolicy())
        outcomes[model.receive(message)] += 1
    assert outcomes[Outcome.ACCEPTED] > 0.8 * len(lines), outcomes
    assert sorted(shop.customers()) == model.customers()
    for key in model.customers():
        assert free_of_order(shop.state(key)) == free_of_order(model.state(*key, today)), key


def free_of_order(state: dict[str, Any]) -> dict[str, Any]:
    """Without what depends on which queue was faster: positions, and the channel of a sale known under two names."""
    stats = {**state["stats"], "by_channel": sum(state["stats"]["by_channel"].values())}
    return {**state, "position": None, "stats": stats}


def settle(shop: Shop, rabbitmq: RabbitMQ, vhost: str, expected: int) -> None:
    """Wait until the queues are empty and every actor is at every head."""
    wait_until(lambda: shop.outcomes() >= expected, WAIT_S)
    wait_until(lambda: inbound_left(rabbitmq, vhost) == 0, WAIT_S)
    wait_until(lambda: shop.behind() == 0, WAIT_S)


def inbound_left(rabbitmq: RabbitMQ, vhost: str) -> int:
    listed = rabbitmq.ctl("list_queues", "--silent", "-p", vhost, "name", "messages")
    rows = [line.split() for line in listed.splitlines()]
    return sum(int(row[1]) for row in rows if row and row[0] in topology.QUEUES)


def least_outcomes(lines: Sequence[str]) -> int:
    """How many messages of these lines certainly leave a row, whatever the order between the queues."""
    model = ReferenceModel(Rules())
    decoded = [decode(Received(body, key, to_us(datetime.now(UTC))), DecodePolicy()) for key, body in routed(lines)]
    return sum(model.receive(message) in (Outcome.ACCEPTED, Outcome.QUARANTINED) for message in decoded) * 95 // 100


@pytest.fixture
def flat(request: pytest.FixtureRequest) -> dict[str, str]:
    """The settings of a shop whose tiers all have the multiplier 1."""
    return {"CUSTOMER_ACTORS_TIERS": json.dumps([tier.model_dump(mode="json") for tier in FLAT_TIERS])}


def opened(env: dict[str, str]) -> Shop:
    settings = load_settings(env)
    database = open_database(settings.database_url)
    migrate(database)
    return Shop(database, settings.rules())


def published(url: str, lines: Sequence[str]) -> None:
    report = publish(url, routed(lines))
    assert (report.confirmed, report.returned, report.nacked) == (len(lines), 0, 0)


def declared(url: str) -> None:
    """The queues exist before anybody publishes, as after the first start of ingest."""
    import pika

    connection = pika.BlockingConnection(pika.URLParameters(url))
    topology.declare(connection)
    connection.close()


def test_twenty_thousand_events_end_in_the_states_of_the_model(
    postgres_url: str, rabbitmq: RabbitMQ, rabbitmq_url: str, tmp_path: Path
) -> None:
    env = {"DATABASE_URL": postgres_url, "RABBITMQ_URL": rabbitmq_url}
    shop, lines = opened(env), list(simulate(PLAN))
    declared(rabbitmq_url)
    with running(tmp_path, env, ingest=INGEST, workers=WORKERS):
        published(rabbitmq_url, lines)
        settle(shop, rabbitmq, rabbitmq_url.rsplit("/", 1)[1], least_outcomes(lines))
        judged_by_streams(shop, datetime.now(UTC).date())
    shop.database.release()


def test_duplicates_and_kills_of_everything_change_nothing(
    stoppable_postgres: PrivatePostgres,
    stoppable_url: str,
    rabbitmq: RabbitMQ,
    rabbitmq_url: str,
    tmp_path: Path,
    flat: dict[str, str],
) -> None:
    env = {"DATABASE_URL": stoppable_url, "RABBITMQ_URL": rabbitmq_url, **flat}
    shop, lines = opened(env), list(simulate(PLAN))
    chance = random.Random(7)
    delivered = [*lines, *chance.sample(lines, EVENTS // 5)]
    half = len(lines) // 2
    declared(rabbitmq_url)
    with running(tmp_path, env, ingest=INGEST, workers=WORKERS) as processes:
        published(rabbitmq_url, delivered[:half])
        wait_until(lambda: shop.outcomes() > half // 4, WAIT_S)
        kill_everything(processes.values(), stoppable_postgres, rabbitmq, shop)
        published(rabbitmq_url, delivered[half:])
        settle(shop, rabbitmq, rabbitmq_url.rsplit("/", 1)[1], least_outcomes(lines))
        today = datetime.now(UTC).date()
        judged_by_streams(shop, today)
        judged_by_input(shop, lines, today)
    shop.database.release()


def kill_everything(processes: Iterable[Process], postgres: PrivatePostgres, rabbitmq: RabbitMQ, shop: Shop) -> None:
    """kill -9 of every process and both servers, then all of it again."""
    for process in processes:
        process.kill()
    postgres.kill()
    rabbitmq.kill()
    shop.database.release()
    postgres.start()
    rabbitmq.start()
    for process in processes:
        process.restart()
