"""A real worker process that meets what it should survive: malformed bodies, deleted queues, dead and stuck threads."""

import json
import os
import pickle
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pika
import pytest
from pika.exceptions import ChannelClosedByBroker, UnroutableError

from customer_actors.actors.nightly import QUEUES as NIGHTS
from customer_actors.actors.watchdog import EXIT_CODE
from customer_actors.domain.routing import ACTORS
from customer_actors.storage.beats import Beat, all_beats
from customer_actors.storage.database import Database
from customer_actors.storage.opening import open_database
from customer_actors.storage.overdue import all_behind
from customer_actors.storage.schema import migrate
from tests.cli.running import invoke
from tests.e2e.processes import BIN, ENDS_S, INGEST, Process, running, wait_until
from tests.model.examples import order
from tests.servers.amqp_frames import FramePublisher, nested, properties, table, timestamp
from tests.servers.process import alive
from tests.storage.support import Storage

THREADS = 4
QUEUES = ("dispatcher", "held", *ACTORS, *NIGHTS)
CONSUMERS = 2 * len(QUEUES)
RECOVERED_S = 30
"""From the first malformed message until all threads are at work and all work is done [G14]."""
POISON = (properties(table((b"when", timestamp(568_971_820_800)))), properties(table((b"deep", nested(3_000)))))
"""A time in the year 20000, and a table in a table in a table."""


def worker_of(module: str, *more: str) -> tuple[str, ...]:
    options = (
        "--processes",
        "1",
        "--threads",
        str(THREADS),
        "--worker-shutdown-timeout",
        "500",
        "--worker-fork-timeout",
        "5000",
        "--skip-logging",
    )
    return (str(BIN / "dramatiq"), module, *options, *more)


WORKER = worker_of("customer_actors.actors.main:setup")


@pytest.fixture
def storage(postgres_url: str) -> Iterator[Storage]:
    database = open_database(postgres_url)
    migrate(database)
    yield Storage(database)
    database.release()


@pytest.fixture
def env(postgres_url: str, rabbitmq_url: str) -> dict[str, str]:
    return {"DATABASE_URL": postgres_url, "RABBITMQ_URL": rabbitmq_url, "CUSTOMER_ACTORS_SWEEP_SECONDS": "1"}


@contextmanager
def worker(folder: Path, env: dict[str, str], command: tuple[str, ...] = WORKER) -> Iterator[Process]:
    with running(folder, env, worker=command) as processes:
        yield processes["worker"]


def beats(database: Database) -> list[Beat]:
    return [*all_beats(database)]


def at_full_strength(storage: Storage, since_us: int = 0) -> bool:
    """Whether a beat of the last seconds, written after `since_us`, tells of all threads."""
    now_us = time.time_ns() // 1_000
    return any(
        beat.is_fresh(now_us, 5_000_000)
        and beat.at_us > since_us
        and beat.trouble is None
        and beat.threads_alive >= THREADS + CONSUMERS
        for beat in beats(storage.database)
    )


def assert_recovered(storage: Storage, began_s: float) -> None:
    """Wait for a beat that was written from now on, when the poison is gone: all threads are at work, and in time."""
    gone_us = time.time_ns() // 1_000
    wait_until(lambda: at_full_strength(storage, gone_us))
    assert time.monotonic() - began_s < RECOVERED_S


def through(storage: Storage) -> bool:
    return not any(all_behind(storage.stores()).values())


