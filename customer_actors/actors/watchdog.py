"""Ends a worker process whose threads are dead or stuck, or whose stop hangs, so that a supervisor starts a whole one.

Nothing else can heal it: Dramatiq does not replace a dead thread, and a thread that hangs cannot be stopped.
"""

import os
import threading
import time
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import dramatiq
import structlog

EXIT_CODE: Final = 70
"""Of a process that the watchdog ends. Dramatiq's main process then ends its other workers and itself with it."""
STUCK_S: Final = 300.0
"""Far above what any message may take: rounds end after 2 s, statements after 60 s, a connection attempt after 5 s."""
LOOK_S: Final = 2.0
_LAST_WORDS_S: Final = 5.0
STOP_S: Final = 1.6
"""How long a stop may take; Dramatiq begins it up to 1 s after SIGTERM, and its main process needs up to 1 s after its
last worker [G15].

It closes the connection of a consumer whose thread is perhaps still reading from it, and then may wait for ever for an
answer that the other thread took; and those of a broker that answers nobody, as in a memory alarm. Its main process
waits with it, so nobody would start the workers again.
"""

log = structlog.get_logger(__name__)


class Threads(NamedTuple):
    """Worker and consumer threads of this process."""

    expected: int
    alive: int


class Watchdog(dramatiq.Middleware):
    """Looks every few seconds whether all threads live and none works on one message for too long."""

    def __init__(self, last_words: Callable[[str], object], stuck_s: float = STUCK_S, look_s: float = LOOK_S) -> None:
        """`last_words` is told the problem before the process ends; it has a few seconds, then it is left alone."""
        self._last_words = last_words
        self._stuck_s = stuck_s
        self._look_s = look_s
        self._worker: dramatiq.Worker | None = None
        self._since: dict[threading.Thread, float] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)
        self._limit = threading.Timer(STOP_S, self._stop_now)
        self._limit.daemon = True

    def before_worker_boot(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        self._worker = worker

    def after_worker_boot(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        self._thread.start()

    def before_worker_shutdown(self, broker: dramatiq.Broker, worker: dramatiq.Worker) -> None:
        self._stopping.set()
        self._limit.start()  # and never cancelled: after its threads Dramatiq closes its connections

    def before_process_message(self, broker: dramatiq.Broker, message: Any) -> None:
        self._since[threading.current_thread()] = time.monotonic()

    def after_process_message(
        self, broker: dramatiq.Broker, message: Any, *, result: Any = None, exception: BaseException | None = None
    ) -> None:
        self._since.pop(threading.current_thread(), None)

    def after_skip_message(self, broker: dramatiq.Broker, message: Any) -> None:
        self._since.pop(threading.current_thread(), None)

    def threads(self) -> Threads:
        """How many threads there should be and how many there are."""
        if self._worker is None:
            return Threads(0, 0)
        threads = [*self._worker.workers, *self._worker.consumers.values()]
        return Threads(len(threads), sum(thread.is_alive() for thread in threads))

    def problem(self) -> str | None:
        """What is wrong with the threads."""
        expected, alive = self.threads()
        if alive < expected:
            return f"{expected - alive} of {expected} threads are dead"
        longest = max((time.monotonic() - since for since in [*self._since.values()]), default=0.0)
        return f"a thread is stuck in one message for {longest:.0f} s" if longest > self._stuck_s else None

    def _run(self) -> None:
        while not self._stopping.wait(self._look_s):
            # Looked at twice: a thread may be about to start, and when the worker stops they end one by one.
            if self.problem() and not self._stopping.wait(self._look_s) and (problem := self.problem()):
                self._end(problem)

    def _stop_now(self) -> None:
        """What is not acknowledged is delivered again, and every transaction is whole: as safe as any kill."""
        log.warning("the stop takes too long", then="it ends without closing its connections")
        os._exit(0)

    def _end(self, problem: str) -> None:
        limit = threading.Timer(_LAST_WORDS_S, os._exit, (EXIT_CODE,))
        limit.daemon = True
        limit.start()
        log.error("this worker cannot go on", problem=problem, then=f"it ends with exit code {EXIT_CODE}")
        try:
            self._last_words(problem)
        except Exception as error:
            log.warning("the problem could not be noted", error=str(error))
        os._exit(EXIT_CODE)
