"""The embedded service as a Python program uses it: the same results, durable, and gone when it ends."""

import io
import signal
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from customer_actors import embedded as module
from customer_actors.actors.pipeline import now_us
from customer_actors.domain.envelope import Received
from customer_actors.domain.events import Outcome
from customer_actors.embedded import Embedded, Progress, embedded
from customer_actors.errors import Outage, UsageError
from customer_actors.ingest.files import received_lines
from customer_actors.ingest.intake import Intake, policies
from customer_actors.process import Stop
from customer_actors.settings import Settings, load_settings
from customer_actors.simulate import ShopPlan, simulate
from customer_actors.storage import loyalty, stats
from customer_actors.storage.beats import all_beats
from customer_actors.storage.job_runs import last_runs
from customer_actors.storage.opening import open_database
from customer_actors.storage.overdue import all_behind
from customer_actors.storage.schema import migrate
from tests.cli.running import invoke, opened, order, states
from tests.servers import PrivatePostgres
from tests.servers.process import wait_until

PLAN = ShopPlan(customers=100, events=1_000, seed=5)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/shop.db"
    found: str = request.getfixturevalue("postgres_url")
    return found


@pytest.fixture
def settings(url: str) -> Settings:
    return load_settings({"DATABASE_URL": url, "CUSTOMER_ACTORS_BATCH_SIZE": "50"})


def shop() -> io.BytesIO:
    return io.BytesIO("\n".join(simulate(PLAN)).encode())


def test_every_line_has_an_outcome_and_every_customer_is_at_its_head_afterwards(settings: Settings) -> None:
    with embedded(settings) as service:
        service.feed(shop())
        service.drain()
        assert service.lines == PLAN.events
        assert service.waiting() == 0
        assert service.intake.outcomes[Outcome.QUARANTINED] == service.quarantined.total() > 0
        assert service.reasons.keys() == service.quarantined.keys()


def test_who_watches_is_told_how_far_it_is(settings: Settings) -> None:
    told: list[Progress] = []
    with embedded(settings) as service:
        service.feed(shop(), told.append)
        service.drain(told.append)
    assert told == sorted(told, key=lambda progress: (not progress.reading, progress.lines))
    assert told[-1] == Progress(PLAN.events, False)


def test_what_an_earlier_process_left_behind_is_finished_at_the_next_start(settings: Settings, url: str) -> None:
    database = open_database(url)
    migrate(database)
    intake = Intake(database, policies(settings, database, now_us()), lambda _: None, now_us)  # every bell is lost
    intake.take([*received_lines(shop(), now_us)])
    database.release()
    with embedded(settings) as service:
        service.drain()
        assert not any(all_behind(service.stores).values())
    assert sum(state["stats"]["orders"] for state in states(url).values()) > PLAN.events / 2


def test_commands_and_several_feeds_go_into_the_same_streams(settings: Settings, url: str) -> None:
    with embedded(settings) as service:
        for number in range(3):
            service.feed(io.BytesIO(order(f"O{number}").encode()))
            service.drain()
    assert states(url)["default", "C1"]["position"] == 3


def test_asked_to_stop_it_takes_no_further_batch(settings: Settings) -> None:
    stop = Stop()

    def ask(progress: Progress) -> None:
        if progress.lines >= 100:
            stop.ask(signal.SIGTERM)

    with embedded(settings, stop) as service:
        service.feed(shop(), ask)
        assert 100 <= service.lines < PLAN.events
        service.drain()  # returns, although customers may wait


def test_asked_to_stop_it_does_not_begin_to_read_either(settings: Settings) -> None:
    """Whoever read from the same source before may still do so."""
    source, stop = received_lines(shop(), now_us), Stop()
    with embedded(settings, stop) as service:
        stop.ask(signal.SIGTERM)
        service.feed_messages(source)
    assert len([*source]) == PLAN.events


def test_a_database_that_stays_away_is_given_up_in_the_end(
    stoppable_postgres: PrivatePostgres, stoppable_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "OUTAGE_S", 1.0)
    with embedded(load_settings({"DATABASE_URL": stoppable_url})) as service:
        stoppable_postgres.stop()
        with pytest.raises(Outage, match="PostgreSQL"):
            service.feed(io.BytesIO(order("O1").encode()))


