"""The list of faults: a name, what is injected, and what the stage needs for it."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

from tests.faults.stage import Stage

Inject = Callable[[Stage, random.Random], int]
"""Injects the fault while traffic flows, and ends it; returns how many times it did."""


def nothing(_: Stage) -> None:
    """No preparation."""


@dataclass(frozen=True)
class Fault:
    """One fault of the list in docs/guarantees.md."""

    name: str
    inject: Inject
    unit: str
    """What is counted."""
    short: bool = False
    """Part of `make test`."""
    prepare: Callable[[Stage], None] = nothing
    """Called before the processes start."""
    env: Mapping[str, str] = field(default_factory=dict)
    events: int = 1_500
    """At least; while the fault lasts, more come, for it must meet traffic to its end."""
    shuffled: bool = False
    """The lines are sent in no order, and a fifth of them twice."""
    dead_letters: int = 0
    """How many messages must end as dead letters: those that nobody can decode, and no other."""
    recovers_s: float = 30.0
    """After so long, what is not through counts as lost [G11]."""
    ends_processes: bool = False
    """Whether processes of ours end by it; after any other fault those that ran before still run [G11]."""
    holds: bool = False
    """Whether customers are held by it: only where their data or a fold is at fault, never in an outage [G8]."""


FAULTS: Final[list[Fault]] = []


def fault(
    name: str,
    unit: str,
    *,
    short: bool = False,
    prepare: Callable[[Stage], None] = nothing,
    env: Mapping[str, str] | None = None,
    events: int = 1_500,
    shuffled: bool = False,
    dead_letters: int = 0,
    recovers_s: float = 30.0,
    ends_processes: bool = False,
    holds: bool = False,
) -> Callable[[Inject], Inject]:
    """Put a function on the list."""

    def listed(inject: Inject) -> Inject:
        FAULTS.append(
            Fault(
                name,
                inject,
                unit,
                short=short,
                prepare=prepare,
                env=env or {},
                events=events,
                shuffled=shuffled,
                dead_letters=dead_letters,
                recovers_s=recovers_s,
                ends_processes=ends_processes,
                holds=holds,
            )
        )
        return inject

    return listed
