"""Faults of the database and of the way to it."""

import random
from contextlib import closing
from typing import Final

import psycopg2

from tests.faults.faults import fault
from tests.faults.proxy import Proxy
from tests.faults.sabotage import OF_ACTORS, sabotage
from tests.faults.stage import OUTAGE_S, SERVICE, Stage

_HITS: Final = 20
_LOCKED_S: Final = max(24.0, OUTAGE_S)
"""Longer than the service waits for a lock (20 s)."""


@fault("database: fast restart", "restarts")
def fast_restart(stage: Stage, rng: random.Random) -> int:
    times = 3
    for _ in range(times):
        stage.more(rng.randrange(20, 150))
        stage.postgres.stop("fast")
        stage.postgres.start()
    return times


@fault("database: immediate restart", "restarts", short=True)
def immediate_restart(stage: Stage, rng: random.Random) -> int:
    times = 3
    for _ in range(times):
        stage.more(rng.randrange(20, 150))
        stage.postgres.stop("immediate")
        stage.postgres.start()
    return times


@fault("database: kill -9", "kills")
def kill(stage: Stage, rng: random.Random) -> int:
    times = 2
    for _ in range(times):
        stage.more(rng.randrange(20, 150))
        stage.postgres.kill()
        stage.postgres.start()
    return times


@fault("database: down for a while", f"outages of {OUTAGE_S:g} s")
def down(stage: Stage, rng: random.Random) -> int:
    stage.more(rng.randrange(20, 150))
    stage.postgres.stop("fast")
    stage.pause(OUTAGE_S)
    stage.postgres.start()
    return 1


def _behind_proxy(stage: Stage) -> None:
    stage.proxy = stage.cleanup.enter_context(Proxy(stage.postgres.port))
    stage.database_port = stage.proxy.port


def _proxy(stage: Stage) -> Proxy:
    assert stage.proxy is not None
    return stage.proxy


@fault("database: reply to COMMIT lost", "replies", short=True, prepare=_behind_proxy)
def lost_reply(stage: Stage, rng: random.Random) -> int:
    """Committed, but nobody was told: doing it again must not do it twice."""
    proxy = _proxy(stage)
    for _ in range(6):
        stage.more(rng.randrange(10, 100))
        proxy.lose_replies(rng.randrange(1, 4))
    proxy.lose_replies(0)
    return proxy.lost_replies


@fault("database: black hole of 9 s, then broken off", "times", prepare=_behind_proxy)
def black_hole(stage: Stage, rng: random.Random) -> int:
    """Connections stay open and nothing moves, until the way is mended and breaks them off.

    It shows nothing of the limits of a connection: the proxy's host acknowledges what the proxy does not forward, so
    neither keepalive nor tcp_user_timeout would ever end this, and statement_timeout is the server's, which hears
    nothing. That they are set is `tests/storage/test_outage.py`'s.
    """
    stage.more(rng.randrange(20, 150))
    _proxy(stage).swallow()
    stage.assert_stands_still(8)  # after one second for what was under way
    _proxy(stage).release()
    return 1


def _connections_refused(stage: Stage) -> int:
    return stage.postgres.logged().count(f'too many connections for role "{SERVICE}"')


@fault("database: connection limit reached", "times")
def connection_limit(stage: Stage, rng: random.Random) -> int:
    times = 2
    for _ in range(times):
        stage.more(rng.randrange(20, 150))
        stage.sql(f"ALTER ROLE {SERVICE} CONNECTION LIMIT 2")
        stage.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", (SERVICE,))
        refused = _connections_refused(stage)
        try:
            stage.pause(4)
            assert _connections_refused(stage) > refused
        finally:
            stage.sql(f"ALTER ROLE {SERVICE} CONNECTION LIMIT -1")
    return times


@fault("database: disk full (53100)", "statements", short=True)
def disk_full(stage: Stage, rng: random.Random) -> int:
    stage.more(rng.randrange(20, 150))
    with sabotage(stage, "disk_full", rng) as hits:
        stage.assert_stands_still(4)
        times = hits()
    return times + _for_actors(stage, rng, "disk_full")


def _for_actors(stage: Stage, rng: random.Random, error: str) -> int:
    """No actor gets on, while ingest does and holds can be written: who took it for a fault of the data would come down
    to single events of single customers, and hold them."""
    with sabotage(stage, error, rng, tables=OF_ACTORS) as hits:
        stage.more(300)
        stage.until(lambda: hits() >= _HITS)
        return hits()


@fault("database: deadlocks (40P01)", "statements")
def deadlocks(stage: Stage, rng: random.Random) -> int:
    return _now_and_then(stage, rng, "deadlock_detected") + _for_actors(stage, rng, "deadlock_detected")


@fault("database: serialization failures (40001)", "statements")
def serialization_failures(stage: Stage, rng: random.Random) -> int:
    return _now_and_then(stage, rng, "serialization_failure") + _for_actors(stage, rng, "serialization_failure")


def _now_and_then(stage: Stage, rng: random.Random, error: str) -> int:
    """So rarely that events come through."""
    with sabotage(stage, error, rng, per_mille=50) as hits:
        stage.more(300)
        return hits()


def _locks_given_up(stage: Stage) -> int:
    return stage.postgres.logged().count("canceling statement due to lock timeout")


@fault("database: row locks held by somebody else", f"locks of {_LOCKED_S:g} s", recovers_s=40)
def row_locks(stage: Stage, rng: random.Random) -> int:
    """The busiest customers are locked, longer than the service waits for a lock; ingest needs these rows too. A bundle
    that met the lock is tried again up to 30 s later."""
    stage.more(rng.randrange(20, 150))
    with closing(stage.connect()) as other, other.cursor() as cursor:
        cursor.execute("SELECT id FROM customer ORDER BY head DESC LIMIT 3 FOR UPDATE")
        busiest = tuple(row[0] for row in cursor.fetchall())
        cursor.execute("SELECT customer FROM loyalty_state WHERE customer IN %s FOR UPDATE", (busiest,))
        given_up = _locks_given_up(stage)
        stage.pause(_LOCKED_S)
        assert _locks_given_up(stage) > given_up
        other.rollback()
    return 1


@fault("database: a snapshot open all the time", "snapshots")
def open_snapshot(stage: Stage, rng: random.Random) -> int:
    with closing(stage.connect()) as other:
        other.set_session(isolation_level=psycopg2.extensions.ISOLATION_LEVEL_REPEATABLE_READ)
        with other.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM event")
            (before,) = cursor.fetchall()
            stage.more(1_000)
            cursor.execute("SELECT count(*) FROM event")
            assert cursor.fetchall() == [before]
        other.rollback()
    return 1