def test_a_file_another_process_writes_to_is_waited_for(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/shop.db"
    other = open_database(url)
    migrate(other)
    locked, go_on = threading.Event(), threading.Event()

    def write() -> None:
        with other.transaction():
            locked.set()
            go_on.wait(20)
        other.release()

    with embedded(load_settings({"DATABASE_URL": url})) as service:
        writer = threading.Thread(target=write)
        writer.start()
        locked.wait(20)
        threading.Timer(0.5, go_on.set).start()
        began = time.monotonic()
        service.feed(io.BytesIO(order("O1").encode()))
        assert time.monotonic() - began >= 0.4
        service.drain()
        writer.join()
    assert states(url)["default", "C1"]["stats"]["orders"] == 1


def test_a_mass_failure_is_red_while_it_runs_and_its_beat_ends_with_it(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fold(*_: object) -> None:
        raise ValueError("the code is bad")

    for store in (stats, loyalty):
        monkeypatch.setattr(store, "fold", fold)
    env = {"DATABASE_URL": url, "CUSTOMER_ACTORS_SWEEP_SECONDS": "1"}

    def red() -> bool:
        ready = invoke("health", "ready", env=env)
        return ready.exit_code == 1 and "red  mass failure" in ready.stdout

    with embedded(load_settings(env)) as service:
        assert not red()
        service.feed(io.BytesIO("".join(order(f"O{n}", f"C{n}") for n in range(50)).encode()))
        service.drain()
        wait_until(red, 20)
        assert [(beat.kind, beat.trouble, beat.alarm) for beat in all_beats(service.database)] == [
            ("embedded", None, "mass failure")
        ]
    with opened(url) as database:
        assert all_beats(database) == []


def test_a_database_of_a_newer_version_is_refused(settings: Settings, url: str) -> None:
    database = open_database(url)
    migrate(database)
    with database.transaction():
        database.execute("INSERT INTO schema_migration (name, applied) VALUES ('9999_future', '2030-01-01')")
    database.release()
    with pytest.raises(UsageError, match="newer"), embedded(settings):
        pass


def test_no_thread_of_it_is_left_when_it_ends(settings: Settings) -> None:
    before = {*threading.enumerate()}
    with embedded(settings) as service:
        service.feed(shop())
    wait_until(lambda: {*threading.enumerate()} <= before)


def endless() -> Iterator[Received]:
    while True:
        yield Received(b"{", None, 0)


def test_it_ends_within_seconds_in_the_middle_of_the_work(settings: Settings) -> None:
    stop = Stop()
    threading.Timer(0.5, stop.ask, (signal.SIGTERM,)).start()
    with embedded(settings, stop) as service:
        service.feed_messages(endless())
        began = time.monotonic()
    assert isinstance(service, Embedded)
    assert time.monotonic() - began < 3


def missed_night(url: str) -> Settings:
    """A database made long ago, and settings by which both nights were due a quarter of an hour ago."""
    database = open_database(url)
    migrate(database)
    database.execute("UPDATE schema_migration SET applied = '2020-01-01 00:00:00'")
    database.release()
    due = datetime.now(UTC) - timedelta(minutes=15)
    crons = {f"CUSTOMER_ACTORS_NIGHTLY_{job}_CRON": f"{due.minute} {due.hour} * * *" for job in ("SEGMENTS", "CREDIT")}
    return load_settings({"DATABASE_URL": url, "CUSTOMER_ACTORS_CATCH_UP": "60", **crons})


def test_nights_are_done_while_it_runs(url: str) -> None:
    settings = missed_night(url)
    with embedded(settings) as service:
        service.feed(shop())

        def nights() -> dict[str, bool]:
            return {job: last.done_us is not None for job, last in last_runs(service.database).items()}

        wait_until(lambda: nights() == {"segments": True, "credit": True}, 60)
        service.drain()
        assert service.waiting() == 0


def test_a_demonstration_starts_no_night(url: str) -> None:
    settings = missed_night(url)
    with embedded(settings, nights=False) as service:
        service.feed(shop())
        service.drain()
        assert last_runs(service.database) == {}