@contextmanager
def channel_of(url: str) -> Iterator[Any]:
    with pika.BlockingConnection(pika.URLParameters(url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        yield channel


def body(actor: str, args: object, queue: str | None = None, **changed: object) -> bytes:
    fields: dict[str, object] = {
        "queue_name": queue or actor,
        "actor_name": actor,
        "args": args,
        "kwargs": {},
        "options": {"eta": 1} if queue and queue.endswith(".DQ") else {},
        "message_id": "1",
        "message_timestamp": 1,
    }
    fields |= changed
    return json.dumps({name: value for name, value in fields.items() if value != "left out"}).encode()


def malformed(queue: str) -> list[bytes]:
    """Bodies that Dramatiq by itself loops over, loses a thread to, or throws at an actor."""
    actor, other = queue.removesuffix(".DQ"), "credit" if queue.startswith("stats") else "stats"
    first, second = NIGHTS
    good: Any = {
        "dispatcher": [{"order.completed": [1]}],
        "held": ["stats", 1],
        first: ["segments", "2024-06-11T03:15"],
        second: ["segments", "2024-06-11T03:15", 1],
    }.get(actor, [[1]])
    options: list[object] = [
        None,
        [],
        {"retries": "1"},
        {"retries": None},
        {"eta": "soon"},
        {"eta": 10**18},
        {"throws": "x"},
    ]
    bodies = [body(actor, good, queue, options=each) for each in options]
    arguments = [[{"a": 1}], [[10**30]], ["text"], [["x"]], [{"order.completed": "text"}], 7, [], good * 3, None]
    bodies += [body(actor, args, queue) for args in arguments]
    bodies += [
        body(actor, good, "no_such_queue"),
        body(actor, good, other),
        body(other, good, queue),
        body(other, [[1]], other),
        body("nobody", good, queue),
        body(actor, good, queue, kwargs={"a": 1}),
        body(actor, good, queue, kwargs=None),
        body(actor, good, queue, message_id=None),
        body(actor, good, queue, message_timestamp="now"),
        body(actor, good, queue, more=1),
        body(actor, "left out", queue),
        pickle.dumps({"queue_name": queue}),
        b"",
        b"{}",
        b"null",
        b"[" * 100_000,
        b"\xff",
    ]
    return bodies


def consumed(url: str) -> bool:
    """Whether every queue is there and has its consumer, which is later than that its thread is."""
    try:
        with channel_of(url) as channel:
            return all(consumers(channel, name + suffix) == 1 for name in QUEUES for suffix in ("", ".DQ"))
    except ChannelClosedByBroker:  # there is none yet
        return False


def consumers(channel: Any, queue: str) -> int:
    count: int = channel.queue_declare(queue, passive=True).method.consumer_count
    return count


def test_malformed_bodies_between_actors_take_no_thread_away_and_no_effect(
    storage: Storage, env: dict[str, str], tmp_path: Path
) -> None:
    with worker(tmp_path, env) as process:
        wait_until(lambda: at_full_strength(storage) and consumed(env["RABBITMQ_URL"]))
        began_s = time.monotonic()
        with channel_of(env["RABBITMQ_URL"]) as channel:
            for queue in [name + suffix for name in QUEUES for suffix in ("", ".DQ")]:
                for each in malformed(queue):
                    channel.basic_publish("", queue, each, mandatory=True)
            channel.basic_publish("", "dispatcher", body("dispatcher", [{"no such type": [10**9]}]))
        storage.append([order(str(number), "10", customer_id=f"c{number}") for number in range(30)])
        wait_until(lambda: through(storage), 30)
        refused = 2 * len(QUEUES) * len(malformed("stats"))
        with channel_of(env["RABBITMQ_URL"]) as channel:
            wait_until(lambda: sum(waiting(channel, f"{queue}.XQ") for queue in QUEUES) == refused)
            assert not any(waiting(channel, queue) for name in QUEUES for queue in (name, f"{name}.DQ"))
        assert_recovered(storage, began_s)
        [beat] = beats(storage.database)
        assert process.logged().count("Restarting consumer") == 0
        assert "nobody" not in process.logged()
        assert beat.threads_alive == beat.threads_expected >= THREADS + CONSUMERS


def test_headers_that_end_any_client_between_actors_stop_no_queue(
    storage: Storage, env: dict[str, str], tmp_path: Path
) -> None:
    """Classic queues have no delivery limit: such a message would come back to its consumer for ever."""
    with worker(tmp_path, env) as process:
        wait_until(lambda: at_full_strength(storage) and consumed(env["RABBITMQ_URL"]))
        began_s = time.monotonic()
        with FramePublisher(env["RABBITMQ_URL"]) as frames:
            for queue in [name + suffix for name in QUEUES for suffix in ("", ".DQ")]:
                for poison in POISON:
                    frames.publish("", queue.encode(), body("nobody", [], queue), poison)
            for poison in POISON:
                frames.publish("", b"dispatcher", body("dispatcher", [{"no such type": [10**9]}]), poison)
        storage.append([order(str(number), "10", customer_id=f"c{number}") for number in range(30)])
        wait_until(lambda: through(storage), 30)
        refused = 2 * len(QUEUES) * len(POISON)
        with channel_of(env["RABBITMQ_URL"]) as channel:
            wait_until(lambda: sum(waiting(channel, f"{queue}.XQ") for queue in QUEUES) == refused, 30)
            assert not any(waiting(channel, queue) for name in QUEUES for queue in (name, f"{name}.DQ"))
        assert_recovered(storage, began_s)
        assert process.logged().count("Restarting consumer") == 0


def arrived(channel: Any, queue: str, message: bytes) -> bool:
    """Publish into a queue that may not have been declared yet; whether it was."""
    try:
        channel.basic_publish("", queue, message, mandatory=True)
    except UnroutableError:
        return False
    return True


def waiting(channel: Any, queue: str) -> int:
    count: int = channel.queue_declare(queue, passive=True).method.message_count
    return count


def test_deleted_queues_are_consumed_again_and_nothing_is_lost(
    storage: Storage, env: dict[str, str], tmp_path: Path
) -> None:
    with worker(tmp_path, env):
        wait_until(lambda: at_full_strength(storage) and consumed(env["RABBITMQ_URL"]))
        with channel_of(env["RABBITMQ_URL"]) as channel:
            for queue in [name + suffix for name in QUEUES for suffix in ("", ".DQ", ".XQ")]:
                channel.queue_delete(queue)
        storage.append([order(str(number), "10", customer_id=f"c{number}") for number in range(30)])
        wait_until(lambda: through(storage), 30)
        wait_until(lambda: consumed(env["RABBITMQ_URL"]), 30)
        assert at_full_strength(storage)


BROKEN = """
import functools, threading, time
import dramatiq
from customer_actors.actors import main

def die():
    threading.current_thread().consumers = {}  # as after a message that named a queue of nobody

def hang():
    time.sleep(1000)

def setup():
    main.Watchdog = functools.partial(main.Watchdog, stuck_s=1, look_s=0.2)
    main.setup()
    for fault in (die, hang):
        name = fault.__name__
        dramatiq.Actor(fault, broker=dramatiq.get_broker(), actor_name=name, queue_name=name, priority=0, options={})
"""


@pytest.mark.parametrize(("fault", "problem"), [("die", "threads are dead"), ("hang", "stuck in one message")])
def test_a_dead_or_stuck_thread_ends_the_process_for_its_supervisor(
    storage: Storage, env: dict[str, str], tmp_path: Path, fault: str, problem: str
) -> None:
    (tmp_path / "broken.py").write_text(BROKEN)
    with worker(tmp_path, env, worker_of("broken:setup", "--path", str(tmp_path))) as process:
        wait_until(lambda: at_full_strength(storage))
        assert invoke("health", "live", "--kind", "worker", env=env).exit_code == 0
        with channel_of(env["RABBITMQ_URL"]) as channel:
            wait_until(lambda: arrived(channel, fault, body(fault, [])), 30)
        assert process.wait() == EXIT_CODE
    [beat] = beats(storage.database)
    assert problem in str(beat.problem)
    for probe in ("live", "ready"):
        result = invoke("health", probe, env=env)
        assert (result.exit_code, problem in result.stdout) == (1, True)


HANGING_STOP = """
import time
from customer_actors.actors import broker, main

broker.CarefulConsumer.close = lambda consumer: time.sleep(1000)
setup = main.setup
"""


def test_a_stop_that_hangs_while_connections_are_closed_ends_all_the_same(
    storage: Storage, env: dict[str, str], tmp_path: Path
) -> None:
    """Without an end of the worker, Dramatiq's main process would wait for it, and the supervisor for that."""
    (tmp_path / "hanging.py").write_text(HANGING_STOP)
    with worker(tmp_path, env, worker_of("hanging:setup", "--path", str(tmp_path))) as process:
        wait_until(lambda: at_full_strength(storage))
        assert process.terminate() == 0
    assert "the stop takes too long" in process.logged()


def test_a_stop_that_hangs_in_the_procfiles_two_workers_ends_within_four_seconds(
    storage: Storage, env: dict[str, str], tmp_path: Path
) -> None:
    """Asked right after they are ready, they sleep a second before they look; Dramatiq's main process sleeps another
    one behind the last of them [G15]."""
    (tmp_path / "hanging.py").write_text(HANGING_STOP)
    with worker(tmp_path, env, worker_of("hanging:setup", "--path", str(tmp_path), "--processes", "2")) as process:
        wait_until(lambda: process.logged().count("ready for action") == 2)
        assert process.terminate(ENDS_S) == 0
    assert process.logged().count("the stop takes too long") == 2


def test_a_killed_worker_turns_live_red_and_a_new_one_green_again(
    storage: Storage, env: dict[str, str], tmp_path: Path
) -> None:
    with worker(tmp_path, env) as process:
        wait_until(lambda: at_full_strength(storage))
        [before] = beats(storage.database)
        process.kill()
        wait_until(lambda: invoke("health", "live", "--kind", "worker", env=env).exit_code == 1, 60)
        process.restart()
        wait_until(lambda: invoke("health", "live", "--kind", "worker", env=env).exit_code == 0, 60)
        assert process.terminate() == 0
    assert [beat.process for beat in beats(storage.database)] == [before.process]


@pytest.mark.parametrize("name", ["ingest", "worker"])
def test_a_beat_ends_with_its_process(storage: Storage, env: dict[str, str], tmp_path: Path, name: str) -> None:
    with running(tmp_path, env, it=INGEST if name == "ingest" else WORKER) as processes:
        wait_until(lambda: [beat.kind for beat in beats(storage.database)] == [name], 60)
        assert processes["it"].terminate() == 0
    assert beats(storage.database) == []


@pytest.mark.parametrize("command", [INGEST, WORKER], ids=["ingest", "worker"])
def test_no_process_starts_on_a_database_that_forgets_commits(
    storage: Storage, env: dict[str, str], tmp_path: Path, command: tuple[str, ...]
) -> None:
    name = env["DATABASE_URL"].rpartition("/")[2]
    storage.database.execute(f"ALTER DATABASE {name} SET synchronous_commit = off")
    with running(tmp_path, env, it=command) as processes:
        assert processes["it"].wait() == 2
        assert f'ALTER DATABASE "{name}" SET synchronous_commit = on' in processes["it"].logged()
        assert "Traceback" not in processes["it"].logged()


def test_a_frozen_worker_is_seen_by_its_missing_beat(storage: Storage, env: dict[str, str], tmp_path: Path) -> None:
    with worker(tmp_path, env) as process:
        wait_until(lambda: at_full_strength(storage))
        [beat] = beats(storage.database)
        os.kill(beat.pid, signal.SIGSTOP)
        wait_until(lambda: invoke("health", "live", env=env).exit_code == 1, 60)
        assert "runs without a sign of life" in invoke("health", "live", env=env).stdout
        os.kill(beat.pid, signal.SIGCONT)
        wait_until(lambda: invoke("health", "live", env=env).exit_code == 0, 60)
        assert alive(process.pid)
