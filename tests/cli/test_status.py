"""What `status` counts, and what it says when something is away."""

import json
from pathlib import Path

import pika
import pytest
from click.testing import CliRunner

from customer_actors.cli import main
from customer_actors.cli.overview import broker_view
from customer_actors.domain.events import Rejected
from customer_actors.domain.routing import ACTORS, CREDIT, LOYALTY, SEGMENTATION, STATS
from customer_actors.ingest.topology import DEAD_LETTER_QUEUE, QUEUES, UNROUTED_QUEUE, declare
from customer_actors.storage.beats import beat
from tests.cli.shop import LIFE, Shop, failing_at
from tests.model.examples import order, payment
from tests.servers.process import free_port
from tests.storage.support import NOW_US

IDLE = {
    "customers_behind": 0,
    "events_waiting": 0,
    "oldest_waiting_seconds": None,
    "held": 0,
    "parked": 0,
    "events_held_back": 0,
}


def test_status_of_an_empty_service(shop: Shop) -> None:
    assert shop.json("status") == {
        "pending_migrations": [],
        "customers": 0,
        "events": 0,
        "actors": dict.fromkeys(ACTORS, IDLE),
        "quarantined": {"distinct": 0, "seen": 0, "codes": {}},
        "bells": {"unanswered": 0, "oldest_seconds": None},
        "nights": {},
        "processes": [],
        "broker": None,
    }


def actors_of(shop: Shop) -> dict[str, dict[str, int | None]]:
    """What waits, with the ages that depend on the hour reduced to whether there is one."""
    actors = shop.json("status")["actors"]
    for figures in actors.values():
        age = figures.pop("oldest_waiting_seconds")
        assert (age is not None) == (figures["customers_behind"] > 0)
    return dict(actors)


def waiting(customers: int, events: int, held: int = 0, parked: int = 0, back: int = 0) -> dict[str, int]:
    counts = {"customers_behind": customers, "events_waiting": events}
    return counts | {"held": held, "parked": parked, "events_held_back": back}


def test_status_counts_the_events_that_concern_each_actor(shop: Shop) -> None:
    shop.receive(*LIFE, order("O-7", "5", customer_id="c2"), payment("P-7", "5", customer_id="c3"))
    view = shop.json("status")
    assert (view["customers"], view["events"], view["bells"]["unanswered"]) == (3, 11, 1)
    assert actors_of(shop) == {
        STATS: waiting(2, 5),
        LOYALTY: waiting(2, 7),
        SEGMENTATION: waiting(0, 0),
        CREDIT: waiting(2, 7),
    }
    shop.advance(STATS)
    shop.advance(CREDIT)
    assert actors_of(shop) == {
        STATS: waiting(0, 0),
        LOYALTY: waiting(2, 7),
        SEGMENTATION: waiting(2, 5),
        CREDIT: waiting(0, 0),
    }


def test_segmentation_waits_for_nothing_that_the_statistics_have_yet_to_fold(shop: Shop) -> None:
    shop.settle(order("O-1", "5"))
    shop.receive(order("O-2", "5"))
    shop.advance(STATS)
    shop.receive(order("O-3", "5"), order("O-4", "5"))
    actors = actors_of(shop)
    assert (actors[STATS], actors[SEGMENTATION]) == (waiting(1, 2), waiting(1, 1))


