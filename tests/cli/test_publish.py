"""`publish`: lines to the exchanges, each accounted for."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pika
import pytest

from customer_actors.cli.feeding import routing_key_of
from customer_actors.domain.envelope import MAX_BODY_BYTES
from customer_actors.ingest.topology import SOURCES, declare
from tests.cli.running import NOBODY_LISTENS, PROGRAM, file_of, invoke, order


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def broker(rabbitmq_url: str) -> Iterator[pika.BlockingConnection]:
    """A connection to a broker that has our topology."""
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        declare(connection)
        yield connection


def received(broker: pika.BlockingConnection, queue: str, number: int) -> list[tuple[str, bytes]]:
    """Routing keys and bodies of the first messages of a queue."""
    found: list[tuple[str, bytes]] = []
    with broker.channel() as channel:
        channel.basic_qos(prefetch_count=1)
        for method, _, body in channel.consume(queue, inactivity_timeout=20):
            assert method is not None, f"{queue} held {len(found)} messages"
            assert method.delivery_tag is not None
            channel.basic_ack(method.delivery_tag)
            found.append((str(method.routing_key), body or b""))
            if len(found) == number:
                break
    return found


SALE = '{"event": "pos.transaction.completed", "data": {"transaction_id": "T1", "totals": {"total_amount": NaN}}}'
PAYMENT = '{"event":"payment.received","data":{}}'


def test_every_line_goes_as_it_is_to_the_queue_of_its_event(
    broker: pika.BlockingConnection, rabbitmq_url: str, folder: Path
) -> None:
    lines = [order("O1"), SALE + "\r\n", "\n", PAYMENT + "\n", order("O2")]

    done = invoke("publish", file_of(folder / "shop.jsonl", lines), "--json", env={"RABBITMQ_URL": rabbitmq_url})

    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == {"confirmed": 4, "returned": 0, "nacked": 0, "bad_lines": 0}
    orders, sales, payments = (source.queue for source in SOURCES)
    assert received(broker, orders, 2) == [("order.completed", order(o).strip().encode()) for o in ("O1", "O2")]
    assert received(broker, sales, 1) == [("pos.transaction.completed", SALE.encode())]
    assert received(broker, payments, 1) == [("payment.received", PAYMENT.encode())]


def test_a_bad_line_is_reported_by_number_and_the_others_are_sent(
    broker: pika.BlockingConnection, rabbitmq_url: str
) -> None:
    lines = order("O1") + "\n{\n" + '{"event": "order.archived"}\n' + order("O2")

    done = invoke("publish", "-", env={"RABBITMQ_URL": rabbitmq_url}, stdin=lines)

    assert done.exit_code == 1
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["line 3", "line 4"]
    assert "2 confirmed" in done.stdout
    assert "2 bad lines" in done.stdout
    assert len(received(broker, SOURCES[0].queue, 2)) == 2


def test_what_no_queue_takes_is_a_problem(broker: pika.BlockingConnection, rabbitmq_url: str) -> None:
    broker.channel().queue_unbind(SOURCES[2].queue, SOURCES[2].exchange, "payment.received")
    done = invoke("publish", "-", env={"RABBITMQ_URL": rabbitmq_url}, stdin=PAYMENT)
    assert done.exit_code == 1
    assert "1 returned" in done.stdout


def test_lines_are_sent_as_they_arrive(broker: pika.BlockingConnection, rabbitmq_url: str, folder: Path) -> None:
    env = {**os.environ, "RABBITMQ_URL": rabbitmq_url}
    with subprocess.Popen([PROGRAM, "publish", "-"], env=env, cwd=folder, stdin=-1, stdout=-1, stderr=-1) as process:
        assert process.stdin is not None
        try:
            for number in range(2):
                process.stdin.write(order(f"O{number}").encode())
                process.stdin.flush()
                assert b"O%d" % number in received(broker, SOURCES[0].queue, 1)[0][1]
            process.stdin.close()
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'"order.completed"',
        b"{}",
        b'{"event": null}',
        b'{"event": ["order.completed"]}',
        b'{"event": "credit.opened"}',
        b"\xff\xfe\xfa",
        b'{"event": "order.completed", "data": ' + b"[" * 20_000 + b"]" * 20_000 + b"}",
        b'{"event": "order.completed"}' + b" " * MAX_BODY_BYTES,
    ],
)
def test_a_line_that_names_no_exchange_is_told_why(body: bytes) -> None:
    with pytest.raises(ValueError, match=r"[a-z]"):
        routing_key_of(body)


def test_without_a_broker_named_it_ends_with_2_and_names_the_variable() -> None:
    done = invoke("publish", "-", stdin=order("O1"))
    assert done.exit_code == 2
    assert "RABBITMQ_URL" in done.stderr


def test_a_broker_that_is_away_ends_with_4() -> None:
    done = invoke("publish", "-", env={"RABBITMQ_URL": NOBODY_LISTENS}, stdin=order("O1"))
    assert done.exit_code == 4
    assert "cannot be reached" in done.stderr


def test_a_missing_file_ends_with_2_before_anybody_connects() -> None:
    done = invoke("publish", "missing.jsonl", env={"RABBITMQ_URL": NOBODY_LISTENS})
    assert done.exit_code == 2
    assert "missing.jsonl" in done.stderr


def test_help_explains_with_an_example() -> None:
    assert "customer-actors publish -" in invoke("publish", "--help").stdout
