"""Frames that no client library would send stop a queue for less than a minute and take no valid event along [G13].

Against the real ingest process; what every message became is read from the database afterwards.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pika
import pytest
from click.testing import CliRunner

from customer_actors.cli import main
from customer_actors.ingest.dead_letters import retry
from customer_actors.ingest.publish import publish
from customer_actors.ingest.topology import DEAD_LETTER_QUEUE, SOURCES
from customer_actors.storage.database import Database
from customer_actors.storage.opening import open_database
from customer_actors.storage.schema import migrate
from tests.e2e.processes import INGEST, running, wait_until
from tests.servers.amqp_frames import FramePublisher, nested, properties, sized, table, timestamp

LIMIT_S: Final = 60
VALID: Final = 300
ORDERS: Final = SOURCES[0]
YEAR_20000: Final = 568_971_820_800
BAD_UTF8: Final = b"\xff\xfe\xc3\x28"


def order(reference: str) -> bytes:
    return json.dumps({"data": {"order_id": reference, "customer_id": f"c-{reference}", "total_amount": 1}}).encode()


DEADLY: Final = {
    "year 20000": properties(table((b"when", timestamp(YEAR_20000)))),
    "year 20000 in a list": properties(table((b"when", b"A" + sized(timestamp(YEAR_20000))))),
    "3,000 deep": properties(table((b"deep", nested(3_000)))),
}
"""Properties that end any client that decodes them."""
ODD: Final = {
    "bad UTF-8 in a header": properties(table((b"name", b"S" + sized(BAD_UTF8)))),
    "bad UTF-8 as a header's name": properties(table((BAD_UTF8, b"S" + sized(b"x")))),
    "a delivery count of its own": properties(table((b"x-delivery-count", b"I\x7f\xff\xff\xff"))),
    "deaths of its own": properties(table((b"x-death", b"A" + sized(b"F" + table((b"queue", b"S" + sized(b"?"))))))),
}
"""Properties that mean nothing to us: the event counts."""
REFUSED: Final = {
    "bad UTF-8 as encoding": (properties(content_encoding=BAD_UTF8), order("encoded")),
    "a body of bad UTF-8": (properties(), BAD_UTF8),
    "no body": (properties(), b""),
}
"""Quarantined, with the reason."""


@pytest.fixture
def database(postgres_url: str) -> Iterator[Database]:
    opened = open_database(postgres_url)
    migrate(opened)
    yield opened
    opened.release()


def references(database: Database) -> set[str]:
    return {row[0] for row in database.query("SELECT reference FROM event")}


def test_hand_encoded_poison_stops_the_queue_for_less_than_a_minute_and_no_valid_event_is_lost(
    database: Database, postgres_url: str, rabbitmq_url: str, tmp_path: Path
) -> None:
    env = {"DATABASE_URL": postgres_url, "RABBITMQ_URL": rabbitmq_url}
    valid = [f"valid-{number}" for number in range(VALID)]
    with running(tmp_path, env, ingest=INGEST) as processes:
        wait_until(lambda: processes["ingest"].logged().count('"consuming"') >= 3)
        begun_s = time.monotonic()
        with FramePublisher(rabbitmq_url) as frames:
            poison = [
                *((properties, order(f"poison {name}")) for name, properties in DEADLY.items()),
                *((properties, order(f"odd {name}")) for name, properties in ODD.items()),
                *REFUSED.values(),
            ]
            for number, (encoded, body) in enumerate(poison):
                around = valid[number * 20 : number * 20 + 20]
                publish(rabbitmq_url, [("order.completed", order(reference)) for reference in around])
                frames.publish(ORDERS.exchange, b"order.completed", body, encoded)
        publish(rabbitmq_url, [("order.completed", order(reference)) for reference in valid[len(poison) * 20 :]])

        wanted = {*valid, *(f"odd {name}" for name in ODD)}
        wait_until(lambda: wanted <= references(database), 2 * LIMIT_S)
        took_s = time.monotonic() - begun_s
        print(f"{len(wanted)} valid events around {len(DEADLY)} deadly messages committed within {took_s:.1f} s")
        assert took_s < LIMIT_S
        assert database.query("SELECT count(*) FROM quarantine") == [(len(REFUSED),)]
        wait_until(lambda: dead_letters(rabbitmq_url) == len(DEADLY), 2 * LIMIT_S)

        assert not health_check(env, "dead letters")["ok"]

        # The deadly ones hold valid events too: put back without their headers, they arrive.
        assert retry(rabbitmq_url, dry_run=False).put_back == len(DEADLY)
        wait_until(lambda: {f"poison {name}" for name in DEADLY} <= references(database), LIMIT_S)
        assert health_check(env, "dead letters")["ok"]
        assert len(references(database)) == VALID + len(ODD) + len(DEADLY)
        assert "Traceback" not in processes["ingest"].logged()
        assert processes["ingest"].terminate() == 0


def test_a_classic_queue_that_such_a_frame_blocks_turns_health_red(
    database: Database, postgres_url: str, rabbitmq_url: str, tmp_path: Path
) -> None:
    """It has no delivery limit, so the message comes back for ever; every connection in between works."""
    env = {"DATABASE_URL": postgres_url, "RABBITMQ_URL": rabbitmq_url, "CUSTOMER_ACTORS_SWEEP_SECONDS": "1"}
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        connection.channel().queue_declare(ORDERS.queue, durable=True)
    with running(tmp_path, env, ingest=INGEST) as processes, FramePublisher(rabbitmq_url) as frames:
        wait_until(lambda: processes["ingest"].logged().count('"consuming"') >= 3)
        wait_until(lambda: queues_check(env)["ok"])
        frames.publish(ORDERS.exchange, b"order.completed", order("poison"), next(iter(DEADLY.values())))
        wait_until(lambda: not queues_check(env)["ok"])
        says = queues_check(env)["says"]
        assert ORDERS.queue in says
        assert "connections lost in a row" in says
        # A repair, and then a message that gets through.
        with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
            wait_until(lambda: purged(connection, ORDERS.queue), 30)
        publish(rabbitmq_url, [("order.completed", order("sound"))])
        wait_until(lambda: "sound" in references(database))
        wait_until(lambda: queues_check(env)["ok"], 30)


def queues_check(env: dict[str, str]) -> dict[str, Any]:
    return health_check(env, "queues")


def health_check(env: dict[str, str], name: str) -> dict[str, Any]:
    output = CliRunner().invoke(main, ["health", "ready", "--json"], env=env).output
    return next(check for check in json.loads(output)["checks"] if check["name"] == name)


def purged(connection: pika.BlockingConnection, queue: str) -> bool:
    """Whether the one message was waiting at this moment, and is gone now."""
    return bool(connection.channel().queue_purge(queue).method.message_count)


def dead_letters(url: str) -> int:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        found: int = connection.channel().queue_declare(DEAD_LETTER_QUEUE, passive=True).method.message_count
        return found
