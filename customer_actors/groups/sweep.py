"""The sweep: re-ring what nobody answered. It makes the broker disposable: purge any queue and nothing is lost.

Its cost follows recent appends: it looks at the customers of old bells only. Start-up alone compares every head with
every position.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, Protocol

HELD: Final = "held"
"""The queue of the retries of held groups."""


class Overdue(NamedTuple):
    """What one sweep found."""

    behind: Mapping[str, Sequence[int]]
    """Actor -> groups that wait and are not held."""
    answered: Sequence[int]
    """Bells whose groups are all through or held."""
    held: Sequence[tuple[str, int]]
    """(actor, group) of holds whose next try is overdue."""
    last_bell: int = 0
    """Where the next sweep goes on; 0 when this one saw the newest old bell."""


class Ringing(Protocol):
    """Who can be rung."""

    def ring_actor(self, actor: str, customers: Sequence[int]) -> None: ...
    def ring_held(self, actor: str, customer: int, delay_ms: int) -> None: ...


def sweep(found: Overdue, ringer: Ringing, busy: Callable[[str], bool], forget: Callable[[Sequence[int]], None]) -> int:
    """Ring every actor that is behind, unless its queue still has messages; returns how many groups were rung.

    So with late holds: rung while their queue is full they would be rung faster than they can be tried.
    """
    rung = 0
    for actor, groups in found.behind.items():
        if groups and not busy(actor):
            ringer.ring_actor(actor, groups)
            rung += len(groups)
    for actor, group in found.held if found.held and not busy(HELD) else ():
        ringer.ring_held(actor, group, 0)
    forget(found.answered)
    return rung
