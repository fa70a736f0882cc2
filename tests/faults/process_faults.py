"""Faults of our own processes."""

import os
import random
import signal
from typing import Final

from tests.faults.faults import fault
from tests.faults.stage import INGEST, WORKER, Stage
from tests.servers.process import descendants

_HEARTBEAT_S: Final = 2


@fault("kill -9 of ingest", "kills", short=True, ends_processes=True)
def kill_ingest(stage: Stage, rng: random.Random) -> int:
    kills = 4
    for _ in range(kills):
        stage.more(rng.randrange(20, 120))
        os.kill(stage.processes[INGEST].pid, signal.SIGKILL)
    return kills


@fault("kill -9 of a worker child", "kills", short=True, ends_processes=True)
def kill_worker_child(stage: Stage, rng: random.Random) -> int:
    kills = 4
    for _ in range(kills):
        stage.more(rng.randrange(20, 120))
        stage.until(lambda: stage.workers_ready() and bool(stage.worker_children()))
        os.kill(rng.choice(stage.worker_children()), signal.SIGKILL)
    return kills


@fault("kill -9 of the workers' main process", "kills", ends_processes=True)
def kill_worker_main(stage: Stage, rng: random.Random) -> int:
    kills = 3
    for _ in range(kills):
        stage.more(rng.randrange(20, 120))
        os.kill(stage.processes[WORKER].pid, signal.SIGKILL)
    return kills


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
        family = [stage.processes[name].pid, *descendants(stage.processes[name].pid)]
        missed = _missed_heartbeats(stage)
        for pid in family:
            os.kill(pid, signal.SIGSTOP)
        stage.until(lambda missed=missed: _missed_heartbeats(stage) > missed, 10 * _HEARTBEAT_S)  # type: ignore[misc]
        stage.pause(_HEARTBEAT_S)
        for pid in family:
            os.kill(pid, signal.SIGCONT)
        times += len(family)
    return times