def test_the_oldest_waiting_event_is_as_old_as_its_receipt(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.receive(payment("P-1", "5")._replace(received_at_us=NOW_US - 90_000_000))
    shop.receive(payment("P-2", "5")._replace(received_at_us=NOW_US - 10_000_000))
    monkeypatch.setattr("time.time_ns", lambda: NOW_US * 1_000)
    view = shop.json("status")
    assert view["actors"][CREDIT]["oldest_waiting_seconds"] == 90
    assert view["bells"] == {"unanswered": 2, "oldest_seconds": 0}


def test_held_and_parked_customers_are_not_lag(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    failing_at(monkeypatch, "bad")
    for number in range(3):
        theirs = [order("bad", "5"), order("O-2", "5")]
        shop.settle(*[each._replace(organization_id=f"org-{number}") for each in theirs])
    shop.receive(order("O-3", "5"), order("O-4", "5", customer_id="c4"))
    shop.execute("UPDATE held_group SET next_try_us = NULL WHERE customer = ?", shop.number("c1", "org-0"))
    assert actors_of(shop)[LOYALTY] == waiting(1, 1, held=2, parked=1, back=7)
    assert shop.run("status").exit_code == 0
    shop.execute("UPDATE loyalty_state SET held_position = NULL")  # released, the details of the hold are still there
    assert actors_of(shop)[LOYALTY] == waiting(4, 8)


def test_quarantined_messages_are_counted_by_code(shop: Shop) -> None:
    for code, reason in (("bad_json", "x"), ("bad_json", "x"), ("bad_json", "y"), ("bad_id", "z")):
        shop.receive(Rejected(code, reason))
    assert shop.json("status")["quarantined"] == {
        "distinct": 3,
        "seen": 4,
        "codes": {"bad_id": {"distinct": 1, "seen": 1}, "bad_json": {"distinct": 2, "seen": 3}},
    }


def test_status_as_text(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.receive(*LIFE, Rejected("bad_json", "x"))
    shop.advance(STATS)
    monkeypatch.setattr("time.time_ns", lambda: (NOW_US + 7_000_000) * 1_000)
    assert shop.run("status").stdout == (
        "customers: 1, events in their streams: 9\n\n"
        "                   behind      waiting       oldest         held       parked    held back\n"
        "stats                   0            0            -            0            0            0\n"
        "loyalty                 1            6     864007 s            0            0            0\n"
        "segmentation            1            4     864007 s            0            0            0\n"
        "credit                  1            6     864007 s            0            0            0\n\n"
        "quarantined: 1, seen 1 times (1 bad_json)\n"
        "unanswered bells: 1, the oldest for 7 s\n"
    )


def test_status_shows_the_processes_that_beat_and_what_is_wrong(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    beat(shop.database, "worker", NOW_US, expected=20, alive=19)
    beat(shop.database, "ingest", NOW_US)
    monkeypatch.setattr("time.time_ns", lambda: (NOW_US + 3_000_000) * 1_000)
    ingest, worker = shop.json("status")["processes"]
    assert (worker["threads"], worker["threads_expected"], worker["beat_seconds_ago"]) == (19, 20, 3)
    lines = shop.run("status").stdout.splitlines()
    assert f"{ingest['process']}: 1 threads, seen 3 s ago" in lines
    assert f"{worker['process']}: 19 threads, seen 3 s ago, 1 of 20 threads are dead" in lines


def test_an_old_schema_is_a_problem_and_a_missing_file_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    env = {"DATABASE_URL": "sqlite:///new.db"}
    assert CliRunner().invoke(main, ["status"], env=env).exit_code == 2
    assert not Path("new.db").exists()
    Path("new.db").touch()
    result = CliRunner().invoke(main, ["status"], env=env)
    assert (result.exit_code, "customer-actors migrate" in result.stdout) == (1, True)
    view = json.loads(CliRunner().invoke(main, ["status", "--json"], env=env).stdout)
    assert "0001_streams" in view["pending_migrations"]
    assert CliRunner().invoke(main, ["show", "c1"], env=env).exit_code == 2


@pytest.mark.parametrize("args", [["show", "c1"], ["explain", "c1"], ["status"]])
def test_a_database_that_is_away_is_exit_4(args: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    env = {"DATABASE_URL": f"postgresql://nobody:s3cret@127.0.0.1:{free_port()}/none"}
    result = CliRunner().invoke(main, args, env=env)
    assert result.exit_code == 4
    assert result.stderr.startswith("customer-actors: PostgreSQL: ")
    assert "s3cret" not in result.output


def test_queues_are_counted_and_a_missing_one_is_named(
    postgres_url: str, rabbitmq_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    env = {"DATABASE_URL": postgres_url, "RABBITMQ_URL": rabbitmq_url}
    none = CliRunner().invoke(main, ["status"], env=env)
    assert none.stdout.count("not there yet") == 5
    with pika.BlockingConnection(pika.URLParameters(rabbitmq_url)) as connection:
        declare(connection)
        channel = connection.channel()
        channel.confirm_delivery()
        for _ in range(3):
            channel.basic_publish("", QUEUES[0], b"{}")
        channel.basic_publish("", DEAD_LETTER_QUEUE, b"{}")
    view = json.loads(CliRunner().invoke(main, ["status", "--json"], env=env).stdout)
    counts = {QUEUES[0]: 3, QUEUES[1]: 0, QUEUES[2]: 0, DEAD_LETTER_QUEUE: 1, UNROUTED_QUEUE: 0}
    assert view["broker"] == {"reachable": True, "error": None, "queues": counts}


def test_a_broker_that_is_away_is_said_without_its_password() -> None:
    view = broker_view(f"amqp://somebody:s3cret@127.0.0.1:{free_port()}/")
    assert (view["reachable"], view["queues"]) == (False, {})
    assert "s3cret" not in view["error"]


def test_a_broker_that_is_away_does_not_spoil_the_status(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    env = {"DATABASE_URL": postgres_url, "RABBITMQ_URL": f"amqp://somebody:s3cret@127.0.0.1:{free_port()}/"}
    CliRunner().invoke(main, ["migrate"], env=env)
    result = CliRunner().invoke(main, ["status"], env=env)
    assert result.exit_code == 0
    assert "the broker cannot be reached: " in result.stdout
    assert "s3cret" not in result.output


@pytest.mark.parametrize("verb", ["show", "explain", "status"])
def test_every_verb_has_an_example(verb: str) -> None:
    result = CliRunner().invoke(main, [verb, "--help"])
    assert f"Example: customer-actors {verb}" in result.stdout
