"""What every process does the same way: end when a signal asks for it, and wait for its database at the start."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import structlog

from customer_actors.errors import CustomerActorsError, Outage
from customer_actors.storage.beats import Kind, beat, end_beat
from customer_actors.storage.database import Database
from customer_actors.storage.schema import require_current

log = structlog.get_logger(__name__)

SIGNALS: Final = frozenset({signal.SIGINT, signal.SIGTERM})
LIMIT_S: Final = 3.5
"""From the signal to the end of the process; what hangs then is abandoned as by kill -9, which loses nothing [G15]."""
_LOOK_S: Final = 0.1
_FIRST_RETRY_S: Final = 0.5
_LONGEST_RETRY_S: Final = 10.0
_LAST_BEAT_S: Final = 1.0


class Stop:
    """Whether this process has been asked to end."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """What asked for it."""
        self._asked = threading.Event()
        self._lock = threading.Lock()
        self._callbacks: list[Callable[[], object]] = []

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    @property
    def exit_code(self) -> int:
        """What a shell expects of a process that a signal ended: 130 for Ctrl-C, 143 for SIGTERM; 0 when none did."""
        return 128 + self.signal if self.signal else 0

    def wait(self, seconds: float) -> bool:
        """Wait at most so long; whether the process has been asked to end."""
        return self._asked.wait(seconds)

    def when_asked(self, callback: Callable[[], object]) -> None:
        """Call this once the process is asked to end, from another thread; at once if it has been."""
        with self._lock:
            if not self.asked:
                self._callbacks.append(callback)
                return
        callback()

    def ask(self, by: signal.Signals) -> None:
        """Ask the process to end."""
        with self._lock:
            self.signal = by
            self._asked.set()
        for callback in self._callbacks:
            callback()


@contextmanager
def stopping_on_signals(limit_s: float = LIMIT_S) -> Iterator[Stop]:
    """Turn SIGINT and SIGTERM into a `Stop`, and end the process hard when the block has not ended by the limit.

    The signals are blocked and taken by a thread: no exception can appear in the middle of a commit [M9],
    and a main thread that hangs in a database driver still ends in time. Enter it before any other thread starts.
    """
    stop, over = Stop(), threading.Event()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    listener = threading.Thread(target=_listen, args=(stop, over, limit_s), name="signals", daemon=True)
    listener.start()
    try:
        yield stop
    finally:
        over.set()
        listener.join()
        if stop.asked:  # a second Ctrl-C asked for nothing new
            while signal.sigtimedwait(SIGNALS, 0):
                pass
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _listen(stop: Stop, over: threading.Event, limit_s: float) -> None:
    while not over.is_set():
        taken = signal.sigtimedwait(SIGNALS, _LOOK_S)
        # Interrupted, as by SIGSTOP and SIGCONT, Python 3.11 returns what is in memory when the time is over.
        if taken is None or taken.si_signo not in SIGNALS:
            continue
        limit = threading.Timer(limit_s, os._exit, (128 + taken.si_signo,))
        limit.daemon = True
        limit.start()
        stop.ask(signal.Signals(taken.si_signo))
        over.wait()
        limit.cancel()


def wait_for_database(database: Database, stop: Stop) -> bool:
    """Wait until the database answers, for containers start in any order; False when asked to end before.

    Raises:
        UsageError: it answers, but its schema is not this version's, or it could forget what it committed.
    """
    delay_s = _FIRST_RETRY_S
    while not stop.asked:
        try:
            require_current(database)
            database.require_durable()
        except Outage as error:
            log.warning("the database does not answer", error=str(error), then=f"again in {delay_s:g} s")
            stop.wait(delay_s)
            delay_s = min(2 * delay_s, _LONGEST_RETRY_S)
        else:
            return True
    return False


@contextmanager
def beating(
    database: Database, kind: Kind, every_s: float, alarm: Callable[[], str | None] = lambda: None
) -> Iterator[None]:
    """Write this process's beat from a thread, with a connection of its own, while the block runs.

    `alarm` tells what the process sees of the service.
    """
    ending = threading.Event()

    def run() -> None:
        while True:
            _guarded(lambda: beat(database, kind, time.time_ns() // 1_000, alarm=alarm()))
            if ending.wait(every_s):
                break
        _guarded(lambda: end_beat(database, kind))
        database.release()

    thread = threading.Thread(target=run, name="beat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join(timeout=_LAST_BEAT_S)


def _guarded(work: Callable[[], object]) -> None:
    """A beat that cannot be written is only missing, and that is what health tells."""
    try:
        work()
    except CustomerActorsError as error:
        log.warning("no beat", error=str(error))
