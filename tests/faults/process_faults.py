"""Faults of our own processes."""

import os
import random
import signal
from typing import Final

from tests.e2e.processes import ENDS_S
from tests.faults.faults import fault
from tests.faults.stage import INGEST, WORKER, Stage

_HEARTBEAT_S: Final = 2


def _killed(stage: Stage, pid: int) -> int:
    """Kill one; the process it belongs to has ended by it, and was started again."""
    restarts = stage.restarts
    os.kill(pid, signal.SIGKILL)
    stage.until(lambda: stage.restarts > restarts)
    return 1


@fault("kill -9 of ingest", "kills", short=True, ends_processes=True)
def kill_ingest(stage: Stage, rng: random.Random) -> int:
    kills = 0
    for _ in range(4):
        stage.more(rng.randrange(20, 120))
        kills += _killed(stage, stage.processes[INGEST].pid)
    return kills


@fault("kill -9 of a worker child", "kills", short=True, ends_processes=True)
def kill_worker_child(stage: Stage, rng: random.Random) -> int:
    kills = 0
    for _ in range(4):
        stage.more(rng.randrange(20, 120))
        stage.until(lambda: stage.workers_ready() and bool(stage.worker_children()))
        kills += _killed(stage, rng.choice(stage.worker_children()))
    return kills


@fault("kill -9 of the workers' main process", "kills", ends_processes=True)
def kill_worker_main(stage: Stage, rng: random.Random) -> int:
    kills = 0
    for _ in range(3):
        stage.more(rng.randrange(20, 120))
        kills += _killed(stage, stage.processes[WORKER].pid)
    return kills


@fault("SIGTERM of ingest and of the workers at work", "stops", ends_processes=True)
def terminated(stage: Stage, rng: random.Random) -> int:
    """Each ends within four seconds; what it has not committed is not acknowledged either, and comes again [G15]."""
    names = (INGEST, WORKER) * 2
    for name in names:
        stage.until(stage.workers_ready)  # a process that has only begun to start has nothing to lose
        stage.more(rng.randrange(20, 120))
        stage.terminate(name, seconds=ENDS_S)
        stage.supervise()
    return len(names)


def _short_heartbeat(stage: Stage) -> None:
    stage.rabbitmq_options = f"?heartbeat={_HEARTBEAT_S}"


def _missed_heartbeats(stage: Stage) -> int:
    """How many connections the broker has closed for that."""
    return stage.rabbitmq.logged().count("missed heartbeats from client")


@fault("SIGSTOP of ingest and workers, longer than the heartbeat", "stops", prepare=_short_heartbeat)
def stopped(stage: Stage, rng: random.Random) -> int:
    """The broker gives their messages to others; when they wake up, their acknowledgements are worth nothing [M1]."""
    times = 0
    for name in (INGEST, WORKER):
        stage.more(rng.randrange(20, 120))
        missed = _missed_heartbeats(stage)
        with stage.frozen(name) as family:
            stage.until(lambda missed=missed: _missed_heartbeats(stage) > missed, 10 * _HEARTBEAT_S)  # type: ignore[misc]
            stage.pause(_HEARTBEAT_S)
        times += family
    return times
