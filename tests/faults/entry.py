"""Processes of ours with a fault inside: patches, then calls the product's own `main`.

`python -m tests.faults.entry ingest` and `python -m tests.faults.entry dramatiq ARGUMENTS…`; the environment variable
FAULT names what is wrong with this process.
"""

import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

CLOCK_FILE: Final = "FAULT_CLOCK"
"""Variable with the path of a file that holds by how many seconds the clock is wrong; it may change at any time."""
_LOOK_S: Final = 0.05


def wrong_clock() -> None:
    """`time.time` and `time.time_ns` as a host's clock that somebody sets; the monotonic clock is right."""
    path = Path(os.environ[CLOCK_FILE])
    right_time, right_time_ns, monotonic = time.time, time.time_ns, time.monotonic
    looked: list[float] = [0.0, 0.0]

    def off_s() -> float:
        if monotonic() - looked[0] > _LOOK_S:
            looked[:] = [monotonic(), float(path.read_text() or 0)]
        return looked[1]

    time.time = lambda: right_time() + off_s()
    time.time_ns = lambda: right_time_ns() + int(off_s() * 1_000_000_000)


def broken_folds() -> None:
    """A bad deploy: every fold of every actor raises."""
    from customer_actors.storage import segmentation
    from customer_actors.storage.actors import STREAM_STORES

    for store in STREAM_STORES.values():
        store.load = _broken(store.load)  # type: ignore[method-assign]
    segmentation.segment_of = _raising  # type: ignore[assignment]


def _raising(*_: object) -> None:
    raise AttributeError("no such attribute (made by the fault suite)")


def _broken(load: Callable[..., Any]) -> Callable[..., Any]:
    def broken(self: Any, events: Sequence[Any]) -> Any:
        work = load(self, events)
        work.fold = _raising
        return work

    return broken


FAULTS: Final = {"clock": wrong_clock, "folds": broken_folds}


def become(*command: str) -> None:
    """Run `dramatiq ARGUMENTS…` or `customer-actors ARGUMENTS…` in this process, as it has been patched."""
    if command[0] == "dramatiq":
        from dramatiq.cli import main as dramatiq
        from dramatiq.cli import make_argument_parser

        sys.argv = [*command]
        sys.exit(dramatiq(make_argument_parser().parse_args(command[1:])))  # type: ignore[no-untyped-call]
    from customer_actors.cli import main as product

    sys.argv = ["customer-actors", *command]
    product()


if __name__ == "__main__":
    FAULTS[os.environ["FAULT"]]()
    become(*sys.argv[1:])
