"""Processes end when they are asked to, whatever they hang in, and wait for their database when they start."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from customer_actors.errors import UsageError
from customer_actors.process import SIGNALS, Stop, wait_for_database
from customer_actors.storage.opening import open_database
from customer_actors.storage.schema import migrate
from tests.servers import PrivatePostgres
from tests.servers.process import WAIT_S

START = "from customer_actors.process import stopping_on_signals\nimport os, sys\n"
NUMBERS = sorted(SIGNALS)


def ended(script: str, number: signal.Signals) -> tuple[int, str, float]:
    """Run a script, send it a signal once it says ready; its exit code, further output and seconds until its end."""
    command = [sys.executable, "-c", START + script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            began = time.monotonic()
            process.send_signal(number)
            code = process.wait(timeout=20)
            return code, process.stdout.read().decode(), time.monotonic() - began
        finally:
            process.kill()


def test_a_process_that_was_stopped_for_a_while_goes_on() -> None:
    script = "with stopping_on_signals() as stop:\n print('ready', flush=True); stop.wait(20); print(stop.signal.name)"
    with subprocess.Popen([sys.executable, "-c", START + script], stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            for _ in range(3):
                process.send_signal(signal.SIGSTOP)
                threading.Event().wait(0.3)  # longer than the process waits for a signal
                process.send_signal(signal.SIGCONT)
                threading.Event().wait(0.05)
            process.send_signal(signal.SIGTERM)
            assert (process.wait(timeout=20), process.stdout.read()) == (0, b"SIGTERM\n")
        finally:
            process.kill()


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_becomes_a_flag_and_the_process_ends_as_it_likes(number: signal.Signals) -> None:
    script = "with stopping_on_signals() as stop:\n print('ready', flush=True); stop.wait(20); print(stop.signal.name)"
    assert ended(script, number)[:2] == (0, f"{number.name}\n")


@pytest.mark.parametrize("number", NUMBERS)
def test_what_hangs_in_a_call_into_the_system_is_abandoned_at_the_limit(number: signal.Signals) -> None:
    script = "with stopping_on_signals(0.3):\n print('ready', flush=True); sys.stdin.read()"
    code, _, seconds = ended(script, number)
    assert code == 128 + number
    assert 0.3 <= seconds < 3


def test_nothing_is_raised_in_the_middle_of_the_work() -> None:
    script = (
        "with stopping_on_signals() as stop:\n print('ready', flush=True)\n while not stop.asked: sum(range(1000))\n"
        " print('ended by itself')"
    )
    assert ended(script, signal.SIGINT)[:2] == (0, "ended by itself\n")


def test_a_second_signal_asks_for_nothing_new() -> None:
    script = (
        "with stopping_on_signals() as stop:\n print('ready', flush=True); stop.wait(20); os.kill(os.getpid(), 15)\n"
        "print(stop.exit_code)"
    )
    assert ended(script, signal.SIGTERM)[:2] == (0, "143\n")


def test_afterwards_signals_mean_what_they_meant_before() -> None:
    script = "with stopping_on_signals():\n pass\nprint('ready', flush=True); sys.stdin.read()"
    assert ended(script, signal.SIGTERM)[0] == -signal.SIGTERM


def test_who_wants_to_know_is_told_once_be_it_early_or_late() -> None:
    stop, told = Stop(), list[str]()
    stop.when_asked(lambda: told.append("early"))
    assert told == []
    stop.ask(signal.SIGINT)
    stop.when_asked(lambda: told.append("late"))
    assert told == ["early", "late"]


def test_a_process_that_nobody_asked_to_end_has_exit_code_0() -> None:
    assert Stop().exit_code == 0


def test_an_old_schema_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    database = open_database(f"sqlite:///{tmp_path}/old.db")
    with pytest.raises(UsageError, match="customer-actors migrate"):
        wait_for_database(database, Stop())
    database.release()


def test_a_database_that_is_away_is_waited_for(stoppable_postgres: PrivatePostgres, stoppable_url: str) -> None:
    database, found = open_database(stoppable_url), list[bool]()
    migrate(database)
    database.release()
    stoppable_postgres.stop()
    waiting = threading.Thread(target=lambda: found.append(wait_for_database(database, Stop())))
    waiting.start()
    stoppable_postgres.start()
    waiting.join(timeout=WAIT_S)
    assert found == [True]


def test_waiting_for_a_database_ends_when_the_process_has_to() -> None:
    database, stop = open_database("postgresql://postgres:x@127.0.0.1:1/nowhere"), Stop()
    waiting = threading.Timer(0.2, stop.ask, (signal.SIGTERM,))
    waiting.start()
    assert not wait_for_database(database, stop)
