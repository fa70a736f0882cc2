"""Whether the service is well: what is looked at and where its limits are [G24]. Pure; `cli.health` asks and prints."""

import socket
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from customer_actors.settings import Settings
from customer_actors.storage.beats import Beat
from customer_actors.storage.vitals import Vitals

MISSED_BEATS: Final = 3
_SLACK_S: Final = 10
_KINDS: Final = ("worker", "ingest")


class Check(NamedTuple):
    """One line of a probe."""

    name: str
    ok: bool
    says: str


def stale_us(settings: Settings) -> int:
    """Age from which on a beat is no sign of life: processes beat at every sweep."""
    return (MISSED_BEATS * settings.sweep_seconds + _SLACK_S) * 1_000_000


def live_checks(
    beats: Sequence[Beat],
    settings: Settings,
    now_us: int,
    runs: Callable[[Beat], bool],
    kind: str | None = None,
    host: str | None = None,
) -> list[Check]:
    """The processes of one host: each that beats must have all its threads, and none may run without beating.
    `runs` tells whether the process that wrote a beat still does.

    A process that neither beats nor runs was ended, and one that ended in trouble was replaced once another of its kind
    beat after it; what is left is red when no process of a kind is there any more. An embedded one that is gone, such
    as a killed `run` over a file, is missed by nobody, and without a broker nothing has to run.
    """
    here, stale = host or socket.gethostname(), stale_us(settings)
    ours = [beat for beat in beats if beat.host == here and kind in (None, beat.kind)]
    ours = [beat for beat in ours if beat.kind != "embedded" or runs(beat)]
    if not ours and kind is None and settings.rabbitmq_url is None:
        return [Check("process", True, "embedded: nothing has to run; `run` ends with an exit code")]
    well = {beat.kind: beat.at_us for beat in ours if beat.is_fresh(now_us, stale) and not beat.trouble}
    checks, missing = [], {beat.kind for beat in ours} or {kind or "process"}
    for beat in ours:
        fresh, running = beat.is_fresh(now_us, stale), runs(beat)
        replaced = not running and well.get(beat.kind, 0) > beat.at_us
        if (fresh or running) and not replaced:
            checks.append(_process(beat, now_us, stale))
        if fresh:
            missing.discard(beat.kind)
    return checks + [Check(each, False, f"no {each} of this host is alive: start it") for each in sorted(missing)]


def _process(beat: Beat, now_us: int, stale: int) -> Check:
    if not beat.is_fresh(now_us, stale):
        says = f"runs without a sign of life for {abs(now_us - beat.at_us) // 1_000_000} s: restart it"
        return Check(beat.process, False, says)
    if trouble := beat.trouble:
        return Check(beat.process, False, f"{trouble}: restart it")
    return Check(beat.process, True, f"{beat.threads_alive} threads")


def ready_checks(
    beats: Sequence[Beat], figures: Vitals, broker: Mapping[str, Any] | None, settings: Settings, now_us: int
) -> list[Check]:
    """The whole service; `broker` as `status` shows it, None without one."""
    fresh = [beat for beat in beats if beat.is_fresh(now_us, stale_us(settings))]
    checks = [] if broker is None else [*_broker(broker), _queues(fresh), *(_kind(each, fresh) for each in _KINDS)]
    troubled = [f"{beat.process}: {beat.trouble}" for beat in fresh if beat.trouble]
    most_quarantined = settings.health_max_quarantined
    alarmed = any(beat.alarm for beat in fresh if beat.kind != "ingest")
    return [
        *checks,
        Check("threads", not troubled, "; ".join(troubled) or "all alive"),
        Check("mass failure", not alarmed, "most customers fail: look at `held list`" if alarmed else "none"),
        _lag(figures, settings, now_us),
        _at_most("held", figures.held, settings.health_max_held, "customers", "held list"),
        _at_most("parked", figures.parked, settings.health_max_parked, "customers", "held list"),
        _at_most("quarantined", figures.quarantined, most_quarantined, "new in 24 hours", "quarantine list"),
    ]


def _broker(broker: Mapping[str, Any]) -> list[Check]:
    if not broker["reachable"]:
        return [Check("broker", False, f"cannot be reached: {broker['error']}")]
    letters = broker["queues"]["customer_dead_letter_queue"] or 0
    dead = _at_most("dead letters", letters, 0, "messages", "quarantine retry --dead-letters --dry-run")
    return [Check("broker", True, "reachable"), dead]


def _queues(fresh: Sequence[Beat]) -> Check:
    alarms = sorted({beat.alarm for beat in fresh if beat.alarm and beat.kind == "ingest"})
    return Check("queues", not alarms, "; ".join(alarms) or "connected")


def _kind(kind: str, fresh: Sequence[Beat]) -> Check:
    count = sum(beat.kind == kind for beat in fresh)
    return Check(kind, count > 0, f"{count} beating" if count else f"no {kind} beats: start one, see the Procfile")


def _lag(figures: Vitals, settings: Settings, now_us: int) -> Check:
    limit_s = settings.health_max_lag_seconds
    if figures.oldest_us is None:
        return Check("lag", True, f"no event waits for {limit_s} s")
    return Check("lag", False, f"an event waits for {(now_us - figures.oldest_us) // 1_000_000} s, limit {limit_s} s")


def _at_most(name: str, count: int, limit: int, of: str, look_at: str) -> Check:
    says = f"{count} {of}, limit {limit}"
    return Check(name, count <= limit, says if count <= limit else f"{says}: look at `{look_at}`")
