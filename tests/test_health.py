"""What makes a probe red."""

from typing import Any

import pytest

from customer_actors.health import Check, live_checks, ready_checks, stale_us
from customer_actors.settings import Settings, load_settings
from customer_actors.storage.beats import Beat
from customer_actors.storage.vitals import Vitals

SETTINGS = load_settings({})
WITH_BROKER = load_settings(
    {"DATABASE_URL": "postgresql://postgres@127.0.0.1:9/none", "RABBITMQ_URL": "amqp://127.0.0.1:9/"}
)
NOW_US = 1_000_000_000_000
STALE_US = stale_us(SETTINGS)
CALM = Vitals(None, 0, 0, 0)
BROKER: dict[str, Any] = {"reachable": True, "error": None, "queues": {"customer_dead_letter_queue": 0}}


def beat(kind: str = "worker", pid: int = 1, age_us: int = 0, host: str = "here", **more: Any) -> Beat:
    expected, alive = more.pop("threads", (5, 5))
    made = Beat(f"{kind}:{host}:{pid}", kind, host, pid, NOW_US - age_us, expected, alive, None, None)
    return made._replace(**more)


def live(*beats: Beat, kind: str | None = None, settings: Settings = WITH_BROKER) -> dict[str, bool]:
    """Of the processes 1 and 2, which run."""
    checks = live_checks(beats, settings, NOW_US, lambda beat: beat.pid in (1, 2), kind, "here")
    return {check.name: check.ok for check in checks}


def red(*beats: Beat, figures: Vitals = CALM, broker: dict[str, Any] | None = BROKER) -> set[str]:
    return {check.name for check in ready_checks(beats, figures, broker, SETTINGS, NOW_US) if not check.ok}


BOTH = (beat(), beat("ingest", 2))


def test_processes_that_beat_with_all_threads_are_alive() -> None:
    assert live(*BOTH) == {"worker:here:1": True, "ingest:here:2": True}
    assert live(*BOTH, kind="ingest") == {"ingest:here:2": True}
    assert live(beat(age_us=STALE_US)) == {"worker:here:1": True}


@pytest.mark.parametrize("more", [{"threads": (5, 4)}, {"problem": "stuck"}, {"age_us": STALE_US + 1}])
def test_a_process_with_dead_or_stuck_threads_or_without_a_beat_is_red(more: dict[str, Any]) -> None:
    assert live(beat(**more))["worker:here:1"] is False


def test_a_process_that_is_gone_is_red_until_another_of_its_kind_beats() -> None:
    gone = beat(pid=7, age_us=STALE_US + 1)
    assert live(gone) == {"worker": False}
    assert live(gone, beat()) == {"worker:here:1": True}
    assert live(gone, beat("ingest", 2)) == {"worker": False, "ingest:here:2": True}


def test_a_process_that_ended_in_trouble_is_red_until_it_was_replaced() -> None:
    ended = beat(pid=7, age_us=5, problem="2 of 5 threads are dead")
    assert live(ended) == {"worker:here:7": False}
    assert live(ended, beat()) == {"worker:here:1": True}
    assert live(ended, beat(age_us=6)) == {"worker:here:7": False, "worker:here:1": True}


def test_other_hosts_do_not_count_and_nobody_at_all_is_red() -> None:
    assert live(beat(host="there")) == {"process": False}
    assert live(beat(), kind="scheduler") == {"scheduler": False}


def test_an_embedded_run_that_is_gone_or_elsewhere_is_missed_by_nobody() -> None:
    runs, killed, elsewhere = beat("embedded"), beat("embedded", 7), beat("embedded", 1, host="there")
    assert live(runs, killed, elsewhere, beat()) == {"embedded:here:1": True, "worker:here:1": True}
    assert live(killed, elsewhere, beat()) == {"worker:here:1": True}


def test_without_a_broker_nothing_has_to_run_and_what_runs_must_be_well() -> None:
    assert live(settings=SETTINGS) == live(beat("embedded", 7), settings=SETTINGS) == {"process": True}
    assert live(beat("scheduler", host="there"), settings=SETTINGS) == {"process": True}
    assert live(beat("scheduler", 7, age_us=STALE_US + 1), settings=SETTINGS) == {"scheduler": False}
    assert live(beat("embedded", threads=(5, 4)), settings=SETTINGS) == {"embedded:here:1": False}
    assert live(settings=SETTINGS, kind="worker") == {"worker": False}


def test_an_alarm_is_no_matter_of_life() -> None:
    assert live(beat(alarm="mass failure")) == {"worker:here:1": True}


def test_a_service_within_its_limits_is_ready() -> None:
    assert red(*BOTH) == set()
    assert red(*BOTH, figures=Vitals(None, 100, 0, 100)) == set()
    assert red(broker=None) == set()


@pytest.mark.parametrize(
    ("figures", "name"),
    [
        (CALM._replace(oldest_us=NOW_US - 301_000_000), "lag"),
        (CALM._replace(held=101), "held"),
        (CALM._replace(parked=1), "parked"),
        (CALM._replace(quarantined=101), "quarantined"),
    ],
)
def test_a_figure_past_its_limit_is_red(figures: Vitals, name: str) -> None:
    assert red(*BOTH, figures=figures) == {name}


def test_a_missing_worker_or_ingest_is_red_where_there_is_a_broker() -> None:
    assert red(beat()) == {"ingest"}
    assert red(beat("ingest")) == {"worker"}
    assert red(beat(age_us=STALE_US + 1), beat("ingest")) == {"worker"}
    assert red(beat(host="there"), beat("ingest", host="elsewhere")) == set()


def test_threads_mass_failure_dead_letters_and_a_broker_away_are_red() -> None:
    assert red(beat(threads=(5, 3)), beat("ingest", 2)) == {"threads"}
    assert red(beat(alarm="mass failure"), beat("ingest", 2)) == {"mass failure"}
    assert red(beat("embedded", alarm="mass failure"), broker=None) == {"mass failure"}
    assert red(beat("embedded", alarm="mass failure", age_us=STALE_US + 1), broker=None) == set()
    assert red(beat(), beat("ingest", 2, alarm="a queue: 5 connections lost")) == {"queues"}
    assert red(*BOTH, broker=BROKER | {"queues": {"customer_dead_letter_queue": 1}}) == {"dead letters"}
    assert red(*BOTH, broker={"reachable": False, "error": "refused", "queues": {}}) == {"broker"}
    assert red(*BOTH, broker=BROKER | {"queues": {"customer_dead_letter_queue": None}}) == set()


def test_the_lag_is_said_in_seconds() -> None:
    checks = ready_checks(BOTH, CALM._replace(oldest_us=NOW_US - 400_000_000), None, SETTINGS, NOW_US)
    assert Check("lag", False, "an event waits for 400 s, limit 300 s") in checks
