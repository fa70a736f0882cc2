"""What a fold of a whole stream keeps of it because a later event may ask for it: here in memory, for short streams.

`storage.scratch` keeps the same in a temporary file, for streams of any length.
"""

from collections import UserDict
from collections.abc import MutableMapping
from typing import Final

from customer_actors.domain.credit_book import Facts, Ledger


class Numbers(MutableMapping[int, int]):
    """Integers by position."""

    def bounds(self) -> tuple[int, int] | tuple[None, None]:
        """The least and the greatest value; None when there is none."""
        values = self.values()
        return (min(values), max(values)) if values else (None, None)


class _InMemory(UserDict[int, int], Numbers):
    pass


class Scratch:
    """Makes what one fold of one customer keeps, empty."""

    def numbers(self) -> Numbers:
        return _InMemory()

    def credit_facts(self) -> Facts:
        return Ledger()


IN_MEMORY: Final = Scratch()
