"""The named crash points: kill -9 of this very process at exactly that place, then nothing is tidied up.

`python -m tests.faults.crash POINT ACTOR NUMBER ARGUMENTS…` runs `customer-actors ARGUMENTS…`, or the workers where
they begin with `dramatiq`, and dies when it comes to the point for the NUMBER-th time. ACTOR is the actor meant, or -
for the points of ingest. The point "broken" does not kill: whatever ACTOR folds raises.
"""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any, Final

from customer_actors.actors.pipeline import Pipeline
from customer_actors.ingest.link import Link
from customer_actors.storage import append, draining, holds, segmentation, triage
from customer_actors.storage.actors import STREAM_STORES, Store
from customer_actors.storage.segmentation import SegmentationStore
from tests.faults.entry import become

Wanted = Callable[..., bool]
"""Whether a call with these arguments is the one meant."""


class Countdown:
    """Kills the process when asked for the last time."""

    def __init__(self, number: int) -> None:
        self.left = number

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def _before(owner: Any, name: str, die: Countdown, wanted: Wanted = lambda *_: True) -> None:
    work = getattr(owner, name)

    def replaced(*args: Any, **options: Any) -> Any:
        if wanted(*args):
            die()
        return work(*args, **options)

    setattr(owner, name, replaced)


def _after(owner: Any, name: str, die: Countdown, wanted: Wanted = lambda *_: True) -> None:
    work = getattr(owner, name)

    def replaced(*args: Any, **options: Any) -> Any:
        done = work(*args, **options)
        if wanted(*args):
            die()
        return done

    setattr(owner, name, replaced)


def _store(actor: str) -> type[Store]:
    return SegmentationStore if actor == SegmentationStore.actor else STREAM_STORES[actor]


def _after_insert(_: str, die: Countdown) -> None:
    _after(append, "_append_events", die)


def _before_commit(_: str, die: Countdown) -> None:
    _after(append, "add_bell", die)


def _before_bell(_: str, die: Countdown) -> None:
    _before(Pipeline, "ring", die, lambda _, bell: bool(bell))


def _before_ack(_: str, die: Countdown) -> None:
    _after(Pipeline, "ring", die, lambda _, bell: bool(bell))


def _after_ack(_: str, die: Countdown) -> None:
    _after(Link, "acknowledge", die)


def _before_fold(actor: str, die: Countdown) -> None:
    """The rows are locked, nothing is folded."""
    _after(_store(actor), "_rescore" if actor == SegmentationStore.actor else "load", die)


def _before_actors_commit(actor: str, die: Countdown) -> None:
    """State, position and facts are written, and not committed."""
    _after(holds, "hold", die, lambda _, of, *__: of == actor)


def _before_last_look(actor: str, die: Countdown) -> None:
    _before(_store(actor), "behind", die)


def _before_next(actor: str, die: Countdown) -> None:
    """The advance is over; who comes next is not rung."""
    _before(Pipeline, "_follow_up", die, lambda _, of, *__: of == actor)


def _before_release(_: str, die: Countdown) -> None:
    """The flag is cleared, and not committed."""
    _after(triage, "record", die)


def _before_draining(_: str, die: Countdown) -> None:
    """Released and committed; nobody was advanced."""
    release = triage.release

    def dying(*arguments: Any) -> Any:
        for freed in release(*arguments):
            die()
            yield freed

    setattr(triage, "release", dying)  # noqa: B010


def _while_draining(actor: str, die: Countdown) -> None:
    """Released, and the successors are being applied."""
    _before(draining, "advance", die, lambda store, *_: store.actor == actor)


INGEST: Final = {
    "after insert": _after_insert,
    "before commit": _before_commit,
    "after commit, before bell": _before_bell,
    "after bell, before ack": _before_ack,
}
ACKNOWLEDGED: Final = {"after ack": _after_ack}
"""Only where there is a broker to acknowledge to."""
ADVANCE: Final = {
    "locked, before fold": _before_fold,
    "saved, before commit": _before_actors_commit,
    "after commit, before last look": _before_last_look,
    "after last look, before ringing the next": _before_next,
}
DRAINING: Final = "released, while draining"
RELEASE: Final = {
    "released, before commit": _before_release,
    "released and committed, before draining": _before_draining,
    DRAINING: _while_draining,
}


def broken(actor: str, _: Countdown) -> None:
    """No crash point: the actor's folds raise, as after a bad deploy."""

    def raising(*_: object) -> None:
        raise AttributeError("no such attribute (made by the fault suite)")

    if actor == SegmentationStore.actor:
        segmentation.segment_of = raising  # type: ignore[assignment]
        return
    load = STREAM_STORES[actor].load

    def loaded(*args: Any) -> Any:
        work = load(*args)
        work.fold = raising  # type: ignore[method-assign, assignment]
        return work

    STREAM_STORES[actor].load = loaded  # type: ignore[method-assign, assignment]


BROKEN: Final = {"broken": broken}
POINTS: Final = {**BROKEN, **INGEST, **ACKNOWLEDGED, **ADVANCE, **RELEASE}


if __name__ == "__main__":
    _point, _actor, _number, *_arguments = sys.argv[1:]
    POINTS[_point](_actor, Countdown(int(_number)))
    become(*_arguments)
